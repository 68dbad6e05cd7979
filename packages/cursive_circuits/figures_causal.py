"""What interventions do: ablations against other heads, dose; paths and weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from interp_core.plotting import (
    ABLATED,
    INDUCTION,
    INK,
    NULL,
    PREVIOUS_TOKEN,
    drawing,
    heading,
    note,
    whisker,
)
from interp_core.statistics.against_random import FEWEST_DISTINCT

Report = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]


def ablation(reports: Mapping[str, Report], path: Path) -> None:
    """Rise of the loss without the top heads: copied tokens, control, their difference, and other
    sets; directly and in total.
    """
    with drawing(path, width=5.2 * len(reports), height=7.4) as figure:
        grid = figure.subplots(2, len(reports), squeeze=False)
        for column, (name, report) in zip(grid.T, reports.items(), strict=True):
            _bars(column[0], report)
            column[0].set_title(f"{name}: without {' '.join(report['top'])}")
            _dose(column[1], report)
        heading(
            figure, grid[0, 0], "Ablating the heads with the highest excess attention", columns=4
        )
        parts = [
            f"{name}, direct: {report['direct']['copied']['n']} prompts, "
            f"{report['direct']['against']['says']}"
            for name, report in reports.items()
        ]
        counts = [
            f"{name}, other sets of k heads: {_set_counts(report['dose'])}"
            for name, report in reports.items()
        ]
        lines = [
            "copy-specific: copied tokens minus the same tokens after a word with nothing to copy",
            "direct: what the heads write to the prediction, other heads held; means, zeros: total",
            *parts,
            *counts,
            f"bar: their central 95 %, drawn for {FEWEST_DISTINCT} sets or more",
        ]
        note(figure, "\n".join(lines))


def _bars(axes: Axes, report: Report) -> None:
    parts = (
        ("copied", ABLATED, "copied tokens"),
        ("control", NULL, "control"),
        ("specific", INDUCTION, "copy-specific"),
    )
    for height, how in enumerate(("zero", "mean", "direct")):
        found = report[how]

        for shift, (key, colour, label) in enumerate(parts):
            y = height + 0.25 * (1 - shift)
            ends = [found[key]["low"], found[key]["high"]]
            whisker(axes, found[key]["value"], y, ends, colour=colour)
            if height == 0:
                axes.plot([], [], "o", color=colour, label=label)

        chance = found["against"]["random"]
        if chance["n"] == 0:
            continue

        y = height - 0.4
        axes.plot([chance["low"], chance["high"]], [y, y], color=INK, linewidth=2, alpha=0.5)
        axes.plot([chance["value"]], [y], "|", color=INK, markersize=12)

    axes.plot([], [], "|", color=INK, markersize=12, label="other heads, specific")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks([0, 1, 2], ["zeros", "means", "direct"])
    axes.set_ylim(-0.65, 2.5)
    axes.set_xlabel("rise of the loss (nats a token)")


def _dose(axes: Axes, report: Report) -> None:
    doses = report["dose"]
    k = [float(dose["k"]) for dose in doses]

    # A dose has as many random sets as there are: of a few no range is drawn, only their mean.
    for dose in doses:
        random, at = dose["against"]["random"], float(dose["k"])
        if random["n"] >= FEWEST_DISTINCT:
            axes.plot([at, at], [random["low"], random["high"]], color=NULL, linewidth=6, alpha=0.4)
        if random["n"] > 0:
            axes.plot([at], [random["value"]], "o", color=NULL, markersize=4)
    axes.plot([], [], "o", color=NULL, markersize=4, label="mean of other sets")

    values = np.array([dose["specific"]["value"] for dose in doses])
    ends = np.array([[dose["specific"]["low"], dose["specific"]["high"]] for dose in doses]).T
    axes.errorbar(
        k, values, yerr=np.abs(ends - values), color=INDUCTION, marker="o", label="top heads"
    )
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("heads ablated")
    axes.set_ylabel("copy-specific rise\n(nats a token)")
    # Above the curves: no corner is free of them in every model.
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.98), ncols=2)


def _set_counts(doses: Sequence[Report]) -> str:
    """How many sets stand behind the control of each number of heads."""
    return ", ".join(f"{dose['against']['random']['n']} of {dose['k']}" for dose in doses)


def paths(found: Mapping[str, tuple[Report, Arrays]], path: Path) -> None:
    """Weights against what path patching shows: every writer of the best readers."""
    styles = {"k": (INDUCTION, "o"), "q": (PREVIOUS_TOKEN, "s")}
    with drawing(path, width=5.2 * len(found), height=4.8) as figure:
        # One axis for all: what changes nothing must not look like what does.
        row = np.ravel(figure.subplots(1, len(found), sharey=True))

        for axes, (name, (report, arrays)) in zip(row, found.items(), strict=True):
            for reads in ("k", "q"):
                mine = arrays["paths/names"][:, 2] == reads
                colour, marker = styles[reads]
                axes.plot(
                    arrays["paths/z"][mine],
                    arrays["paths/effect"][mine, 0],
                    marker,
                    color=colour,
                    alpha=0.75,
                    label=f"through {'keys' if reads == 'k' else 'queries'}",
                )
            axes.axhline(0, color=INK, linewidth=0.8)
            axes.set_xlabel("composition (z against random)")
            axes.set_title(f"{name}: rank agreement {report['paths']['k']['agreement']:.2f} (keys)")

        low, high = row[0].get_ylim()
        row[0].set_ylim(min(low, -0.02), max(high, 0.02))
        row[0].set_ylabel("change of attention at its place")
        row[0].legend(loc="lower left")
        figure.suptitle("One writer taken out of what a reader reads")
        note(
            figure,
            "a point: one earlier head, of self- or cross-attention, into one of the best readers",
        )
