"""What each command does, from settings to files. Heavy rooms are imported where they are needed.

Each function imports its rooms itself: `make stages` reads from that what a stage depends on.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from eigen_phase.params import Training
from eigen_phase.run_directory import KIND, RunDirectory
from eigen_phase.study import Study
from interp_core.files.artifacts import check_writable, load_arrays, save_arrays, save_json
from interp_core.files.folders import adding_to, check_replaceable
from interp_core.training.threads import use_threads

if TYPE_CHECKING:
    from interp_core.training.workers import Task

Report = dict[str, Any]


def train(study: Study) -> None:
    """Every run of the profile's conditions, several at once; a run that was stopped goes on where
    it was.
    """
    _train_all(study, study.params.runs, study.folder / "runs", job_type="train")
    for run in study.runs:
        save_json(_metrics(study, "train", run.name), _summary(run))


def train_one(name: str, training: Training, place: Path) -> RunDirectory:
    """One run into a directory of the user's."""
    from eigen_phase.train import train_run
    from interp_core.training.tracking import announce

    check_writable(place.parent)
    check_replaceable(place, kind=KIND, name=name)
    announce()
    train_run(name, training, place)
    return RunDirectory.open(place)


def curvature(study: Study) -> None:
    """The whole spectrum of the chosen runs at a few checkpoints, and the largest eigenvalue of
    all runs of some conditions at every look. Several at once.
    """
    from interp_core.training.workers import run_in_processes

    settings = study.params.spectrum
    courses = [run.name for run in study.runs if run.condition in settings.largest_conditions]
    tasks: list[Task] = [(curvature_in, (study, name), {}) for name in settings.runs]
    tasks += [(course_in, (study, name), {}) for name in courses]
    run_in_processes(tasks, processes=study.params.processes)


def curvature_in(study: Study, name: str, *, position: int = 0) -> None:
    """The whole spectrum of one of the study's runs, into the study."""
    del position  # two bars at once would be one too many
    use_threads(study.params.training.threads)
    run = RunDirectory.open(study.folder / "runs" / name)
    arrays, report = _landscape(run, study)

    save_arrays(study.folder / "scores" / "curvature" / f"{name}.npz", arrays)
    save_json(_metrics(study, "curvature", name), report)
    click.echo(f"{name}: {report['verdict']}")


def course_in(study: Study, name: str, *, position: int = 0) -> None:
    """The largest eigenvalue of one of the study's runs at every look, into the study."""
    from eigen_phase.measure_landscape import largest_course

    del position
    use_threads(study.params.training.threads)
    run = RunDirectory.open(study.folder / "runs" / name)
    arrays = largest_course(run, study.params.spectrum)
    save_arrays(_course_file(study, name), arrays)


def _course_file(study: Study, name: str) -> Path:
    return study.folder / "scores" / "curvature" / "largest" / f"{name}.npz"


def curvature_of(run: RunDirectory, study: Study) -> None:
    """The same of one run directory, into it."""
    from eigen_phase.measure_landscape import largest_course

    use_threads(study.params.training.threads)
    arrays, report = _landscape(run, study)
    arrays |= largest_course(run, study.params.spectrum)
    files = [run.folder / f"curvature.{ending}" for ending in ("npz", "json")]
    with adding_to(run.folder, files):
        save_arrays(files[0], arrays)
        save_json(files[1], report)
    click.echo(f"{run.name}: {report['verdict']}")


def transition(study: Study) -> None:
    """Dates of every history, verdicts, and what leads what over seeds."""
    from eigen_phase.measure_transition import transition_report

    files = {run.name: _course_file(study, run.name) for run in study.runs}
    report = transition_report(study.runs, study.params.transition, _courses(files))
    click.echo(_sentences(report))
    save_json(study.folder / "metrics" / "transition" / "transition.json", report)


def transition_of(runs: Sequence[RunDirectory], study: Study) -> Report:
    """Dates, verdicts, leads and lags of these runs; runs of one condition are its seeds.

    With the largest eigenvalue on many rows where `curvature` has been called on a run.
    """
    from eigen_phase.measure_transition import transition_report

    files = {run.name: run.folder / "curvature.npz" for run in runs}
    report = transition_report(runs, study.params.transition, _courses(files))
    click.echo(_sentences(report))
    return report


def _courses(files: Mapping[str, Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and largest eigenvalues of the runs that have them."""
    found = {name: load_arrays(file) for name, file in files.items() if file.is_file()}
    return {
        name: (arrays["largest_step"], arrays["largest"])
        for name, arrays in found.items()
        if "largest" in arrays
    }


def controls(study: Study) -> None:
    """Runs that should not turn or turn elsewhere; heads ablated over the clock; steps inside and
    outside the top subspace.
    """
    from eigen_phase.intervene import clamped_against_free
    from eigen_phase.measure_transition import transition_report
    from interp_core.training.workers import run_in_processes

    settings = study.params.controls
    _train_all(study, study.params.control_runs, study.folder / "control_runs", job_type="control")

    free = [run for run in study.runs if run.condition == settings.free]
    report = transition_report([*study.control_runs, *free], study.params.transition)
    by_seed = {
        condition: {
            found["seed"]: found
            for found in report["runs"].values()
            if found["condition"] == condition
        }
        for condition in (*settings.clamped, settings.free)
    }
    clamped = {condition: by_seed[condition] for condition in settings.clamped}
    compared = clamped_against_free(clamped, by_seed[settings.free])

    _save_control(study, "controls", report)
    click.echo(_sentences(report))
    _save_control(study, "clamped", compared)
    click.echo(f"clamped: {compared['verdict']}")

    # The longest first: two processes then end at about the same time.
    tasks: list[Task] = [(arms_in, (study, name), {}) for name in settings.subspace_runs]
    tasks += [(ablations_in, (study, name), {}) for name in study.params.runs]
    run_in_processes(tasks, processes=study.params.processes)


def arms_in(study: Study, name: str, *, position: int = 0) -> None:
    """One run continued inside and outside of subspaces, into the study."""
    from eigen_phase.intervene_subspace import subspace_arms

    del position
    use_threads(study.params.training.threads)
    run = RunDirectory.open(study.folder / "runs" / name)
    arrays, report = subspace_arms(run, study.params.controls)
    save_arrays(study.folder / "scores" / "controls" / f"subspace_{name}.npz", arrays)
    _save_control(study, f"subspace_{name}", report)
    click.echo(f"subspace_{name}: {report['verdict']}")


def ablations_in(study: Study, name: str, *, position: int = 0) -> None:
    """One run's heads taken out, into the study."""
    from eigen_phase.intervene_heads import head_ablations

    del position
    use_threads(study.params.training.threads)
    run = RunDirectory.open(study.folder / "runs" / name)
    arrays, report = head_ablations(run, study.params.controls)
    save_arrays(study.folder / "scores" / "controls" / f"ablation_{name}.npz", arrays)
    _save_control(study, f"ablation_{name}", report)
    click.echo(f"ablation_{name}: {report['verdict']}")


def _save_control(study: Study, name: str, report: Report) -> None:
    save_json(study.folder / "metrics" / "controls" / f"{name}.json", report)


def _sentences(report: Report) -> str:
    return "\n".join(f"{name}: {found['sentence']}" for name, found in report["runs"].items())


def visualize(study: Study) -> None:
    """All figures of the study, from its files alone."""
    from eigen_phase.figures import draw_all

    draw_all(study.folder)


def visualize_run(run: RunDirectory, study: Study) -> list[Path]:
    """The figures of one run directory, into it."""
    from eigen_phase.figures import OF_A_RUN, draw_run
    from eigen_phase.measure_landscape import attention_patterns
    from eigen_phase.measure_transition import transition_report

    found = transition_report([run], study.params.transition)["runs"][run.name]
    arrays = attention_patterns(run) if run.diverged is None else {}
    if (run.folder / "curvature.npz").is_file():
        arrays |= load_arrays(run.folder / "curvature.npz")
    out = run.folder / "figures"
    with adding_to(run.folder, [out / name for name in OF_A_RUN]):
        return draw_run(run, out, found=found, arrays=arrays)


def _landscape(run: RunDirectory, study: Study) -> tuple[dict[str, np.ndarray], Report]:
    from eigen_phase.measure_landscape import attention_patterns, landscape

    arrays, report = landscape(run, study.params.spectrum)
    return arrays | attention_patterns(run), report


def _train_all(study: Study, runs: Mapping[str, Training], folder: Path, *, job_type: str) -> None:
    from eigen_phase.train import train_runs
    from interp_core.training.tracking import announce
    from interp_core.training.workers import run_in_processes

    check_writable(folder)
    for name in runs:
        check_replaceable(folder / name, kind=KIND, name=name)
    announce()
    n = study.params.processes
    longest = sorted(runs, key=lambda name: -runs[name].work)
    shares = [{name: runs[name] for name in longest[i::n]} for i in range(n)]
    tasks: list[Task] = [
        (train_runs, (share, folder), {"job_type": job_type}) for share in shares if share
    ]
    run_in_processes(tasks, processes=n)


def _metrics(study: Study, command: str, name: str) -> Path:
    return study.folder / "metrics" / command / f"{command}_{name}.json"


def _summary(run: RunDirectory) -> Report:
    """The last row of a run, the numbers of one head left out."""
    last = {key: value for key, value in run.rows[-1].items() if "/L" not in key}
    return {"name": run.name, "n_parameters": run.config["n_parameters"], "last": last}
