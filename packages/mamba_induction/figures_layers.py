"""Where in depth models recognise repeats, and what they predict there, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from interp_core.plotting import (
    DIVERGING,
    NULL,
    LineStyle,
    band,
    centred,
    drawing,
    model_styles,
    note,
    whisker,
)

Report = Mapping[str, Any]
_NOISE = 0.05  # excess below which a map stays pale


def layer_wise(analyses: Mapping[str, Report], path: Path) -> None:
    """Above: excess of the offset profile by layer, one map a model.

    Below: prefix matching, copying and hidden similarity by layer, each with what chance gives.
    """
    with drawing(path, width=13.0, height=9.4) as figure:
        upper, lower = figure.subfigures(2, 1, height_ratios=[1, 1.25], squeeze=False)[:, 0]
        maps = np.atleast_1d(upper.subplots(1, len(analyses)))
        values = [
            np.array(report["scores"]["offset_profile_excess"]["value"])
            for report in analyses.values()
        ]
        scale = centred(np.concatenate([value.ravel() for value in values]), least=_NOISE)
        for axes, (name, report), value in zip(maps, analyses.items(), values, strict=True):
            axes.imshow(value, origin="lower", aspect="auto", cmap=DIVERGING, norm=scale)
            _cells(axes, value, float(scale.vmax or 1))
            axes.set(title=name, xlabel="key, tokens after the earlier occurrence")
            axes.set_xticks(
                range(len(report["offsets"])), [f"{offset:+d}" for offset in report["offsets"]]
            )
            axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
        maps[0].set_ylabel("layer")
        upper.colorbar(
            maps[0].images[0],
            ax=maps.tolist(),
            label="effective attention\nabove the control",
            fraction=0.05,
        )
        panels = lower.subplots(1, 3)
        styles = model_styles(list(analyses))
        for name, report in analyses.items():
            plot_by_layer(panels[0], report, "excess_prefix_matching", styles[name], name)
            plot_by_layer(panels[1], report, "copying", styles[name], name)
            plot_by_layer(
                panels[2], report, "hidden_similarity", styles[name], name, untrained=True
            )
            plot_by_layer(
                panels[2], report, "hidden_similarity_excess", styles[name], None, faint=True
            )
        for axes in panels[:2]:
            _chance(axes, analyses, "excess_prefix_matching" if axes is panels[0] else "copying")
        panels[0].set(ylabel="prefix matching above the control\n(share of effective attention)")
        panels[1].set(ylabel="copying: share of raised logits\nthat goes to the right token")
        panels[2].set(ylabel="hidden similarity (cosine)", ylim=(None, 1.02))
        panels[2].set_title("faint: above different tokens;\ngrey: untrained", fontsize=12)
        for axes in panels:
            axes.set_xlabel("layer")
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        lower.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
        figure.suptitle("Where repeats are recognised, layer by layer")
        note(
            figure,
            f"n = {_n(analyses)} prompts of repeated random tokens · bands: 95 % over prompts",
        )


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
    label: str | None,
    *,
    untrained: bool = False,
    faint: bool = False,
) -> None:
    """A score by layer with its band; untrained adds the same of random weights in grey."""
    layers = np.arange(float(report["layers"]))
    found = report["scores"][score]
    band(axes, layers, found["low"], found["high"], colour=style.color)
    axes.plot(
        layers,
        found["value"],
        color=style.color,
        marker=style.marker,
        linestyle=style.linestyle,
        label=label,
        alpha=0.35 if faint else 1,
    )
    if untrained:
        null = report["scores"][f"untrained/{score}"]
        axes.plot(layers, null["value"], color=NULL, marker=style.marker, linestyle=":")


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


def _chance(axes: Axes, analyses: Mapping[str, Report], score: str) -> None:
    for report in analyses.values():
        null = report["scores"][f"untrained/{score}"]
        layers = np.arange(report["layers"])
        axes.fill_between(layers, null["low"], null["high"], color=NULL, alpha=0.3, linewidth=0)
        axes.plot(layers, null["value"], color=NULL, linestyle=":")
    axes.plot([], [], color=NULL, linestyle=":", label="untrained")


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


def _cells(axes: Axes, values: np.ndarray, limit: float) -> None:
    """Numbers in the cells of a small map."""
    if values.size > 48:
        return
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if abs(value) > 0.6 * limit else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=11)


def _n(analyses: Mapping[str, Report], score: str = "prefix_matching") -> str:
    counts = sorted({report["scores"][score]["n"] for report in analyses.values()})
    return " or ".join(map(str, counts))


def _without_bigram(analyses: Mapping[str, Report]) -> str:
    asked = all("unpredicted_accuracy" in report["scores"] for report in analyses.values())
    return f", {_n(analyses, 'unpredicted_accuracy')} that no bigram predicts" if asked else ""
