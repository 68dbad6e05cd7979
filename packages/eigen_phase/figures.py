"""The study's figures, from files alone: no model is loaded and no score computed here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eigen_phase import figures_controls, figures_landscape, figures_run, figures_seeds
from eigen_phase.run_directory import RunDirectory
from interp_core.errors import InputError
from interp_core.files.artifacts import load_arrays, load_json

Report = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]

FEWEST_TRAININGS = 3  # an interval over two trainings is wider than what it is about

# Files that draw_run may write.
OF_A_RUN = tuple(
    f"{name}.png"
    for name in ("phase", "heads", "patterns", "eigenvalues", "alignment", "density", "blocks")
)


def draw_run(run: RunDirectory, out: Path, *, found: Report, arrays: Arrays) -> list[Path]:
    """One run: phase.png, heads.png, patterns.png, and with the Hessian looked at eigenvalues.png
    and alignment.png.

    `found` is the run's part of the transition report, `arrays` what measure_landscape made of it.
    """
    files = [out / "phase.png", out / "heads.png"]
    largest = arrays if "largest" in arrays else None
    figures_run.phase(run, found, files[0], largest=largest)
    figures_run.heads(run, found, files[1])
    if "patterns" in arrays:
        files.append(out / "patterns.png")
        figures_run.patterns(run, arrays, files[-1])
    if "eigenvalues" in run.history:
        files += [out / "eigenvalues.png", out / "alignment.png"]
        figures_run.eigenvalues(run, found, files[-2])
        figures_run.alignment(run, found, files[-1])
    if "density" in arrays:
        files += [out / "density.png", out / "blocks.png"]
        figures_landscape.density(run.name, arrays, files[-2])
        figures_landscape.blocks(run.name, arrays, files[-1])
    return files


def draw_all(folder: Path) -> list[Path]:
    """What answers the study's questions into folder/figures; single runs have draw_run.

    InputError names what is missing or damaged.
    """
    runs = _runs(folder / "runs")
    scores, metrics, out = folder / "scores", folder / "metrics", folder / "figures"
    report = load_json(metrics / "transition" / "transition.json")
    courses = {
        file.stem: load_arrays(file)
        for file in sorted((scores / "curvature" / "largest").glob("*.npz"))
    }

    # The condition of most trainings is the one about which something can be said.
    conditions = [run.condition for run in runs]
    main = max(dict.fromkeys(conditions), key=conditions.count)
    members = [run for run in runs if run.condition == main]
    files = [out / f"phase_{main}.png"]
    first = members[0]
    figures_run.phase(first, report["runs"][first.name], files[0], largest=courses.get(first.name))

    turns = report["conditions"][main]["midpoint"] is not None
    if turns and len(members) >= FEWEST_TRAININGS:
        known = {run.name: courses[run.name] for run in members if run.name in courses}
        files += [out / f"seeds_{main}.png", out / f"lags_{main}.png"]
        figures_seeds.aligned(members, report, files[-2], largest=known)
        figures_seeds.lags(main, report["conditions"][main], files[-1])

    landscapes = {
        file.stem: load_arrays(file) for file in sorted((scores / "curvature").glob("*.npz"))
    }
    files.append(out / "matrices.png")
    figures_landscape.matrices(landscapes, files[-1])
    return [*files, *_draw_controls(folder, runs, report)]


def _draw_controls(folder: Path, runs: Sequence[RunDirectory], report: Report) -> list[Path]:
    """controls.png, ablation.png and alignment.png."""
    scores, metrics = folder / "scores" / "controls", folder / "metrics" / "controls"
    files = [folder / "figures" / f"{name}.png" for name in ("controls", "ablation", "alignment")]

    controls = load_json(metrics / "controls.json")
    verdicts = {**report["runs"], **controls["runs"]}
    everything = [*runs, *_runs(folder / "control_runs")]
    clamped = load_json(metrics / "clamped.json")
    figures_controls.accuracies(everything, verdicts, clamped, files[0])

    ablated = {run.name: load_arrays(scores / f"ablation_{run.name}.npz") for run in runs}
    reports = {run.name: load_json(metrics / f"ablation_{run.name}.json") for run in runs}
    figures_controls.ablations(ablated, reports, files[1])

    arms = {
        file.stem.removeprefix("subspace_"): load_arrays(file)
        for file in sorted(scores.glob("subspace_*.npz"))
    }
    watched = [run for run in runs if "alignment" in run.history]
    figures_controls.alignment(watched, arms, files[2])
    return files


def _runs(folder: Path) -> list[RunDirectory]:
    found = [RunDirectory.open(place) for place in sorted(folder.glob("*")) if place.is_dir()]
    if not found:
        raise InputError(f"{folder} has no runs: run `eigen-phase train` first")
    return found
