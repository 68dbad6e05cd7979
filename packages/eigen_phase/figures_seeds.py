"""Runs of one condition together: aligned at their own transitions, and what leads what."""

from collections.abc import Mapping, Sequence
from pathlib import Path
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


def aligned(runs: Sequence[RunDirectory], report: Report, path: Path) -> None:
    """Accuracy, heads and curvature of every seed over step / its own midpoint."""
    turned = [run for run in runs if report["runs"][run.name]["midpoint"] is not None]
    styles = model_styles([run.name for run in turned])
    titles = ["pattern accuracy", "prefix matching,\nbest head", "previous token,\nbest head"]
    curved = any("top_eigenvalue" in run.history for run in turned)
    titles += (
        ["largest eigenvalue", "most negative\neigenvalue", "gradient inside\ntop subspace"]
        if curved
        else []
    )
    with drawing(path, width=9.5, height=1.4 + 1.75 * len(titles)) as figure:
        panels = figure.subplots(len(titles), 1, sharex=True)
        for run in turned:
            middle, style = report["runs"][run.name]["midpoint"], styles[run.name]
            for axes, (steps, values) in zip(panels, _series(run), strict=False):
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
            "a line for each seed · dashed: midpoint of the logistic fit to pattern accuracy",
        )


def _series(run: RunDirectory) -> list[tuple[np.ndarray, np.ndarray]]:
    history, found = run.history, [run.series("pattern_accuracy")]
    found += [
        (history["step"], best_head(history[family])[1])
        for family in ("prefix_matching", "previous_token")
    ]
    for name in ("top_eigenvalue", "most_negative_eigenvalue", "alignment_mass"):
        if name in history:
            found.append(run.series(name))
    return found


def lags(condition: str, report: Report, path: Path) -> None:
    """When each metric turns, as a share of the step at which pattern accuracy does."""
    dated = {name: lag for name, lag in report["lags"].items() if lag["n"] > 0}
    order = sorted(dated, key=lambda name: -dated[name]["lag"]["value"])
    undated = [name for name, lag in report["lags"].items() if lag["n"] == 0]
    with drawing(path, width=9.5, height=2.2 + 0.36 * max(len(order), 3)) as figure:
        axes = figure.subplots()
        for row, name in enumerate(order):
            _lag(axes, row, name, dated[name])
        axes.axvline(1.0, color=INK, linewidth=1.2)
        axes.set_yticks(range(len(order)), [name.replace("_", " ") for name in order])
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.set_xscale("log", base=2)
        axes.set_xlim(0.35, 2.8)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.set_xlabel("step of its event / step of the accuracy's transition (left: leads)")
        axes.grid(axis="x", color=GRID)
        figure.suptitle(f"{condition}: what turns before and what after pattern accuracy")
        words = (
            "event: m midpoint of a step, p peak, t trough · n seeds of those that turned · 95 % "
            "Student's intervals"
        )
        if undated:
            words += (
                f"\nno step, peak or trough in any seed: {', '.join(undated).replace('_', ' ')}"
            )
        note(
            figure,
            words + "\ncoloured: a lead or lag at a false discovery rate of 5 %; grey: none shown",
        )


def _lag(axes: Axes, row: int, name: str, lag: Report) -> None:
    if row % 2:
        axes.axhspan(row - 0.5, row + 0.5, color=STRIPE, linewidth=0)
    shown = lag.get("verdict") in ("leads", "lags")
    colour = _colour(name) if shown else NULL
    interval = lag["lag"]["ci"] or [lag["lag"]["value"]] * 2
    whisker(axes, lag["lag"]["value"], float(row), interval, colour=colour)
    axes.annotate(
        f"{lag['event'][0]}, n = {lag['n']} of {lag['of']}",
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
