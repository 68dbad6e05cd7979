"""What copying loses under each intervention, and what is left with little kept; each beside random
controls of the same size in the same layer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from interp_core.plotting import COPYING, INK, NULL, LineStyle, drawing, model_styles, note

Report = Mapping[str, Any]
Entry = Mapping[str, Any]  # value, low and high

TITLES = {
    "layers": "a layer's output",
    "reads": "a read of the query,\nby offset from s",
    "answer_reads": "a read of the answer's\nplace, by offset from it",
    "taps": "convolution taps,\nby lag",
    "states": "scan state at\nthe boundary",
}
_MOST_LAYERS = 4  # whose changes are drawn in one panel
_SPREAD = 0.62  # of a column's width, over its layers


def causal(causes: Mapping[str, Report], path: Path) -> None:
    """A row for each model: layers, reads of queries and of answers, taps, scan states.

    Changes of accuracy with their intervals; behind each, the central 95 % of its random controls.
    """
    with drawing(path, width=17.0, height=1.5 + 3.4 * len(causes)) as figure:
        parts = figure.subfigures(len(causes), 1, squeeze=False)[:, 0]

        for part, (name, report) in zip(parts, causes.items(), strict=True):
            kinds = [kind for kind in TITLES if kind in report]
            tables = {kind: table_of(report, kind) for kind in kinds}

            widths = [len(next(iter(table.values()))) + 0.8 for table in tables.values()]
            panels = np.atleast_1d(part.subplots(1, len(kinds), width_ratios=widths, sharey=True))

            # One style for a layer in all panels of a model, whichever are drawn there.
            styles = model_styles(list(report["reads"]))
            drawn = [layer for layer in styles if any(layer in table for table in tables.values())]

            for axes, (kind, table) in zip(panels, tables.items(), strict=True):
                plot_changes(axes, table, styles)
                axes.set_title(TITLES[kind], fontsize=12)

            for layer in drawn:
                style = styles[layer]
                panels[-1].plot([], [], style.marker, color=style.color, label=layer)

            panels[0].set_ylabel("change of accuracy")
            panels[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="layers")
            heading = f"{name}: accuracy {report['clean_accuracy']:.2f} on second copies"
            part.suptitle(heading, x=0.01, ha="left")

        first = next(iter(causes.values()))
        note(
            figure,
            f"n = {first['n']} prompts · bars: 95 %, prompts resampled · grey: central 95 % of "
            f"{first['draws']} random controls of the same size and layer\n"
            "s: earlier occurrence of the query's token · out: the clean prompt goes on from a "
            "scan state without the first copy; back: the reverse · "
            "text: mean ablation, on new tokens",
        )


def table_of(report: Report, kind: str) -> dict[str, dict[str, Entry]]:
    """Changes of accuracy by layer and by what is changed; at most the layers that change most."""
    found = report[kind]
    by_layer: dict[str, dict[str, Entry]] = {}

    if kind == "layers":
        for how, layers in found.items():
            for layer, entry in layers.items():
                by_layer.setdefault(layer, {})[how] = entry["accuracy"]

        for layer, entry in found["mean"].items():
            if "new_tokens" in entry:
                by_layer[layer]["text"] = entry["new_tokens"]["accuracy"]
    else:
        for layer, cuts in found.items():
            by_layer[layer] = {
                _label(name): entry["accuracy"] | {"random": entry["random"]["accuracy"]["random"]}
                for name, entry in cuts.items()
            }

    def largest(layer: str) -> float:
        return max(abs(entry["value"]) for entry in by_layer[layer].values())

    # All together is the last row of each table, and always drawn.
    single = [layer for layer in by_layer if layer != "all"]
    shown = set(sorted(single, key=largest, reverse=True)[:_MOST_LAYERS]) | {"all"}
    return {layer: entries for layer, entries in by_layer.items() if layer in shown}


def plot_changes(
    axes: Axes, table: Mapping[str, Mapping[str, Entry]], styles: Mapping[str, LineStyle]
) -> None:
    """Whiskers side by side for the layers, over the range of their random controls."""
    columns = list(next(iter(table.values())))
    axes.axhline(0, color=NULL, linewidth=1)

    for place, (layer, entries) in enumerate(table.items()):
        shift = _SPREAD * ((place + 0.5) / len(table) - 0.5)
        style = styles[layer]

        for column, name in enumerate(columns):
            entry, x = entries[name], column + shift

            if "random" in entry:
                ends = [entry["random"]["low"], entry["random"]["high"]]
                axes.plot([x, x], ends, color=NULL, linewidth=7, alpha=0.35)

            axes.plot([x, x], [entry["low"], entry["high"]], color=style.color, linewidth=2)
            axes.plot(x, entry["value"], style.marker, color=style.color, markersize=6)

    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.set(xlim=(-0.6, len(columns) - 0.4), ylim=(-1.05, 1.05))


def sufficient(causes: Mapping[str, Report], path: Path) -> None:
    """A row for each model that copies by a read: accuracy with one read kept, with some taps kept,
    and with less and less left.
    """
    shown = {name: report for name, report in causes.items() if report["kept"] is not None}

    with drawing(path, width=15.0, height=1.5 + 4.4 * len(shown)) as figure:
        lines = figure.subplots(len(shown), 3, squeeze=False, width_ratios=[1, 1.5, 1])

        for line, (name, report) in zip(lines, shown.items(), strict=True):
            kept = report["kept"]
            where = f"L{kept['layer']}"
            reads = {key: found["accuracy"] for key, found in kept["reads"].items()}
            random = next(iter(kept["reads"].values()))["random"]["random"]

            plot_kept(line[0], reads, kept["clean"])
            line[0].axhspan(random["low"], random["high"], color=NULL, alpha=0.35)
            line[0].set_title(f"queries of {where} keep one read,\nby offset from s", fontsize=12)
            line[0].set_ylabel(f"{name}\naccuracy on second copies")

            plot_kept(line[1], kept.get("taps", {}), kept["clean"])
            line[1].set_title(f"convolution of {where} keeps these lags", fontsize=12)
            line[1].set_visible("taps" in kept)

            plot_kept(line[2], kept["circuit"], kept["clean"])
            line[2].set_title("less and less is left", fontsize=12)

        n = next(iter(causes.values()))["n"]
        draws = next(iter(causes.values()))["draws"]
        note(
            figure,
            f"n = {n} prompts · bars: 95 % of a mean share · dashed: nothing removed · grey: "
            f"central 95 % of {draws} random other keys kept in the place of that one",
        )


def plot_kept(axes: Axes, kept: Mapping[str, Entry], clean: Entry) -> None:
    """Accuracies with their intervals."""
    for x, entry in enumerate(kept.values()):
        axes.plot([x, x], [entry["low"], entry["high"]], color=COPYING, linewidth=3, alpha=0.55)
        axes.plot(x, entry["value"], "o", color=COPYING, markersize=8)

    labels = [_wrapped(name) for name in kept]
    axes.axhline(clean["value"], color=INK, linestyle="--", linewidth=1)
    axes.set_xticks(range(len(kept)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set(ylim=(-0.03, 1.03), xlim=(-0.5, max(len(kept), 1) - 0.5))


def _label(name: str) -> str:
    return {"prefix": "+1..+3", "past": "all"}.get(name, name.removeprefix("lag "))


def _wrapped(name: str) -> str:
    """Long names on two lines."""
    words = name.split()
    if len(name) <= 14:
        return name

    half = (len(words) + 1) // 2
    return " ".join(words[:half]) + "\n" + " ".join(words[half:])
