"""Runs of one condition together: aligned at their own transitions, and what leads what."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from eigen_phase.figures_run import CURVATURE, best_head
from eigen_phase.run_directory import RunDirectory
from interp_core.plotting import (
    ABLATED,
    COPYING,
    GRID,
    INDUCTION,
    INK,
    NULL,
    PREVIOUS_TOKEN,
    STRIPE,
    drawing,
    model_styles,
    note,
    whisker,
)

Report = Mapping[str, Any]
_LONGEST = 95  # characters of a line below the figure
_NEAR, _FAR = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.7), (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def aligned(
    runs: Sequence[RunDirectory],
    report: Report,
    path: Path,
    *,
    largest: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Accuracy, heads and curvature of every seed over step / its own date.

    `largest`: by run, the largest eigenvalue on many rows, where it was measured.
    """
    turned = [run for run in runs if report["runs"][run.name]["midpoint"] is not None]
    styles = model_styles([run.name for run in turned])
    titles = ["pattern accuracy", "prefix matching,\nbest head", "previous token,\nbest head"]
    curved = any("top_eigenvalue" in run.history for run in turned)
    if curved:
        rows = "many rows" if largest else f"{runs[0].training.probe_sequences} rows"
        titles += [
            f"largest eigenvalue,\n{rows}",
            "most negative\neigenvalue",
            "gradient inside\ntop subspace",
        ]
    with drawing(path, width=9.5, height=1.4 + 1.75 * len(titles)) as figure:
        panels = figure.subplots(len(titles), 1, sharex=True)
        for run in turned:
            middle, style = report["runs"][run.name]["midpoint"], styles[run.name]
            for axes, (steps, values) in zip(panels, _series(run, largest), strict=False):
                there = steps > 0
                axes.plot(
                    steps[there] / middle,
                    values[there],
                    color=style.color,
                    linestyle=style.linestyle,
                    linewidth=1.6,
                )
        for axes, title in zip(panels, titles, strict=True):
            axes.set_ylabel(title)
            axes.axvline(1.0, color=INK, linewidth=1.1, linestyle=(0.0, (2.0, 2.0)))
            axes.set_xscale("log", base=2)
        panels[-1].set_xlim(0.25, None)
        panels[-1].set_xlabel("step / step of this run's transition (logarithmic)")
        panels[-1].xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        figure.suptitle(
            f"{runs[0].condition}: {len(turned)} of {len(runs)} seeds turn, each on its own clock"
        )
        note(
            figure,
            "a line for each training · dashed: pattern accuracy half way up",
        )


def _series(
    run: RunDirectory, largest: Mapping[str, Mapping[str, np.ndarray]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    history, found = run.history, [run.series("pattern_accuracy")]
    found += [
        (history["step"], best_head(history[family])[1])
        for family in ("prefix_matching", "previous_token")
    ]
    for name in ("top_eigenvalue", "most_negative_eigenvalue", "alignment_mass"):
        if name == "top_eigenvalue" and run.name in largest:
            found.append((largest[run.name]["largest_step"], largest[run.name]["largest"]))
        elif name in history:
            found.append(run.series(name))

    return found


def _range(dated: Mapping[str, Report]) -> tuple[float, float]:
    """The ratios and their intervals with some room, the same on both sides of 1."""
    ends = [
        abs(float(np.log2(lag["ratio"][end])))
        for lag in dated.values()
        for end in ("value", "low", "high")
        if lag["ratio"][end] is not None
    ]
    reach = 1.15 * max([0.2, *ends])
    return 2.0**-reach, 2.0**reach


def lags(condition: str, report: Report, path: Path) -> None:
    """When each metric turns, as a share of the step at which pattern accuracy does.

    Only metrics that are dated in every training; the others are named with how many are.
    """
    lags_ = report["lags"]
    dated = {name: lag for name, lag in lags_.items() if lag["ratio"] is not None}
    order = sorted(dated, key=lambda name: -dated[name]["ratio"]["value"])
    undated = [
        f"{name.replace('_', ' ')} ({lag['dated']})"
        for name, lag in lags_.items()
        if lag["ratio"] is None
    ]
    lines = [f"dated in fewer than all {report['runs']} trainings (in how many):"]
    # A name stays on the line of its number.
    lines += wrap(", ".join(name.replace(" ", "\u00a0") for name in undated), _LONGEST)

    with drawing(path, width=9.5, height=2.6 + 0.36 * max(len(order), 3)) as figure:
        axes = figure.subplots()
        for row, name in enumerate(order):
            _lag(axes, row, name, dated[name])
        axes.axvline(1.0, color=INK, linewidth=1.2)
        axes.set_yticks(range(len(order)), [name.replace("_", " ") for name in order])
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.set_xscale("log", base=2)
        low, high = _range(dated)
        ticks = _NEAR if high < 2 else _FAR
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlim(low, high)
        axes.set_xlabel("step of its event / step of the accuracy's transition (left: leads)")
        axes.grid(axis="x", color=GRID)
        figure.suptitle(f"{condition}: what turns before and what after pattern accuracy")
        words = (
            "half-height of a rise or fall · 95 % Student's intervals over"
            f" {report['runs']} trainings"
            "\ncoloured: a lead or lag at 5 % for all metrics together; grey: none shown"
        )
        note(figure, "\n".join([words, *lines]) if undated else words)


def _lag(axes: Axes, row: int, name: str, lag: Report) -> None:
    if row % 2:
        axes.axhspan(row - 0.5, row + 0.5, color=STRIPE, linewidth=0)
    shown = lag.get("verdict") in ("leads", "lags")
    colour = _colour(name) if shown else NULL
    ratio = lag["ratio"]
    whisker(axes, ratio["value"], float(row), [ratio["low"], ratio["high"]], colour=colour)
    axes.annotate(
        f"{lag['event']}, n = {lag['of']}",
        (1.01, row),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=9.5,
    )


def _colour(name: str) -> str:
    """Colours keep their meaning."""
    if "eigenvalue" in name or "spectral" in name or "persistence" in name:
        return CURVATURE
    if "alignment" in name or "gradient" in name:
        return ABLATED
    if name.startswith("previous_token"):
        return PREVIOUS_TOKEN
    return COPYING if "loss" in name else INDUCTION
