"""Maps of every head: excess prefix matching, all scores, and what ablating each alone does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from interp_core.plotting import (
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
    interval_text,
    note,
    shades,
)
from interp_core.statistics.heads import Head

# score, title, unit, and a share's colour or, for a signed score, the least magnitude that its
# colours reach. An excess is signed too, but lies below 0 by noise alone: it is drawn as a share.
_PANELS: tuple[tuple[str, str, str, str | float], ...] = (
    ("prefix_matching", "Prefix matching", "attention", INDUCTION),
    ("excess_prefix_matching", "Excess prefix matching", "attention", INDUCTION),
    ("duplicate_token", "Duplicate token", "attention", DUPLICATE_TOKEN),
    ("previous_token", "Previous token", "attention", PREVIOUS_TOKEN),
    ("bos", "First position (BOS)", "attention", NULL),
    ("copying", "Copying by OV weights", "eigenvalue share", 1.0),
    ("copying_empirical", "Copying, measured", "sd over vocabulary", 1.0),
    ("direct_logit_attribution", "Direct logit attribution", "nats", 1.0),
)


def head_mask(names: Sequence[str], shape: tuple[int, ...]) -> Bool[np.ndarray, "layer head"]:
    """True at the named heads."""
    mask = np.zeros(shape, dtype=bool)

    for name in names:
        mask[Head.read(name)] = True

    return mask


def heatmap(
    scores: Mapping[str, np.ndarray], profile: Mapping[str, Any], name: str, path: Path
) -> None:
    """Excess prefix matching of every head; heads that stand out of the null have a frame."""
    excess = scores["excess_prefix_matching"]
    layers = len(excess)
    with drawing(path, width=7.6, height=min(8.5, 2.9 + 0.42 * max(layers, 4))) as figure:
        axes = figure.add_subplot()
        plot_heatmap(axes, excess, head_mask(profile["induction_heads"], excess.shape))
        axes.set_title(
            f"{name}: attention to what followed the earlier occurrence,\nabove chance, for every "
            "head"
        )

        low, high = scores["excess_prefix_matching_low"], scores["excess_prefix_matching_high"]
        half = float(np.median(high - low)) / 2
        count = profile["n_induction_heads"]
        found = f"framed: {count} induction heads above the null"
        if count == 0:
            found = "no induction heads"

        note(
            figure,
            f"{found} · n = {profile['n']} prompts\n"
            f"95 % intervals over prompts, median width ± {half:.2g}",
        )


def plot_heatmap(
    axes: Axes, excess: Float[np.ndarray, "layer head"], marked: Bool[np.ndarray, "layer head"]
) -> None:
    """The map alone; cells of small models carry their number."""
    scale, colours = Normalize(0.0, 1.0), shades(INDUCTION)
    image = head_map(axes, excess, scale=scale, colours=colours, marked=marked)
    axes.set(xlabel="head", ylabel="layer")
    bar = _figure(axes).colorbar(image, ax=axes, pad=0.02)
    bar.set_label("excess prefix matching\n(share of attention)")

    if excess.size > 64:
        return

    for (layer, head), value in np.ndenumerate(excess):
        text = f"{value:.2f}".replace("-0.00", "0.00")
        colour = "white" if value > 0.3 else INK  # what can be read on that shade
        axes.text(head, layer, text, ha="center", va="center", fontsize=11, color=colour)


def score_table(
    scores: Mapping[str, np.ndarray], profile: Mapping[str, Any], name: str, path: Path
) -> None:
    """All scores on repeated random tokens side by side, each with its strongest head."""
    with drawing(path, width=11.5, height=7.0) as figure:
        grid = figure.subplots(2, 4, sharex=True, sharey=True)
        for axes, (score, title, unit, shown) in zip(grid.flat, _PANELS, strict=True):
            if score not in scores:
                axes.set_title(f"{title}:\nnot known of this model")
                continue
            values = scores[score]
            interval = (
                [scores[f"{score}_low"], scores[f"{score}_high"]]
                if f"{score}_low" in scores
                else None
            )
            plot_score(axes, values, title=title, unit=unit, shown=shown, interval=interval)
        for axes in grid[1]:
            axes.set_xlabel("head")
        for axes in grid[:, 0]:
            axes.set_ylabel("layer")
        figure.suptitle(f"{name}: scores of every head on repeated random tokens")
        note(
            figure,
            "below each title: the strongest head [95 % interval over prompts] · "
            f"n = {profile['n']} prompts",
        )


def plot_score(
    axes: Axes,
    values: Float[np.ndarray, "layer head"],
    *,
    title: str,
    unit: str,
    shown: str | float,
    interval: Sequence[Float[np.ndarray, "layer head"]] | None,
) -> None:
    """One score; a share of attention runs from 0 to 1, a signed score diverges around zero."""
    scale: Normalize = (
        Normalize(0.0, 1.0) if isinstance(shown, str) else centred(values, least=shown)
    )
    colours: str | Colormap = shades(shown) if isinstance(shown, str) else DIVERGING
    image = head_map(axes, values, scale=scale, colours=colours)
    layer, head = (int(i) for i in np.unravel_index(int(np.nanargmax(values)), values.shape))
    best = float(values[layer, head])
    text = (
        f"{best:.2f}"
        if interval is None
        else interval_text(best, [float(end[layer, head]) for end in interval])
    )
    axes.set_title(f"{title}\n{Head(layer, head)} {text}", fontsize=11.5)
    bar = _figure(axes).colorbar(
        image, ax=axes, orientation="horizontal", pad=0.02, aspect=16, shrink=0.9
    )
    bar.set_label(unit, fontsize=11)
    bar.ax.locator_params(nbins=3)


def single_heads(
    causal: Mapping[str, Any], arrays: Mapping[str, np.ndarray], name: str, path: Path
) -> None:
    """What ablating each head alone does to the loss on the second copy.

    And how well a first-order estimate agrees.
    """
    with drawing(path, width=10.5, height=5.2) as figure:
        left, right = figure.subplots(1, 2)
        effect = arrays["loss_effect"]
        image = head_map(
            left,
            -effect,
            scale=centred(effect),
            colours=DIVERGING,
            marked=head_mask(causal["top_heads"], effect.shape),
        )
        left.set(xlabel="head", ylabel="layer", title="Mean ablation of one head")
        bar = figure.colorbar(image, ax=left, pad=0.02)
        bar.set_label("copying gained (nats; red: lost)")
        plot_agreement(right, effect, arrays["first_order"], causal["rank_agreement"])
        figure.suptitle(f"{name}: every head ablated alone")
        note(
            figure,
            f"framed: the {causal['top_k']} heads with the most excess prefix matching · "
            f"n = {causal['n']} prompts\nof the heads whose ablation harms most, among as many "
            f"largest estimates: {recall_text(causal)}",
        )


def recall_text(causal: Mapping[str, Any]) -> str:
    """How many of the heads that matter most are among the largest estimates, for each number."""
    found = causal["recall"]
    shared = [
        f"{share * k:.0f} of {k:.0f}" for k, share in zip(found["k"], found["recall"], strict=True)
    ]
    return ", ".join(shared)


def plot_agreement(
    axes: Axes,
    exact: Float[np.ndarray, "layer head"],
    estimate: Float[np.ndarray, "layer head"],
    agreement: float,
) -> None:
    """First-order estimates against exact effects, with the line on which both are equal."""
    both = np.concatenate([exact.ravel(), estimate.ravel()])
    axes.axline((0, 0), slope=1, color=NULL, linestyle="--", linewidth=1.5, label="equal")
    axes.plot(exact.ravel(), estimate.ravel(), "o", color=COPYING, alpha=0.7, label="a head")
    span = max(float(np.ptp(both)), 1e-6)
    limits = (float(both.min()) - 0.06 * span, float(both.max()) + 0.06 * span)
    axes.set(
        xlim=limits,
        ylim=limits,
        xlabel="exact change of loss (nats)",
        ylabel="first-order estimate (nats)",
    )
    axes.set_title(f"Rank agreement (Spearman) {agreement:.2f}")
    axes.legend(loc="upper left")


def _figure(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("these axes belong to no figure")
    return figure
