"""Where induction heads sit: layer profiles over depth, across sizes and lags, and their nulls."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from interp_core.plotting import (
    GRID,
    INDUCTION,
    INK,
    LONG_LAG,
    MASS,
    NULL,
    SHORT_LAG,
    LineStyle,
    band,
    drawing,
    heading,
    interval_text,
    model_styles,
    note,
)
from pythia_topology import measure_shape

DEPTH = "relative depth (0: first layer, 1: last)"
_MODES = {
    "mean": "mean of a layer's heads\n(attention above chance)",
    "top_quantile": "mean of a layer's top heads\n(attention above chance)",
    "count": "induction heads in a layer\n(number)",
}


def layer_profile(
    scores: Mapping[str, np.ndarray], profile: Mapping[str, Any], name: str, path: Path
) -> None:
    """A model's layer profile with its 95 % band, peak and 16-84 % band, above every single
    head."""
    with drawing(path, width=8.0, height=5.4) as figure:
        axes = figure.add_subplot()
        plot_layer_profile(axes, scores["excess_prefix_matching"], profile)
        heading(figure, axes, f"{name}: {shape_text(profile)}", columns=3)
        level = 100 * (1 - profile["alpha"])
        note(
            figure,
            f"n = {profile['n']} prompts · band: 95 %, prompts and heads resampled\n"
            f"threshold: {level:g} % of the largest head under the null, at least "
            f"{profile['smallest_effect']:g}",
        )


def plot_layer_profile(axes: Axes, excess: np.ndarray, profile: Mapping[str, Any]) -> None:
    """The profile; where there are no induction heads there is no peak and no band of mass to
    show."""
    depth = _depth(profile["n_layers"])
    if profile["mode"] != "count":
        _heads(axes, excess, colour=INDUCTION, label="a head")
        threshold = max(profile["null_threshold"], profile["smallest_effect"])
        axes.axhline(threshold, color=NULL, linestyle=":", label="threshold for a head")

    axes.axhline(0, color=NULL, linestyle="--", linewidth=1.5, label="chance")
    band(axes, depth, profile["per_layer_low"], profile["per_layer_high"], colour=INDUCTION)
    axes.plot(depth, profile["per_layer"], "o-", color=INDUCTION, label="layer profile")

    if profile["peak_layer"] is not None:
        peak, dashes = profile["peak_rel"]["value"], (0, (5, 1.5))
        axes.axvline(peak, color=INK, linestyle=dashes, linewidth=1.6, label="peak")

        low, high = band_ends(_mass(excess, profile))
        look = {"color": MASS, "alpha": 0.25, "linewidth": 0, "zorder": 0}
        axes.axvspan(low, high, label="16-84 % of the mass", **look)

    axes.set(xlim=(0, 1), xlabel=DEPTH, ylabel=_MODES[profile["mode"]])
    _room(axes, profile["mode"])


def shape_text(profile: Mapping[str, Any]) -> str:
    """The induction heads, the layer of the peak, centre and bandwidth; or that there are none.

    The peak is a layer: an interval that no draw moves is not printed.
    """
    if profile["peak_layer"] is None:
        return str(profile["verdict"])

    peak = f"peak in layer {profile['peak_layer']}"
    centre, width = (_text(profile[name]) for name in ("centre_of_mass", "bandwidth"))
    return f"{profile['verdict']}, {peak}\ncentre at {centre}, bandwidth {width}"


def _text(entry: Mapping[str, Any]) -> str:
    """`0.52 [0.49, 0.55]`, or the value alone where it has no interval."""
    if entry["low"] is None:
        return f"{entry['value']:.2f}"

    return interval_text(entry["value"], [entry["low"], entry["high"]])


def _mass(excess: np.ndarray, profile: Mapping[str, Any]) -> list[float]:
    """What centre and bandwidth of the file are of: the profile of heads above the threshold."""
    threshold = max(profile["null_threshold"], profile["smallest_effect"])
    heads = measure_shape.above_noise(excess.astype(np.float64), threshold)
    mode, q = profile["mode"], profile["q"]
    return measure_shape.layer_profile(heads, mode=mode, q=q, threshold=threshold).tolist()


def band_ends(per_layer: list[float]) -> tuple[float, float]:
    """Relative depths below which 16 % and 84 % of a profile's mass lie.

    Their distance is the file's bandwidth.
    """
    mass = np.clip(per_layer, 0, None)
    below = np.concatenate([[0.0], np.cumsum(mass)]) / mass.sum()
    low, high = np.interp([0.16, 0.84], below, np.linspace(0, 1, len(below)))
    return float(low), float(high)


def cross_size(crosssize: Mapping[str, Any], path: Path) -> None:
    """All models on relative depth, and below them the equivalence test of every pair's centres."""
    models, pairs = crosssize["models"], crosssize["pairs"]
    test = 0.6 + 0.66 * len(pairs)  # inches for the lower panel
    with drawing(path, width=10.0, height=5.9 + 0.25 * len(models) + test) as figure:
        above, below = figure.subplots(2, 1, height_ratios=(4.0, test))
        plot_overlay(above, models, crosssize["mode"])
        plot_equivalence(below, pairs, crosssize["margin"])

        title = (
            "One training of each: do its induction heads sit at the same relative depth?\n"
            f"Centre: {crosssize['verdict']}. Peak: {crosssize['peak_verdict']}"
        )
        heading(figure, above, title, columns=1)
        level = 100 * (1 - 2 * crosssize["equivalence_alpha"])
        note(
            figure,
            f"n = {_span({model['n'] for model in models.values()})} prompts · bands: 95 %, "
            "prompts and heads resampled, not trainings\nthin bars: 95 % of the difference, "
            f"thick bars: {level:g} %, equivalent when inside the shaded margin of "
            f"± {crosssize['margin']:g}\n"
            "diamonds: difference of peaks, without a bar where no draw moves either",
        )


def plot_overlay(axes: Axes, models: Mapping[str, Mapping[str, Any]], mode: str) -> None:
    """Each model's profile at its own layers; a tick on the axis marks its centre of mass."""
    axes.axhline(0, color=NULL, linestyle="--", linewidth=1.5)
    for (name, model), look in zip(
        models.items(), model_styles(list(models)).values(), strict=True
    ):
        band(
            axes, model["depth"], model["per_layer_low"], model["per_layer_high"], colour=look.color
        )
        centre = model["centre_of_mass"]
        _line(
            axes, model["depth"], model["per_layer"], look, label=f"{name}: {_centre_text(model)}"
        )
        if centre is not None:
            middle = centre["value"]
            axes.plot(
                [middle, middle],
                [0, 0.06],
                color=look.color,
                linewidth=4,
                transform=axes.get_xaxis_transform(),
            )
    axes.set(xlim=(0, 1), xlabel=DEPTH, ylabel=_MODES[mode])
    _room(axes, mode)


def _centre_text(model: Mapping[str, Any]) -> str:
    """Relative centre of mass and, since few layers are a coarse grid, the layer of the peak."""
    if model["centre_of_mass"] is None:
        return str(model["verdict"])

    last = model["n_layers"] - 1
    return (
        f"centre {_text(model['centre_of_mass'])}, peak in layer {model['peak_layer']} of 0-{last}"
    )


def plot_equivalence(axes: Axes, pairs: list[Mapping[str, Any]], margin: float) -> None:
    """Each pair's difference of centres, and of peaks below it, against the margin.

    Inside the margin they count as the same.
    """
    axes.axvspan(-margin, margin, color=GRID, linewidth=0)
    axes.axvline(0, color=INK, linewidth=1)
    reach = 1.6 * margin

    for y, pair in enumerate(pairs):
        verdicts = pair["verdict"]

        if pair["centre_of_mass"] is not None:
            reach = max(reach, _tested(axes, pair["centre_of_mass"], y - 0.17, INDUCTION, "o"))
            reach = max(reach, _tested(axes, pair["peak_rel"], y + 0.2, INK, "D"))
            verdicts += f"\npeak: {pair['peak_verdict']}"

        beside = axes.get_yaxis_transform()
        axes.text(1.015, y, verdicts, transform=beside, va="center", fontsize=11)

    names = [f"{pair['models'][1]} − {pair['models'][0]}" for pair in pairs]
    axes.set_yticks(range(len(pairs)), names)
    axes.set(
        xlim=(-reach, reach),
        ylim=(len(pairs) - 0.4, -0.6),
        xlabel="difference of centres of mass, and of peaks (relative depth)",
    )


def _tested(axes: Axes, tested: Mapping[str, Any], y: float, colour: str, marker: str) -> float:
    """A difference with both its bars; returns how far it reaches from zero."""
    found = tested["difference"]
    axes.plot([found["value"]], [y], marker, color=colour)

    if found["low"] is None:
        return 1.2 * abs(found["value"])

    axes.plot([found["low"], found["high"]], [y, y], color=colour, linewidth=1.8)
    inner = [tested["low"], tested["high"]]
    axes.plot(inner, [y, y], color=colour, linewidth=6, alpha=0.5, solid_capstyle="butt")
    return 1.1 * max(abs(found["low"]), abs(found["high"]))


def lag_profiles(lags: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """A panel for each model: the layer profile of copies over few tokens and over many."""
    with drawing(path, width=8.6, height=1.9 + 2.75 * len(lags)) as figure:
        rows = figure.subplots(len(lags), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, report) in zip(rows, lags.items(), strict=True):
            plot_lags(axes, report)
            axes.set_title(f"{name}: {shift_text(report)}", loc="left")
        rows[-1].set_xlabel(DEPTH)
        heading(figure, rows[0], "Layer profile over short and long lags", columns=2)
        counts = [
            f"{_span({report['buckets'][bucket]['n'] for report in lags.values()})} {bucket}"
            for bucket in _BUCKETS
        ]
        note(
            figure,
            "dotted: centre of mass · bands and intervals: 95 %, over prompts, of these heads\n"
            f"n = {' and '.join(counts)} prompts of spaced pairs for each model",
        )


_BUCKETS = {"short": (SHORT_LAG, "s", "-"), "long": (LONG_LAG, "o", (0.0, (5.0, 1.5)))}


def plot_lags(axes: Axes, report: Mapping[str, Any]) -> None:
    """Both buckets' profiles; a dotted line at each centre of mass, where there is one."""
    axes.axhline(0, color=NULL, linestyle="--", linewidth=1.5)
    for bucket, (colour, marker, dashes) in _BUCKETS.items():
        part = report["buckets"][bucket]
        lags = part["lags"]
        span = f"{min(lags)} to {max(lags)}" if len(lags) > 1 else str(lags[0])

        band(axes, report["depth"], part["per_layer_low"], part["per_layer_high"], colour=colour)
        look = LineStyle(colour, marker, dashes)
        _line(axes, report["depth"], part["per_layer"], look, label=f"{bucket}: {span} tokens back")
        if part["centre_of_mass"] is not None:
            axes.axvline(
                part["centre_of_mass"]["value"], color=colour, linestyle=":", linewidth=1.8
            )
    axes.set(xlim=(0, 1), ylabel=_MODES[report["mode"]])
    _room(axes, report["mode"])


def shift_text(report: Mapping[str, Any]) -> str:
    """How far the centre moves from short to long lags, with interval and p."""
    shift = report["centre_of_mass_shift"]
    if shift is None:
        if report["n_induction_heads"] == 0:
            return "no induction heads"

        return "no mass in one of the buckets"

    ends = f"[{shift['low']:+.3f}, {shift['high']:+.3f}]"
    return f"centre moves by {shift['value']:+.3f} {ends}, p = {shift['p']:.2g}"


def nulls(
    report: Mapping[str, Any], scores: Mapping[str, np.ndarray], name: str, path: Path
) -> None:
    """What could make the profile by chance.

    Heads dealt to layers at random, wrong antecedents, no training.
    """
    with drawing(path, width=12.0, height=5.0) as figure:
        density, shuffled, untrained = figure.subplots(1, 3)
        plot_density(density, report["permute_summary"])
        wrong = scores["prompts/repeated_tokens/shuffled"].mean(axis=(0, 1))
        plot_against(shuffled, scores["prefix_matching"], wrong, label="shuffled antecedents")
        shuffled.axhline(report["shuffled_summary"]["null_max_hi"], color=NULL, linestyle=":")
        shuffled.set(ylabel="prefix matching (attention)", title="Wrong antecedents")
        if report["untrained_summary"] is None:
            untrained.text(
                0.5, 0.5, "no untrained model", transform=untrained.transAxes, ha="center"
            )
            untrained.set_axis_off()
        else:
            fresh = scores["untrained/excess_prefix_matching"].mean(axis=0)
            plot_against(
                untrained, scores["excess_prefix_matching"], fresh, label="untrained model"
            )
            untrained.axhline(report["untrained_summary"]["max"], color=NULL, linestyle=":")
            untrained.set(ylabel="excess prefix matching (attention)", title="Before any training")
        figure.suptitle(f"{name}: {report['verdict']}, against three nulls")
        low, high = (report["permute_summary"][end][0] for end in ("lo", "hi"))
        note(
            figure,
            f"n = {report['n']} prompts · grey band: {low:.2g} to {high:.2g} of a layer's heads, "
            "the central 95 % when they are dealt to layers at random\n"
            "p: against the fullest layer of all, exact · dotted: highest head of the null (of "
            "shuffles: 97.5 % of their highest heads)",
        )


def plot_density(axes: Axes, permuted: Mapping[str, Any]) -> None:
    """Share of each layer's heads that score high, against heads dealt to the layers at random."""
    depth = _depth(len(permuted["observed_density"]))
    low, high = (np.asarray(permuted[end]) for end in ("lo", "hi"))
    ends = np.concatenate([[0.0], depth[1:-1], [1.0]]) if len(depth) > 1 else np.array([0.0])
    band(axes, ends, low, high, colour=NULL, label="chance")
    axes.plot(ends, permuted["mean"], "--", color=NULL)
    axes.plot(depth, permuted["observed_density"], "o-", color=INDUCTION, label="observed")
    axes.set(
        xlim=(0, 1), ylim=(-0.03, 1.25), xlabel="relative depth", ylabel="share of a layer's heads"
    )
    axes.set_title(
        f"Top {1 - permuted['q']:.0%} of heads by layer\nfullest layer: p = {permuted['p_max']:.2g}"
    )
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.legend(loc="upper left", ncols=2)


def plot_against(axes: Axes, observed: np.ndarray, null: np.ndarray, *, label: str) -> None:
    """Every head at its depth, beside the same under a null."""
    _heads(axes, null, colour=NULL, label=label, marker="s", aside=-0.13)
    _heads(axes, observed, colour=INDUCTION, label="observed", aside=0.13)
    axes.set(xlim=(0, 1), xlabel="relative depth")
    _room(axes, "mean", head=0.3)
    axes.legend(loc="upper left")


def _heads(
    axes: Axes,
    values: np.ndarray,
    *,
    colour: str,
    label: str,
    marker: str = "o",
    aside: float = 0.0,
) -> None:
    """A point for each head at its layer's depth, `aside` by that many layers."""
    depth = np.repeat(_depth(len(values)) + aside / len(values), values.shape[1])
    size = 6 if values.size <= 64 else 4
    axes.plot(
        depth,
        values.ravel(),
        marker,
        color=colour,
        alpha=0.55,
        markersize=size,
        markeredgewidth=0,
        label=label,
    )


def _room(axes: Axes, mode: str, *, head: float = 0.0) -> None:
    """A y axis long enough that noise looks like noise.

    `head`: share of it left free above, for a legend.
    """
    low, high = axes.get_ylim()
    low, high = min(low, -0.02), max(high, 1.2 if mode == "count" else 0.2)
    axes.set_ylim(low, high + head * (high - low))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=mode == "count"))


def _line(axes: Axes, x: list[float], y: list[float], look: LineStyle, *, label: str) -> None:
    size = 6.5 if len(x) <= 12 else 4
    axes.plot(
        x,
        y,
        color=look.color,
        marker=look.marker,
        markersize=size,
        linestyle=look.linestyle,
        label=label,
    )


def _depth(n_layers: int) -> np.ndarray:
    return (np.arange(n_layers) + 0.5) / n_layers


def _span(numbers: set[int]) -> str:
    return str(min(numbers)) if len(numbers) == 1 else f"{min(numbers)} to {max(numbers)}"
