"""Single sequences: what resembles what, what reads what, and what is predicted, position by
position.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from interp_core.plotting import (
    ABLATED,
    COPYING,
    DIVERGING,
    INDUCTION,
    INK,
    NULL,
    centred,
    drawing,
    model_styles,
    note,
    shades,
)

Sequence = Mapping[str, np.ndarray]
_MOST_LAYERS = 4  # curves in one panel


def draw_sequences(arrays: Mapping[str, np.ndarray], name: str, folder: Path) -> list[Path]:
    """induction_analysis_seq{i}.png and prediction_gap_seq{i}.png for every sequence of a model."""
    written = []
    for index in sorted({int(key.partition("/")[0]) for key in arrays}):
        prefix = f"{index}/"
        one = {
            key.removeprefix(prefix): values
            for key, values in arrays.items()
            if key.startswith(prefix)
        }
        for stem, draw in (
            ("induction_analysis", induction_analysis),
            ("prediction_gap", prediction_gap),
        ):
            path = folder / f"{stem}_seq{index}.png"
            draw(one, f"{name}, sequence {index}: {one['family']}", path)
            written.append(path)
    return written


def induction_analysis(one: Sequence, title: str, path: Path) -> None:
    """State similarity, effective attention, activations by layer, and every repeated position."""
    layer = best_layer(one)
    top = one["attention"][layer, one["query"]].max()  # the first rows have few keys to share
    with drawing(path, width=13.0, height=12.5) as figure:
        panels = figure.subplot_mosaic(
            [["similar", "attend"], ["norm", "norm"], ["repeat", "repeat"]],
            height_ratios=[2.2, 0.8, 1.2],
        )
        last = len(one["similarity"]) - 1
        image = panels["similar"].imshow(
            one["similarity"][last], cmap=DIVERGING, norm=centred(np.ones(1)), origin="upper"
        )
        panels["similar"].set(
            title=f"similarity of states after layer {last}", xlabel="position", ylabel="position"
        )
        figure.colorbar(image, ax=panels["similar"], label="cosine", shrink=0.8)
        image = panels["attend"].imshow(
            one["attention"][layer], cmap=shades(INDUCTION), origin="upper", vmin=0, vmax=top
        )
        panels["attend"].scatter(
            one["earlier"] + 1, one["query"], s=70, facecolors="none", edgecolors=ABLATED
        )
        panels["attend"].set(
            title=f"effective attention, layer {layer} (rings: the answer's place)"
        )
        panels["attend"].set(xlabel="key", ylabel="query")
        figure.colorbar(image, ax=panels["attend"], label="share of the row", shrink=0.8)
        image = panels["norm"].imshow(
            one["norm"], aspect="auto", cmap=shades(COPYING), origin="lower", vmin=0
        )
        panels["norm"].set(
            ylabel="depth", xlabel="position", title="activations: norm of the residual stream"
        )
        panels["norm"].set_yticks(range(0, len(one["norm"]), max(1, len(one["norm"]) // 6)))
        figure.colorbar(image, ax=panels["norm"], label="norm")
        plot_repeats(panels["repeat"], one)
        figure.suptitle(title)
        note(
            figure,
            f"n = {len(one['query'])} copy operations · norm at depth 0: embedding, "
            "l + 1: after layer l",
        )


def plot_repeats(axes: Axes, one: Sequence) -> None:
    """At each repeated position: cosine with its earlier occurrence by layer, and the probability
    of the answer.
    """
    order = np.argsort(one["query"])
    query, earlier = one["query"][order], one["earlier"][order]
    layers = range(len(one["similarity"]))
    shown = [layer for layer in layers if layer % max(1, len(layers) // _MOST_LAYERS) == 0]
    styles = model_styles([str(layer) for layer in shown])
    place = np.arange(len(query))
    for layer in shown:
        style = styles[str(layer)]
        values = one["similarity"][layer, query, earlier]
        axes.plot(
            place,
            values,
            color=style.color,
            marker=style.marker,
            linestyle="none",
            label=f"similarity, L{layer}",
        )
    axes.bar(
        place,
        one["probability"][-1, query],
        color=COPYING,
        alpha=0.45,
        label="probability of the answer",
    )
    labels = [f"{one['words'][t]} > {one['words'][t + 1]}" for t in query]
    axes.set_xticks(place, labels, rotation=90)
    axes.set(
        ylim=(-0.25, 1.45),
        ylabel="cosine, probability",
        title="repeated positions (token > answer)",
    )
    axes.set_yticks([0, 0.5, 1])
    axes.legend(loc="upper left", ncols=_MOST_LAYERS + 2)


def prediction_gap(one: Sequence, title: str, path: Path) -> None:
    """Rank of the next token by depth and position; its probability; predictions at a predictable
    and at an unpredictable position; entropy by depth.
    """
    length = len(one["words"]) - 1
    predictable = np.isin(np.arange(length), one["query"])
    with drawing(path, width=13.0, height=11.5) as figure:
        panels = figure.subplot_mosaic(
            [["rank", "rank", "rank"], ["next", "next", "next"], ["entropy", "yes", "no"]],
            height_ratios=[0.8, 1.3, 1.4],
        )
        image = panels["rank"].imshow(
            np.exp(one["log_rank"]), aspect="auto", cmap="viridis_r", origin="lower", norm="log"
        )
        panels["rank"].set(ylabel="depth", title="rank of the next token, read at each depth")
        panels["rank"].set_yticks(range(0, len(one["norm"]), max(1, len(one["norm"]) // 6)))
        figure.colorbar(image, ax=panels["rank"], label="rank", format="{x:g}")
        colours = np.where(predictable, INDUCTION, NULL)
        panels["next"].bar(np.arange(length), one["probability"][-1], color=colours.tolist())
        panels["next"].set_xticks(np.arange(length), one["words"][1:], rotation=90)
        panels["next"].set(ylabel="probability", ylim=(0, 1.03), xlim=(-0.6, length - 0.4))
        panels["next"].set_title("the next token (blue: it followed the same token before)")
        plot_entropy(panels["entropy"], one, predictable)
        both = {
            "yes": np.flatnonzero(predictable),
            "no": np.flatnonzero(~predictable & (np.arange(length) > 0)),
        }
        for name, positions in both.items():
            if len(positions):
                plot_top(
                    panels[name],
                    one,
                    int(positions[len(positions) // 2]),
                    predictable=name == "yes",
                )
        figure.suptitle(title)
        note(
            figure,
            f"n = {int(predictable.sum())} of {length} positions predictable by copying · "
            "full softmax",
        )


def plot_entropy(axes: Axes, one: Sequence, predictable: np.ndarray) -> None:
    """Mean entropy of the read-out by depth, predictable and other positions."""
    depth = np.arange(len(one["entropy"]))
    for mask, colour, label in (
        (predictable, INDUCTION, "predictable"),
        (~predictable, NULL, "other"),
    ):
        if mask.any():
            axes.plot(depth, one["entropy"][:, mask].mean(axis=1), "o-", color=colour, label=label)
    axes.set(xlabel="depth", ylabel="entropy (nats)")
    axes.legend()


def plot_top(axes: Axes, one: Sequence, position: int, *, predictable: bool) -> None:
    """The first predictions at a position; the right one is green."""
    words, values = one["top_words"][position], one["top_probability"][position]
    right = one["top_ids"][position] == one["tokens"][position + 1]
    place = np.arange(len(words))[::-1]
    axes.barh(place, values, color=np.where(right, COPYING, NULL).tolist())
    axes.set_yticks(place, words)
    kind = "predictable" if predictable else "unpredictable"
    axes.set(
        xlim=(0, 1.03),
        xlabel="probability",
        title=f"{kind}: after {position}, {one['words'][position]}",
    )
    axes.text(
        0.98,
        0.05,
        f"right: {one['words'][position + 1]}",
        ha="right",
        transform=axes.transAxes,
        color=INK,
    )


def best_layer(one: Sequence) -> int:
    """The layer that reads most at the answers' places."""
    return int(one["attention"][:, one["query"], one["earlier"] + 1].mean(axis=1).argmax())
