"""The study's figures, from files alone: no model is loaded and no score computed here."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from interp_core.files.artifacts import load_arrays, load_json
from mamba_neurons import figures_activity, figures_causal, figures_sets
from mamba_neurons.figures_causal import FEWEST_LAYERS

Report = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]
Place = Callable[[str, str], Path]  # ("scores", "metrics" or "figures", command) -> folder

COMMANDS = (
    "delta",
    "causal",
    "inter_layer",
    "cross_layer",
    "attention",
    "sparsity",
    "efficiency",
    "compare",
)
_OF_THE_MAMBA = {
    "delta": (figures_activity.delta,),
    "causal": (figures_causal.ranked_effects,),
    "inter_layer": (figures_causal.inter_layer,),
    "cross_layer": (figures_causal.influence,),
    "attention": (figures_sets.faithfulness,),
}


# What they draw goes from layer to layer.
_OVER_LAYERS = ("inter_layer", "cross_layer")


def draw_all(names: Sequence[str], place: Place) -> list[Path]:
    """Every figure of the commands that have run; returns the files written.

    A command of which no record is there has not run. InputError names a file that is missing or
    damaged.
    """
    written = []

    for command in COMMANDS:
        has_run = any(place("metrics", command).glob(f"{command}_*.json"))
        if has_run and (command != "compare" or len(names) > 1):
            written += draw(command, names, place)

    return written


def draw(command: str, names: Sequence[str], place: Place) -> list[Path]:
    """The figures of one command for the models (the Mamba first), from the files that it wrote."""
    folder = place("figures", "")
    if command in _OF_THE_MAMBA:
        arrays, report = _read(command, names[0], place)
        paths = []

        # Between two layers there is one number, which is no figure.
        if command in _OVER_LAYERS and len(report["layers"]) < FEWEST_LAYERS:
            return []

        functions = list(_OF_THE_MAMBA[command])

        # Where every effect is exact no estimate stands for one. How far they agree is in the
        # metrics.
        if command == "causal" and not _is_exact(report["whole_model"]):
            functions.append(figures_causal.estimates)

        for function in functions:
            paths.append(folder / f"{function.__name__}_{names[0]}.png")
            function(arrays, report, names[0], paths[-1])

        return paths

    if command == "compare":
        path = folder / "compare.png"
        figures_activity.compare(*_read(command, "_".join(names), place), path)
        return [path]

    found = {name: _read(command, name, place) for name in names}
    reports = {name: report for name, (_, report) in found.items()}

    if command == "efficiency":
        path = folder / "efficiency.png"
        figures_sets.functional_curves(reports, path)
        return [path]

    path = folder / "sparsity.png"
    figures_activity.sparsity(reports, path)
    return [path]


def _is_exact(whole: Report) -> bool:
    return whole["exact_channels"] == whole["channels"]


def _read(command: str, name: str, place: Place) -> tuple[Arrays, Report]:
    stem = f"{command}_{name}"
    arrays = load_arrays(place("scores", command) / f"{stem}.npz")
    return arrays, load_json(place("metrics", command) / f"{stem}.json")
