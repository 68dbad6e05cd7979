"""The map of every head: excess prefix matching."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from interp_core.plotting import INDUCTION, drawing, note, shades
from interp_core.plotting_maps import map_of_heads
from interp_core.statistics.heads import Head


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
    """The map alone."""
    # An excess below 0 is noise: it is drawn as a share.
    scale, colours = Normalize(0.0, 1.0), shades(INDUCTION)
    image = map_of_heads(axes, excess, scale=scale, colours=colours, marked=marked)
    axes.set(xlabel="head", ylabel="layer")
    bar = _figure(axes).colorbar(image, ax=axes, pad=0.02)
    bar.set_label("excess prefix matching\n(share of attention)")


def _figure(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("these axes belong to no figure")
    return figure
