"""When heads form: the model's copying and its best heads against the training step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from interp_core.plotting import COPYING, INDUCTION, PREVIOUS_TOKEN, drawing, heading, note

_CURVES = (  # onset's key, label, colour, marker
    ("previous_token_head", "best previous-token head", PREVIOUS_TOKEN, "^"),
    ("induction_head", "best induction head", INDUCTION, "s"),
    ("copy_accuracy", "copying of the model", COPYING, "o"),
)


def emergence(
    by_model: Mapping[str, tuple[Mapping[str, Any], Mapping[str, np.ndarray]]], path: Path
) -> None:
    """A panel for each model; a line marks where each quantity emerged, its shade the interval."""
    start = log_start(by_model)
    with drawing(path, width=9.0, height=1.9 + 2.7 * len(by_model)) as figure:
        rows = figure.subplots(len(by_model), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, (name, (report, arrays)) in zip(rows, by_model.items(), strict=True):
            plot_emergence(axes, report, arrays, start=start)
            axes.set_title(f"{name}: {onset_text(report['onset'])}", loc="left", fontsize=11.5)
            axes.set_ylabel("share")
        rows[-1].set_xlabel(f"training step (logarithmic from {start:.0f} on)")
        heading(figure, rows[0], "When copying and its heads form", columns=3)
        counts = " or ".join(
            str(n) for n in sorted({report["n"] for report, _ in by_model.values()})
        )
        note(
            figure,
            "share: targets predicted; attention above chance; attention one token back\n"
            "vertical lines: onset, shaded with its 95 % interval over prompts, which reaches at "
            f"least\nto the checkpoints on both sides · n = {counts} prompts",
        )


def plot_emergence(
    axes: Axes, report: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, start: float
) -> None:
    """Accuracy of copying, and the head of each kind that is best at the end.

    The axis is logarithmic from `start`.
    """
    steps = np.asarray(arrays["steps"])
    curves = {
        "copy_accuracy": arrays["accuracy"],
        "induction_head": _best_at_end(arrays["excess_prefix_matching"]),
        "previous_token_head": _best_at_end(arrays["previous_token"]),
    }
    for key, label, colour, marker in _CURVES:
        axes.plot(
            steps,
            curves[key],
            color=colour,
            marker=marker,
            label=label,
            markersize=5,
            clip_on=False,
        )
        onset = report["onset"][key]
        if onset is not None:
            step = onset["step"]
            axes.axvspan(step["low"], step["high"], color=colour, alpha=0.18, linewidth=0)
            axes.axvline(step["value"], color=colour, linewidth=1.6, linestyle="--")
    axes.set_ylim(-0.02, 1.02)
    _logarithmic(axes, steps, start)


def onset_text(onset: Mapping[str, Any]) -> str:
    """`previous token 310, induction 420, copying 450` in steps; what did not emerge is said."""
    words = {
        "previous_token_head": "previous token",
        "induction_head": "induction",
        "copy_accuracy": "copying",
    }
    said = [
        f"{word} {onset[key]['step']['value']:.0f}" if onset[key] else f"{word}: never"
        for key, word in words.items()
    ]
    return (
        "onset at step: " + ", ".join(said)
        if any(onset[key] for key in words)
        else "nothing emerged"
    )


def _best_at_end(
    values: Float[np.ndarray, "checkpoint layer head"],
) -> Float[np.ndarray, " checkpoint"]:
    layer, head = np.unravel_index(int(values[-1].argmax()), values.shape[1:])
    return values[:, layer, head]


def log_start(by_model: Mapping[str, tuple[Mapping[str, Any], Mapping[str, np.ndarray]]]) -> float:
    """The step at which the logarithmic axis begins: an eighth of the earliest onset.

    So that onsets are told apart; the first step where nothing emerged. What comes before is drawn
    linearly, with room for step 0.
    """
    steps = np.concatenate([arrays["steps"] for _, arrays in by_model.values()])
    first = float(steps[steps > 0].min(initial=float(steps.max())))
    onsets = [
        onset["step"]["value"]
        for report, _ in by_model.values()
        for onset in report["onset"].values()
        if onset is not None
    ]
    return max(first, 0.125 * min(onsets)) if onsets else first


def _logarithmic(axes: Axes, steps: Integer[np.ndarray, " checkpoint"], start: float) -> None:
    """About six of the checkpoints are named."""
    last = float(steps.max())
    axes.set_xscale("symlog", linthresh=start, linscale=0.5)
    axes.set_xlim(-0.06 * start if steps.min() == 0 else 0.93 * float(steps.min()), 1.05 * last)
    nearest = [
        int(steps[np.abs(steps - wanted).argmin()]) for wanted in np.geomspace(start, last, 6)
    ]
    named = sorted({int(steps.min()), *nearest})
    axes.set_xticks(named, [f"{step:,}" for step in named])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
