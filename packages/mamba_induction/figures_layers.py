"""Where in depth models recognise repeats, and what they predict there, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from interp_core.plotting import (
    INK,
    NULL,
    LineStyle,
    band,
    drawing,
    model_styles,
    note,
    whisker,
)

Report = Mapping[str, Any]
_BY_LAYER = {
    "excess_prefix_matching": "prefix matching above the control\n(share of effective attention)",
    "copying": "copying: share of raised logits\nthat goes to the right token",
    "hidden_similarity": "hidden similarity (cosine)",
}
_NOISE = 0.05  # excess that an axis shows in any case
_MOST_LAYERS = 4  # whose offsets are drawn
_FEWEST_LAYERS = 3  # that make a curve
_SIDE = 0.2  # between models that stand side by side, of the distance of two places


def layer_wise(analyses: Mapping[str, Report], path: Path) -> None:
    """Above: excess of the offset profile, a panel for each of the layers that have most.

    Below: prefix matching, copying and hidden similarity by layer, each with what chance gives.
    """
    styles = model_styles(list(analyses))
    shown = shown_layers(analyses)

    with drawing(path, width=13.0, height=9.4) as figure:
        upper, lower = figure.subfigures(2, 1, height_ratios=[1, 1.15], squeeze=False)[:, 0]
        above = np.atleast_1d(upper.subplots(1, len(shown), sharey=True))

        for axes, layer in zip(above, shown, strict=True):
            plot_offsets(axes, analyses, styles, layer)
            axes.set(title=f"layer {layer}", xlabel="key, tokens after the earlier occurrence")
        above[0].set_ylabel("effective attention above the control\n(share)")
        low, high = above[0].get_ylim()
        above[0].set_ylim(min(low, -_NOISE), max(high, _NOISE))

        panels = lower.subplots(1, 3)
        for place, (name, report) in enumerate(analyses.items()):
            shift = _SIDE * (place - (len(analyses) - 1) / 2)
            style = styles[name]
            for axes, score in zip(panels, _BY_LAYER, strict=True):
                plot_by_layer(axes, report, f"untrained/{score}", style, shift, colour=NULL)
                plot_by_layer(axes, report, score, style, shift, colour=style.color)
            plot_by_layer(
                panels[2],
                report,
                "hidden_similarity_excess",
                style,
                shift,
                colour=style.color,
                hollow=True,
            )

        for axes, label in zip(panels, _BY_LAYER.values(), strict=True):
            axes.set(xlabel="layer", ylabel=label)
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            axes.margins(x=0.15)
        panels[2].set_ylim(0, 1.02)
        panels[2].set_title("hollow: above that of different tokens", fontsize=12)

        handles, labels = above[0].get_legend_handles_labels()
        handles += above[0].plot([], [], "o", color=NULL)
        figure.legend(handles, [*labels, "random weights"], loc="outside upper center", ncols=4)
        note(
            figure,
            f"n = {_n(analyses)} prompts of repeated random tokens · bars: 95 % over prompts",
        )


def shown_layers(analyses: Mapping[str, Report]) -> list[int]:
    """The layers in which some model has the largest excess at some offset, from the first on."""
    largest: dict[int, float] = {}

    for report in analyses.values():
        excess = np.array(report["scores"]["offset_profile_excess"]["value"])
        for layer, reached in enumerate(excess.max(axis=1)):
            largest[layer] = max(float(reached), largest.get(layer, 0.0))

    return sorted(sorted(largest, key=lambda layer: -largest[layer])[:_MOST_LAYERS])


def plot_offsets(
    axes: Axes, analyses: Mapping[str, Report], styles: Mapping[str, LineStyle], layer: int
) -> None:
    """One layer's excess at every offset, with intervals; models side by side."""
    axes.axhline(0, color=INK, linewidth=0.8)

    for place, (name, report) in enumerate(analyses.items()):
        if layer >= report["layers"]:
            continue

        found = report["scores"]["offset_profile_excess"]
        x = np.array(report["offsets"]) + _SIDE * (place - (len(analyses) - 1) / 2)
        value, low, high = (np.array(found[end])[layer] for end in ("value", "low", "high"))
        style = styles[name]
        axes.errorbar(
            x,
            value,
            yerr=np.stack([value - low, high - value]).clip(min=0),
            fmt=style.marker,
            color=style.color,
            label=name,
        )

    offsets = next(iter(analyses.values()))["offsets"]
    axes.set_xticks(offsets, [f"{offset:+d}" for offset in offsets])


def behaviour(analyses: Mapping[str, Report], path: Path) -> None:
    """Loss by repetition, accuracy by period and lag, accuracy on pairs and text, loss along the
    context.
    """
    styles = model_styles(list(analyses))
    with drawing(path, width=13.0, height=8.6) as figure:
        panels = figure.subplots(2, 2)
        for name, report in analyses.items():
            copies = np.arange(1, 1 + len(report["scores"]["loss_by_copy"]["value"]))
            curve(panels[0, 0], copies, report["scores"]["loss_by_copy"], styles[name], name)
            curve(
                panels[0, 1],
                report["periods"],
                report["scores"]["accuracy_by_period"],
                styles[name],
                name,
            )
            curve(
                panels[1, 0],
                report["lags"],
                report["scores"]["accuracy_by_lag"],
                styles[name],
                name,
            )
        panels[0, 0].set(xlabel="copy of the segment", ylabel="loss (nats a token)", yscale="log")
        plain_decades(panels[0, 0])
        panels[0, 0].xaxis.set_major_locator(MaxNLocator(8, integer=True))
        panels[0, 1].set(
            xlabel="period (tokens)", ylabel="accuracy on the second copy", ylim=(-0.03, 1.03)
        )
        panels[1, 0].set(
            xlabel="lag (tokens from query back to the answer)",
            ylabel="accuracy on spaced pairs",
            xscale="log",
        )
        panels[1, 0].set(ylim=(-0.03, 1.03))
        lags = next(iter(analyses.values()))["lags"]
        panels[1, 0].set_xticks(lags, [str(lag) for lag in lags])
        panels[1, 0].minorticks_off()
        _families(panels[1, 1], analyses, styles)
        figure.legend(
            *panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3
        )
        note(
            figure,
            f"n = {_n(analyses)} prompts a family, {_n(analyses, 'accuracy_by_lag')} a lag"
            f"{_without_bigram(analyses)} · bands and bars: 95 %, of accuracies as mean shares, "
            "of losses by resampling prompts",
        )


def plot_by_layer(
    axes: Axes,
    report: Report,
    score: str,
    style: LineStyle,
    shift: float,
    *,
    colour: str,
    hollow: bool = False,
) -> None:
    """A score by layer: points with their intervals, joined where there are enough for a curve."""
    found = report["scores"][score]
    value, low, high = (np.array(found[end]) for end in ("value", "low", "high"))
    layers = np.arange(len(value)) + shift

    axes.errorbar(
        layers,
        value,
        yerr=np.stack([value - low, high - value]).clip(min=0),
        fmt=style.marker,
        color=colour,
        markerfacecolor="white" if hollow else colour,
    )
    if len(value) >= _FEWEST_LAYERS:
        axes.plot(layers, value, color=colour, linestyle=style.linestyle, linewidth=1.2)


def curve(
    axes: Axes, x: Sequence[int] | np.ndarray, found: Report, style: LineStyle, label: str
) -> None:
    """Values with their band in a model's style."""
    x = np.asarray(x, dtype=np.float64)
    band(axes, x, found["low"], found["high"], colour=style.color)
    axes.plot(
        x,
        found["value"],
        color=style.color,
        marker=style.marker,
        linestyle=style.linestyle,
        label=label,
    )


def plain_decades(axes: Axes) -> None:
    """A logarithmic y axis with numbers written out at the decades."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _families(axes: Axes, analyses: Mapping[str, Report], styles: Mapping[str, LineStyle]) -> None:
    """Accuracy where each pair was shown once, and in text, with the accuracy where there is
    nothing to copy.
    """
    rows = {
        "pairs_accuracy": "pairs shown once",
        "repeated_text_accuracy": "repeated text",
        "natural_accuracy": "natural repeats",
        "unpredicted_accuracy": "those no bigram\npredicts",
        "control_accuracy": "nothing to copy",
    }
    present = [
        name for name in rows if all(name in report["scores"] for report in analyses.values())
    ]
    for place, (name, report) in enumerate(analyses.items()):
        for row, score in enumerate(present):
            found = report["scores"][score]
            y = len(present) - 1 - row + 0.22 * ((len(analyses) - 1) / 2 - place)
            style = styles[name]
            whisker(
                axes,
                found["value"],
                y,
                (found["low"], found["high"]),
                colour=style.color,
                marker=style.marker,
            )
    axes.set_yticks(range(len(present)), [rows[name] for name in reversed(present)])
    axes.set(xlabel="accuracy", xlim=(-0.03, 1.03))


def _n(analyses: Mapping[str, Report], score: str = "prefix_matching") -> str:
    counts = sorted({report["scores"][score]["n"] for report in analyses.values()})
    return " or ".join(map(str, counts))


def _without_bigram(analyses: Mapping[str, Report]) -> str:
    asked = all("unpredicted_accuracy" in report["scores"] for report in analyses.values())
    return f", {_n(analyses, 'unpredicted_accuracy')} that no bigram predicts" if asked else ""
