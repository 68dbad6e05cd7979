"""`eigen-phase`: the commands of this study. Thin: options in, one call."""

from pathlib import Path
from typing import Any

import click

from interp_core.console.options import (
    Group,
    changed_settings,
    cluster_option,
    fail,
    option,
    out_option,
    profile_option,
    say_unread,
    set_option,
    settings,
    study_option,
    trainings_option,
)

_RUNS = click.argument(
    "run_directories", nargs=-1, metavar="[RUN_DIR]...", type=click.Path(path_type=Path)
)

_CONDITION = option("--condition", help="Condition of the profile to start from [its first].")


def _start(
    command: str,
    *,
    training: dict[str, Any],
    profile: str | None,
    out: Path | None,
    condition: str | None,
    settings: dict[str, Any] | None = None,
) -> Any:
    """The call of the study, and the one training that any option of it asks for."""
    from eigen_phase.study import one_training
    from interp_core.console.call import profile_folder
    from interp_core.files.params import project_root

    del command  # what a training is does not depend on it
    if not training and condition is None:
        return _prepare(profile, out, **(settings or {})), None

    study = _prepare(profile, None, **(settings or {}))
    name, chosen = one_training(study, condition, **training)
    place = out or project_root() / "outputs" / "eigen_phase" / profile_folder(profile) / name
    return study, (name, chosen, place)


def _prepare(profile: str | None, out: Path | None, **given: Any) -> Any:
    """The study, its runs shared among as many processes as there will be."""
    from dataclasses import replace

    from eigen_phase.study import prepare
    from interp_core.training.workers import shares

    study = prepare(profile, out, **given)
    n = shares(study.params.processes)
    return replace(study, params=study.params.model_copy(update={"processes": n}))


_settings = settings(
    __file__,
    _start,
    more=(profile_option, out_option, _CONDITION),
    spellings={"leave_out_predictable": " /--keep-predictable"},
)


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
def main() -> None:
    """The Hessian's spectrum while induction heads form in an abrupt phase transition.

    Called without options a command is a stage of the pipeline (data/eigen_phase). With options, or
    on run directories of yours, it is an experiment.
    """


@main.command()
@cluster_option
@_settings("training")
def train(run: Any) -> None:
    """Train with the Hessian watched.

    Any option of the training makes it one run, with --out its directory.
    """
    from eigen_phase import workflow

    study, one = run
    if one is None:
        workflow.train(study)
    else:
        say_unread(["cluster"])
        _train_one(study, *one)


@main.command()
@_RUNS
@profile_option
@out_option
@set_option
@cluster_option
def curvature(
    run_directories: tuple[Path, ...],
    profile: str | None,
    out: Path | None,
    changed: tuple[str, ...],
) -> None:
    """Spectral density, trace, Gauss-Newton and Adam-preconditioned sharpness, and where
    eigenvectors live.
    """
    from eigen_phase import workflow
    from eigen_phase.run_directory import RunDirectory
    from eigen_phase.study import prepare

    _check_out(run_directories, out)
    study = prepare(profile, out, **_changed(changed, profile))
    if not run_directories:
        workflow.curvature(study)
    else:
        say_unread(["cluster"])
    for run in [RunDirectory.open(folder) for folder in run_directories]:
        workflow.curvature_of(run, study)


@main.command()
@_RUNS
@profile_option
@out_option
@set_option
def transition(
    run_directories: tuple[Path, ...],
    profile: str | None,
    out: Path | None,
    changed: tuple[str, ...],
) -> None:
    """When each metric turned, how abruptly, and what leads what; several run directories are
    seeds.
    """
    from eigen_phase import workflow
    from eigen_phase.run_directory import RunDirectory
    from eigen_phase.study import prepare

    study = prepare(profile, out, run_directories, **_changed(changed, profile))
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
@set_option
@cluster_option
def controls(profile: str | None, out: Path | None, changed: tuple[str, ...]) -> None:
    """Control runs, a clamped previous-token head, ablations over the clock, steps inside and
    outside the subspace.
    """
    from eigen_phase import workflow

    workflow.controls(_prepare(profile, out, **_changed(changed, profile)))


@main.command()
@_RUNS
@profile_option
@out_option
@set_option
def visualize(
    run_directories: tuple[Path, ...],
    profile: str | None,
    out: Path | None,
    changed: tuple[str, ...],
) -> None:
    """Figures of run directories, into them; without one, of the whole study."""
    from eigen_phase import workflow
    from eigen_phase.run_directory import RunDirectory
    from eigen_phase.study import prepare

    _check_out(run_directories, out)
    study = prepare(profile, out, **_changed(changed, profile))
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
@cluster_option
@_settings("training")
def run(run: Any) -> None:
    """Everything. Any option of the training makes it one run: trained, fitted and drawn."""
    from eigen_phase import workflow

    study, one = run
    if one is not None:
        workflow.check_looks(one[1])
        say_unread(["cluster"])
        trained = _train_one(study, *one)
        workflow.curvature_of(trained, study)
        workflow.transition_of([trained], study)
        for path in workflow.visualize_run(trained, study):
            click.echo(str(path))
        return

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
    """The study's numbers, headlines marked, from its metrics: answers.json."""
    from eigen_phase.answers import answers as found
    from interp_core.console.answers import write

    write("eigen_phase", found, out, trainings)


def _changed(said: tuple[str, ...], profile: str | None) -> dict[str, Any]:
    """What `--set` changes, of a command whose settings are no options."""
    return changed_settings(__file__, said, profile=profile) if said else {}


def _check_out(run_directories: tuple[Path, ...], out: Path | None) -> None:
    if run_directories and out is not None:
        fail(f"--out {out}: what is made of a run directory goes into it; leave out one of the two")


def _train_one(study: Any, name: str, training: Any, place: Path) -> Any:
    from eigen_phase import workflow

    trained = workflow.train_one(study, name, training, place)
    click.echo(
        f"{place}: {training.num_steps} steps,"
        f" pattern accuracy {trained.history['pattern_accuracy'][-1]:.3f}"
    )
    return trained


if __name__ == "__main__":
    main()
