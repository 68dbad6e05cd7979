"""`eigen-phase`: the commands of this study. Thin: options in, one call."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from interp_core.console.options import (
    Decorator,
    Group,
    fail,
    option,
    out_option,
    profile_option,
    study_option,
    trainings_option,
)

_RUNS = click.argument(
    "run_directories", nargs=-1, metavar="[RUN_DIR]...", type=click.Path(path_type=Path)
)

_TRAINING: tuple[Decorator, ...] = (
    option("--condition", help="Condition of the profile to start from (default: its first)."),
    option("--seed", type=int, help="Seed of weights and data."),
    option("--data", help="tiled, placed, unrepeated or fixed_distance."),
    option("--vocab-size", type=int, help="Tokens in the vocabulary."),
    option("--seq-length", type=int, help="Tokens in a row."),
    option(
        "--pattern-length", type=int, nargs=2, help="placed: shortest and longest pattern, tokens."
    ),
    option("--placements", type=int, nargs=2, help="placed: fewest and most copies of a pattern."),
    option("--period", type=int, nargs=2, help="tiled: shortest and longest segment, tokens."),
    option("--fixed-distance", type=int, help="fixed_distance: tokens between copies."),
    option(
        "--leave-out-predictable/--keep-predictable",
        default=None,
        help="Loss without what induction predicts.",
    ),
    option("--n-layers", type=int, help="Layers."),
    option("--n-heads", type=int, help="Attention heads a layer."),
    option("--d-model", type=int, help="Width of the residual stream."),
    option(
        "--mlp-ratio",
        type=int,
        help="Hidden units of the MLP per unit of width; 0: attention only.",
    ),
    option("--rotary-base", type=float, help="Base of the rotary wavelengths."),
    option("--initializer-range", type=float, help="Standard deviation of the weights at step 0."),
    option(
        "--clamp-to",
        type=int,
        help="Tokens back that L0H0 looks from step 0 (1: the previous token).",
    ),
    option("--num-steps", type=int, help="Updates."),
    option("--batch-size", type=int, help="Rows of a batch."),
    option("--learning-rate", type=float, help="Of AdamW, after the warm-up."),
    option(
        "--final-share", type=float, help="Share of the learning rate at the end of the cosine."
    ),
    option("--warmup", type=int, help="Steps of linear rise of the learning rate."),
    option("--betas", type=float, nargs=2, help="Of AdamW."),
    option("--weight-decay", type=float, help="Of matrices."),
    option("--clip", type=float, help="Largest norm of the gradient."),
    option("--device", help="cpu, or auto: CUDA where there is one."),
    option("--threads", type=int, help="CPU threads."),
    option("--save-seconds", type=float, help="Between two saves of the state to resume from."),
    option("--eval-interval", type=int, help="Steps between two rows of the history."),
    option("--held-out-sequences", type=int, help="Rows that accuracy and heads are measured on."),
    option("--checkpoint-interval", type=int, help="Steps between kept weights."),
    option(
        "--checkpoint-change",
        type=float,
        help="Weights are kept too when accuracy has moved this far.",
    ),
    option("--eigen-interval", type=int, help="Steps between two looks at the Hessian."),
    option(
        "--track-top-k-eigenvalues", type=int, help="Eigenvalues largest by magnitude; 0: none."
    ),
    option("--probe-sequences", type=int, help="Rows that the Hessian is of."),
    option("--micro-batch", type=int, help="Rows whose graph is in memory at once."),
    option("--lanczos-tolerance", type=float, help="Relative residual of every eigenpair."),
    option(
        "--max-products", type=int, help="Hessian-vector products that one evaluation may spend."
    ),
)


def _training_options(command: Callable[..., None]) -> Callable[..., None]:
    for add in reversed(_TRAINING):
        command = add(command)
    return command


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
def main() -> None:
    """The Hessian's spectrum while induction heads form in an abrupt phase transition.

    Called without options a command is a stage of the pipeline (data/eigen_phase). With options, or
    on run directories of yours, it is an experiment.
    """


@main.command()
@profile_option
@out_option
@_training_options
def train(profile: str | None, out: Path | None, **options: Any) -> None:
    """Train with the Hessian watched.

    Any option of the training makes it one run, with --out its directory.
    """
    from eigen_phase import workflow
    from eigen_phase.study import prepare

    if not any(value is not None for value in options.values()):
        workflow.train(prepare(profile, out))
        return
    _train_one(profile, out, options)


@main.command()
@_RUNS
@profile_option
@out_option
def curvature(run_directories: tuple[Path, ...], profile: str | None, out: Path | None) -> None:
    """Spectral density, trace, Gauss-Newton and Adam-preconditioned sharpness, and where
    eigenvectors live.
    """
    from eigen_phase import workflow
    from eigen_phase.run_directory import RunDirectory
    from eigen_phase.study import prepare

    study = prepare(profile, out)
    if not run_directories:
        workflow.curvature(study)
    for run in [RunDirectory.open(folder) for folder in run_directories]:
        workflow.curvature_of(run, study)


@main.command()
@_RUNS
@profile_option
@out_option
def transition(run_directories: tuple[Path, ...], profile: str | None, out: Path | None) -> None:
    """When each metric turned, how abruptly, and what leads what; several run directories are
    seeds.
    """
    from eigen_phase import workflow
    from eigen_phase.run_directory import RunDirectory
    from eigen_phase.study import prepare

    study = prepare(profile, out, run_directories)
    if not run_directories:
        workflow.transition(study)
        return
    path = workflow.transition_to_file(
        [RunDirectory.open(folder) for folder in run_directories], study
    )
    click.echo(str(path))


@main.command()
@profile_option
@out_option
def controls(profile: str | None, out: Path | None) -> None:
    """Control runs, a clamped previous-token head, ablations over the clock, steps inside and
    outside the subspace.
    """
    from eigen_phase import workflow
    from eigen_phase.study import prepare

    workflow.controls(prepare(profile, out))


@main.command()
@_RUNS
@profile_option
@out_option
def visualize(run_directories: tuple[Path, ...], profile: str | None, out: Path | None) -> None:
    """Figures of run directories, into them; without one, of the whole study."""
    from eigen_phase import workflow
    from eigen_phase.run_directory import RunDirectory
    from eigen_phase.study import prepare

    study = prepare(profile, out)
    if not run_directories:
        workflow.visualize(study)
    for run in [RunDirectory.open(folder) for folder in run_directories]:
        for path in workflow.visualize_run(run, study):
            click.echo(str(path))


@main.command()
@_RUNS
@profile_option
def page(run_directories: tuple[Path, ...], profile: str | None) -> None:
    """A training on one clock, in one self-contained file: page.html of each run directory."""
    if not run_directories:
        fail("name a run directory of yours; `make report` has the page of the run")

    from eigen_phase.page import page_of
    from eigen_phase.run_directory import RunDirectory
    from eigen_phase.study import prepare

    study = prepare(profile, None, run_directories)
    for run in [RunDirectory.open(folder) for folder in run_directories]:
        page_of(run, study)


@main.command()
@profile_option
@out_option
@_training_options
def run(profile: str | None, out: Path | None, **options: Any) -> None:
    """Everything. Any option of the training makes it one run: trained, fitted and drawn."""
    from eigen_phase import workflow
    from eigen_phase.study import prepare

    if any(value is not None for value in options.values()):
        trained, study = _train_one(profile, out, options)
        workflow.curvature_of(trained, study)
        workflow.transition_of([trained], study)
        for path in workflow.visualize_run(trained, study):
            click.echo(str(path))
        return
    study = prepare(profile, out)
    for stage in (
        workflow.train,
        workflow.curvature,
        workflow.transition,
        workflow.controls,
        workflow.visualize,
    ):
        stage(study)


@main.command()
@study_option
@trainings_option
def answers(out: Path | None, trainings: tuple[Path, ...]) -> None:
    """The study's headline numbers, from its metrics: answers.json."""
    from eigen_phase.answers import answers as found
    from interp_core.console.answers import write

    write("eigen_phase", found, out, trainings)


def _train_one(profile: str | None, out: Path | None, options: dict[str, Any]) -> Any:
    from eigen_phase import workflow
    from eigen_phase.study import one_training, prepare
    from interp_core.console.call import profile_folder
    from interp_core.files.params import project_root

    study = prepare(profile, None)
    name, training = one_training(study, options.pop("condition"), **options)
    place = out or project_root() / "outputs" / "eigen_phase" / profile_folder(profile) / name
    trained = workflow.train_one(name, training, place)
    click.echo(
        f"{place}: {training.num_steps} steps,"
        f" pattern accuracy {trained.history['pattern_accuracy'][-1]:.3f}"
    )
    return trained, study


if __name__ == "__main__":
    main()
