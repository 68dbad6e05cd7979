"""Handwriting on the page: samples, attention over the ink, ink before and after an ablation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize

from cursive_circuits.data_tokens import Points
from interp_core.plotting import (
    ABLATED,
    COPYING,
    GRID,
    INDUCTION,
    INK,
    NULL,
    PREVIOUS_TOKEN,
    drawing,
    note,
    shades,
)

Report = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]


def plot_ink(
    axes: Axes, points: Points, *, colour: str = INK, title: str = "", title_colour: str = INK
) -> None:
    """One word as it was written."""
    segments = [points[i - 1 : i + 1, :2] for i in range(1, len(points)) if points[i, 2]]
    axes.add_collection(LineCollection(segments, colors=colour, linewidths=1.9, capstyle="round"))
    _page(axes, points)
    axes.set_title(title, fontsize=12, color=title_colour)


def _page(axes: Axes, points: Points) -> None:
    """Equal scales, y down, no frame."""
    if len(points):
        (left, top), (right, bottom) = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
        axes.set_xlim(left - 0.08, right + 0.08)
        axes.set_ylim(bottom + 0.08, top - 0.08)
    axes.set_aspect("equal", adjustable="box")
    axes.set_axis_off()


def words_on_page(words: Mapping[str, Points], path: Path) -> None:
    """A picture of a few words, each under its spelling."""
    with drawing(path, width=max(3.0, 2.6 * len(words)), height=2.2) as figure:
        for axes, (word, points) in zip(
            np.ravel(figure.subplots(1, len(words))), words.items(), strict=True
        ):
            plot_ink(axes, points, title=word)


def samples(arrays: Arrays, report: Report, path: Path) -> None:
    """What the model writes above what a writer of the bank wrote, and whether it is read right."""
    shown: Sequence[str] = report["shown"]
    columns = min(6, len(shown))
    bands = -(-len(shown) // columns)
    with drawing(path, width=2.0 * columns, height=3.1 * bands + 1.0) as figure:
        grid = figure.subplots(2 * bands, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        width = arrays["distance"].shape[1]
        for i, word in enumerate(shown):
            right = int(arrays["distance"][i].argmin()) == i % width
            band, column = divmod(i, columns)
            told = f"{word}" if right else f"{word} (misread)"
            plot_ink(
                grid[2 * band, column],
                arrays[f"shown/{i}"],
                colour=COPYING,
                title=told,
                title_colour=INK if right else ABLATED,
            )
            plot_ink(grid[2 * band + 1, column], arrays[f"true/{i}"], colour=NULL)
        figure.suptitle(
            "Held-out words, written by the model (green) and by a writer of the bank (grey)"
        )
        note(figure, report["verdict"])


def redrawn(arrays: Arrays, report: Report, path: Path) -> None:
    """The same words from the same random numbers, by the model and by the model without some
    heads.
    """
    found = [key.split("/")[1:] for key in arrays if key.startswith("redrawn/")]
    names, words = (list(dict.fromkeys(part)) for part in zip(*found, strict=True))
    top = " ".join(report["top"])
    labels = {
        "nothing": "whole model",
        "top": f"without {top}",
        "random": "without random heads",
        "cross": "without one\ncross head",
    }
    colours = {"nothing": INK, "top": ABLATED, "random": NULL, "cross": PREVIOUS_TOKEN}
    with drawing(path, width=2.0 * len(words) + 2.2, height=1.5 * len(names) + 1.2) as figure:
        grid = figure.subplots(len(names), len(words) + 1, squeeze=False)
        for row, name in zip(grid, names, strict=True):
            row[0].set_axis_off()
            row[0].text(
                0,
                0.5,
                labels[name].replace(" L", "\nL"),
                transform=row[0].transAxes,
                va="center",
                color=colours[name],
            )
            for axes, word in zip(row[1:], words, strict=True):
                points = arrays[f"redrawn/{name}/{word}"]
                plot_ink(axes, points, colour=colours[name], title=word if name == names[0] else "")
        figure.suptitle("Handwriting before and after an ablation")
        note(figure, "mean ablation; every row is drawn from the same random numbers")


def continued(arrays: Arrays, report: Report, path: Path) -> None:
    """The control: random strokes, and what is written after them, with and without its induction
    heads.
    """
    names = [
        key.split("/")[1] for key in arrays if key.startswith("continued/") and "copied" not in key
    ]
    labels = {
        "nothing": "whole model",
        "top": "without " + " ".join(report["top"]),
        "random": "without random heads",
    }
    colours = {"nothing": INDUCTION, "top": ABLATED, "random": NULL}
    with drawing(path, width=3.6 * len(names), height=4.6) as figure:
        for axes, name in zip(np.ravel(figure.subplots(1, len(names))), names, strict=True):
            points = arrays[f"continued/{name}"]
            half = len(arrays["continued/nothing"]) // 2
            first, again = points[: half + 1, :2], points[half:, :2]
            axes.plot(*first.T, color=INK, linewidth=2.6, label="given")
            axes.plot(
                *again.T,
                color=colours[name],
                linewidth=2.0,
                linestyle=(0, (3, 1.2)),
                label="written",
            )
            axes.plot(*first[0], marker="o", color=INK, markersize=7)
            axes.set_aspect("equal", adjustable="datalim")
            axes.invert_yaxis()
            axes.set_axis_off()
            share = float(arrays[f"continued/copied/{name}"])
            axes.set_title(
                f"{labels[name]}\n{share:.0%} of tokens copied", fontsize=12, color=colours[name]
            )
        figure.suptitle("The control goes on with random strokes (pen lifts drawn too)")
        note(
            figure,
            "black: the strokes given and the first one again, from the dot on; "
            "dashed: what the model writes then",
        )


def over_ink(
    arrays: Arrays, name: str, best: tuple[int, int], cross: tuple[int, int], path: Path
) -> None:
    """Where a self-attention head looks from one stroke of the second copy; and, where there is a
    text, a cross-attention head from every stroke.
    """
    letters = arrays["letters"]
    reads = len(letters) > 0
    points, position = arrays["points"], arrays["position"]
    query = int(0.75 * len(points))
    weights = arrays["self"][best][position[query]]
    by_stroke = weights[position] + weights[position - 1]
    with drawing(path, width=11.0, height=6.2 if reads else 4.6) as figure:
        panels = np.ravel(figure.subplots(2 if reads else 1, 1))
        _strokes(panels[0], points, by_stroke, INDUCTION, lifts=not reads)
        panels[0].plot(
            *points[query, :2], marker="o", color=ABLATED, markersize=10, linestyle="none"
        )
        panels[0].set_title(
            f"L{best[0]}H{best[1]}: attention of one place (dot) to each stroke", loc="left"
        )
        note(
            figure, "grey: ink · blue, wider: strokes that are attended to · dot: where it is asked"
        )
        scale = ScalarMappable(Normalize(0, max(0.05, float(by_stroke.max()))), shades(INDUCTION))
        figure.colorbar(scale, ax=panels[0], label="attention", pad=0.01, shrink=0.8)
        if not reads:
            figure.suptitle(f"{name}: attention over random strokes, drawn twice (pen lifts too)")
            return

        pattern = arrays["cross"][cross][position - 1][:, : len(letters)]
        image = panels[1].imshow(
            pattern.T,
            aspect="auto",
            cmap=shades(PREVIOUS_TOKEN),
            vmin=0,
            vmax=1,
            interpolation="nearest",
        )
        panels[1].set_yticks(
            range(len(letters)), [letter if letter != " " else "space" for letter in letters]
        )
        panels[1].set_xlabel("stroke that is written, first copy then second")
        panels[1].set_ylabel("character")
        # Between two words stand two WORD tokens.
        for begins in np.flatnonzero(np.diff(position) > 2) + 1:
            panels[1].axvline(begins - 0.5, color=INK, linewidth=1)
        panels[1].set_title(
            f"L{cross[0]}X{cross[1]}: attention of every stroke to the text", loc="left"
        )
        figure.colorbar(image, ax=panels[1], label="attention", pad=0.01)
        text = "".join(letters)
        word = "".join(letters[: (len(letters) - 1) // 2])
        told = f"{word!r}, written twice" if text == f"{word} {word}" else repr(text)
        figure.suptitle(f"{name}: attention over the ink of {told}")


def _strokes(axes: Axes, points: Points, weights: np.ndarray, colour: str, *, lifts: bool) -> None:
    """Strokes coloured by weight on a pale word; with `lifts`, what the pen skips too."""
    drawn = [i for i in range(1, len(points)) if points[i, 2] or lifts]
    segments = [points[i - 1 : i + 1, :2] for i in drawn]
    axes.add_collection(LineCollection(segments, colors=GRID, linewidths=2.0))
    top = max(0.05, float(weights.max()))
    marked = LineCollection(
        segments,
        cmap=shades(colour),
        norm=Normalize(0, top),
        linewidths=1.0 + 5 * weights[drawn] / top,
    )
    marked.set_array(np.where(weights[drawn] < 0.01 * top, np.nan, weights[drawn]))
    axes.add_collection(marked)
    _page(axes, points)
