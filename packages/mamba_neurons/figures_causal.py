"""Figures of interventions: ranked effects, estimates against exact effects, influence, curves of
sets of neurons.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, PercentFormatter

from interp_core.plotting import (
    ABLATED,
    GRID,
    INK,
    NULL,
    band,
    drawing,
    heading,
    interval_text,
    model_styles,
    note,
)
from mamba_neurons.figures_scales import logarithmic

Arrays = Mapping[str, np.ndarray]
Report = Mapping[str, Any]
_METHODS = {
    "attention_weighted": "attention-weighted",
    "gradient_guided": "gradient-guided",
    "rollout": "rollout",
    "fisher": "Fisher estimate (reference)",
}


def ranked_effects(arrays: Arrays, report: Report, name: str, path: Path) -> None:
    """Every channel of the layer, ranked by KL, in three ways; the best ones together beside random
    sets.
    """
    layer, together = report["layer"], report["together"]
    with drawing(path, width=9.6, height=5.0) as figure:
        left, right = figure.subplots(1, 2)
        plot_ranked(left, arrays)
        left.set_title(f"one channel of layer {layer['layer']}", loc="left")
        plot_together(right, together)
        right.set_title("the best k together", loc="left")
        heading(figure, right, f"{name}: what ablating channels does to the predictions", columns=2)
        note(
            figure,
            "left: channels in the order of mean ablation, band: 95 % interval over "
            f"{report['texts']} texts and "
            f"{report['repeated_rows']} rows of repeats\nright: ranked on every second text, "
            "judged on the other "
            f"{together['n']}; grey: central 95 % of {together['random_sets']} random sets of the "
            "layer",
        )


def plot_ranked(axes: Axes, arrays: Arrays) -> None:
    """KL of each channel, largest first, on logarithmic axes."""
    order = np.argsort(-arrays["layer_mean_kl"], kind="stable")
    rank = np.arange(1.0, len(order) + 1)
    floor = max(float(arrays["layer_mean_kl"].min()) / 2, 1e-9)
    band(
        axes,
        rank,
        *(np.maximum(arrays[f"layer_mean_kl_{end}"][order], floor) for end in ("low", "high")),
        colour=ABLATED,
    )
    axes.plot(rank, arrays["layer_mean_kl"][order], color=ABLATED, label="mean ablation", zorder=3)
    for kind, marker in (("zero", "."), ("resample", "x")):
        shown = np.maximum(arrays[f"layer_{kind}_kl"][order], floor)
        axes.plot(
            rank,
            shown,
            marker,
            color=INK,
            markersize=3.5,
            alpha=0.55,
            label=f"{kind} ablation",
            zorder=2,
        )
    logarithmic(axes, "x", "y")
    axes.set(xlabel="rank of the channel", ylabel="KL from the clean predictions (nats)")
    axes.legend(loc="lower left")


def plot_together(axes: Axes, together: Report) -> None:
    """KL of the best k ablated together, what their single effects add up to, and random sets."""
    k = [float(number) for number in together["k"]]
    band(axes, k, together["random_low"], together["random_high"], colour=NULL)
    axes.plot(k, together["random_mean"], "s--", color=NULL, label="random channels")
    band(axes, k, together["kl_low"], together["kl_high"], colour=ABLATED)
    axes.plot(k, together["kl"], "o-", color=ABLATED, label="best channels")
    axes.plot(k, together["sum_of_single"], ":", color=INK, label="sum of their single effects")
    logarithmic(axes, "x", "y")
    axes.set(xlabel="channels ablated together", ylabel="KL (nats)")
    axes.set_xticks(k, [str(number) for number in together["k"]])


def estimates(arrays: Arrays, report: Report, name: str, path: Path) -> None:
    """Estimated against exact effects of the calibration samples, by layer, for KL and for the
    change of loss.
    """
    agreement = report["whole_model"]["agreement"]
    shown = (
        agreement
        if len(agreement) <= 4
        else [agreement[i] for i in np.linspace(0, len(agreement) - 1, 4).astype(int)]
    )
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
            f"{shown[0]['sample']} random channels a layer, mean ablation; line: equality; ranks: "
            "Spearman's rho\n"
            f"above: Fisher, {report['whole_model']['least_agreement']:g} rank agreement asked "
            "for; below: signed "
            "first-order sum",
        )


def plot_estimate(axes: Axes, arrays: Arrays, found: Report, measure: str) -> None:
    """One layer's sample: estimate across, exact effect upwards."""
    layer = found["layer"]
    sample = arrays[f"sample_{layer}"]
    estimate, exact = (
        arrays[f"estimated_{measure}"][layer, sample],
        arrays[f"sample_{layer}_{measure}"],
    )
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
    """KL when the same residual dimension is ablated after each layer: the largest ones, and all of
    them.
    """
    kl = arrays["kl"]
    layers = np.arange(float(len(kl)))
    with drawing(path, width=7.6, height=5.0) as figure:
        axes = figure.subplots()
        low, high = np.quantile(kl, [0.025, 0.975], axis=1)
        band(axes, layers, low, high, colour=NULL, label="central 95 % of all dimensions")
        for place, top in enumerate(report["top"]):
            label = f"the {len(report['top'])} largest on average" if place == 0 else None
            axes.plot(
                layers,
                top["kl_by_layer"],
                "-",
                color=ABLATED,
                alpha=0.45,
                linewidth=1.4,
                label=label,
            )
        axes.plot(layers, kl.mean(axis=1), "o--", color=INK, label="mean of all dimensions")
        logarithmic(axes, "y")
        axes.set(xlabel="layer after which the dimension is ablated", ylabel="KL (nats)")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlim(-0.3, len(kl) - 0.7)
        heading(
            figure, axes, f"{name}: one dimension of the residual stream, layer by layer", columns=2
        )
        note(
            figure,
            f"mean ablation of each of {kl.shape[1]} dimensions, {report['texts']} texts and "
            f"{report['repeated_rows']} rows of repeats",
        )


def influence(arrays: Arrays, report: Report, name: str, path: Path) -> None:
    """How far the best channels of a layer move later channels, directly and in all, beside random
    channels; and how much of what they do to the predictions goes through later layers.
    """
    panels = {"total": "best, in all", "direct": "best, directly", "null": "random, in all"}
    largest = max(
        (float(np.nanmax(arrays[key])) for key in panels if np.isfinite(arrays[key]).any()),
        default=0.0,
    )
    with drawing(path, width=12.4, height=5.2) as figure:
        *maps, right = figure.subplots(1, 4, width_ratios=[1, 1, 1, 1.35])
        image = None
        for axes, (key, title) in zip(maps, panels.items(), strict=True):
            image = plot_influence(axes, np.array(arrays[key], dtype=float), max(largest, 1e-9))
            axes.set_title(title, loc="left")
        maps[0].set_ylabel("layer of the ablated channels")
        assert image is not None
        figure.colorbar(
            image,
            ax=maps,
            label="mean |change| (standard deviations)",
            location="bottom",
            aspect=40,
        )
        plot_direct(right, report["layers"])
        right.set_title("on the predictions", loc="left")
        figure.suptitle(f"{name}: influence of ablating one channel")
        note(
            figure,
            f"mean ablation of the best {len(report['layers'][0]['top'])} channels of each layer "
            "by KL, mean "
            f"over tokens and later channels\nrandom: of {report['null_units']} other channels of "
            "the layer; grey: no "
            "later layer; directly: layers between kept as they were",
        )


def plot_influence(axes: Axes, values: np.ndarray, largest: float) -> AxesImage:
    """A cell for each pair of layers; the numbers are written in where there are few."""
    image = axes.imshow(values, origin="lower", cmap="Oranges", vmin=0, vmax=largest)
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
    shown = [
        top[key] for found in layers for top in found["top"] for key in ("total_kl", "direct_kl")
    ]
    ends = [0.7 * max(min(shown), 1e-9), 1.4 * max(shown)]
    axes.plot(ends, ends, color=GRID, linewidth=1.5, zorder=1)
    for found, (label, style) in zip(layers, styles.items(), strict=True):
        total, direct = ([top[key] for top in found["top"]] for key in ("total_kl", "direct_kl"))
        axes.plot(total, direct, style.marker, color=style.color, label=label, alpha=0.8)
    logarithmic(axes, "x", "y")
    axes.set(xlim=ends, ylim=ends, xlabel="KL in all (nats)", ylabel="KL directly (nats)")
    if len(layers) <= 6:
        axes.legend(loc="upper left")


def faithfulness(arrays: Arrays, report: Report, name: str, path: Path) -> None:
    """Deletion and insertion curves of each method's ranking, beside random orders."""
    faithful = report["attention_data"]["faithfulness"]
    methods = [key for key in _METHODS if key in faithful["deletion"]]
    styles = model_styles(methods)
    x = faithful["fractions"]
    with drawing(path, width=10.2, height=6.0) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, kind, title in zip(
            panels,
            ("deletion", "insertion"),
            ("the first x ablated", "all but the first x ablated"),
            strict=True,
        ):
            curves = faithful[kind]
            band(axes, x, curves["random"]["low"], curves["random"]["high"], colour=NULL)
            axes.plot(
                x, curves["random"]["mean"], color=NULL, linestyle="--", label="random orders"
            )
            for method in methods:
                style = styles[method]
                band(axes, x, curves[method]["low"], curves[method]["high"], colour=style.color)
                axes.plot(
                    x,
                    curves[method]["kl"],
                    color=style.color,
                    marker=style.marker,
                    linestyle=style.linestyle,
                    markersize=5,
                    label=_METHODS[method],
                )
            logarithmic(axes, "x")
            axes.set_xlabel("share x of every layer's channels")
            axes.set_xticks(x)
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.set_title(f"{kind}: {title}", loc="left")
        panels[0].set_ylabel("KL from the clean predictions (nats)")
        heading(
            figure,
            panels[1],
            f"{name}: do the rankings of attention neurons say what matters?",
            columns=3,
        )
        areas = {m: faithful["deletion"][m] for m in methods}
        said = "\n".join(
            f"{_METHODS[m]}: deletion {interval_text(areas[m]['area'], areas[m]['area_ci'])}, "
            "insertion "
            f"{interval_text(faithful['insertion'][m]['area'], faithful['insertion'][m]['area_ci'])}"
            for m in methods
        )
        note(
            figure,
            f"mean ablation, ranked on every second text, judged on the other {faithful['n']}; "
            "grey: "
            f"{faithful['random_orders']} random orders\n"
            "bands: 95 % interval of the distance from their mean, paired by text\n"
            f"mean distance from random (nats, 95 %; positive: better):\n{said}",
        )


def functional_curves(reports: Mapping[str, Report], path: Path) -> None:
    """Rise of the loss when only the strongest neurons are kept, of each model, beside random sets."""
    styles = model_styles(list(reports))
    with drawing(path, width=4.9 * len(reports) + 0.6, height=5.4) as figure:
        panels = figure.subplots(1, len(reports), sharey=True, squeeze=False)[0]
        for axes, (name, report) in zip(panels, reports.items(), strict=True):
            curve = report["functional"]
            axes.axhline(
                curve["tolerance"], color=INK, linewidth=1, linestyle=":", label="tolerated"
            )
            random, total = curve["random"], curve["neurons"]
            share = np.array(random["sizes"]) / total
            band(axes, share, random["low"], random["high"], colour=NULL)
            axes.plot(
                share, random["mean"], "s--", color=NULL, markersize=4, label="random neurons kept"
            )
            share = np.array(curve["sizes"]) / total
            style = styles[name]
            band(axes, share, curve["low"], curve["high"], colour=ABLATED)
            axes.plot(
                share,
                curve["rise"],
                color=ABLATED,
                marker=style.marker,
                markersize=4,
                label="strongest neurons kept",
            )
            axes.axvline(curve["enough_share"], color=INK, linewidth=1)
            axes.set_title(f"{name}: {curve['enough']} of {total} are enough", loc="left")
            axes.set_xlabel("share of the model's neurons kept")
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panels[0].set_yscale("symlog", linthresh=0.01)
        panels[0].set_ylim(bottom=-0.005)
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panels[0].set_ylabel("rise of the loss (share of the clean loss)")
        heading(figure, panels[0], "How few neurons keep the loss?", columns=3)
        first = next(iter(reports.values()))["functional"]
        note(
            figure,
            "all others mean-ablated; ranked on every second text, judged on the other "
            f"{first['n']}; bands: 95 % over "
            "texts\nand over random sets (grey); vertical line: the fewest that stay within "
            f"{first['tolerance']:.0%} from there on; the scale is linear below 1 %",
        )
