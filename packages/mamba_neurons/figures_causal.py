"""Figures of interventions on single channels: ranked effects, estimates against exact effects,
residual dimensions, influence between layers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from interp_core.plotting import (
    ABLATED,
    GRID,
    INK,
    NULL,
    band,
    drawing,
    heading,
    model_styles,
    note,
)
from mamba_neurons.figures_scales import logarithmic

Arrays = Mapping[str, np.ndarray]
Report = Mapping[str, Any]

# Fewer layers than this make no curve and no map.
FEWEST_LAYERS = 3


def ranked_effects(arrays: Arrays, report: Report, name: str, path: Path) -> None:
    """Every channel of the layer, ranked by KL, in three ways; the best ones together beside random
    sets.
    """
    layer, together = report["layer"], report["together"]
    sets = together["doses"][-1]["random_sets"]

    with drawing(path, width=9.6, height=5.2) as figure:
        left, right = figure.subplots(1, 2)
        plot_ranked(left, arrays)
        left.set_title(f"one channel of layer {layer['layer']}", loc="left")

        plot_together(right, together)
        right.set_title("the best k together", loc="left")

        heading(figure, right, f"{name}: what ablating channels does to the predictions", columns=2)
        note(
            figure,
            f"left: channels in the order of mean ablation, band: 95 % interval over "
            f"{report['texts']} texts and {report['repeated_rows']} rows of repeats\n"
            f"right: ranked on every second text, judged on the other {together['n']}\n"
            f"grey: central 95 % of distinct random sets (largest k: {sets})",
        )


def plot_ranked(axes: Axes, arrays: Arrays) -> None:
    """KL of each channel, largest first, on logarithmic axes."""
    kl = arrays["layer_mean_kl"]
    order = np.argsort(-kl, kind="stable")
    rank = np.arange(1.0, len(order) + 1)

    # A logarithmic axis has no zero.
    floor = max(float(kl.min()) / 2, 1e-9)
    low, high = (arrays[f"layer_mean_kl_{end}"][order] for end in ("low", "high"))
    band(axes, rank, np.maximum(low, floor), np.maximum(high, floor), colour=ABLATED)
    axes.plot(rank, kl[order], color=ABLATED, label="mean ablation", zorder=3)

    for kind, marker in (("zero", "."), ("resample", "x")):
        shown = np.maximum(arrays[f"layer_{kind}_kl"][order], floor)
        style = {"color": INK, "markersize": 3.5, "alpha": 0.55, "zorder": 2}
        axes.plot(rank, shown, marker, label=f"{kind} ablation", **style)

    logarithmic(axes, "x", "y")
    axes.set(xlabel="rank of the channel", ylabel="KL from the clean predictions (nats)")
    axes.legend(loc="lower left")


def plot_together(axes: Axes, together: Report) -> None:
    """KL of the best k ablated together, what their single effects add up to, and random sets."""
    doses = together["doses"]
    k = [float(dose["k"]) for dose in doses]

    # A set of all channels of the layer has no random one beside it.
    against = [dose["against_random"]["random"] for dose in doses]
    drawn = [(at, random) for at, random in zip(k, against, strict=True) if random["n"] > 0]
    x = [at for at, _ in drawn]
    low, mean, high = ([random[end] for _, random in drawn] for end in ("low", "value", "high"))
    band(axes, x, low, high, colour=NULL)
    axes.plot(x, mean, "s--", color=NULL, label="random channels")

    low, mean, high = ([dose["kl"][end] for dose in doses] for end in ("low", "value", "high"))
    band(axes, k, low, high, colour=ABLATED)
    axes.plot(k, mean, "o-", color=ABLATED, label="best channels")

    single = [dose["sum_of_single"] for dose in doses]
    axes.plot(k, single, ":", color=INK, label="sum of their single effects")

    logarithmic(axes, "x", "y")
    axes.set(xlabel="channels ablated together", ylabel="KL (nats)")
    axes.set_xticks(k, [str(dose["k"]) for dose in doses])


def estimates(arrays: Arrays, report: Report, name: str, path: Path) -> None:
    """Estimated against exact effects of the calibration samples, by layer, for KL and for the
    change of loss.
    """
    whole = report["whole_model"]
    agreement = whole["agreement"]
    chosen = np.linspace(0, len(agreement) - 1, min(len(agreement), 4)).astype(int)
    shown = [agreement[i] for i in chosen]

    with drawing(path, width=1.4 + 4.0 * len(shown), height=8.6) as figure:
        panels = figure.subplots(2, len(shown), squeeze=False)

        for column, found in enumerate(shown):
            plot_estimate(panels[0][column], arrays, found, "kl")
            plot_estimate(panels[1][column], arrays, found, "loss")

        panels[0][0].set_ylabel("exact KL (nats)")
        panels[1][0].set_ylabel("exact change of loss (nats)")
        figure.suptitle(f"{name}: estimates of few backward passes against exact effects")
        note(
            figure,
            f"{shown[0]['sample']} random channels a layer, mean ablation; line: equality; "
            f"ranks: Spearman's rho\nabove: Fisher, {whole['least_agreement']:g} rank agreement "
            "asked for; below: signed first-order sum",
        )


def plot_estimate(axes: Axes, arrays: Arrays, found: Report, measure: str) -> None:
    """One layer's sample: estimate across, exact effect upwards."""
    layer = found["layer"]
    sample = arrays[f"sample_{layer}"]
    estimate = arrays[f"estimated_{measure}"][layer, sample]
    exact = arrays[f"sample_{layer}_{measure}"]
    both = np.concatenate([estimate, exact])

    if measure == "kl":
        ends = [max(float(both.min()) * 0.7, 1e-9), float(both.max()) * 1.4]
        logarithmic(axes, "x", "y")
    else:
        reach = 1.1 * float(np.abs(both).max())
        ends = [-reach, reach]
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_locator(MaxNLocator(5))

    axes.plot(ends, ends, color=GRID, linewidth=1.5, zorder=1)
    axes.plot(estimate, exact, "o", color=ABLATED, markersize=5, alpha=0.75)
    axes.set(xlim=ends, ylim=ends, xlabel="estimate (nats)")
    axes.set_title(f"layer {layer}: ranks {found[measure]:.2f}", loc="left")


def inter_layer(arrays: Arrays, report: Report, name: str, path: Path) -> None:
    """KL when the same residual dimension is ablated after each layer: curves of the largest
    ones.
    """
    kl = arrays["kl"]
    title = f"{name}: one dimension of the residual stream, layer by layer"
    texts = f"{report['texts']} texts and {report['repeated_rows']} rows of repeats"

    with drawing(path, width=7.6, height=5.6) as figure:
        axes = figure.subplots()
        plot_dimensions(axes, kl, report)
        heading(figure, axes, title, columns=2)
        note(
            figure,
            f"mean ablation of each of {kl.shape[1]} dimensions, {texts}\n"
            "grey: central 95 % of all dimensions",
        )


def plot_dimensions(axes: Axes, kl: np.ndarray, report: Report) -> None:
    """A curve over layers for each of the largest dimensions, and where all of them lie."""
    layers = np.arange(float(len(kl)))
    low, high = np.quantile(kl, [0.025, 0.975], axis=1)
    band(axes, layers, low, high, colour=NULL, label="all dimensions")

    for place, top in enumerate(report["top"]):
        label = f"the {len(report['top'])} largest on average" if place == 0 else None
        style = {"color": ABLATED, "alpha": 0.45, "linewidth": 1.4}
        axes.plot(layers, top["kl_by_layer"], "-", label=label, **style)

    axes.plot(layers, kl.mean(axis=1), "o--", color=INK, label="mean of all dimensions")
    logarithmic(axes, "y")
    axes.set(xlabel="layer after which the dimension is ablated", ylabel="KL (nats)")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlim(-0.3, len(kl) - 0.7)


def influence(arrays: Arrays, report: Report, name: str, path: Path) -> None:
    """How far the best channels of a layer move later channels, beside random channels; and how
    much of what they do to the predictions goes through later layers.
    """
    with drawing(path, width=12.4, height=5.2) as figure:
        *maps, right = figure.subplots(1, 4, width_ratios=[1, 1, 1, 1.35])
        plot_maps(figure, maps, arrays, report)
        plot_direct(right, report["layers"])
        right.set_title("on the predictions", loc="left")
        figure.suptitle(f"{name}: influence of ablating one channel")

        top, others = len(report["layers"][0]["top"]), report["null_units"]
        note(
            figure,
            f"mean ablation of the best {top} channels of each layer by KL, mean over tokens and "
            f"later channels\nrandom: {others} other channels of the layer; grey: no later layer; "
            "directly: layers between kept as they were",
        )


def plot_maps(figure: Figure, maps: Sequence[Axes], arrays: Arrays, report: Report) -> None:
    """A cell for each pair of layers: best channels in all, directly, and random ones."""
    null = np.full(arrays["total"].shape, np.nan)
    for pair in report["influence"]["pairs"]:
        null[pair["from"], pair["to"]] = pair["against_random"]["random"]["value"]

    panels = {
        "best, in all": arrays["total"],
        "best, directly": arrays["direct"],
        "random, in all": null,
    }
    finite = np.concatenate([values[np.isfinite(values)] for values in panels.values()])
    largest = float(finite.max(initial=1e-9))

    image = None
    for axes, (title, values) in zip(maps, panels.items(), strict=True):
        image = plot_influence(axes, values, largest)
        axes.set_title(title, loc="left")

    maps[0].set_ylabel("layer of the ablated channels")
    label = "mean |change| (standard deviations)"
    assert image is not None
    figure.colorbar(image, ax=list(maps), label=label, location="bottom", aspect=40)


def plot_influence(axes: Axes, values: np.ndarray, largest: float) -> AxesImage:
    """A cell for each pair of layers; the numbers are written in where there are few."""
    image = axes.imshow(values, cmap="Oranges", vmin=0, vmax=largest)
    axes.set_facecolor(GRID)
    axes.set_xlabel("layer that is moved")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))

    if len(values) <= 4:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "white" if value > 0.6 * largest else INK
                axes.text(column, row, f"{value:.3f}", ha="center", va="center", color=colour)

    return image


def plot_direct(axes: Axes, layers: Sequence[Report]) -> None:
    """KL of each best channel: the part that reaches the output directly against all of it."""
    styles = model_styles([f"layer {found['layer']}" for found in layers])
    keys = ("total_kl", "direct_kl")
    shown = [top[key] for found in layers for top in found["top"] for key in keys]

    ends = [0.7 * max(min(shown), 1e-9), 1.4 * max(shown)]
    axes.plot(ends, ends, color=GRID, linewidth=1.5, zorder=1)

    for found, (label, style) in zip(layers, styles.items(), strict=True):
        total, direct = ([top[key] for top in found["top"]] for key in keys)
        axes.plot(total, direct, style.marker, color=style.color, label=label, alpha=0.8)

    logarithmic(axes, "x", "y")
    axes.set(xlim=ends, ylim=ends, xlabel="KL in all (nats)", ylabel="KL directly (nats)")
    if len(layers) <= 6:
        axes.legend(loc="upper left")
