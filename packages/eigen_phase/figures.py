"""The study's figures, from files alone: no model is loaded and no score computed here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eigen_phase import figures_controls, figures_landscape, figures_run, figures_seeds
from eigen_phase.run_directory import RunDirectory
from interp_core.errors import InputError
from interp_core.files.artifacts import load_arrays, load_json

Report = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]

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
        figures_landscape.densities({run.name: arrays}, files[-2])
        figures_landscape.blocks({run.name: arrays}, files[-1])
    return files


def draw_all(folder: Path) -> list[Path]:
    """The whole study into folder/figures. InputError names what is missing or damaged."""
    runs = _runs(folder / "runs")
    out, metrics, scores = folder / "figures", folder / "metrics", folder / "scores"
    report = load_json(metrics / "transition" / "transition.json")
    first = {run.condition: run for run in reversed(runs)}
    files = []
    courses = {
        file.stem: load_arrays(file)
        for file in sorted((scores / "curvature" / "largest").glob("*.npz"))
    }
    for condition, run in first.items():
        files.append(out / f"phase_{condition}.png")
        found = report["runs"][run.name]
        figures_run.phase(run, found, files[-1], largest=courses.get(run.name))

    for condition in [name for name in first if report["conditions"][name]["midpoint"] is not None]:
        members = [run for run in runs if run.condition == condition]
        known = {run.name: courses[run.name] for run in members if run.name in courses}
        files.append(out / f"seeds_{condition}.png")
        figures_seeds.aligned(members, report, files[-1], largest=known)

        # One training has no interval: there is nothing to say about leads and lags.
        if len(members) > 1:
            files.append(out / f"lags_{condition}.png")
            figures_seeds.lags(condition, report["conditions"][condition], files[-1])

    landscapes = {
        file.stem: load_arrays(file) for file in sorted((scores / "curvature").glob("*.npz"))
    }
    for name, draw in (
        ("density", figures_landscape.densities),
        ("blocks", figures_landscape.blocks),
        ("matrices", figures_landscape.matrices),
    ):
        files.append(out / f"{name}.png")
        draw(landscapes, files[-1])
    for name, arrays in landscapes.items():
        files.append(out / f"patterns_{name}.png")
        figures_run.patterns(next(run for run in runs if run.name == name), arrays, files[-1])
    controls = load_json(metrics / "controls" / "controls.json")
    clamped = load_json(metrics / "controls" / "clamped.json")
    everything = [*runs, *_runs(folder / "control_runs")]
    files += [out / "controls.png", out / "ablation.png", out / "alignment.png"]
    figures_controls.accuracies(
        everything, {**report["runs"], **controls["runs"]}, clamped, files[-3]
    )
    ablated = {
        run.name: load_arrays(scores / "controls" / f"ablation_{run.name}.npz") for run in runs
    }
    reports = {
        run.name: load_json(metrics / "controls" / f"ablation_{run.name}.json") for run in runs
    }
    figures_controls.ablations(ablated, reports, files[-2])
    arms = {
        file.stem.removeprefix("subspace_"): load_arrays(file)
        for file in sorted((scores / "controls").glob("subspace_*.npz"))
    }
    figures_controls.alignment([run for run in runs if "alignment" in run.history], arms, files[-1])
    return files


def _runs(folder: Path) -> list[RunDirectory]:
    found = [RunDirectory.open(place) for place in sorted(folder.glob("*")) if place.is_dir()]
    if not found:
        raise InputError(f"{folder} has no runs: run `eigen-phase train` first")
    return found
