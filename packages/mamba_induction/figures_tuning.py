"""What fine-tuning does to text and to copying: along the way, and before against after."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from interp_core.plotting import (
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
    "pairs_accuracy": "accuracy: pairs shown once",
    "repeated_text_accuracy": "accuracy: repeated text",
    "natural_accuracy": "accuracy: natural repeats",
    "unpredicted_accuracy": "accuracy: no bigram",
}


def fine_tuning(history: Mapping[str, np.ndarray], change: Mapping[str, Any], path: Path) -> None:
    """Left: perplexity and induction numbers at every evaluation.

    Right: paired differences, after less before.
    """
    with drawing(path, width=13.0, height=6.4) as figure:
        curves, changes = figure.subplots(1, 2, width_ratios=[1.25, 1])
        plot_curves(curves, history)
        plot_changes(changes, change)
        figure.legend(*curves.get_legend_handles_labels(), loc="outside upper center", ncols=3)
        before, after = (change["perplexity"][when] for when in ("before", "after"))
        note(
            figure,
            f"perplexity of windows of held-out text {before:.1f} -> {after:.1f}\n"
            f"n = {change['text_loss']['n']} prompts or windows · bars: 95 % of paired differences",
        )


def plot_curves(axes: Axes, history: Mapping[str, np.ndarray]) -> None:
    """Accuracies and prefix matching by update, and perplexity on an axis of its own."""
    for name, (label, colour, dashes) in CURVES.items():
        axes.plot(history["step"], history[name], color=colour, linestyle=dashes, label=label)
    other = axes.twinx()
    other.plot(history["step"], history["held_out_perplexity"], color=NULL, linewidth=3)
    other.set(ylabel="perplexity of held-out documents", ylim=(0, None))
    other.spines["right"].set_visible(True)
    axes.plot([], [], color=NULL, linewidth=3, label="perplexity (right)")
    axes.set(xlabel="updates", ylabel="accuracy, or share of attention", ylim=(-0.03, 1.03))


def plot_changes(axes: Axes, change: Mapping[str, Any]) -> None:
    """Paired differences with their intervals: accuracies, and excess prefix matching by layer."""
    rows = [(label, change[name]) for name, label in CHANGES.items() if name in change]
    for kind, label in (("excess_prefix_matching", "prefix matching"), ("copying", "copying")):
        found = change[kind]
        for layer in range(min(len(found["value"]), 4)):
            one = {end: found[end][layer] for end in ("value", "low", "high")}
            rows.append((f"{label}, L{layer}", one))
    for row, (_, found) in enumerate(reversed(rows)):
        whisker(axes, found["value"], float(row), (found["low"], found["high"]), colour=INDUCTION)
    axes.set_yticks(range(len(rows)), [label for label, _ in reversed(rows)])
    axes.axvline(0, color=NULL, linestyle="--")
    axes.set_xlabel("after less before")
