"""Over trainings: where every training's induction heads are centred, and what each rule
predicts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from interp_core.plotting import GRID, INDUCTION, INK, NULL, PREVIOUS_TOKEN, drawing, heading, note

# By name in the report: what the legend says, colour, dashes.
_RULES: dict[str, tuple[str, str, tuple[float, tuple[float, ...]]]] = {
    "constant relative depth": ("rule: one relative depth", INK, (0, (5.0, 1.5))),
    "constant layer": ("rule: one layer", NULL, (0, (1.5, 1.0))),
    "a constant number of layers after the previous-token heads": (
        "rule: so many layers after the previous-token heads",
        PREVIOUS_TOKEN,
        (0, (5.0, 1.0, 1.0, 1.0)),
    ),
}
_SPREAD = 0.12  # layers of depth over which the trainings of a size are laid side by side


def sizes(report: Mapping[str, Any], path: Path) -> None:
    """Left in relative depth, right in layers; a point is one training."""
    with drawing(path, width=10.5, height=6.4) as figure:
        left, right = figure.subplots(1, 2)
        plot_sizes(left, report, "centre_of_mass")
        plot_sizes(right, report, "centre_in_layers")

        left.set_ylabel("centre of mass (relative depth)")
        right.set_ylabel("centre of mass (layer, from 0)")
        for axes in (left, right):
            axes.set_xlabel("layers of the model")

        title = f"Where do induction heads sit, over trainings?\n{fill(report['verdict'], 85)}"
        heading(figure, left, title, columns=2)
        note(figure, _counted(report["sizes"].values(), report["margin"]))


def plot_sizes(axes: Axes, report: Mapping[str, Any], measure: str) -> None:
    """Every training's centre, each size's mean with its interval, and the rules' predictions."""
    found = report["sizes"]
    depths = np.array([size["n_layers"] for size in found.values()], dtype=np.float64)

    for rule in report["rivals"]:
        label, colour, dashes = _RULES[rule["name"]]
        layers = np.array([rule["predicts"].get(size, np.nan) for size in found])
        heights = layers if measure == "centre_in_layers" else (layers + 0.5) / depths
        axes.plot(depths, heights, color=colour, linestyle=dashes, label=label)

    for depth, size in zip(depths, found.values(), strict=True):
        values = size[measure]["values"]
        aside = np.linspace(-_SPREAD, _SPREAD, len(values)) if len(values) > 1 else np.zeros(1)
        axes.plot(depth + aside[: len(values)], values, "o", color=INDUCTION, alpha=0.65, zorder=3)
        _mean(axes, depth + 2.5 * _SPREAD, size[measure]["mean"])

    axes.plot([], [], "o", color=INDUCTION, alpha=0.65, label="a training")
    axes.plot([], [], "_-", color=INK, label="mean, 95 % over trainings")
    axes.set_xticks(depths, [f"{depth:.0f}" for depth in depths])
    axes.margins(x=0.12)
    _room(axes, found.values(), measure)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _mean(axes: Axes, at: float, mean: Mapping[str, Any] | None) -> None:
    if mean is None:
        return

    axes.plot([at], [mean["value"]], "_", color=INK, markersize=11, markeredgewidth=2)
    if mean["low"] is not None:
        axes.plot([at, at], [mean["low"], mean["high"]], color=INK, linewidth=1.8)


def _room(axes: Axes, found: Any, measure: str) -> None:
    """From 0 to what trainings reach: an interval of two trainings may leave the model."""
    if measure == "centre_of_mass":
        axes.set_ylim(0, 1)
        return

    highest = max(value for size in found for value in size[measure]["values"])
    axes.set_ylim(-0.5, highest + 1.5)


def _counted(found: Any, margin: float) -> str:
    sizes_found: Sequence[Mapping[str, Any]] = list(found)
    counts = sorted({size["trainings"] for size in sizes_found})
    n = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    without = sum(size["without_induction_heads"] for size in sizes_found)
    left_out = f" · {without} without induction heads, left out" if without else ""

    return (
        f"n = {n} trainings of each size, which differ by their seed alone{left_out} · "
        "sizes are compared seed by seed\n"
        f"rules have one number each, fitted to all trainings · margin of equivalence {margin:g}"
    )
