"""Fine-tuning on text, with the core's loop and scan; the induction numbers are looked at on the
way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from interp_core.errors import InputError
from interp_core.files.artifacts import (
    array_sha256,
    file_sha256,
    replacing,
    save_json,
    save_weights,
)
from interp_core.files.folders import check_replaceable, check_same_settings, replacing_folder
from interp_core.loading import subject_of
from interp_core.mamba.subject import MambaSubject, as_mamba
from interp_core.measures.scores import copy_behaviour
from interp_core.pipeline.import_closure import code_of
from interp_core.training.batches import IGNORED, Batch
from interp_core.training.checkpoints import fingerprint, scratch
from interp_core.training.history import History, history_csv
from interp_core.training.loop import Moment, train
from interp_core.training.recipe import Recipe
from interp_core.training.tracking import About, announce, tracked_run
from mamba_induction.data import Row, Stimuli, Texts
from mamba_induction.measure_attention import offset_profiles, prefix_matching
from mamba_induction.model import no_tokenizer
from mamba_induction.params import MambaInduction
from mamba_induction.streams import STREAMS

# folder under .scratch, group of the run, and what a tuned model records itself as
KIND = "mamba_induction"
# What shapes no weight of a tuned model, and stays out of its record.
_NOT_OF_TRAINING = {
    *("model", "twin", "dataset", "device", "dtype", "prompts_at_once"),
    *("bootstrap_resamples", "permutation_draws", "null_level", "smallest_excess"),
    *("recognised_quantile", "other_rates", "mixed_repeats"),
    *("causal_prompts", "causal_draws", "causal_level", "smallest_change"),
    *("examples", "example_period"),
}


@dataclass(frozen=True)
class DocumentSource:
    """Batches of documents, every epoch in another order; the batch of an update depends on (seed,
    step) alone.
    """

    rows: list[Row]
    size: int  # documents in an update
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Updates in which every document is seen once; the last one may have fewer documents."""
        return -(-len(self.rows) // self.size)

    def __call__(self, step: int) -> Batch:
        """Input ids, padded on the right, and labels: every token of a document counts, BOS and
        padding never do.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        order = STREAMS.rng("order", self.seed, epoch).permutation(len(self.rows))
        chosen = [self.rows[i] for i in order[place * self.size : (place + 1) * self.size]]
        return padded(chosen)


def padded(rows: list[Row]) -> Batch:
    """Rows of one length, and their labels."""
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    labels = np.full_like(ids, IGNORED)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        labels[place, 1 : len(row)] = row[1:]
    return torch.from_numpy(ids), torch.from_numpy(labels)


def recipe_of(params: MambaInduction, documents: int) -> Recipe:
    """The core's recipe for these settings and this many documents.

    InputError when they do not fit together.
    """
    steps = params.epochs * -(-documents // (params.batch_size * params.grad_accum))
    if params.warmup >= steps:
        raise InputError(
            f"warmup: {params.warmup} updates are not less than all {steps}; "
            "use more --texts or --epochs"
        )
    return Recipe(
        steps=steps,
        learning_rate=params.lr,
        final_share=params.final_share,
        warmup=params.warmup,
        betas=params.betas,
        weight_decay=params.weight_decay,
        clip=params.clip,
        precision="fp32",
        device="cpu" if params.device == "cpu" else "auto",
        threads=params.threads,
        checkpoint_every=params.evaluate_every,
        checkpoint_also=(),
        save_seconds=params.save_seconds,
    )


@dataclass(frozen=True)
class Watch:
    """What is measured at every evaluation, on fixed stimuli."""

    stimuli: Stimuli
    held_out: Batch
    params: MambaInduction

    @classmethod
    def of(cls, stimuli: Stimuli, texts: Texts, params: MambaInduction) -> "Watch":
        """On the first held-out documents."""
        return cls(stimuli, padded(texts.held_out[: params.watched_documents]), params)

    @torch.no_grad()
    def __call__(self, moment: Moment) -> Mapping[str, float]:
        """Perplexity of held-out documents, prefix matching of the best layer, accuracies of
        copying.
        """
        model: Any = moment.model
        subject = as_mamba(subject_of(model, name="model in training", bos=0, digest="in training"))
        asked = self.stimuli
        assert asked.repeated_text is not None
        assert asked.unpredicted is not None
        families = {
            "repeat_accuracy": asked.repeated,
            "pairs_accuracy": asked.shuffled,
            "repeated_text_accuracy": asked.repeated_text,
            "unpredicted_accuracy": asked.unpredicted,
        }

        try:
            profile = offset_profiles(subject, asked.repeated, self.params)
            accuracy = {
                name: copy_behaviour(subject, prompts)[0] for name, prompts in families.items()
            }
            loss = mean_loss(subject, self.held_out)
        finally:
            model.requires_grad_(requires_grad=True)

        return {
            "held_out_loss": loss,
            "held_out_perplexity": float(np.exp(loss)),
            "prefix_matching": float(prefix_matching(profile).mean(axis=0).max()),
            **{name: float(values.mean()) for name, values in accuracy.items()},
        }


@torch.no_grad()
def mean_loss(subject: MambaSubject, held_out: Batch, rows_at_once: int = 32) -> float:
    """Mean negative log-likelihood of all labels that count, nats a token."""
    ids, labels = (tensor.to(subject.device) for tensor in held_out)
    total = torch.zeros((), dtype=torch.float64)

    for first in range(0, len(ids), rows_at_once):
        part = slice(first, first + rows_at_once)
        total += _summed_loss(subject.logits(ids[part]), labels[part]).cpu()

    return float(total / int((labels[:, 1:] != IGNORED).sum()))


def _summed_loss(logits: Tensor, labels: Int[Tensor, "row position"]) -> Tensor:
    predicted, target = logits[:, :-1].flatten(0, 1).double(), labels[:, 1:].flatten()
    return nn.functional.cross_entropy(predicted, target, ignore_index=IGNORED, reduction="sum")


def fine_tune(
    subject: MambaSubject,
    stimuli: Stimuli,
    texts: Texts,
    params: MambaInduction,
    place: Path,
    *,
    replaces: bool = False,
) -> History:
    """Fine-tune the subject itself, in float32.

    Writes `place`, a Hugging Face directory with training.json, and returns the history. Resumes;
    same settings, weights and threads, same bytes. `replaces`: a training of other settings that
    is there, which otherwise stays (InputError).
    """
    if subject.tokenizer is None:
        raise no_tokenizer(subject)
    check_replaceable(place, kind=KIND, name=place.name)

    source = DocumentSource(texts.train, params.batch_size * params.grad_accum, params.seed)
    recipe = recipe_of(params, len(texts.train))
    model = subject.model.float().requires_grad_(requires_grad=True)
    model.zero_grad()  # an earlier training of this model in this process leaves its last gradients
    settings = {
        "base": subject.name,
        "base_sha256": subject.hash,
        "texts_sha256": array_sha256(*texts.train, *texts.held_out),
        "source": texts.source,
        "recipe": recipe.model_dump(mode="json"),
        "settings": params.model_dump(mode="json", exclude=_NOT_OF_TRAINING),
    }

    if not replaces:
        check_same_settings(place / "training.json", settings)

    about = About(
        KIND,
        place.name,
        job="fine-tune",
        seed=params.seed,
        architecture=subject.model.config.model_type,
        settings=settings,
    )
    mark = fingerprint(settings, code=code_of(__name__))
    announce()
    with (
        scratch(KIND, f"{place.name}-{mark}", beside=place.parent) as held,
        tracked_run(about, held.folder) as run,
        subject.fast(),
    ):
        watch = Watch.of(stimuli, texts, params)

        history = train(
            model,
            source,
            watch,
            recipe,
            scratch=held,
            run=run,
            label=place.name,
            keep=_is_best,
            accumulation=params.grad_accum,
        )

        with replacing_folder(place, kind=KIND, name=place.name) as part:
            _write(subject, history, settings, part)

    return history


def _is_best(history: History) -> bool:
    """Weights are kept where held-out text is predicted better than ever before: a diverged run has
    its last good ones, and a large model does not fill the disk.
    """
    losses = [row["held_out_loss"] for row in history]
    return losses[-1] == min(losses)


def _write(subject: MambaSubject, history: History, settings: dict[str, Any], folder: Path) -> None:
    """The finished model's files."""
    model: Any = subject.model
    model.config.dtype = "float32"
    model.config.save_pretrained(folder)

    # Copies, because tied weights share memory.
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_weights(folder / "model.safetensors", weights, {"format": "pt"})
    assert subject.tokenizer is not None
    subject.tokenizer.save_pretrained(folder)
    digest = file_sha256(folder / "model.safetensors")
    save_json(
        folder / "training.json", {**settings, "final": history[-1], "weights_sha256": digest}
    )


def save_history(history: History, path: Path) -> None:
    """The history as CSV, nine digits."""
    with replacing(path) as part:
        part.write_text(history_csv(history))
