"""One run, trained by the core's loop, watched on one clock: behaviour and heads at every row, the
Hessian at some.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from jaxtyping import Float
from torch import Tensor

from eigen_phase.data import Sequences, batch_source
from eigen_phase.data_oracle import ceiling, entropy_floor
from eigen_phase.data_rows import held_out_rows, independent_rows, labelled, probe_rows
from eigen_phase.measure_alignment import (
    adam_memory,
    gradient_of,
    next_update,
    squared_cosines,
    subspace_overlap,
)
from eigen_phase.measure_curvature import next_token_hessian
from eigen_phase.measure_heads import behaviour_and_heads, per_target
from eigen_phase.measure_spectrum import eigenpairs
from eigen_phase.model import Transformer
from eigen_phase.params import Training
from eigen_phase.run_directory import KIND, write_run
from eigen_phase.streams import STREAMS
from interp_core.files.artifacts import load_weights
from interp_core.files.finished import keep, put_back
from interp_core.files.folders import check_replaceable
from interp_core.pipeline.import_closure import code_of
from interp_core.training.batches import BatchSource
from interp_core.training.checkpoints import Scratch, checkpoint_name, fingerprint, scratch
from interp_core.training.history import History
from interp_core.training.loop import Diverged, Moment, train
from interp_core.training.tracking import About, tracked_run

STAGE = "eigen_phase"


def train_runs(
    runs: Mapping[str, Training],
    folder: Path,
    *,
    ceiling_draws: int,
    job_type: str,
    kept: bool,
    position: int = 0,
) -> None:
    """Several runs one after the other in this process, each into folder/NAME.

    `kept`: whether finished runs are kept, and put back instead of being trained again.
    """
    for name, training in runs.items():
        place, settings = folder / name, training.model_dump(mode="json")
        mark = fingerprint(name, settings, ceiling_draws, code=code_of(__name__))
        finished = {"stage": STAGE, "name": name, "mark": mark}

        if kept and put_back([place], **finished):
            click.echo(f"{name}: trained before with these settings and this code, put back")
            continue

        train_run(
            name,
            training,
            place,
            ceiling_draws=ceiling_draws,
            job_type=job_type,
            position=position,
        )
        if kept:
            keep([place], **finished)


def train_run(
    name: str,
    training: Training,
    place: Path,
    *,
    ceiling_draws: int,
    job_type: str = "train",
    position: int = 0,
) -> None:
    """Train one run and write its directory at `place`; with its bounds, whose intervals are of
    `ceiling_draws` draws.

    Resumes; same settings and threads, same bytes.

    Diverged (an InputError) when the loss stops being finite: the directory then holds the history
    up to there.
    """
    check_replaceable(place, kind=KIND, name=name)

    torch.set_num_threads(training.threads)
    settings = {"name": name, **training.model_dump(mode="json")}
    mark = fingerprint(settings, code=code_of(__name__))
    transformer = Transformer(training.shape, seed=training.seed)
    source = batch_source(training.data_settings, rows=training.batch_size, seed=training.seed)

    about = About(
        STAGE,
        name,
        job=job_type,
        seed=training.seed,
        architecture="transformer" if training.mlp_ratio else "attention_only",
        condition=training.data,
        settings=settings,
    )

    with (
        scratch(STAGE, f"{name}-{mark}", beside=place.parent) as held,
        tracked_run(about, held.folder) as run,
    ):
        watch = Watch.of(training, source, held)
        try:
            history = train(
                transformer,
                source,
                watch,
                training.recipe,
                scratch=held,
                run=run,
                label=name,
                position=position,
                keep=keeping(training),
            )
        except Diverged as problem:
            held.check()
            write_run(
                place,
                name,
                training,
                problem.history,
                None,
                bounds=bounds(training, ceiling_draws),
                working=held.folder,
                diverged=str(problem),
            )
            raise Diverged(
                f"{problem}; the history up to there is in {place}", problem.history
            ) from None
        held.check()
        write_run(
            place,
            name,
            training,
            history,
            transformer,
            bounds=bounds(training, ceiling_draws),
            working=held.folder,
        )


def bounds(training: Training, draws: int) -> dict[str, float | bool]:
    """What no model can do better than: the oracle's accuracy on predictable test targets, its
    interval over rows, and the floor of the training's own loss.
    """
    rows = held_out_rows(training, training.test_settings)
    rng = STREAMS.rng("ceiling", training.seed)
    found = ceiling(rows, training.vocab_size, rng, resamples=draws)

    own = held_out_rows(training, training.data_settings)
    floor, exact = entropy_floor(own, training.data_settings)
    low, high = found.predictable_interval

    return {
        "ceiling": found.predictable,
        "ceiling_low": low,
        "ceiling_high": high,
        "entropy_floor": floor,
        "entropy_floor_exact": exact,
    }


def keeping(training: Training) -> Callable[[History], bool]:
    """Which rows keep their weights: those of both intervals, the first, the last, and wherever
    pattern accuracy has moved by checkpoint_change since the last kept ones, so that a transition
    is kept densely wherever it falls.
    """

    def keep(history: History) -> bool:
        # From the whole history each time, not remembered: a training that was resumed decides
        # the same.
        kept_accuracy, kept = 0.0, False

        for row in history:
            step, accuracy = int(row["step"]), row["pattern_accuracy"]
            kept = (
                step % training.checkpoint_interval == 0
                or step % training.eigen_interval == 0
                or step == training.num_steps
                or abs(accuracy - kept_accuracy) >= training.checkpoint_change
            )
            if kept:
                kept_accuracy = accuracy

        return kept

    return keep


@dataclass(frozen=True)
class Watch:
    """The numbers of a history row, on rows of the data that no training batch holds."""

    training: Training
    source: BatchSource
    held_out: Sequences
    own: Sequences | None  # held out too, of the kind that is trained on, where that is another
    probe: Sequences  # the Hessian is of the loss on these
    independent: Sequences
    scratch: Scratch  # keeps the eigenvectors

    @classmethod
    def of(cls, training: Training, source: BatchSource, scratch: Scratch) -> "Watch":
        """Draw the rows."""

        own = (
            None
            if training.data == training.test_data
            else held_out_rows(training, training.data_settings)
        )
        probe, independent = probe_rows(training), independent_rows(training)
        return cls(
            training,
            source,
            held_out_rows(training, training.test_settings),
            own,
            probe,
            independent,
            scratch,
        )

    def __call__(self, moment: Moment) -> Mapping[str, float]:
        """Behaviour and heads; the Hessian too where its interval says so."""
        assert isinstance(moment.model, Transformer)
        training = self.training
        row = behaviour_and_heads(moment.model, self.held_out, training)

        if self.own is not None:
            row["own_accuracy"] = float(per_target(moment.model, self.own)[0].mean())

        if training.track_top_k_eigenvalues == 0 or moment.step % training.eigen_interval:
            return row
        return row | self._curvature(moment.model, moment)

    def _curvature(self, model: Transformer, moment: Moment) -> dict[str, float]:
        k = self.training.track_top_k_eigenvalues
        with torch.enable_grad(), model.explicit_attention():
            operator = next_token_hessian(
                model, *labelled(self.probe, self.training), micro_batch=self.training.micro_batch
            )
            previous = self._previous(moment.step)
            pairs = eigenpairs(
                operator,
                k=k,
                tolerance=self.training.lanczos_tolerance,
                max_products=self.training.max_products,
                generator=torch.Generator().manual_seed(self.training.seed),
                start=None if previous is None else previous.to(model.device),
                repeated=False,  # a third more products at every look; `curvature` asks for it
            )

            # The same top vectors against three gradients: those of the probe's own rows share its
            # noise, so that independent rows are the control.
            independent, _ = gradient_of(model, *labelled(self.independent, self.training))
            training_gradient, _ = gradient_of(model, *self.source(moment.step))

        top = pairs.vectors[:k]
        update = next_update(
            moment.optimizer, model, training_gradient, rate=moment.rate, clip=self.training.clip
        )
        kept = {
            "vectors": pairs.vectors,
            "values": pairs.values,
            **adam_memory(moment.optimizer, model),
        }
        self.scratch.save_weights(self._file(moment.step), kept)

        return curvature_row(pairs.values, pairs.residuals, k=k) | {
            "products": float(pairs.products),
            "gradient_norm": float(operator.gradient.norm()),
            "alignment_null": k / operator.size,
            **{
                f"alignment/{i}": float(c)
                for i, c in enumerate(squared_cosines(top, operator.gradient))
            },
            "alignment_mass": float(squared_cosines(top, operator.gradient).sum()),
            "alignment_independent": float(squared_cosines(top, independent).sum()),
            "alignment_training": float(squared_cosines(top, training_gradient).sum()),
            "alignment_update": float(squared_cosines(top, update).sum()),
            **(
                {}
                if previous is None
                else {"persistence": subspace_overlap(previous[:k].to(top), top)}
            ),
        }

    def _previous(self, step: int) -> Float[Tensor, "pair parameter"] | None:
        """Eigenvectors of the evaluation before, from its file, so that a resumed run continues as
        one that went on.
        """
        file = self._file(step - self.training.eigen_interval)
        return load_weights(file)["vectors"] if file.exists() else None

    def _file(self, step: int) -> Path:
        return self.scratch.folder / "eigenvectors" / checkpoint_name(step)


def curvature_row(
    values: Float[Tensor, " pair"], residuals: Float[Tensor, " pair"], *, k: int
) -> dict[str, float]:
    """History keys of eigenpairs: the k largest by magnitude, then the most negative one."""
    return {
        **{f"eigenvalues/{i}": float(value) for i, value in enumerate(values[:k])},
        **{f"residuals/{i}": float(residual) for i, residual in enumerate(residuals[:k])},
        "top_eigenvalue": float(values.max()),
        "most_negative_eigenvalue": float(values[-1]),
        "most_negative_residual": float(residuals[-1]),
        "spectral_norm": float(values[:k].abs().max()),
        "worst_residual": float(residuals[:k].max()),
    }
