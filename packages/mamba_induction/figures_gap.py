"""The gap between recognition and prediction: by depth, by path, and as a rate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from interp_core.plotting import (
    ABLATED,
    COPYING,
    DUPLICATE_TOKEN,
    INDUCTION,
    INK,
    NULL,
    band,
    drawing,
    note,
    whisker,
)
from mamba_induction.figures_layers import plain_decades

Report = Mapping[str, Any]
CONDITIONS = {
    "second": (INDUCTION, "-", "second occurrence"),
    "first": (DUPLICATE_TOKEN, "--", "first occurrence"),
    "control": (NULL, ":", "nothing to copy"),
}


def prediction_gap(gaps: Mapping[str, Report], path: Path) -> None:
    """A row for each model, on repeated random tokens: probability and rank of the target by depth,
    the parts of its final logit, and how often what is recognised is not predicted, there and on
    natural text.
    """
    with drawing(path, width=16.0, height=1.4 + 3.9 * len(gaps)) as figure:
        panels = figure.subplots(len(gaps), 4, squeeze=False, width_ratios=[1, 1, 1.15, 0.9])
        for line, (name, report) in zip(panels, gaps.items(), strict=True):
            scores = report["repeated"]["scores"]
            plot_by_depth(line[0], scores, "probability")
            plot_by_depth(line[1], scores, "log_rank")
            plot_parts(line[2], report["repeated"])
            plot_rates(line[3], report)
            line[0].set(ylabel=f"{name}\nprobability of the target", ylim=(-0.03, 1.03))
            line[1].set(ylabel="rank of the target\n(geometric mean)", yscale="log")
            plain_decades(line[1])
        for axes in panels[-1, :2]:
            axes.set_xlabel("depth (0: embedding, l + 1: after layer l)")
        panels[-1, 2].set_xlabel("nats above the mean logit")
        panels[-1, 3].set_xlabel("share of copy operations")
        panels[0, 0].plot([], [], "o", color=COPYING, label="recognised (right)")
        panels[0, 0].plot([], [], "X", color=ABLATED, label="recognised, not predicted (right)")
        panels[0, 0].plot([], [], "|", color=INK, label="same, if independent (right)")
        figure.legend(
            *panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=6
        )
        told = _prompts(next(iter(gaps.values())))
        quantile = 100 * next(iter(gaps.values()))["quantile"]
        note(
            figure,
            f"n = {told} · bands and bars: 95 % over prompts · "
            f"recognised: above the {quantile:g} % quantile of the control",
        )


def _prompts(report: Report) -> str:
    """How many prompts each family of a report has; natural ones need a repeat in them."""
    families = {
        "repeated": "prompts of repeated random tokens",
        "natural": "of natural text (in the rightmost panels)",
    }
    counts = {
        family: report[family]["scores"]["not_predicted/attention"]["n"]
        for family in families
        if family in report
    }
    return ", ".join(f"{n} {families[family]}" for family, n in counts.items())


def plot_by_depth(axes: Axes, scores: Report, kind: str) -> None:
    """A lens score by depth at the three conditions; ranks as geometric means."""
    shape = np.exp if kind == "log_rank" else np.asarray
    for name, (colour, dashes, label) in CONDITIONS.items():
        found = {
            end: shape(np.array(scores[f"{name}/{kind}"][end])) for end in ("value", "low", "high")
        }
        depth = np.arange(float(len(found["value"])))
        band(axes, depth, found["low"], found["high"], colour=colour)
        axes.plot(depth, found["value"], "o", linestyle=dashes, color=colour, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))


def plot_parts(axes: Axes, family: Report, most: int = 9) -> None:
    """What each layer and path adds to the target's logit, second occurrence against control; the
    largest parts.
    """
    names = family["parts"]
    second, control = (family["scores"][f"{name}/parts"] for name in ("second", "control"))
    order = np.sort(np.argsort(-np.abs(second["value"]))[:most])
    for row, part in enumerate(reversed(order)):
        axes.barh(row, second["value"][part], height=0.7, color=INDUCTION)
        axes.plot(
            [second["low"][part], second["high"][part]], [row, row], color="black", linewidth=1.5
        )
        axes.plot(control["value"][part], row, "D", color=NULL, markersize=6)
    axes.set_yticks(range(len(order)), [names[part] for part in reversed(order)])
    axes.axvline(0, color=NULL, linewidth=1)


def plot_rates(axes: Axes, report: Report) -> None:
    """Recognised, and recognised but not predicted, by effective attention and by hidden
    similarity.
    """
    rows = []
    for family in ("natural", "repeated"):
        if family not in report:
            continue

        for kind, label in (("hidden_similarity", "similarity"), ("attention", "attention")):
            rows.append(f"{family},\n{label}")
            for score, colour, marker in (
                ("recognised", COPYING, "o"),
                ("not_predicted", ABLATED, "X"),
            ):
                found = report[family]["scores"][f"{score}/{kind}"]
                interval = (found["low"], found["high"])
                y = len(rows) - 1.0
                whisker(axes, found["value"], y, interval, colour=colour, marker=marker)

            # Above the bar: recognised repeats are predicted less often than the rest.
            independent = report[family]["recognition"][kind]["independent"]["value"]
            axes.plot(independent, len(rows) - 1.0, "|", color=INK, markersize=22)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.6, len(rows) - 0.4))
