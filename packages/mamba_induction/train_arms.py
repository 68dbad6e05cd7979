"""The same fine-tuning at other rates, and with repeats mixed in.

What fine-tuning does to copying may hang on its recipe: each arm starts from the same weights, sees
as many documents in the same order, and is measured once, at its end.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from interp_core.errors import InputError
from interp_core.files.artifacts import array_sha256
from interp_core.mamba.subject import MambaSubject
from interp_core.measures.scores import copy_behaviour
from interp_core.pipeline.import_closure import code_of
from interp_core.statistics.interval import mean_share
from interp_core.stimuli.prompts import Vocabulary, repeated_tokens
from interp_core.training.batches import Batch
from interp_core.training.checkpoints import fingerprint, scratch
from interp_core.training.loop import Moment, train
from interp_core.training.tracking import About, announce, tracked_run
from mamba_induction.data import Row, Stimuli, Texts, sampled, vocabulary_of
from mamba_induction.measure_gap import recognition_by_attention
from mamba_induction.params import MambaInduction
from mamba_induction.streams import STREAMS
from mamba_induction.train import KIND, DocumentSource, mean_loss, recipe_of

Report = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One fine-tuning."""

    rate: float  # learning rate
    repeats: float  # share of documents that are two copies of random tokens

    @property
    def name(self) -> str:
        """As reports and figures call it."""
        mixed = f", {100 * self.repeats:g} % repeats" if self.repeats else ""
        return f"lr {self.rate:g}{mixed}"


def arms_of(params: MambaInduction) -> list[Arm]:
    """The arms beside the fine-tuning itself: other rates, then its own rate with repeats."""
    rates = [Arm(rate, 0.0) for rate in params.other_rates if rate != params.lr]
    mixed = [Arm(params.lr, params.mixed_repeats)] if params.mixed_repeats else []
    return rates + mixed


def with_repeats(
    rows: list[Row], share: float, vocabulary: Vocabulary, params: MambaInduction
) -> list[Row]:
    """Documents, a share of them at random replaced by two copies of random tokens, of every period
    that fits. InputError when none does.
    """
    periods = [period for period in params.periods if 2 * period < params.max_length]
    if share and not periods:
        raise InputError(
            f"mixed_repeats: two copies of {min(params.periods)} tokens do not fit max_length "
            f"{params.max_length}: raise it or set mixed_repeats to 0"
        )

    rng = STREAMS.rng("mixed_repeats", params.seed)
    replaced = rng.permutation(len(rows))[: round(share * len(rows))]
    mixed = list(rows)

    for number, place in enumerate(replaced):
        period = periods[number % len(periods)]
        prompt = repeated_tokens(vocabulary, period=period, n_prompts=1, rng=rng)
        mixed[place] = prompt.tokens[0]

    return mixed


def tune_arm(
    subject: MambaSubject, texts: Texts, params: MambaInduction, arm: Arm, *, beside: Path
) -> None:
    """Fine-tune the subject itself, in float32, without keeping a file but the unfinished state,
    `beside` where the project cannot be written. Resumes.
    """
    recipe = recipe_of(params.model_copy(update={"lr": arm.rate}), len(texts.train))
    rows = with_repeats(texts.train, arm.repeats, vocabulary_of(subject), params)
    source = DocumentSource(rows, params.batch_size * params.grad_accum, params.seed)

    model = subject.model.float().requires_grad_(requires_grad=True)
    model.zero_grad()  # an earlier training of this model in this process leaves its last gradients

    settings = {
        "base_sha256": subject.hash,
        "texts_sha256": array_sha256(*rows),
        "recipe": recipe.model_dump(mode="json"),
        "accumulation": params.grad_accum,
    }
    mark = fingerprint(settings, code=code_of(__name__))
    label = f"{subject.name}, {arm.name}"

    def unwatched(_: Moment) -> Mapping[str, float]:
        return {}

    about = About(
        KIND,
        label,
        job="arm",
        seed=params.seed,
        architecture=subject.model.config.model_type,
        condition=arm.name,
        settings=settings,
    )
    announce()
    with (
        scratch(KIND, f"arm-{mark}", beside=beside) as held,
        tracked_run(about, held.folder) as run,
        subject.fast(),
    ):
        train(
            model,
            source,
            unwatched,
            recipe,
            scratch=held,
            run=run,
            label=label,
            keep=lambda _: False,
            accumulation=params.grad_accum,
        )


@torch.no_grad()
def outcome(
    subject: MambaSubject, stimuli: Stimuli, held_out: Batch, params: MambaInduction
) -> Report:
    """What a model is after an arm: perplexity of the watched documents, accuracies of copying, and
    how often what it recognises is not predicted, beside what independence gives.
    """
    assert stimuli.unpredicted is not None
    subject.model.eval()  # a training leaves it in the mode that it trains in

    families = {
        "repeat_accuracy": stimuli.repeated,
        "pairs_accuracy": stimuli.shuffled,
        "unpredicted_accuracy": stimuli.unpredicted,
    }
    shares: dict[str, Float[np.ndarray, " prompt"]] = {
        name: copy_behaviour(subject, prompts, batch_size=params.prompts_at_once)[0]
        for name, prompts in families.items()
    }
    asked = sampled(stimuli.repeated, params)

    return {
        "held_out_perplexity": float(np.exp(mean_loss(subject, held_out))),
        **{name: mean_share(values, unit="prompts").to_json() for name, values in shares.items()},
        "recognition": recognition_by_attention(subject, asked, params),
    }
