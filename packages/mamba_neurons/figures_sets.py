"""Figures of sets of units: deletion and insertion curves of rankings, and how few are enough."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from interp_core.plotting import (
    ABLATED,
    INK,
    NULL,
    band,
    drawing,
    heading,
    interval_text,
    model_styles,
    note,
)
from mamba_neurons.figures_scales import logarithmic

Arrays = Mapping[str, np.ndarray]
Report = Mapping[str, Any]
_METHODS = {
    "attention_weighted": "attention-weighted",
    "gradient_guided": "gradient-guided",
    "rollout": "rollout",
    "fisher": "Fisher estimate (reference)",
}
_RANKINGS = {"single": ("ranked alone", "o", "-"), "joint": ("ranked together", "s", "--")}


def faithfulness(arrays: Arrays, report: Report, name: str, path: Path) -> None:
    """Deletion and insertion curves of each method's ranking, beside random orders."""
    faithful = report["attention_data"]["faithfulness"]
    methods = [key for key in _METHODS if key in faithful["deletion"]]
    titles = {
        "deletion": "the first x ablated",
        "insertion": "all but the first x ablated",
    }

    with drawing(path, width=10.2, height=6.0) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (kind, title) in zip(panels, titles.items(), strict=True):
            plot_curves(axes, faithful[kind], faithful["fractions"], methods)
            axes.set_title(f"{kind}: {title}", loc="left")

        panels[0].set_ylabel("KL from the clean predictions (nats)")
        title = f"{name}: do the rankings of attention neurons say what matters?"
        heading(figure, panels[1], title, columns=3)

        said = "\n".join(_areas(faithful, method) for method in methods)
        note(
            figure,
            f"mean ablation, ranked on every second text, judged on the other {faithful['n']}; "
            f"grey: {faithful['random_orders']} random orders\n"
            "bands: 95 % interval of the distance from their mean, paired by text\n"
            f"mean distance from random (nats, 95 %; positive: better):\n{said}",
        )


def plot_curves(axes: Axes, curves: Report, x: list[float], methods: list[str]) -> None:
    """A curve for each method, and where random orders lie."""
    random = curves["random"]
    band(axes, x, random["low"], random["high"], colour=NULL)
    axes.plot(x, random["mean"], color=NULL, linestyle="--", label="random orders")

    for method, style in model_styles(methods).items():
        found = curves[method]
        band(axes, x, found["low"], found["high"], colour=style.color)
        axes.plot(
            x,
            found["kl"],
            color=style.color,
            marker=style.marker,
            linestyle=style.linestyle,
            markersize=5,
            label=_METHODS[method],
        )

    logarithmic(axes, "x")
    axes.set_xlabel("share x of every layer's channels")
    axes.set_xticks(x)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _areas(faithful: Report, method: str) -> str:
    parts = []
    for kind in ("deletion", "insertion"):
        area = faithful[kind][method]["area"]
        parts.append(f"{kind} {interval_text(area['value'], (area['low'], area['high']))}")

    return f"{_METHODS[method]}: {', '.join(parts)}"


def functional_curves(reports: Mapping[str, Report], path: Path) -> None:
    """Rise of the loss when only the first units of a ranking are kept, of each model, beside
    random orders.
    """
    with drawing(path, width=4.9 * len(reports) + 0.6, height=5.8) as figure:
        panels = figure.subplots(1, len(reports), sharey=True, squeeze=False)[0]
        for axes, (name, report) in zip(panels, reports.items(), strict=True):
            plot_functional(axes, report["functional"])
            axes.set_title(_title(name, report["functional"]), loc="left")

        panels[0].set_yscale("symlog", linthresh=0.01)
        panels[0].set_ylim(bottom=-0.005)
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panels[0].set_ylabel("rise of the loss (share of the clean loss)")
        heading(figure, panels[0], "How few units keep the loss?", columns=4)

        first = next(iter(reports.values()))["functional"]
        orders = first["random"]["rise"]["n"]
        note(
            figure,
            "all others mean-ablated; units are neurons, in a transformer its attention heads too\n"
            f"ranked on every second text, judged on the other {first['n']}; bands: 95 % over "
            "texts (ranked alone),\n"
            f"and over {orders} random orders of the neurons (grey); bars: fewest units within "
            f"{first['tolerance']:.0%}, bisected in every draw\n"
            "the scale is linear below 1 %",
        )


def plot_functional(axes: Axes, few: Report) -> None:
    """One model: its rankings' curves and their crossings, and random orders."""
    random, total = few["random"], few["units"]
    axes.axhline(few["tolerance"], color=INK, linewidth=1, linestyle=":", label="tolerated")

    share = np.array(random["sizes"]) / total
    rise = random["rise"]
    band(axes, share, rise["low"], rise["high"], colour=NULL)
    axes.plot(share, rise["value"], "^--", color=NULL, markersize=4, label="random orders")

    for place, (ranking, found) in enumerate(few["rankings"].items()):
        label, marker, line = _RANKINGS[ranking]
        colour = (ABLATED, INK)[place]
        share, rise = np.array(found["sizes"]) / total, found["rise"]

        if place == 0:
            # A second band on top of two others could not be told from them.
            band(axes, share, rise["low"], rise["high"], colour=colour)
        axes.plot(share, rise["value"], line, color=colour, linewidth=1.4, label=label)

        crossing = found["enough_share"]
        y = few["tolerance"] * (0.55, 0.25)[place]
        ends = [crossing["low"], crossing["high"]]
        axes.plot(ends, [y, y], color=colour, linewidth=3, alpha=0.55)
        axes.plot([crossing["value"]], [y], marker, color=colour, markersize=7)

    axes.set_xlabel("share of the model's units kept")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _title(name: str, few: Report) -> str:
    enough = [f"{found['enough']['value']:.0f}" for found in few["rankings"].values()]
    return f"{name}: {' or '.join(enough)} of {few['units']}"
