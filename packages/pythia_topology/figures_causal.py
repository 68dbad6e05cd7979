"""What copying needs: the best heads ablated, always beside layer-matched random heads; how the
effect grows with k.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def causal_delta(reports: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """For each model: change of second-copy accuracy and loss when the best heads are ablated, in
    four ways, and when as many random heads of the same layers are.
    """
    with drawing(path, width=9.6, height=1.9 + 3.0 * len(reports)) as figure:
        rows = figure.subplots(len(reports), 2, sharex="col", sharey="row", squeeze=False)
        for (left, right), (name, report) in zip(rows, reports.items(), strict=True):
            plot_changes(left, report, "accuracy")
            plot_changes(right, report, "loss")
            left.set_title(f"{name}: {_short(report['top_heads'])}", loc="left")
            p = report["p_value"]
            right.set_title(f"p = {p:.2g}, n = {report['n']} prompts", loc="right")
        rows[-1][0].set_xlabel("change of second-copy accuracy\n(percentage points)")
        rows[-1][1].set_xlabel("change of loss\n(nats)")
        heading(
            figure, rows[0][1], "Ablating the heads with the most excess prefix matching", columns=2
        )
        draws = sorted({report["draws"] for report in reports.values()})
        note(
            figure,
            f"orange: 95 % interval over prompts · grey: central 95 % of {_listed(draws)} draws of "
            "as many\n"
            "random heads from the same layers · p: share of draws at least as harmful (mean "
            "ablation, loss)",
        )


def plot_changes(axes: Axes, report: Mapping[str, Any], measure: str) -> None:
    """Each way of ablating on its row: the best heads with their interval, random heads with their
    central 95 %.
    """
    factor = 100.0 if measure == "accuracy" else 1.0
    rows = {label: report["ablations"][key][measure] for key, label in _ABLATIONS.items()}
    rows[_TEXT] = report["specificity"] if measure == "loss" else None
    axes.axvline(0, color=INK, linewidth=1)
    for y, change in enumerate(rows.values()):
        if y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color=STRIPE, linewidth=0, zorder=0)
        if change is None:
            axes.text(
                0.5,
                y,
                "(loss only)",
                transform=axes.get_yaxis_transform(),
                ha="center",
                va="center",
                color=NULL,
            )
            continue
        spread = [factor * change["random_low"], factor * change["random_high"]]
        whisker(axes, factor * change["random_mean"], y + 0.16, spread, colour=NULL, marker="s")
        interval = [factor * end for end in change["top_ci"]]
        whisker(axes, factor * change["top"], y - 0.16, interval, colour=ABLATED)
    axes.plot([], [], "o", color=ABLATED, label=f"top {report['top_k']} heads")
    axes.plot([], [], "s", color=NULL, label=f"{report['random_k']} random heads")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def dose(report: Mapping[str, Any], name: str, path: Path) -> None:
    """Change of accuracy and loss against the number of heads ablated, beside random heads and a
    whole layer.
    """
    with drawing(path, width=9.6, height=4.9) as figure:
        panels = figure.subplots(1, 2)
        for axes, measure, unit in (
            (panels[0], "accuracy", "change of second-copy accuracy\n(percentage points)"),
            (panels[1], "loss", "change of loss (nats)"),
        ):
            plot_dose(axes, report["dose"], measure)
            axes.set(xlabel="heads ablated (mean ablation)", ylabel=unit)
        heading(figure, panels[0], f"{name}: how many heads does copying need?", columns=3)
        note(
            figure,
            f"n = {report['n']} prompts · orange band: 95 % interval over prompts\n"
            f"grey band: central 95 % of {report['dose']['draws']} random draws from the same "
            "layers",
        )


def plot_dose(axes: Axes, doses: Mapping[str, Any], measure: str) -> None:
    """One measure's dose curve, its random band and the bound that a whole layer sets."""
    factor = 100.0 if measure == "accuracy" else 1.0
    k = [float(number) for number in doses["k"]]
    curve = {key: [factor * value for value in values] for key, values in doses[measure].items()}
    whole = doses["whole_layer"]
    axes.axhline(0, color=INK, linewidth=1)
    band(axes, k, curve["random_low"], curve["random_high"], colour=NULL)
    axes.plot(k, curve["random_mean"], "s--", color=NULL, label="random heads")
    band(axes, k, curve["top_low"], curve["top_high"], colour=ABLATED)
    axes.plot(k, curve["top"], "o-", color=ABLATED, label="top heads")
    axes.axhline(
        factor * whole[measure], color=INK, linestyle=":", label=f"all of layer {whole['layer']}"
    )
    axes.set_xticks(k, [str(number) for number in doses["k"]])


def _short(heads: list[str]) -> str:
    return " ".join(heads) if len(heads) <= 4 else f"{' '.join(heads[:3])} … ({len(heads)} heads)"


def _listed(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
