"""Every knob of the study.

A profile gives the values; each option of a command overrides the field of its name.
"""

import importlib.metadata
from math import ceil, log2
from pathlib import Path
from typing import Any

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from interp_core.errors import InputError
from interp_core.files.params import Params
from interp_core.models.spec import Dtype
from interp_core.stimuli.corpus import TextParams
from interp_core.training.recipe import Beta

# keys of the offset profile, counted from the earlier occurrence of the query's token
OFFSETS = (-1, 0, 1, 2, 3, 4)

# offsets of prefix matching: a convolution of four taps may move the token after it so far
PREFIX = (1, 2, 3)

# keys that the answer's own position may read, counted from it; -1 is the earlier occurrence
ANSWER_OFFSETS = (-3, -2, -1, 0)


class MambaInduction(Params):
    """The section `mamba_induction` of a profile."""

    model: str  # the Mamba: a name of the profile's `models`, a directory, or a hub id
    twin: str | None  # a transformer that sees the same token ids beside it, where there is one
    device: str = "cpu"  # where it runs: cpu, cuda, cuda:N or mps
    bos: str | int = "own"  # what prompts begin with: own, a token, or its id
    dtype: Dtype = "float32"  # of the analysed models; fine-tuning is in float32
    threads: PositiveInt  # CPU threads of torch
    seed: NonNegativeInt  # of every random choice
    prompts_at_once: PositiveInt  # prompts in one forward pass

    # Fine-tuning (the defaults of profile paper are the first version's)

    dataset: TextParams  # its held-out part is the real text of every analysis
    texts: PositiveInt  # documents to fine-tune on, from the start
    epochs: PositiveInt  # passes over the documents
    batch_size: PositiveInt  # documents computed together in fine-tuning
    grad_accum: PositiveInt  # batches in one update
    max_length: int = Field(ge=2)  # tokens of a document, BOS included; what is longer is cut
    lr: PositiveFloat  # learning rate of AdamW, at the end of the warm-up
    final_share: float = Field(ge=0, le=1)  # share of lr at the end of the cosine; 1: constant
    warmup: NonNegativeInt  # updates of linear rise of the learning rate
    betas: tuple[Beta, Beta]  # of AdamW (Loshchilov & Hutter 2019)
    weight_decay: NonNegativeFloat  # of matrices, by AdamW
    clip: PositiveFloat  # largest norm of the gradient
    watched_documents: PositiveInt  # held-out documents whose perplexity is followed
    evaluate_every: PositiveInt  # updates between two evaluations, beside the powers of two
    save_seconds: NonNegativeFloat  # between two saves of the state to resume from
    # learning rates of further fine-tunings, compared at their end
    other_rates: tuple[PositiveFloat, ...]
    # share of documents that are two copies of random tokens in one more fine-tuning at lr; 0: none
    mixed_repeats: float = Field(ge=0, lt=1)

    # Stimuli

    n_prompts: int = Field(ge=8)  # prompts of each family
    period: int = Field(ge=8)  # tokens in one copy of the prompts whose scores are of record
    copies: int = Field(ge=2)  # copies of the segment where the loss is followed over repetitions
    periods: tuple[PositiveInt, ...] = Field(min_length=1)  # periods of accuracy by period, tokens
    # tokens from query back to induction key, of spaced pairs
    lags: tuple[PositiveInt, ...] = Field(min_length=1)
    n_pairs: int = Field(ge=2)  # pairs of a prompt of shuffled pairs
    text_length: int = Field(ge=12)  # tokens of a prompt of natural repeats, BOS included
    max_pairs: PositiveInt  # copy operations of a prompt of natural repeats, at most
    context: int = Field(ge=20)  # tokens of a window of real text, BOS included
    # share of the context: the in-context score is the loss at its end less that here
    early: float = Field(gt=0, lt=1)
    around: PositiveInt  # tokens over which these two losses are averaged
    # copy operations a prompt, drawn at random, where whole rows of attention are computed
    queries: PositiveInt

    # Intervals and tests

    bootstrap_resamples: PositiveInt = Field(ge=100)  # bootstrap draws
    permutation_draws: PositiveInt = Field(ge=1000)  # draws of randomisation tests
    # family-wise level at which a layer's excess stands out
    null_level: float = Field(gt=0, lt=0.5)
    # excess prefix matching that counts: controls repeat no id, so large random weights have some
    smallest_excess: float = Field(ge=0, lt=1)
    # quantile of the control's scores above which a repeat is recognised
    recognised_quantile: float = Field(gt=0.5, lt=1)

    # Interventions

    causal_prompts: PositiveInt  # prompts in interventions
    causal_draws: PositiveInt  # random controls of each intervention
    causal_level: float = Field(gt=0, lt=0.5)  # at which a change is told from random controls
    smallest_change: float = Field(gt=0, lt=1)  # least change of accuracy that a verdict speaks of

    # Single sequences

    # single sequences that are drawn: so many random ones, and as many of real text
    examples: PositiveInt
    example_period: int = Field(ge=4)  # tokens in one copy of the random ones that are drawn

    @model_validator(mode="after")
    def _fits(self) -> "MambaInduction":
        if self.lags and max(self.lags) + 4 > self.context:
            raise ValueError(
                f"lags: lag {max(self.lags)} needs context {max(self.lags) + 4}, got {self.context}"
            )

        if self.n_prompts < len(self.lags):
            raise ValueError(
                f"n_prompts: {self.n_prompts} prompts cannot cover {len(self.lags)} lags"
            )

        if self.early * self.context < self.around:
            raise ValueError(
                f"around: {self.around} tokens do not fit before {self.early:g} of the context"
            )

        # as sign_flip_threshold has it; said before anything is measured
        needed = ceil(log2(4 / self.null_level))
        if self.n_prompts < needed or (1 + self.permutation_draws) * self.null_level < 1 - 1e-9:
            raise ValueError(
                f"null_level: {self.null_level} needs n_prompts {needed} and permutation_draws "
                f"{ceil(1 / self.null_level) - 1}, got {self.n_prompts} and "
                f"{self.permutation_draws}"
            )

        return self


def dataset_of(given: str, profile: TextParams) -> dict[str, Any]:
    """What a user's --dataset means: a file or folder, an installed package, or the profile's own
    hub data set.
    """
    every = profile.validation_every
    if Path(given).exists():
        return {"path": {"path": Path(given).resolve()}, "validation_every": every}
    if profile.hub is not None and profile.hub.dataset == given:
        return profile.model_dump()
    try:
        importlib.metadata.distribution(given)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise InputError(
            f"--dataset {given}: neither a file, a folder nor an installed package; "
            "a hub data set needs its revision and files: name it under mamba_induction.dataset "
            "in a profile"
        ) from None
    return {"packaged": {"distributions": [given], "min_characters": 80}, "validation_every": every}
