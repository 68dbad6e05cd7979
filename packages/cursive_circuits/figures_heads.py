"""Heads: excess and other scores, offset profiles, what a repeat is worth, alignment."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize

from interp_core.plotting import (
    ABLATED,
    COPYING,
    DIVERGING,
    DUPLICATE_TOKEN,
    INDUCTION,
    INK,
    NULL,
    PREVIOUS_TOKEN,
    STRIPE,
    drawing,
    heading,
    note,
    shades,
)
from interp_core.plotting_maps import map_of_heads

Report = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]
_TITLES = {
    "same_text": "same word,\nits text",
    "mismatched_text": "same word,\nother text",
    "other_writer": "same word,\nother writer",
    "synthetic": "random\nstrokes",
    "natural": "strokes that\nrecur",
}
_SCORES = {
    "previous_token": ("previous token", PREVIOUS_TOKEN),
    "previous_pair": ("previous pair", PREVIOUS_TOKEN),
    "duplicate": ("duplicate", DUPLICATE_TOKEN),
    "next_pair": ("next pair", INDUCTION),
    "pen_lift": ("last pen lift", NULL),
    "word_boundary": ("word boundary", NULL),
}


# A score of cross-attention: title, colours, and its scale where it has one of its own.
_ALIGNMENT: dict[str, tuple[str, str | Colormap, Normalize | None]] = {
    "error": ("error (letters)", shades(NULL), None),
    "right": ("true letter\nmost attended", shades(COPYING), Normalize(0, 1)),
    "monotone": ("moves on with\nthe pen (rank corr.)", DIVERGING, Normalize(-1, 1)),
}


def excess(found: Mapping[str, tuple[Report, Arrays]], path: Path) -> None:
    """Largest excess attention of every head after the earlier occurrence: a row for each model and
    family.
    """
    rows = [(name, family) for name, (report, _) in found.items() for family in report["families"]]

    with drawing(path, width=10.5, height=2.2 + 0.55 * len(rows)) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=0.8)

        for y, (name, family) in enumerate(rows):
            if y % 2:
                axes.axhspan(y - 0.5, y + 0.5, color=STRIPE, linewidth=0, zorder=0)
            report, arrays = found[name]
            _heads(axes, arrays, family, y)
            best = report["families"][family]["best_excess"]
            ends = [best["low"], best["high"]]
            axes.plot(ends, [y + 0.3] * 2, color=INK, linewidth=2.5, alpha=0.6)
            axes.plot(best["value"], y + 0.3, "|", color=INK, markersize=9)

        axes.plot([], [], "o", color=NULL, alpha=0.6, label="a head")
        axes.plot([], [], "o", color=INDUCTION, label="an induction head, or a relay")
        axes.plot([], [], "|-", color=INK, label="the best at +1 or +2, 95 %")
        named = [f"{name}: {_one_line(family)}" for name, family in rows]
        axes.set_yticks(range(len(rows)), named)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(min(-0.05, axes.get_xlim()[0]), max(0.5, axes.get_xlim()[1]))
        axes.set_xlabel("largest excess attention of a head, at any place after it")

        title = "Does a head look at what followed the earlier occurrence?"
        heading(figure, axes, title, columns=3)
        counts = sorted({found[name][0]["families"][family]["n"] for name, family in rows})
        note(
            figure,
            f"n = {' or '.join(map(str, counts))} prompts a row · excess: less the same place of a "
            "control with nothing to copy",
        )


def _heads(axes: Axes, arrays: Arrays, family: str, y: int) -> None:
    """A point for each head; those that pass are coloured."""
    largest = arrays[f"{family}/by_offset"].max(axis=0)
    passes = (arrays[f"{family}/induction"] | arrays[f"{family}/relay"]).astype(bool)
    axes.plot(largest[~passes], np.full((~passes).sum(), y), "o", color=NULL, alpha=0.6)
    axes.plot(largest[passes], np.full(passes.sum(), y), "o", color=INDUCTION, alpha=0.8)


def score_maps(scored: Mapping[str, tuple[str, Arrays]], path: Path) -> None:
    """Every other score of every head on one family: a row for each model."""
    there = [
        key
        for key in _SCORES
        if any(f"{family}/{key}" in scores for family, scores in scored.values())
    ]
    layers = [len(scores[f"{family}/previous_token"]) for family, scores in scored.values()]

    with drawing(
        path, width=2.25 * len(there) + 0.7, height=1.0 + math.fsum(0.9 + 0.5 * n for n in layers)
    ) as figure:
        grid = figure.subplots(len(scored), len(there), squeeze=False, height_ratios=layers)

        for row, (name, (family, scores)) in zip(grid, scored.items(), strict=True):
            for axes, key in zip(row, there, strict=True):
                title, colour = _SCORES[key]
                if f"{family}/{key}" not in scores:
                    axes.set_axis_off()
                    continue

                values = scores[f"{family}/{key}"]
                map_of_heads(axes, values, scale=Normalize(0, 1), colours=shades(colour))
                axes.set_title(title)
                axes.label_outer()
            row[0].set_ylabel(f"{name}\nlayer")

        for axes in grid[-1]:
            axes.set_xlabel("head")
        figure.suptitle("What heads look at, share of attention")
        told = [f"{name}: {_one_line(family)}" for name, (family, _) in scored.items()]
        note(figure, " · ".join(told))


def _one_line(family: str) -> str:
    return _TITLES[family].replace("\n", " ")


def offsets(
    profiles: Mapping[str, tuple[str, str, np.ndarray]], places: Sequence[int], path: Path
) -> None:
    """Attention of each model's best head around the earlier occurrence, on one axis.

    Of every model: the head, the family of repeats in which it is the best, and its attention.
    """
    with drawing(path, width=5.0 * len(profiles), height=4.2) as figure:
        # One axis for all: a head that looks nowhere must not look like one that does.
        row = np.ravel(figure.subplots(1, len(profiles), sharey=True))
        top = max(float(profile[:, 2].max()) for *_, profile in profiles.values())

        for axes, (name, (head, family, profile)) in zip(row, profiles.items(), strict=True):
            colours = [
                INDUCTION if place > 0 else DUPLICATE_TOKEN if place == 0 else NULL
                for place in places
            ]
            axes.bar(places, profile[:, 0], color=colours, width=0.75)
            axes.errorbar(
                places,
                profile[:, 0],
                yerr=np.abs(profile[:, 1:].T - profile[:, 0]),
                fmt="none",
                color=INK,
                linewidth=1.5,
            )
            axes.set_xticks(places, [f"{place:+d}" if place else "0" for place in places])
            axes.set_ylim(0, max(0.1, 1.15 * top))
            axes.set_xlabel("tokens from the earlier occurrence")
            axes.set_title(f"{name}, {head}\n({_one_line(family)})")
        row[0].set_ylabel("attention")
        figure.suptitle("Where the head with the highest excess in a family of repeats looks")
        note(
            figure,
            "blue: after the earlier occurrence (+1, +2: what an induction head reads) · "
            "pink: that occurrence\n"
            "95 % intervals over prompts",
        )


def gain(report: Report, path: Path) -> None:
    """What a second occurrence is worth, under each text, against its controls."""
    rows = {
        "gain": ("second after first occurrence", COPYING),
        "control": ("the same word after another word", NULL),
        "excess": ("difference: what the repeat adds", INDUCTION),
        "order": ("more than its strokes shuffled", ABLATED),
    }
    kinds = ("loss", "direction", "radius", "pen")
    with drawing(path, width=10.5, height=4.9) as figure:
        panels = np.ravel(figure.subplots(1, 3, sharey=True))
        for axes, text in zip(panels, ("matching", "mismatched", "empty"), strict=True):
            for place, (key, (label, colour)) in enumerate(rows.items()):
                found = [report[text][key][kind] for kind in kinds]
                at = np.arange(len(kinds)) + 0.19 * (place - 1.5)
                values = np.array([entry["value"] for entry in found])
                ends = np.array([[entry["low"], entry["high"]] for entry in found]).T
                axes.errorbar(
                    at,
                    values,
                    yerr=np.abs(ends - values),
                    fmt="o",
                    color=colour,
                    label=label,
                    markersize=6,
                    linewidth=2,
                )
            axes.axhline(0, color=INK, linewidth=0.8)
            axes.set_xticks(range(len(kinds)), ["all", *kinds[1:]])
            axes.set_title(f"{text} text")
        panels[0].set_ylabel("lower loss (nats a token)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        figure.suptitle(
            f"What a repeated word is worth ({report['n']} held-out words, 95 % intervals)"
        )


def alignment(arrays: Arrays, report: Report, path: Path) -> None:
    """Cross-attention heads: error in letters, share of right letters, monotonicity."""
    shown = [key for key in _ALIGNMENT if key in arrays]

    with drawing(path, width=9.6, height=4.2) as figure:
        row = np.ravel(figure.subplots(1, len(shown), sharey=True))

        for axes, key in zip(row, shown, strict=True):
            title, colours, scale = _ALIGNMENT[key]
            values = arrays[key]
            scale = scale or Normalize(0, float(values.max()))
            map_of_heads(axes, values, scale=scale, colours=colours)
            axes.set_title(title)
            axes.set_xlabel("cross-attention head")

        row[0].set_ylabel("layer")
        figure.suptitle("Where cross-attention reads, against the letter that is written")
        evenly = (
            f"attention spread evenly over the text would err by "
            f"{report['uniform_error']['value']:.2f} letters"
            if "error" in arrays
            else "the bank does not say which stroke belongs to which letter"
        )
        note(figure, f"n = {report['n']} words · {evenly} · best: {report['best']}")
