"""Figures of activity: step sizes and half-lives, sparsity, the comparison of two models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from interp_core.plotting import (
    GRID,
    INK,
    NULL,
    STRIPE,
    LineStyle,
    band,
    drawing,
    heading,
    model_styles,
    note,
    whisker,
)
from mamba_neurons.figures_scales import logarithmic

Arrays = Mapping[str, np.ndarray]
Report = Mapping[str, Any]
_MEASURES = {
    "gini": "Gini",
    "hoyer": "Hoyer",
    "treves_rolls": "Treves-Rolls",
    "entropy": "1 - entropy",
    "near_zero": "near zero",
}
_KINDS = {
    "inner": "channels (gated y)",
    "gate": "gates",
    "state": "states",
    "mlp": "MLP neurons",
    "resid": "residual stream",
}


def delta(arrays: Arrays, report: Report, name: str, path: Path) -> None:
    """Channels ranked by how much their step differs between texts, and by kind of token, beside
    what chance gives.
    """
    layers = list(report["layers"])
    styles = model_styles([f"layer {layer}" for layer in layers])
    with drawing(path, width=9.6, height=5.0) as figure:
        left, right = figure.subplots(1, 2)
        for axes, key, title in (
            (left, "share", "variance between texts"),
            (right, "selectivity", "variance explained by kind of token"),
        ):
            for index, (label, style) in enumerate(styles.items()):
                plot_ranked(axes, arrays, key, index, label, style)
            axes.set(
                xlabel="rank of the channel", ylabel="share of the variance of dt", title=title
            )
        heading(figure, left, f"{name}: what the step size dt of a channel follows", columns=4)
        note(
            figure,
            f"{report['texts']} texts; horizontal lines: largest share of any channel in 95 % of "
            "draws with tokens\n"
            "dealt to texts at random (left) and kinds dealt to token types at random (right); "
            "band: 95 % over texts",
        )


def plot_ranked(
    axes: Axes, arrays: Arrays, key: str, layer: int, label: str, style: LineStyle
) -> None:
    """One layer's channels, largest first, with the family-wise threshold."""
    order = np.argsort(-arrays[key][layer], kind="stable")
    rank = np.arange(1.0, len(order) + 1)
    if f"{key}_low" in arrays:
        band(
            axes,
            rank,
            arrays[f"{key}_low"][layer][order],
            arrays[f"{key}_high"][layer][order],
            colour=style.color,
        )
    axes.plot(
        rank, arrays[key][layer][order], color=style.color, linestyle=style.linestyle, label=label
    )
    threshold = float(arrays[f"{key}_null_threshold"][layer])
    axes.axhline(
        threshold, color=NULL, linestyle=style.linestyle, linewidth=1.4, label=f"chance, {label}"
    )


def half_lives(arrays: Arrays, report: Report, name: str, path: Path) -> None:
    """Memory half-life of every state of every channel, channels sorted by their longest one."""
    tau = arrays["half_life"]
    shown = np.unique(np.linspace(0, len(tau) - 1, min(len(tau), 4)).astype(int))
    scale = LogNorm(float(tau.min()), float(tau.max()))
    with drawing(path, width=2.4 + 3.8 * len(shown), height=5.0) as figure:
        panels, image = figure.subplots(1, len(shown), squeeze=False)[0], None
        for axes, layer in zip(panels, shown, strict=True):
            by_length = np.sort(tau[layer], axis=1)[
                np.argsort(tau[layer].max(axis=1), kind="stable")
            ]
            image = axes.imshow(
                by_length,
                origin="lower",
                aspect="auto",
                cmap="viridis",
                norm=scale,
                interpolation="nearest",
            )
            axes.set_title(f"layer {layer}", loc="left")
            axes.set_xlabel("state, by half-life")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panels[0].set_ylabel("channel, by its longest half-life")
        assert image is not None
        bar = figure.colorbar(image, ax=panels, label="half-life (tokens)")
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
        figure.suptitle(f"{name}: how long states remember")
        note(
            figure,
            "ln 2 / (mean dt |A|): tokens until half of what was written is left, at the "
            "channel's mean step",
        )


def sparsity(reports: Mapping[str, Report], path: Path) -> None:
    """Population and lifetime measures of the neurons, by layer and model, and of the residual
    stream.
    """
    styles = model_styles(list(reports))
    with drawing(path, width=10.4, height=7.6) as figure:
        rows = figure.subplots(2, 2, sharex=True, sharey=True)
        for row, level in zip(rows, ("population", "lifetime"), strict=True):
            for axes, which in zip(row, ("neurons", "residual stream"), strict=True):
                plot_measures(
                    axes, reports, styles, level, "resid" if which == "residual stream" else None
                )
                title = {
                    "population": "over units at a token",
                    "lifetime": "over tokens of a unit",
                }[level]
                axes.set_title(f"{which}: {title}", loc="left")
        for axes in rows[1]:
            axes.set_xlabel("sparsity (0: all alike, 1: one has all)")
        heading(figure, rows[0][0], "How sparse are the activations?", columns=2)
        note(
            figure,
            "symbols from top to bottom of a row: the first to the last layer measured; whiskers: "
            "95 % over texts\n"
            "near zero: share below a tenth of the root mean square; all measures are free of "
            "scale",
        )


def plot_measures(
    axes: Axes,
    reports: Mapping[str, Report],
    styles: Mapping[str, LineStyle],
    level: str,
    kind: str | None,
) -> None:
    """A row for each measure; in it each model's layers from top to bottom."""
    slots = sum(len(report["layers"]) for report in reports.values()) + 1
    for y, measure in enumerate(_MEASURES):
        if y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color=STRIPE, linewidth=0, zorder=0)
        place = 0
        for name, report in reports.items():
            for layer in report["layers"].values():
                found = layer[kind or ("inner" if "inner" in layer else "mlp")][level][measure]
                value, ends = found["value"], found["ci"] or [found["value"]] * 2
                if measure == "entropy":
                    value, ends = 1 - value, [1 - ends[1], 1 - ends[0]]
                offset = (place + 1) / slots - 0.5
                whisker(
                    axes,
                    value,
                    y + offset,
                    ends,
                    colour=styles[name].color,
                    marker=styles[name].marker,
                )
                place += 1
    for name, style in styles.items():
        axes.plot([], [], style.marker, color=style.color, label=name)
    axes.set_yticks(range(len(_MEASURES)), list(_MEASURES.values()))
    axes.set_ylim(len(_MEASURES) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def lorenz(found: Mapping[str, tuple[Arrays, Report]], path: Path) -> None:
    """Lorenz curves of |activation| over units at a token: the share that the lowest x of the units
    hold.
    """
    with drawing(path, width=4.9 * len(found) + 0.4, height=5.2) as figure:
        panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
        for axes, (name, (arrays, report)) in zip(panels, found.items(), strict=True):
            kinds = [
                kind for kind in _KINDS if any(kind in layer for layer in report["layers"].values())
            ]
            styles = model_styles(kinds)
            for kind in kinds:
                layer = list(report["layers"])[-1]
                curve = arrays[f"{kind}/{layer}/lorenz"]
                gini = report["layers"][layer][kind]["population"]["gini"]["value"]
                x = np.linspace(0, 1, len(curve))
                axes.plot(
                    x,
                    curve,
                    color=styles[kind].color,
                    linestyle=styles[kind].linestyle,
                    label=f"{_KINDS[kind]}: Gini {gini:.2f}",
                )
            axes.plot([0, 1], [0, 1], color=NULL, linewidth=1.2, label="all alike: Gini 0")
            axes.set(xlabel="share of the units, smallest first", xlim=(0, 1), ylim=(0, 1))
            axes.set_title(f"{name}, layer {list(report['layers'])[-1]}", loc="left")
            axes.legend(loc="upper left")
        panels[0].set_ylabel("share of |activation| that they hold")
        figure.suptitle("Lorenz curves at a token")


def compare(arrays: Arrays, report: Report, path: Path) -> None:
    """Both models over relative depth: how the residual stream moves, and how sparse the neurons
    are.
    """
    names = {"first": report["first"], "second": report["second"]}
    styles = model_styles(list(names.values()))
    titles = {
        "update": "update ||r' - r|| / ||r||",
        "turn": "turn 1 - cos(r, r')",
        "lens_kl": "KL to the final\npredictions (nats)",
        "gini": "Gini of neurons",
        "near_zero": "neurons near zero",
        "treves_rolls": "Treves-Rolls of neurons",
    }
    with drawing(path, width=10.4, height=7.4) as figure:
        panels = figure.subplots(2, 3, sharex=True)
        for axes, (key, title) in zip(panels.ravel(), titles.items(), strict=True):
            for which, name in names.items():
                style = styles[name]
                x = arrays["depth"]
                band(
                    axes,
                    x,
                    arrays[f"{which}/{key}_low"],
                    arrays[f"{which}/{key}_high"],
                    colour=style.color,
                )
                axes.plot(
                    x,
                    arrays[f"{which}/{key}_over_depth"],
                    color=style.color,
                    linestyle=style.linestyle,
                )
                axes.plot(
                    arrays[f"{which}/depth"],
                    arrays[f"{which}/{key}"],
                    style.marker,
                    color=style.color,
                    label=name,
                )
            section = "dynamics" if key in report["dynamics"] else "sparsity"
            difference = report[section][key]["difference"]
            low, high = difference["ci"]
            axes.set_title(
                f"{title}\n{difference['value']:+.2f} [{low:+.2f}, {high:+.2f}]",
                loc="left",
                color=INK,
            )
            if key == "update":
                logarithmic(axes, "y")
        for axes in panels[1]:
            axes.set_xlabel("relative depth")
        heading(
            figure,
            panels[0][0],
            f"{names['first']} beside {names['second']} on the same tokens",
            columns=2,
        )
        note(
            figure,
            "below each title: difference of the means over depth, first minus second, 95 % "
            "interval, paired by text, "
            f"n = {report['loss']['n']}\nsymbols: layers; lines: read off between layers; bands: "
            "95 % over texts",
        )
