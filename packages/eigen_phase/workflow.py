"""What each command does, from settings to files. Heavy rooms are imported where they are needed.

Each function imports its rooms itself: `make stages` reads from that what a stage depends on.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from eigen_phase.params import Controls, Spectrum, Training
from eigen_phase.run_directory import ARRAYS, CONFIG, KIND, RunDirectory
from eigen_phase.study import Eigen
from interp_core.console.call import Arrays, Report
from interp_core.console.holding import hold
from interp_core.console.made_from import MADE_FROM, Source
from interp_core.errors import InputError
from interp_core.files.artifacts import (
    check_writable,
    file_sha256,
    load_arrays,
    load_json,
    save_arrays,
    save_json,
)
from interp_core.files.folders import RECORD, adding_to, check_replaceable, check_same_settings
from interp_core.files.vouching import check_ours, vouching
from interp_core.training.threads import use_threads

if TYPE_CHECKING:
    from interp_core.training.workers import Task


def train(study: Eigen) -> None:
    """Every run of the profile's conditions, several at once; a run that was stopped goes on where
    it was.
    """
    study.check_folder()
    _train_all(study, study.params.runs, study.folder / "runs", job_type="train")
    for run in _runs(study):
        study.save("train", f"train_{run.name}", _summary(run), made=_made(study, [run]))


def train_one(study: Eigen, name: str, training: Training, place: Path) -> RunDirectory:
    """One run into a directory of the user's; one of other settings is not replaced."""
    from eigen_phase.train import train_run
    from interp_core.training.tracking import announce

    check_writable(place.parent)
    check_replaceable(place, kind=KIND, name=name)
    _check_same(place, training)
    hold(place)
    announce()
    train_run(name, training, place, ceiling_draws=study.params.ceiling_draws)
    return RunDirectory.open(place)


def _check_same(place: Path, training: Training) -> None:
    check_same_settings(place / CONFIG, training.model_dump(mode="json"), part="training")


def check_looks(training: Training) -> None:
    """InputError, before anything is trained, for a run whose curvature cannot be measured."""
    if training.track_top_k_eigenvalues == 0:
        raise InputError(
            "--track-top-k-eigenvalues: `run` looks at the Hessian, so it must be above 0;"
            " `train` does without"
        )
    if training.eigen_interval > training.num_steps:
        raise InputError(
            f"--eigen-interval: the only look would be at step 0; {training.num_steps} steps need"
            " one of at most as many"
        )


def curvature(study: Eigen) -> None:
    """The whole spectrum of the chosen runs at a few checkpoints, and the largest eigenvalue of
    all runs of some conditions at every look. Several at once.
    """
    from interp_core.training.workers import run_in_processes

    study.check_folder()
    settings = study.params.spectrum
    courses = [run.name for run in _runs(study) if run.condition in settings.largest_conditions]
    tasks: list[Task] = [(curvature_in, (study, name), {}) for name in settings.runs]
    tasks += [(course_in, (study, name), {}) for name in courses]
    run_in_processes(tasks, processes=study.params.processes)


def curvature_in(study: Eigen, name: str, *, position: int = 0) -> None:
    """The whole spectrum of one of the study's runs, into the study."""
    del position  # these bars are short
    use_threads(study.params.training.threads)
    run = _run(study, name)
    settings = study.params.spectrum

    def measure() -> None:
        arrays, report = _landscape(run, study)
        made = _made(study, [run])
        study.save("curvature", f"curvature_{name}", report, arrays, made=made, scores=name)

    files = [
        study.file("metrics", "curvature", f"curvature_{name}"),
        study.file("scores", "curvature", name),
    ]
    # Which other runs are measured changes nothing of this one.
    unread, asked = {"runs", "probe_runs", "largest_conditions"}, name in settings.probe_runs
    _once(study, "eigen_curvature", run, files, measure, settings, unread=unread, asked=asked)
    click.echo(f"{name}: {load_json(files[0])['verdict']}")


def course_in(study: Eigen, name: str, *, position: int = 0) -> None:
    """The largest eigenvalue of one of the study's runs at every look, into the study."""
    from eigen_phase.measure_landscape import largest_course

    del position
    use_threads(study.params.training.threads)
    run, settings, file = _run(study, name), study.params.spectrum, _course_file(study, name)

    def measure() -> None:
        study.save_arrays(file, largest_course(run, settings))

    unread = {"runs", "probe_runs", "largest_conditions"}
    _once(study, "eigen_course", run, [file], measure, settings, unread=unread)


def _course_file(study: Eigen, name: str) -> Path:
    return study.folder / "scores" / "curvature" / "largest" / f"{name}.npz"


def curvature_of(run: RunDirectory, study: Eigen) -> None:
    """The same of one run directory, into it."""
    from eigen_phase.measure_landscape import largest_course

    check_writable(run.folder)
    hold(run.folder)
    use_threads(study.params.training.threads)
    arrays, report = _landscape(run, study)
    arrays |= largest_course(run, study.params.spectrum)
    files = [run.folder / f"curvature.{ending}" for ending in ("npz", "json")]
    with adding_to(run.folder, files):
        save_arrays(files[0], arrays)
        save_json(files[1], report)
    click.echo(f"{run.name}: {report['verdict']}")


def transition(study: Eigen) -> None:
    """Dates of every history, verdicts, and what leads what over seeds."""
    from eigen_phase.measure_transition import transition_report

    study.check_folder()
    runs = _runs(study)
    files = {run.name: _course_file(study, run.name) for run in runs}
    report = transition_report(runs, study.params.transition, _courses(files))

    click.echo(_sentences(report))
    study.save("transition", "transition", report, made=_made(study, runs))


def transition_of(runs: Sequence[RunDirectory], study: Eigen) -> Report:
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


def controls(study: Eigen) -> None:
    """Runs that should not turn or turn elsewhere; heads ablated over the clock; steps inside and
    outside the top subspace.
    """
    from eigen_phase.intervene import clamped_against_free
    from eigen_phase.measure_transition import transition_report
    from interp_core.training.workers import run_in_processes

    study.check_folder()
    settings = study.params.controls
    _train_all(study, study.params.control_runs, study.folder / "control_runs", job_type="control")
    runs, control_runs = _runs(study), _control_runs(study)
    made = _made(study, [*runs, *control_runs])

    free = [run for run in runs if run.condition == settings.free]
    report = transition_report([*control_runs, *free], study.params.transition)
    study.save("controls", "controls", report, made=made)
    click.echo(_sentences(report))

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
    study.save("controls", "clamped", compared, made=made)
    click.echo(f"clamped: {compared['verdict']}")

    # The longest first: two processes then end at about the same time.
    tasks: list[Task] = [(arms_in, (study, name), {}) for name in settings.subspace_runs]
    tasks += [(ablations_in, (study, name), {}) for name in study.params.runs]
    run_in_processes(tasks, processes=study.params.processes)


def arms_in(study: Eigen, name: str, *, position: int = 0) -> None:
    """One run continued inside and outside of subspaces, into the study."""
    from eigen_phase.intervene_subspace import subspace_arms

    del position
    use_threads(study.params.training.threads)
    run = _run(study, name)
    measure = partial(subspace_arms, run, study.params.controls)
    _control_once(study, run, f"subspace_{name}", measure)


def ablations_in(study: Eigen, name: str, *, position: int = 0) -> None:
    """One run's heads taken out, into the study."""
    from eigen_phase.intervene_heads import head_ablations

    del position
    use_threads(study.params.training.threads)
    run = _run(study, name)
    measure = partial(head_ablations, run, study.params.controls)
    _control_once(study, run, f"ablation_{name}", measure)


def _control_once(
    study: Eigen, run: RunDirectory, name: str, measure: Callable[[], tuple[Arrays, Report]]
) -> None:
    """Have a control's metrics and scores of one run."""

    def save() -> None:
        arrays, report = measure()
        study.save("controls", name, report, arrays, made=_made(study, [run]))

    files = [study.file(kind, "controls", name) for kind in ("metrics", "scores")]
    unread = {"conditions", "clamped", "free", "subspace_runs"}
    _once(study, "eigen_controls", run, files, save, study.params.controls, unread=unread)
    click.echo(f"{name}: {load_json(files[0])['verdict']}")


def _once(
    study: Eigen,
    stage: str,
    run: RunDirectory,
    files: Sequence[Path],
    measure: Callable[[], None],
    settings: Spectrum | Controls,
    *,
    unread: Collection[str],
    asked: Any = None,
) -> None:
    """Have files of one run: a stage measures the same run only once."""
    from interp_core.console.measured import once

    once(
        study,
        stage,
        files[0].stem,
        files,
        measure,
        of=[run.folder / RECORD],
        settings=settings,
        unread=unread,
        asked=[asked, study.params.training.threads],
    )


def _sentences(report: Report) -> str:
    return "\n".join(f"{name}: {found['sentence']}" for name, found in report["runs"].items())


def transition_to_file(runs: Sequence[RunDirectory], study: Eigen) -> Path:
    """The same of runs of the user's, into the call's folder."""
    study.check_folder()
    study.check_names({run.name: study.place_of(run.folder) for run in runs})

    path = study.folder / "transition.json"
    check_ours(path)
    report = transition_of(runs, study) | {MADE_FROM: _made(study, runs)}
    with vouching(path):
        save_json(path, report)
    return path


def visualize(study: Eigen) -> None:
    """All figures of the study, from its files alone."""
    study.check_folder()
    from eigen_phase.figures import draw_all

    draw_all(study.folder)


def visualize_run(run: RunDirectory, study: Eigen) -> list[Path]:
    """The figures of one run directory, into it."""
    from eigen_phase.figures import OF_A_RUN, draw_run
    from eigen_phase.measure_landscape import attention_patterns
    from eigen_phase.measure_transition import transition_report

    check_writable(run.folder)
    hold(run.folder)
    found = transition_report([run], study.params.transition)["runs"][run.name]
    arrays = attention_patterns(run) if run.diverged is None else {}
    if (run.folder / "curvature.npz").is_file():
        arrays |= load_arrays(run.folder / "curvature.npz")
    out = run.folder / "figures"
    with adding_to(run.folder, [out / name for name in OF_A_RUN]):
        return draw_run(run, out, found=found, arrays=arrays)


def _landscape(run: RunDirectory, study: Eigen) -> tuple[dict[str, np.ndarray], Report]:
    from eigen_phase.measure_landscape import attention_patterns, landscape

    arrays, report = landscape(run, study.params.spectrum)
    return arrays | attention_patterns(run), report


def _train_all(study: Eigen, runs: Mapping[str, Training], folder: Path, *, job_type: str) -> None:
    from eigen_phase.train import train_runs
    from interp_core.training.tracking import announce
    from interp_core.training.workers import run_in_processes

    check_writable(folder)
    for name, training in runs.items():
        check_replaceable(folder / name, kind=KIND, name=name)
        if not study.is_stage:  # the pipeline's own follow its profile
            _check_same(folder / name, training)
    announce()
    n = study.params.processes
    longest = sorted(runs, key=lambda name: -runs[name].work)
    shares = [{name: runs[name] for name in longest[i::n]} for i in range(n)]
    asked = {"ceiling_draws": study.params.ceiling_draws, "job_type": job_type}
    asked |= {"kept": study.is_stage}
    tasks: list[Task] = [(train_runs, (share, folder), asked) for share in shares if share]
    run_in_processes(tasks, processes=n)


def _runs(study: Eigen) -> list[RunDirectory]:
    """The profile's runs, opened. InputError when one is missing or half-written."""
    return [_run(study, name) for name in study.params.runs]


def _run(study: Eigen, name: str) -> RunDirectory:
    return RunDirectory.open(study.folder / "runs" / name)


def _control_runs(study: Eigen) -> list[RunDirectory]:
    """The profile's control runs, opened."""
    return [
        RunDirectory.open(study.folder / "control_runs" / name)
        for name in study.params.control_runs
    ]


def _made(study: Eigen, runs: Sequence[RunDirectory]) -> Report:
    """What a record is made from: runs, by their histories, and settings."""
    if study.is_stage:
        return {}
    named = {
        run.name: Source(study.place_of(run.folder), file_sha256(run.folder / ARRAYS))
        for run in runs
    }
    return study.made_from(named)


def _summary(run: RunDirectory) -> Report:
    """The last row of a run, the numbers of one head left out."""
    last = {key: value for key, value in run.rows[-1].items() if "/L" not in key}
    return {"name": run.name, "n_parameters": run.config["n_parameters"], "last": last}
