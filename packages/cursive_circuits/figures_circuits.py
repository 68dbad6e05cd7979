"""Circuits from weights: QK and OV of directions, composition of heads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.image import AxesImage

from interp_core.plotting import DIVERGING, GRID, INDUCTION, INK, centred, drawing, note, shades

Report = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]
_READ = {"k": "keys", "q": "queries", "v": "values"}
LEAST = 0.5  # logits, or scores: maps of smaller ones are pale
NOISE = 4.0  # z that the largest of a few hundred random pairs seldom reaches


def plot_attention_pattern(
    axes: Axes, pattern: np.ndarray, layer_idx: int, head_idx: int
) -> AxesImage:
    """Attention of one head on one sequence (samples of different lengths are not averaged)."""
    image = axes.imshow(pattern, cmap=shades(INDUCTION), vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("key position")
    axes.set_ylabel("query position")
    axes.set_title(f"L{layer_idx}H{head_idx}")
    return image


def plot_QK_circuit(axes: Axes, scores: np.ndarray, title: str) -> AxesImage:
    """Scores of query directions against key directions, degrees."""
    return _directions(axes, scores, title, "key direction (°)", "query direction (°)")


def plot_OV_circuit(axes: Axes, logits: np.ndarray, title: str) -> AxesImage:
    """What attending to a direction adds to the logits of directions, degrees."""
    return _directions(axes, logits, title, "written direction (°)", "attended direction (°)")


def _directions(axes: Axes, values: np.ndarray, title: str, x: str, y: str) -> AxesImage:
    image = axes.imshow(
        values,
        origin="lower",
        extent=(0, 360, 0, 360),
        cmap=DIVERGING,
        norm=centred(values, least=LEAST),
        interpolation="nearest",
    )
    axes.set_xticks([0, 180, 360])
    axes.set_yticks([0, 180, 360])
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    return image


def direction_maps(arrays: Arrays, name: str, path: Path, *, kind: str) -> None:
    """QK or OV of every head over directions, on one scale."""
    key, draw, what = {
        "qk": ("qk_direction", plot_QK_circuit, "attention scores of embeddings, before softmax"),
        "ov": ("ov_direction", plot_OV_circuit, "logits from the attended direction"),
    }[kind]
    layers, heads = arrays[key].shape[:2]
    scale = centred(arrays[key], least=LEAST)

    with drawing(path, width=2.5 * heads + 1.4, height=2.55 * layers + 1.0) as figure:
        grid = figure.subplots(layers, heads, squeeze=False, sharex=True, sharey=True)

        for (layer, head), axes in np.ndenumerate(grid):
            draw(axes, arrays[key][layer, head], f"L{layer}H{head}").set_norm(scale)
            axes.label_outer()

        bar = ScalarMappable(scale, DIVERGING)
        figure.colorbar(bar, ax=list(grid.flat), label=what, pad=0.02, aspect=50)
        figure.suptitle(f"{name}: {kind.upper()} circuits over directions")


def composition(arrays: Arrays, name: str, path: Path) -> None:
    """z of every pair: keys, queries and values of self-attention against earlier heads.

    A kind of writer none of whose pairs reaches NOISE is not drawn: its largest z is in the note.
    """
    layers, heads = arrays["self_k_z"].shape[:2]
    n = layers * heads
    largest = {
        writer: max(float(arrays[f"{writer}_{reads}_z"].max()) for reads in _READ)
        for writer in ("self", "cross")
    }
    writers = [writer for writer, z in largest.items() if writer == "self" or z >= NOISE]
    shown = [(writer, reads) for writer in writers for reads in _READ]
    scale = centred(
        np.stack([arrays[f"{writer}_{reads}_z"] for writer, reads in shown]), least=NOISE
    )

    # A head reads what earlier layers wrote: other pairs cannot be.
    layer = np.repeat(np.arange(layers), heads)
    earlier = layer[:, None] < layer[None, :]
    colours = colormaps[DIVERGING].with_extremes(bad=GRID)

    with drawing(path, width=14.0, height=4.6 * len(writers) + 0.8) as figure:
        grid = figure.subplots(len(writers), 3, sharex=True, squeeze=False)
        for axes, (writer, reads) in zip(grid.flat, shown, strict=True):
            values = np.where(earlier, arrays[f"{writer}_{reads}_z"].reshape(n, n), np.nan)
            axes.imshow(values, cmap=colours, norm=scale, interpolation="nearest")
            for edge in range(heads, n, heads):
                axes.axhline(edge - 0.5, color=INK, linewidth=0.5)
                axes.axvline(edge - 0.5, color=INK, linewidth=0.5)
            axes.set_title(f"{writer}-attention into {_READ[reads]}")
            letter = "H" if writer == "self" else "X"
            axes.set_xticks(range(n), _names(layers, heads, "H"), rotation=90, fontsize=9)
            axes.set_yticks(range(n), _names(layers, heads, letter), fontsize=9)
        for axes in grid[-1]:
            axes.set_xlabel("reader")
        for axes in grid[:, 0]:
            axes.set_ylabel("writer")
        figure.colorbar(
            ScalarMappable(scale, DIVERGING),
            ax=list(grid.flat),
            label="composition (z against random)",
            pad=0.01,
        )
        figure.suptitle(f"{name}: composition of heads, from weights")
        if len(writers) == 1:
            note(
                figure,
                f"writers of cross-attention are not drawn: none of their pairs is above "
                f"z = {largest['cross']:.1f}",
            )


def _names(layers: int, heads: int, letter: str) -> list[str]:
    """Every head's name, in the order of the map."""
    return [f"L{layer}{letter}{head}" for layer in range(layers) for head in range(heads)]
