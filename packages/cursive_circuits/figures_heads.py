"""Heads and losses: maps of scores, offset profiles, what a repeat is worth, alignment, training
curves.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from interp_core.plotting import (
    ABLATED,
    COPYING,
    DIVERGING,
    DUPLICATE_TOKEN,
    INDUCTION,
    INK,
    NULL,
    PREVIOUS_TOKEN,
    centred,
    drawing,
    head_map,
    note,
    shades,
)

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


def excess(scores: Arrays, report: Report, name: str, path: Path) -> None:
    """Largest excess attention of every head after the earlier occurrence, by family."""
    families = list(report["families"])
    with drawing(path, width=2.35 * max(len(families), 3) + 1.0, height=3.9) as figure:
        row = np.ravel(figure.subplots(1, len(families), sharey=True))
        largest = {family: scores[f"{family}/by_offset"].max(axis=0) for family in families}
        scale = centred(np.stack(list(largest.values())), least=0.2)
        for axes, family in zip(row, families, strict=True):
            marked = (scores[f"{family}/induction"] | scores[f"{family}/relay"]).astype(bool)
            head_map(axes, largest[family], scale=scale, colours=DIVERGING, marked=marked)
            axes.set_title(_TITLES[family])
            axes.set_xlabel("head")
        row[0].set_ylabel("layer")
        figure.colorbar(
            ScalarMappable(scale, DIVERGING), ax=list(row), label="excess attention", pad=0.02
        )
        found, relays = (
            sum(int(scores[f"{family}/{kind}"].sum()) for family in families)
            for kind in ("induction", "relay")
        )
        figure.suptitle(f"{name}: attention to a place after the earlier occurrence, above control")
        note(
            figure,
            f"{report['families'][families[0]]['n']} prompts a family · framed: induction heads "
            f"({found} in all) and "
            f"relays ({relays}), which look further on",
        )


def score_maps(scores: Arrays, family: str, name: str, path: Path) -> None:
    """Every other score of every head on one family."""
    there = [key for key in _SCORES if f"{family}/{key}" in scores]
    with drawing(path, width=2.15 * len(there) + 0.6, height=3.7) as figure:
        row = np.ravel(figure.subplots(1, len(there), sharey=True))
        for axes, key in zip(row, there, strict=True):
            title, colour = _SCORES[key]
            values = scores[f"{family}/{key}"]
            head_map(axes, values, scale=Normalize(0, 1), colours=shades(colour))
            _numbers(axes, values)
            axes.set_title(title)
            axes.set_xlabel("head")
        row[0].set_ylabel("layer")
        figure.suptitle(
            f"{name}: what heads look at ({_TITLES[family].replace(chr(10), ' ')}), "
            f"share of attention"
        )


def _numbers(axes: Axes, values: np.ndarray) -> None:
    """The value in each cell."""
    for layer, head in np.ndindex(*values.shape):
        dark = values[layer, head] > 0.55
        axes.text(
            head,
            layer,
            f"{values[layer, head]:.2f}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if dark else INK,
        )


def offsets(
    profiles: Mapping[str, tuple[str, np.ndarray]], places: Sequence[int], path: Path
) -> None:
    """Attention of each model's best head around the earlier occurrence, on one axis."""
    with drawing(path, width=5.0 * len(profiles), height=4.2) as figure:
        # One axis for all: a head that looks nowhere must not look like one that does.
        row = np.ravel(figure.subplots(1, len(profiles), sharey=True))
        top = max(float(profile[:, 2].max()) for _, profile in profiles.values())

        for axes, (name, (head, profile)) in zip(row, profiles.items(), strict=True):
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
            axes.set_title(f"{name}, {head}")
        row[0].set_ylabel("attention")
        figure.suptitle("Where the head with the highest excess looks")
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
    """Cross-attention heads: error in letters, monotonicity, share of right letters, lead."""
    shown = (
        ("error", "error (letters)", NULL, None),
        ("right", "true letter\nmost attended", COPYING, 1.0),
        ("monotone", "moves on with\nthe pen (rank corr.)", INDUCTION, 1.0),
    )
    shown = [entry for entry in shown if entry[0] in arrays]
    with drawing(path, width=9.6, height=4.0) as figure:
        row = np.ravel(figure.subplots(1, len(shown), sharey=True))
        for axes, (key, title, colour, top) in zip(row, shown, strict=True):
            values = arrays[key]
            high = float(values.max()) if top is None else top
            head_map(axes, np.maximum(values, 0), scale=Normalize(0, high), colours=shades(colour))
            for layer, head in np.ndindex(*values.shape):
                dark = values[layer, head] > 0.55 * high
                axes.text(
                    head,
                    layer,
                    f"{values[layer, head]:.2f}",
                    ha="center",
                    va="center",
                    fontsize=10,
                    color="white" if dark else INK,
                )
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
        note(figure, f"{report['n']} words · {evenly} · best: {report['best']}")


def training(histories: Mapping[str, Sequence[Report]], path: Path) -> None:
    """Held-out loss by kind of token over training steps."""
    kinds = {"loss": INK, "direction": INDUCTION, "radius": PREVIOUS_TOKEN, "pen": DUPLICATE_TOKEN}
    with drawing(path, width=10.0, height=4.2) as figure:
        row = np.ravel(figure.subplots(1, len(histories)))
        for axes, (name, rows) in zip(row, histories.items(), strict=True):
            steps = [entry["step"] for entry in rows]
            for kind, colour in kinds.items():
                axes.plot(
                    steps,
                    [entry[f"held_out_{kind}"] for entry in rows],
                    color=colour,
                    label="all" if kind == "loss" else kind,
                )
            axes.set_title(name)
            axes.set_xlabel("training step")
            axes.set_ylim(bottom=0)
        row[0].set_ylabel("held-out loss (nats a token)")
        row[-1].legend()
        figure.suptitle("Training: the model that writes, and the control on its copied tokens")
