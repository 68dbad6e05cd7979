"""Every knob of the study.

A profile gives the values; each option of a command overrides the field of its name.
"""

from math import ceil, log2
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from interp_core.files.params import Params
from interp_core.models.spec import Dtype

Family = Literal["repeated_tokens", "spaced_pairs", "names", "natural_repeats"]
_SEED_NAMES = {"ABAB": "spaced_pairs", "NAMES": "names"}


class PythiaTopology(Params):
    """The section `pythia_topology` of a profile."""

    # models: names of the profile's `models`, directories, or hub ids
    models: tuple[str, ...] = Field(min_length=1)
    device: str = "cpu"  # where it runs: cpu, cuda, cuda:N, mps, or auto: divided over all
    bos: str | int = "own"  # what prompts begin with: own, none, a token, or its id
    dtype: Dtype = "float32"  # of the model's numbers
    threads: PositiveInt  # CPU threads of torch
    batch_size: PositiveInt  # prompts in one forward pass
    seed: NonNegativeInt  # of every random choice

    # Stimuli

    # tokens in a prompt of spaced pairs, names and natural repeats, BOS included
    seq_len: PositiveInt
    n_sequences: PositiveInt = Field(ge=8)  # prompts of each family
    period: PositiveInt = Field(ge=2)  # tokens in one copy of the repeated random tokens
    # lags of spaced pairs: tokens from query back to induction key
    lag_values: tuple[PositiveInt, ...] = Field(min_length=1)
    split_lag: PositiveInt  # lags up to this one are short, the others long
    # families beside repeated_tokens, which always runs
    task_types: tuple[Family, ...] = Field(min_length=1)
    max_pairs: PositiveInt  # copy operations of a natural-repeats prompt
    # share of most and of least frequent ids left out of random prompts
    excluded_share: float = Field(ge=0, lt=0.5)

    # Layer profile and its nulls

    profile_mode: Literal["mean", "top_quantile", "count"]  # what a layer's heads are summarised by
    # quantile of a layer's heads, for mode top_quantile
    high_score_quantile: float = Field(gt=0, lt=1)
    bootstrap_resamples: PositiveInt = Field(ge=100)  # bootstrap draws
    permutation_draws: PositiveInt = Field(ge=1000)  # draws of randomisation tests
    reliability_splits: PositiveInt  # random halves of the prompts, for how well ranks repeat
    shuffled_draws: PositiveInt  # wrong antecedents per copy operation
    # family-wise level at which a head stands out of the null
    null_level: float = Field(gt=0, lt=0.5)
    # smallest excess prefix matching that counts as an induction head
    smallest_excess: float = Field(ge=0, lt=1)
    # attention one token back from which on a head is a previous-token head
    previous_token_share: float = Field(gt=0, lt=1)
    # relative depth within which two sizes count as the same
    equivalence_margin: float = Field(gt=0, lt=1)
    equivalence_alpha: float = Field(gt=0, lt=0.5)  # level of each of the two one-sided tests
    # points of relative depth that the curves of all sizes share
    grid_points: PositiveInt = Field(ge=2)

    # Interventions

    causal_top_k: PositiveInt  # best heads ablated together
    causal_random_k: PositiveInt  # heads ablated together in the random control
    causal_draws: PositiveInt = Field(ge=1)  # distinct layer-matched random sets, at most
    causal_sequences: PositiveInt  # prompts in interventions and emergence
    causal_level: float = Field(gt=0, lt=0.5)  # p up to which copying is said to need the heads
    dose_k: tuple[PositiveInt, ...] = Field(min_length=1)  # numbers of heads of the dose curve
    dose_draws: PositiveInt  # distinct random sets for each number, at most

    # Circuits

    composition_distances: tuple[PositiveInt, ...] = Field(min_length=1)  # rotary distances, tokens
    composition_draws: PositiveInt = Field(ge=10)  # random orientations of the z-score
    path_pairs: PositiveInt  # pairs of heads confirmed by path patching, and as many random ones

    # Emergence: hub branches of training checkpoints, such as step1000; models trained here have

    # hub branches of training checkpoints, such as step1000; models trained here have files instead
    revisions: tuple[str, ...]
    # bootstrap draws over prompts, for the interval of an onset
    onset_resamples: PositiveInt = Field(ge=100)

    @field_validator("task_types", mode="before")
    @classmethod
    def _names_of_earlier_versions(cls, values: object) -> object:
        if not isinstance(values, list | tuple):
            return values

        return [_SEED_NAMES.get(str(value), value) for value in values]

    @model_validator(mode="after")
    def _tests_can_reach_their_level(self) -> "PythiaTopology":
        # As sign_flip_threshold has it; said before anything is measured.
        needed = ceil(log2(4 / self.null_level))

        if self.n_sequences < needed:
            raise ValueError(
                f"n_sequences: {self.n_sequences} prompts are too few for a test at null_level "
                f"{self.null_level}: use at least {needed}"
            )

        if (1 + self.permutation_draws) * self.null_level < 1 - 1e-9:
            enough = ceil(1 / self.null_level) - 1
            raise ValueError(
                f"permutation_draws: {self.permutation_draws} draws cannot reach null_level "
                f"{self.null_level}: use at least {enough}"
            )

        return self

    @model_validator(mode="after")
    def _lags_fit(self) -> "PythiaTopology":
        longest = max(self.lag_values)

        if "spaced_pairs" in self.task_types and longest + 4 > self.seq_len:
            raise ValueError(
                f"lag_values: lag {longest} is longer than the sequence: it needs seq_len "
                f"{longest + 4}, got {self.seq_len}"
            )

        return self
