"""Figures of activity: step sizes, sparsity, the comparison of two models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from interp_core.plotting import (
    GRID,
    NULL,
    STRIPE,
    LineStyle,
    band,
    drawing,
    heading,
    model_styles,
    note,
    whisker,
)
from mamba_neurons.figures_causal import FEWEST_LAYERS
from mamba_neurons.figures_scales import logarithmic

Arrays = Mapping[str, np.ndarray]
Report = Mapping[str, Any]
_MEASURES = {
    "gini": "Gini",
    "hoyer": "Hoyer",
    "treves_rolls": "Treves-Rolls",
    "entropy": "1 - entropy",
    "near_zero": "near zero",
}


def delta(arrays: Arrays, report: Report, name: str, path: Path) -> None:
    """Channels ranked by how much their step differs between texts, and by kind of token, beside
    what chance gives.
    """
    layers = list(report["layers"])
    styles = model_styles([f"layer {layer}" for layer in layers])
    titles = {
        "share": "variance between texts",
        "selectivity": "variance explained by kind of token",
    }

    with drawing(path, width=9.6, height=5.2) as figure:
        panels = figure.subplots(1, 2)
        for axes, (key, title) in zip(panels, titles.items(), strict=True):
            for index, (label, style) in enumerate(styles.items()):
                plot_ranked(axes, arrays, key, index, label, style)
            axes.set(xlabel=f"rank of the {_unit(report)}", title=title)
            axes.set_ylabel("share of the variance of dt")

        title = f"{name}: what the step size dt of a channel follows"
        heading(figure, panels[0], title, columns=4)

        blocks = sorted({found["share_null_block"] for found in report["layers"].values()})
        note(
            figure,
            f"{report['texts']} texts; band: 95 % over texts; horizontal lines: largest share of "
            f"any {_unit(report)} in 95 % of draws\n"
            f"left: blocks of {' or '.join(map(str, blocks))} tokens dealt to texts at random\n"
            "right: kinds dealt to token types at random",
        )


def _unit(report: Report) -> str:
    """What has a step size of its own: a channel, or a Mamba-2's head."""
    return str(report.get("unit", "channel"))


def plot_ranked(
    axes: Axes, arrays: Arrays, key: str, layer: int, label: str, style: LineStyle
) -> None:
    """One layer's channels, largest first, with the family-wise threshold."""
    values = arrays[key][layer]
    order = np.argsort(-values, kind="stable")
    rank = np.arange(1.0, len(order) + 1)

    if f"{key}_low" in arrays:
        low, high = (arrays[f"{key}_{end}"][layer][order] for end in ("low", "high"))
        band(axes, rank, low, high, colour=style.color)

    line = style.linestyle
    axes.plot(rank, values[order], color=style.color, linestyle=line, label=label)

    threshold = float(arrays[f"{key}_null_threshold"][layer])
    chance = f"chance, {label}"
    axes.axhline(threshold, color=NULL, linestyle=line, linewidth=1.4, label=chance)


def sparsity(reports: Mapping[str, Report], path: Path) -> None:
    """Population and lifetime measures of the neurons, by layer and model, and of the residual
    stream.
    """
    styles = model_styles(list(reports))
    kinds = {"neurons": None, "residual stream": "resid"}
    levels = {"population": "over units at a token", "lifetime": "over tokens of a unit"}

    with drawing(path, width=10.4, height=7.6) as figure:
        rows = figure.subplots(2, 2, sharex=True, sharey=True)

        for row, (level, title) in zip(rows, levels.items(), strict=True):
            for axes, (which, kind) in zip(row, kinds.items(), strict=True):
                plot_measures(axes, reports, styles, level, kind)
                axes.set_title(f"{which}: {title}", loc="left")

        for axes in rows[1]:
            axes.set_xlabel("sparsity (0: all alike, 1: one has all)")

        heading(figure, rows[0][0], "How sparse are the activations?", columns=2)
        note(
            figure,
            "symbols from top to bottom of a row: the first to the last layer measured; whiskers: "
            "95 % over texts\n"
            "near zero: share below a tenth of the root mean square; no measure depends on scale",
        )


def plot_measures(
    axes: Axes,
    reports: Mapping[str, Report],
    styles: Mapping[str, LineStyle],
    level: str,
    kind: str | None,
) -> None:
    """A row for each measure; in it each model's layers from top to bottom."""
    slots = sum(len(report["layers"]) for report in reports.values()) + 1

    for y, measure in enumerate(_MEASURES):
        if y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color=STRIPE, linewidth=0, zorder=0)

        place = 0
        for name, report in reports.items():
            style = styles[name]

            for layer in report["layers"].values():
                of_kind = layer[kind or ("inner" if "inner" in layer else "mlp")]
                value, ends = _drawn(of_kind[level][measure], measure)
                place += 1
                y_at = y + place / slots - 0.5
                whisker(axes, value, y_at, ends, colour=style.color, marker=style.marker)

    for name, style in styles.items():
        axes.plot([], [], style.marker, color=style.color, label=name)
    axes.set_yticks(range(len(_MEASURES)), list(_MEASURES.values()))
    axes.set_ylim(len(_MEASURES) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _drawn(found: Report, measure: str) -> tuple[float, list[float]]:
    """Value and ends; entropy falls with sparsity, so that 1 - entropy is shown."""
    value = found["value"]
    ends = [value, value] if found["low"] is None else [found["low"], found["high"]]

    if measure == "entropy":
        return 1 - value, [1 - ends[1], 1 - ends[0]]

    return value, ends


def compare(arrays: Arrays, report: Report, path: Path) -> None:
    """Both models layer by layer over relative depth: how the residual stream moves, and how
    sparse the neurons are.
    """
    names = {"first": report["first"], "second": report["second"]}
    styles = model_styles(list(names.values()))
    titles = {
        "update": "update ||r' - r|| / ||r||",
        "turn": "turn 1 - cos(r, r')",
        "lens_kl": "KL to the final\npredictions (nats)",
        "gini": "Gini of neurons",
        "near_zero": "neurons near zero",
        "treves_rolls": "Treves-Rolls of neurons",
    }

    with drawing(path, width=10.4, height=7.4) as figure:
        panels = figure.subplots(2, 3, sharex=True)

        for axes, (key, title) in zip(panels.ravel(), titles.items(), strict=True):
            for place, (which, name) in enumerate(names.items()):
                plot_layers(axes, arrays, which, key, name, styles[name], shift=place)

            # Differences of sparsity are small.
            section = "dynamics" if key in report["dynamics"] else "sparsity"
            digits = 2 if section == "dynamics" else 3
            found = report[section][key]["difference"]
            value, low, high = (found[part] for part in ("value", "low", "high"))
            said = f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
            axes.set_title(f"{title}\n{said}", loc="left")

            axes.set_xlim(0, 1)
            if key == "update":
                logarithmic(axes, "y")

        for axes in panels[1]:
            axes.set_xlabel("relative depth of the layer")

        title = f"{names['first']} beside {names['second']} on the same tokens"
        heading(figure, panels[0][0], title, columns=2)
        note(
            figure,
            "a symbol for each layer, whiskers: 95 % over texts; below each title: difference of "
            "the means over\ndepth, first minus second, 95 % interval, paired by text, "
            f"n = {report['loss']['difference']['n']}",
        )


def plot_layers(
    axes: Axes,
    arrays: Arrays,
    which: str,
    key: str,
    name: str,
    style: LineStyle,
    *,
    shift: int,
) -> None:
    """One model's layers as points with whiskers; a line joins them where there are three."""
    value, low, high = (arrays[f"{which}/{key}{end}"] for end in ("", "_low", "_high"))

    # Layers of equal depth stand side by side.
    x = arrays[f"{which}/depth"] + 0.03 * shift
    error = np.stack([value - low, high - value]).clip(min=0)
    axes.errorbar(x, value, yerr=error, fmt=style.marker, color=style.color, label=name)

    if len(x) >= FEWEST_LAYERS:
        axes.plot(x, value, color=style.color, linestyle=style.linestyle, linewidth=1.2)
