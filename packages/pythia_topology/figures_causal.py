"""What copying needs: the best heads ablated, beside both controls; how the effect grows with k."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from interp_core.plotting import (
    ABLATED,
    GRID,
    INK,
    NULL,
    STRIPE,
    band,
    drawing,
    heading,
    note,
    whisker,
)

_ABLATIONS = {
    "zero": "zero",
    "mean": "mean",
    "resample": "resample",
    "pattern_preserving": "mean, later\npatterns kept",
}
_TEXT = "mean, on text\nwithout repeats"

# Key in a report, legend, marker, and its place below the row of the top heads.
_CONTROLS = (
    ("outside", "as many heads outside the circuit", "s", 0.08),
    ("layer_matched", "as many others of the same and the next layers", "D", 0.32),
)


def causal_delta(reports: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """For each model: change of accuracy and loss when the best heads are ablated, in four ways.

    Beside them as many heads outside the circuit, and as many of the same layers.
    """
    words = [line for name, report in reports.items() for line in _whose(name, report)]
    height = 2.0 + 3.4 * len(reports) + 0.17 * len(words)

    with drawing(path, width=10.4, height=height) as figure:
        rows = figure.subplots(len(reports), 2, sharex="col", sharey="row", squeeze=False)

        for (left, right), (name, report) in zip(rows, reports.items(), strict=True):
            plot_changes(left, report, "accuracy")
            plot_changes(right, report, "loss")
            left.set_title(f"{name}: {_short(report['top_heads'])}", loc="left")
            right.set_title(f"{p_text(report)}, n = {report['n']} prompts", loc="right")

        rows[-1][0].set_xlabel("change of second-copy accuracy\n(percentage points)")
        rows[-1][1].set_xlabel("change of loss\n(nats)")
        title = "Ablating the heads with the most excess prefix matching"
        heading(figure, rows[0][1], title, columns=1)

        explained = (
            "orange: 95 % interval over prompts · grey: mean and central 95 % of distinct random "
            "sets\noutside the circuit: neither induction nor previous-token heads · p: share of "
            "those sets at least as\nharmful (mean ablation, loss)"
        )
        note(figure, "\n".join([explained, *words]))


def p_text(report: Mapping[str, Any]) -> str:
    """`p = 0.005`, or that too few sets allow no test."""
    if report["p_value"] is None:
        return f"no test possible ({report['draws']} sets)"

    return f"p = {report['p_value']:.2g}"


def _whose(name: str, report: Mapping[str, Any]) -> list[str]:
    """From which layers the partners come, for the caption."""
    controls = report["controls"]
    told = f"{name}: {controls['outside']}; same layers: {controls['layer_matched']}"
    return wrap(told, 118)


def plot_changes(axes: Axes, report: Mapping[str, Any], measure: str) -> None:
    """Each way of ablating on its row: the best heads with their interval, controls below them."""
    factor = 100.0 if measure == "accuracy" else 1.0
    rows = {label: report["ablations"][key][measure] for key, label in _ABLATIONS.items()}
    rows[_TEXT] = report["specificity"] if measure == "loss" else None
    axes.axvline(0, color=INK, linewidth=1)

    for y, change in enumerate(rows.values()):
        if y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color=STRIPE, linewidth=0, zorder=0)

        if change is None:
            _loss_only(axes, y)
            continue

        for key, _, marker, below in _CONTROLS:
            random = change[key]["random"]
            if random["value"] is not None:
                spread = [factor * random["low"], factor * random["high"]]
                middle = factor * random["value"]
                whisker(axes, middle, y + below, spread, colour=NULL, marker=marker)

        top = change["top"]
        interval = [factor * top["low"], factor * top["high"]]
        whisker(axes, factor * top["value"], y - 0.22, interval, colour=ABLATED)

    axes.plot([], [], "o", color=ABLATED, label=f"top {report['top_k']} heads")
    for _, label, marker, _ in _CONTROLS:
        axes.plot([], [], marker, color=NULL, label=label)

    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _loss_only(axes: Axes, y: int) -> None:
    axes.text(
        0.5,
        y,
        "(loss only)",
        transform=axes.get_yaxis_transform(),
        ha="center",
        va="center",
        color=NULL,
    )


def dose(reports: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Change of accuracy and loss against the number of heads ablated, a row for each model.

    Beside heads outside the circuit, and a whole layer.
    """
    with drawing(path, width=9.6, height=2.0 + 2.6 * len(reports)) as figure:
        rows = figure.subplots(len(reports), 2, sharex=True, sharey="col", squeeze=False)

        for (left, right), (name, report) in zip(rows, reports.items(), strict=True):
            plot_dose(left, report["dose"], "accuracy")
            plot_dose(right, report["dose"], "loss")

            layer = report["dose"]["whole_layer"]["layer"]
            left.set_title(f"{name} (dotted: layer {layer})", loc="left")
            left.set_ylabel("change of accuracy\n(percentage points)")
            right.set_ylabel("change of loss (nats)")

        for axes in rows[-1]:
            axes.set_xlabel("heads ablated (mean ablation)")

        heading(figure, rows[0][0], "How many heads does copying need?", columns=3)
        counts = [f"{name}: {_set_counts(report['dose'])}" for name, report in reports.items()]
        n = " or ".join(str(n) for n in sorted({report["n"] for report in reports.values()}))
        explained = (
            f"n = {n} prompts · orange band: 95 % interval over prompts · grey: mean and central "
            "95 %\nof distinct sets outside the circuit, which are so many sets of so many heads:"
        )
        note(figure, "\n".join([explained, *counts]))


def _set_counts(doses: Mapping[str, Any]) -> str:
    """How many sets stand behind the control of each number of heads."""
    counted = zip(doses["k"], doses["sets"], strict=True)
    return ", ".join(f"{n} of {k}" for k, n in counted)


def plot_dose(axes: Axes, doses: Mapping[str, Any], measure: str) -> None:
    """One measure's dose curve, its control, and the bound that a whole layer sets.

    The control ends where too few heads are outside the circuit.
    """
    factor = 100.0 if measure == "accuracy" else 1.0
    k = [float(number) for number in doses["k"]]
    curve = {
        key: factor * np.array(values, dtype=np.float64) for key, values in doses[measure].items()
    }
    whole = doses["whole_layer"]
    axes.axhline(0, color=INK, linewidth=1)

    band(axes, k, curve["random_low"], curve["random_high"], colour=NULL)
    axes.plot(k, curve["random_mean"], "s--", color=NULL, label="outside the circuit")

    band(axes, k, curve["top_low"], curve["top_high"], colour=ABLATED)
    axes.plot(k, curve["top"], "o-", color=ABLATED, label="top heads")

    bound = factor * whole[measure]
    axes.axhline(bound, color=INK, linestyle=":", label="a whole layer")
    axes.set_xticks(k, [str(number) for number in doses["k"]])


def _short(heads: list[str]) -> str:
    if len(heads) <= 4:
        return " ".join(heads)

    return f"{' '.join(heads[:3])} … ({len(heads)} heads)"
