"""Which earlier heads feed induction heads' keys: by weights, and by removing the path."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from interp_core.plotting import (
    ABLATED,
    DIVERGING,
    GRID,
    INDUCTION,
    INK,
    NULL,
    PREVIOUS_TOKEN,
    centred,
    drawing,
    note,
    whisker,
)


def composition(
    report: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    scores: Mapping[str, np.ndarray],
    name: str,
    path: Path,
) -> None:
    """Left: z-score of every earlier head's K-composition with every later head.

    Right: change of the reader's prefix matching when the writer is removed from its keys only, for
    the strongest pairs and for control pairs.
    """
    with drawing(path, width=12.0, height=7.0) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        image = plot_z(
            left,
            arrays["z"],
            writers=scores["previous_token"] > 0.5,
            readers=scores["excess_prefix_matching"] > 0.5,
        )
        # Named above: beside the bar, its label would read as the right panel's axis.
        bar = figure.colorbar(image, ax=left, pad=0.02, shrink=0.85)
        bar.ax.set_title("z", fontsize=12)
        against = report.get("z_against", "random orientations")
        left.set_title(f"K-composition, z against {against} (sd){_strength(report)}")

        plot_paths(right, report["pairs"], report["random_pairs"])
        figure.suptitle("\n".join(wrap(f"{name}: {report['verdict']}", 95)), fontsize=12.5)
        note(
            figure,
            "arrows: heads with over half of their attention one token back (orange) or, above "
            "chance, on what\nfollowed the earlier occurrence (blue) · right: 95 % intervals over "
            f"n = {report['n']} prompts\ngrey: {report['control']}",
        )


def _strength(report: Mapping[str, Any]) -> str:
    """The largest z and the share above 2; nothing for a model of one layer."""
    if report["z_max"] is None:
        return ""

    return f"\nlargest {report['z_max']:.1f}, {report['share_above_2']:.0%} above 2"


def plot_z(
    axes: Axes,
    z: Float[np.ndarray, "writer_layer writer reader_layer reader"],
    *,
    writers: Bool[np.ndarray, "writer_layer writer"],
    readers: Bool[np.ndarray, "reader_layer reader"],
) -> AxesImage:
    """Writers downwards, readers to the right, by layer; arrows point at the chosen ones.

    A pair whose writer is in no earlier layer is grey.
    """
    layers, heads = z.shape[:2]
    layer = np.repeat(np.arange(layers), heads)
    flat = np.where(
        layer[:, None] < layer[None, :], z.reshape(layers * heads, layers * heads), np.nan
    )
    colours = colormaps[DIVERGING].with_extremes(bad=GRID)
    image = axes.imshow(flat, cmap=colours, norm=centred(flat, least=4.0), interpolation="nearest")
    middles = np.arange(layers) * heads + (heads - 1) / 2
    named = range(0, layers, max(1, layers // 8))
    for ticks, labels in (
        (axes.set_xticks, axes.set_xticklabels),
        (axes.set_yticks, axes.set_yticklabels),
    ):
        ticks([float(middles[i]) for i in named])
        labels([str(i) for i in named])
    for edge in np.arange(1, layers) * heads - 0.5:
        axes.axvline(edge, color="white", linewidth=0.8 if layers <= 12 else 0.3)
        axes.axhline(edge, color="white", linewidth=0.8 if layers <= 12 else 0.3)
    rows, columns = np.flatnonzero(writers), np.flatnonzero(readers)
    beside, under = axes.get_yaxis_transform(), axes.get_xaxis_transform()
    axes.plot(
        np.full(len(rows), -0.014), rows, ">", color=PREVIOUS_TOKEN, transform=beside, clip_on=False
    )
    axes.plot(
        columns, np.full(len(columns), -0.014), "^", color=INDUCTION, transform=under, clip_on=False
    )
    axes.tick_params(length=0, pad=9)
    axes.set(xlabel="reader, by layer", ylabel="writer, by layer")
    return image


def plot_paths(
    axes: Axes, pairs: Sequence[Mapping[str, Any]], random_pairs: Sequence[Mapping[str, Any]]
) -> None:
    """The strongest pairs above, random pairs below them; zero means that the path does not
    matter."""
    axes.axvline(0, color=INK, linewidth=1)
    rows = [(pair, ABLATED, "o") for pair in pairs] + [(pair, NULL, "s") for pair in random_pairs]
    for y, (pair, colour, marker) in enumerate(rows):
        patching = pair["path_patching"]
        ends = [patching["low"], patching["high"]]
        whisker(axes, patching["value"], float(y), ends, colour=colour, marker=marker)

    size = 11 if len(rows) <= 16 else 8
    axes.set_yticks(
        range(len(rows)),
        [f"{pair['writer']} → {pair['reader']}" for pair, _, _ in rows],
        fontsize=size,
    )
    axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_title("Path patching of single pairs")
    axes.set_xlabel("change of the reader's prefix matching\n(share of attention)")
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
