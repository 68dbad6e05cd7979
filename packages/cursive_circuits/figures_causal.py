"""What interventions do: ablations against other heads, dose, single heads; paths and weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable

from interp_core.plotting import (
    ABLATED,
    COPYING,
    DIVERGING,
    INDUCTION,
    INK,
    NULL,
    PREVIOUS_TOKEN,
    band,
    centred,
    drawing,
    head_map,
    heading,
    note,
    whisker,
)

Report = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]
FLAT = 0.1  # nats: maps of smaller effects are pale, or not drawn


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
        lines = [
            "copy-specific: copied tokens minus the same tokens after a word with nothing to copy",
            "direct: what the heads write to the prediction, other heads held; means, zeros: total",
            *parts,
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

    # A dose has as many random sets as there are: with one set, its range is a point.
    chance = [(dose["k"], dose["against"]["random"]) for dose in doses]
    chance = [(at, random) for at, random in chance if random["n"] > 0]
    if chance:
        at = [float(dose) for dose, _ in chance]
        low, high, mean = (
            [random[key] for _, random in chance] for key in ("low", "high", "value")
        )
        band(axes, at, low, high, colour=NULL, label="random heads, 95 %")
        axes.plot(at, mean, color=NULL, marker=".")

    values = np.array([dose["specific"]["value"] for dose in doses])
    ends = np.array([[dose["specific"]["low"], dose["specific"]["high"]] for dose in doses]).T
    axes.errorbar(
        k, values, yerr=np.abs(ends - values), color=INDUCTION, marker="o", label="top heads"
    )
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("heads ablated")
    axes.set_ylabel("copy-specific rise\n(nats a token)")
    axes.legend(loc="upper left")


def single_heads(arrays: Arrays, name: str, path: Path) -> None:
    """Every head alone: copy-specific harm and harm in the control."""
    alone = arrays["alone"]
    specific, plain = alone[..., 0] - alone[..., 1], alone[..., 1]
    scale = centred(np.stack([specific, plain]), least=FLAT)

    # A model without a text has cross-attention that does nothing: no map of it.
    cross = max(float(np.abs(values[:, 1]).max()) for values in (specific, plain))
    kinds = ["self", "cross"] if cross >= FLAT else ["self"]
    panels = [
        (values[:, kinds.index(kind)], f"{kind}-attention:\n{title}")
        for values, title in ((specific, "copy-specific"), (plain, "control"))
        for kind in kinds
    ]

    with drawing(path, width=2.2 * len(panels) + 1.2, height=4.2) as figure:
        row = np.ravel(figure.subplots(1, len(panels), sharey=True))
        for axes, (values, title) in zip(row, panels, strict=True):
            head_map(axes, values, scale=scale, colours=DIVERGING)
            axes.set_title(title)
            axes.set_xlabel("head")

        row[0].set_ylabel("layer")
        figure.colorbar(
            ScalarMappable(scale, DIVERGING),
            ax=list(row),
            label="rise of the loss (nats)",
            pad=0.02,
        )
        figure.suptitle(f"{name}: every head replaced by its mean, alone")
        if cross < FLAT:
            note(figure, f"cross-attention: every head below {FLAT} nats, not drawn")


def paths(found: Mapping[str, tuple[Report, Arrays]], path: Path) -> None:
    """Weights against what path patching shows: every writer of the best readers."""
    styles = {"k": (INDUCTION, "o"), "q": (PREVIOUS_TOKEN, "s"), "v": (COPYING, "^")}
    with drawing(path, width=5.2 * len(found), height=4.6) as figure:
        for axes, (name, (report, arrays)) in zip(
            np.ravel(figure.subplots(1, len(found))), found.items(), strict=True
        ):
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
            lowest = float(arrays["paths/effect"][:, 0].min())
            axes.set_ylim(
                min(-0.02, 1.15 * lowest),
                max(0.02, -0.15 * lowest, 1.15 * float(arrays["paths/effect"][:, 0].max())),
            )
            axes.set_xlabel("composition (z against random)")
            axes.set_title(f"{name}: rank agreement {report['paths']['k']['agreement']:.2f} (keys)")
            axes.set_ylabel("change of attention at its place")
            axes.legend(loc="lower left")
        figure.suptitle("One writer taken out of what a reader reads")
        note(
            figure,
            "a point: one earlier head, of self- or cross-attention, into one of the best readers",
        )
