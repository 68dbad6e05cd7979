"""Circuits on token bases: QK of directions on a circle, radius kernels, OV of strokes and
characters, composition.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.image import AxesImage
from matplotlib.projections.polar import PolarAxes

from interp_core.plotting import DIVERGING, INDUCTION, INK, centred, drawing, note, shades

Report = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]
_READ = {"k": "keys", "q": "queries", "v": "values"}
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
        norm=centred(values, least=0.5),
        interpolation="nearest",
    )
    axes.set_xticks([0, 180, 360])
    axes.set_yticks([0, 180, 360])
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    return image


def plot_circle(axes: PolarAxes, scores: np.ndarray, title: str) -> None:
    """Mean QK score by the angle from the query's direction to the key's: outside the dashed circle
    attention is drawn there, inside it is pushed away.
    """
    n = len(scores)
    relative = np.array([np.mean([scores[a, (a + d) % n] for a in range(n)]) for d in range(n)])
    relative -= relative.mean()
    reach = max(0.2, float(np.abs(relative).max()))
    angles = 2 * np.pi * np.append(np.arange(n), 0) / n
    axes.plot(angles, 1 + 0.8 * np.append(relative, relative[0]) / reach, color=INDUCTION)
    axes.plot(angles, np.ones(n + 1), color=INK, linewidth=0.9, linestyle="--")
    axes.set_rlim(0, 1.9)
    axes.set_rticks([])
    axes.set_xticks(np.pi * np.array([0, 0.5, 1, 1.5]), ["0°", "90°", "180°", "270°"])
    axes.set_title(f"{title}, ±{reach:.1f}", fontsize=12)


def direction_maps(arrays: Arrays, name: str, path: Path, *, kind: str) -> None:
    """QK or OV of every head over directions."""
    key, draw = {"qk": ("qk_direction", plot_QK_circuit), "ov": ("ov_direction", plot_OV_circuit)}[
        kind
    ]
    layers, heads = arrays[key].shape[:2]
    with drawing(path, width=2.7 * heads + 0.6, height=2.75 * layers + 1.0) as figure:
        grid = figure.subplots(layers, heads, squeeze=False, sharex=True, sharey=True)
        for (layer, head), axes in np.ndenumerate(grid):
            image = draw(axes, arrays[key][layer, head], f"L{layer}H{head}")
            axes.label_outer()
            figure.colorbar(image, ax=axes, pad=0.02)
        what = (
            "attention scores of embeddings alone, before softmax"
            if kind == "qk"
            else "logits from the attended direction"
        )
        figure.suptitle(f"{name}: {kind.upper()} circuits over directions")
        note(figure, what)


def circles(arrays: Arrays, report: Report, name: str, path: Path) -> None:
    """QK of every head by the angle between query and key."""
    layers, heads = arrays["qk_direction"].shape[:2]
    with drawing(path, width=2.6 * heads, height=2.75 * layers + 1.0) as figure:
        grid = figure.subplots(layers, heads, squeeze=False, subplot_kw={"projection": "polar"})
        for (layer, head), axes in np.ndenumerate(grid):
            plot_circle(axes, arrays["qk_direction"][layer, head], f"L{layer}H{head}")
        share = max(entry["angular_share"] for entry in report.values())
        figure.suptitle(
            f"{name}: which direction attracts attention, from the query's own direction (0°)"
        )
        note(
            figure,
            f"mean over query directions; title: largest deviation · the angle explains at most "
            f"{share:.0%} of a map",
        )


def kernels(arrays: Arrays, name: str, path: Path) -> None:
    """Radius kernels, and the circular spectrum of the direction maps."""
    layers, heads = arrays["kernel"].shape[:2]
    shift = np.arange(arrays["kernel"].shape[-1]) - arrays["kernel"].shape[-1] // 2
    with drawing(path, width=10.5, height=2.1 * layers + 1.2) as figure:
        grid = figure.subplots(layers, 2, squeeze=False, sharex="col")
        for layer in range(layers):
            for head in range(heads):
                grid[layer, 0].plot(
                    shift, arrays["kernel"][layer, head], label=f"head {head}", color=f"C{head}"
                )
                grid[layer, 1].plot(
                    np.arange(1, 13),
                    arrays["spectrum"][layer, head][:12],
                    "o-",
                    color=f"C{head}",
                    markersize=4,
                )
            grid[layer, 0].axhline(0, color=INK, linewidth=0.8)
            grid[layer, 0].set_ylabel(f"layer {layer}\nscore")
            grid[layer, 1].set_ylabel("share of variance")
            grid[layer, 1].set_ylim(bottom=0)
        grid[-1, 0].set_xlabel("key radius minus query radius (bins)")
        grid[-1, 1].set_xlabel("circular frequency over directions")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=heads)
        figure.suptitle(
            f"{name}: how QK depends on radius (left) and on the angle between directions (right)"
        )


def characters(arrays: Arrays, alphabet: str, best: tuple[int, int], path: Path) -> None:
    """What attending to a character adds to the logits of directions, by one cross head."""
    values = arrays["cross_ov"][best]
    used = [i for i, letter in enumerate(alphabet) if letter != " "]
    with drawing(path, width=9.5, height=0.24 * len(used) + 2.0) as figure:
        axes = figure.subplots()
        image = axes.imshow(
            values[used],
            aspect="auto",
            cmap=DIVERGING,
            norm=centred(values[used], least=0.5),
            extent=(0, 360, len(used) - 0.5, -0.5),
            interpolation="nearest",
        )
        axes.set_yticks(range(len(used)), [alphabet[i] for i in used])
        axes.set_xticks(
            [0, 90, 180, 270, 360], ["0° right", "90° down", "180° left", "270° up", "360°"]
        )
        axes.set_ylabel("character")
        axes.set_xlabel("direction of the stroke")
        figure.colorbar(image, ax=axes, label="logits", pad=0.01)
        figure.suptitle(
            f"L{best[0]}X{best[1]}: which strokes a character asks for (cross-attention OV)"
        )


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

    with drawing(path, width=14.0, height=4.6 * len(writers) + 0.8) as figure:
        grid = figure.subplots(len(writers), 3, sharex=True, squeeze=False)
        for axes, (writer, reads) in zip(grid.flat, shown, strict=True):
            values = arrays[f"{writer}_{reads}_z"].reshape(n, n)
            axes.imshow(values, origin="lower", cmap=DIVERGING, norm=scale, interpolation="nearest")
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
