"""What fine-tuning does to text and to copying: along the way, and before against after."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from interp_core.plotting import (
    ABLATED,
    COPYING,
    DUPLICATE_TOKEN,
    INDUCTION,
    INK,
    NULL,
    PREVIOUS_TOKEN,
    drawing,
    note,
    whisker,
)

CURVES = {
    "repeat_accuracy": ("second copy of random tokens", COPYING, "-"),
    "pairs_accuracy": ("pairs shown once", PREVIOUS_TOKEN, "--"),
    "repeated_text_accuracy": ("second copy of text", DUPLICATE_TOKEN, "-."),
    "unpredicted_accuracy": ("natural repeats, no bigram", INK, ":"),
    "prefix_matching": ("prefix matching, best layer", INDUCTION, "-"),
}
CHANGES = {
    "repeat_accuracy": "accuracy: second copies",
    "pairs_accuracy": "accuracy: pairs shown once",
    "repeated_text_accuracy": "accuracy: repeated text",
    "natural_accuracy": "accuracy: natural repeats",
    "unpredicted_accuracy": "accuracy: no bigram",
}
ARMS = {
    "repeat_accuracy": ("second copies", COPYING, "o"),
    "pairs_accuracy": ("pairs shown once", PREVIOUS_TOKEN, "s"),
    "not_predicted": ("recognised, not predicted", ABLATED, "X"),
    "independent": ("same, if independent", NULL, "D"),
}
_MOST_LAYERS = 4  # of whose changes there is a row


def fine_tuning(
    history: Mapping[str, np.ndarray],
    change: Mapping[str, Any],
    arms: Mapping[str, Any],
    path: Path,
) -> None:
    """Above: perplexity and induction numbers at every evaluation; paired differences, after less
    before. Below: what other rates, and repeats mixed in, leave.
    """
    with drawing(path, width=14.0, height=12.6) as figure:
        upper, lower = figure.subfigures(2, 1, height_ratios=[1.25, 1], squeeze=False)[:, 0]
        panels = upper.subplot_mosaic(
            [["curves", "changes"], ["perplexity", "changes"]],
            width_ratios=[1.25, 1],
            height_ratios=[2.2, 1],
        )
        panels["perplexity"].sharex(panels["curves"])

        plot_curves(panels["curves"], history)
        plot_perplexity(panels["perplexity"], history)
        plot_changes(panels["changes"], change)
        handles, labels = panels["curves"].get_legend_handles_labels()
        upper.legend(handles, labels, loc="outside upper center", ncols=3)

        plot_arms(lower.subplots(), arms)
        note(figure, _words(history, change, arms))


def _words(
    history: Mapping[str, np.ndarray], change: Mapping[str, Any], arms: Mapping[str, Any]
) -> str:
    watched = history["held_out_perplexity"]
    n, unpredicted = (change[name]["n"] for name in ("repeat_accuracy", "unpredicted_accuracy"))

    return (
        f"perplexity of {arms['watched_documents']} held-out documents: {watched[0]:.1f} -> "
        f"{watched[-1]:.1f}\n"
        f"n = {n} prompts, {unpredicted} where no bigram predicts · bars: 95 %, above of paired "
        "differences, below of each rate"
    )


def plot_curves(axes: Axes, history: Mapping[str, np.ndarray]) -> None:
    """Accuracies and prefix matching by update."""
    for name, (label, colour, dashes) in CURVES.items():
        axes.plot(history["step"], history[name], color=colour, linestyle=dashes, label=label)

    axes.set(ylabel="accuracy, or share of attention", ylim=(-0.03, 1.03))


def plot_perplexity(axes: Axes, history: Mapping[str, np.ndarray]) -> None:
    """What is learnt meanwhile."""
    axes.plot(history["step"], history["held_out_perplexity"], color=NULL)
    axes.set(xlabel="updates", ylabel="perplexity of\nheld-out documents", ylim=(0, None))


def plot_changes(axes: Axes, change: Mapping[str, Any]) -> None:
    """Paired differences with their intervals: accuracies, and excess prefix matching by layer."""
    rows = [(label, change[name]) for name, label in CHANGES.items() if name in change]

    for kind, label in (("excess_prefix_matching", "prefix matching"), ("copying", "copying")):
        found = change[kind]
        for layer in range(min(len(found["value"]), _MOST_LAYERS)):
            one = {end: found[end][layer] for end in ("value", "low", "high")}
            rows.append((f"{label}, L{layer}", one))

    for row, (_, found) in enumerate(reversed(rows)):
        whisker(axes, found["value"], float(row), (found["low"], found["high"]), colour=INDUCTION)

    axes.set_yticks(range(len(rows)), [label for label, _ in reversed(rows)])
    axes.axvline(0, color=NULL, linestyle="--")
    axes.set_xlabel("after less before")


def plot_arms(axes: Axes, arms: Mapping[str, Any]) -> None:
    """Accuracies, and recognised but not predicted beside its independence, after each arm; with
    the perplexity that each reached.
    """
    outcomes = {"before": arms["before"], **arms["arms"]}

    for row, outcome in enumerate(reversed(outcomes.values())):
        entries = outcome | outcome["recognition"]

        for place, (name, (_, colour, marker)) in enumerate(ARMS.items()):
            found, y = entries[name], row + 0.18 * (1.5 - place)
            interval = (found["low"], found["high"])
            whisker(axes, found["value"], y, interval, colour=colour, marker=marker)

    for label, colour, marker in ARMS.values():
        axes.plot([], [], marker, color=colour, label=label)

    labels = [
        f"{name}\nperplexity {outcome['held_out_perplexity']:.1f}"
        for name, outcome in reversed(outcomes.items())
    ]
    axes.set_yticks(range(len(outcomes)), labels)
    axes.set(xlim=(-0.03, 1.03), xlabel="share of copy operations")
    axes.set_title(f"after each fine-tuning on the same {arms['documents']} documents")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
