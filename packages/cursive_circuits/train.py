"""Both trainings, by the core's loop: the model that writes, and the positive control, on tiled
pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cursive_circuits import data
from cursive_circuits.data import Words, WrittenRows
from cursive_circuits.data_bank import load_bank
from cursive_circuits.data_tiled import DrilledRows, TiledRows
from cursive_circuits.measure_losses import losses
from cursive_circuits.model import CursiveTransformer
from cursive_circuits.model_sampling import sample
from cursive_circuits.params import CursiveCircuits
from cursive_circuits.run_directory import KIND, Trained, save_run
from interp_core.files.artifacts import file_sha256
from interp_core.files.folders import check_replaceable
from interp_core.pipeline.import_closure import code_of
from interp_core.training.batches import IGNORED
from interp_core.training.checkpoints import fingerprint, scratch
from interp_core.training.live_run import Run
from interp_core.training.loop import Moment, train
from interp_core.training.tracking import About, tracked_run

STAGE = "cursive_circuits"
HELD_OUT = 10**9  # a step that no training reaches: its rows are watched


def train_handwriting(
    params: CursiveCircuits, bank: Path, place: Path, *, position: int = 0
) -> None:
    """Train the model that writes; resumes."""
    settings = params.handwriting
    items = load_bank(bank, alphabet=params.bank.alphabet)
    training, held_out = Words.split(items, params.tokens, params.bank.alphabet, params.bank.split)
    shape = params.configurations[settings.configuration]
    written = WrittenRows(
        training, settings.mixture, settings.rows, settings.dealt, settings.seed, shape.context
    )
    tiled = TiledRows(params.tokens, params.control.tiled, params.control.rows, settings.seed)
    source = DrilledRows(written, tiled, settings.drill)
    plain = without_augmentation(settings.mixture)
    watched = WrittenRows(
        held_out, plain, params.watched.rows, settings.dealt, settings.seed, shape.context
    )
    _train(
        "handwriting",
        params,
        source,
        watched,
        place,
        position=position,
        marks=[file_sha256(bank), repr(tiled)],
    )


def train_control(params: CursiveCircuits, place: Path, *, position: int = 0) -> None:
    """Train the positive control; resumes."""
    settings = params.control
    source = TiledRows(params.tokens, settings.tiled, settings.rows, settings.seed)
    copies = settings.tiled.model_copy(update={"ordered": 0.0})
    watched = TiledRows(params.tokens, copies, params.watched.rows, settings.seed)
    _train("control", params, source, watched, place, position=position, marks=[])


def without_augmentation(mixture: data.Mixture) -> data.Mixture:
    """The same rows as their writers wrote them: tests are never augmented."""
    return mixture.model_copy(update={"jitter": 0.0, "slant": 0.0, "stretch": 0.0})


def settings_of(name: str, params: CursiveCircuits) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a run's record says of its model, and of how it was trained."""
    training = params.handwriting if name == "handwriting" else params.control
    model = {
        "tokens": params.tokens.model_dump(mode="json"),
        "shape": params.configurations[training.configuration].model_dump(mode="json"),
    }
    record = {
        "training": training.model_dump(mode="json"),
        "bank": params.bank.model_dump(mode="json"),
        "watched": params.watched.model_dump(mode="json"),
    }
    return model, record


def _train(
    name: str,
    params: CursiveCircuits,
    source: DrilledRows | TiledRows,
    watched: WrittenRows | TiledRows,
    place: Path,
    *,
    position: int,
    marks: list[str],
) -> None:
    check_replaceable(place, kind=KIND, name=name)
    torch.set_num_threads(params.threads)
    settings = params.handwriting if name == "handwriting" else params.control
    shape = params.configurations[settings.configuration]
    alphabet = params.bank.alphabet
    model, record = settings_of(name, params)
    described = {**model, **record}
    mark = fingerprint(described, marks, code=code_of(__name__))
    learner = CursiveTransformer(
        shape, vocabulary=params.tokens.size, alphabet=len(alphabet), seed=settings.seed
    )
    about = About(
        STAGE,
        name,
        job="train",
        seed=settings.seed,
        architecture="cursive_transformer",
        settings=described,
    )
    with (
        scratch(STAGE, f"{name}-{mark}", beside=place.parent) as held,
        tracked_run(about, held.folder) as run,
    ):
        history = train(
            learner,
            source,
            Watch(name, params, watched, run, held.folder / "sample.png"),
            settings.recipe,
            scratch=held,
            run=run,
            label=name,
            position=position,
            keep=lambda _: False,
            inputs=source.inputs,
        )
        save_run(place, Trained(name, learner, params.tokens, alphabet), history, record)


@dataclass(frozen=True)
class Watch:
    """The numbers of a history row, on held-out rows; in W&B also a drawn sample."""

    name: str
    params: CursiveCircuits
    rows: WrittenRows | TiledRows
    run: Run
    picture: Path

    def __call__(self, moment: Moment) -> Mapping[str, float]:
        """Held-out loss by kind of token, nats, and accuracy."""
        assert isinstance(moment.model, CursiveTransformer)
        ids, labels = self.rows(HELD_OUT)
        text = self.rows.inputs(HELD_OUT).get("text")

        with torch.no_grad():
            found = losses(moment.model, self.params.tokens, ids, text)

        counted = labels.numpy()[:, 1:] != IGNORED
        row = {
            f"held_out_{kind}": float(np.nanmean(values[counted])) for kind, values in found.items()
        }

        if self.name == "handwriting" and moment.step % self.params.watched.sample_every == 0:
            self._show(moment)

        return row

    def _show(self, moment: Moment) -> None:
        """A sampled word as a picture among the live curves; nothing of it is a result."""
        from cursive_circuits.figures_ink import words_on_page

        model = moment.model
        assert isinstance(model, CursiveTransformer)
        assert isinstance(self.rows, WrittenRows)
        settings, tokens = self.params.sampling, self.params.tokens
        words = list(dict.fromkeys(item.text for item in self.rows.words.items))[:4]
        texts = torch.from_numpy(
            data.stacked_text([self.rows.words.text([word]) for word in words])
        ).to(model.device)
        rows = sample(
            model,
            tokens,
            texts,
            temperature=settings.temperature,
            longest=min(settings.longest, model.shape.context - 2),
            generator=torch.Generator().manual_seed(settings.seed),
        )
        words_on_page(
            {word: tokens.first_word(row) for word, row in zip(words, rows, strict=True)},
            self.picture,
        )
        self.run.image("ink/sample", self.picture, moment.step)
