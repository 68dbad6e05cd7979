"""Controls and interventions: runs that should not turn, heads taken out, steps inside and outside
the subspace.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from eigen_phase.figures_run import CURVATURE, alignment_lines, plain
from eigen_phase.run_directory import RunDirectory
from interp_core.plotting import (
    ABLATED,
    COPYING,
    DUPLICATE_TOKEN,
    GRID,
    INDUCTION,
    INK,
    MASS,
    NULL,
    PREVIOUS_TOKEN,
    band,
    drawing,
    model_styles,
    note,
)

Arrays = Mapping[str, np.ndarray]
Report = Mapping[str, Any]
LABEL_GAP = 0.09  # of accuracy: two names of this size then do not touch
FREE = "free"

# Arms by what they are compared for: colour, line, width, label. Broad ones first: those that
# follow them lie in them.
ARMS = {
    "the top eigenvectors": {
        "outside": (ABLATED, "-", 1.6, "outside them"),
        "inside": (CURVATURE, "-", 1.6, "inside them"),
        "long": (CURVATURE, "--", 1.6, "inside, at full length"),
        "short": (INK, "--", 1.6, "free, as short as inside"),
    },
    "other subspaces of as many dimensions": {
        "random": (NULL, "-", 5.0, "inside random directions"),
        "random_long": (MASS, "-", 3.0, "the same, at full length"),
        "own_outside": (ABLATED, "-", 1.6, "outside Adam's own"),
        "own_inside": (CURVATURE, "-", 1.2, "inside Adam's own"),
    },
}


def accuracies(runs: Sequence[RunDirectory], found: Report, clamped: Report, path: Path) -> None:
    """Pattern accuracy of every run, with verdicts and the oracle's ceiling: a panel for each
    condition of several trainings, and one for all that have a single one.
    """
    members = {
        condition: [run for run in runs if run.condition == condition]
        for condition in dict.fromkeys(run.condition for run in runs)
    }
    several = {name: group for name, group in members.items() if len(group) > 1}
    single = [group[0] for group in members.values() if len(group) == 1]
    columns = 2
    panels = len(several) + bool(single)
    rows = -(-panels // columns)

    # Conditions of one training are the last panel. Their names stand in the free place beside it,
    # or in a low row of their own.
    below = bool(single) and panels % columns == 0
    low = 0.35 * below  # of a panel's height
    heights = [1.0] * rows + [low] * below

    with drawing(path, width=11.0, height=1.7 + 2.6 * (rows + low)) as figure:
        grid = figure.subplots(
            len(heights), columns, sharey=True, squeeze=False, height_ratios=heights
        ).ravel()
        for axes in grid:
            axes.set_axis_off()
        shown = grid[:panels]

        for axes, (condition, group) in zip(shown, several.items(), strict=False):
            for run in group:
                axes.plot(*run.series("pattern_accuracy"), color=COPYING, linewidth=1.5)
            title = f"{condition} ({len(group)}): {_verdicts(found, group)}"
            axes.set_title(title, loc="left", fontsize=10.5)

        if single:
            _single(shown[-1], single, found)
            names = shown[-1].get_legend_handles_labels()
            key = grid[panels].legend(
                *names, fontsize=10.5, loc="center left", ncols=columns if below else 1
            )
            key.set_in_layout(False)  # no panel is to shrink for the names

        for axes in shown:
            ceiling = runs[0].config["bounds"]["ceiling"]
            axes.axhline(ceiling, color=INK, linestyle=":", linewidth=1.2)
            axes.set_axis_on()
            axes.set_ylim(-0.02, 1.05)
            axes.set_xlabel("training step")
        for axes in shown[::columns]:
            axes.set_ylabel("pattern accuracy")

        told = clamped["verdict"].replace("; ", "\n")
        figure.suptitle(f"With and without what induction needs\n{told}", fontsize=11.5)
        note(
            figure,
            "a line for each training, accuracy on predictable targets of held-out test rows"
            " · dotted: oracle",
        )


def _single(axes: Axes, runs: Sequence[RunDirectory], found: Report) -> None:
    """Conditions of one training: a line each."""
    for run, look in zip(runs, model_styles([run.condition for run in runs]).values(), strict=True):
        verdict = found[run.name]["verdict"]
        axes.plot(
            *run.series("pattern_accuracy"),
            color=look.color,
            linewidth=1.8,
            label=f"{run.condition}: {verdict}",
        )

        if "own_accuracy" in run.history and run.history["own_accuracy"][-1] > 0.1:
            axes.plot(
                *run.series("own_accuracy"),
                color=look.color,
                linestyle="--",
                linewidth=1.3,
                label=f"{run.condition}, all targets of its own data",
            )

    axes.set_title("one training each", loc="left", fontsize=10.5)


def _verdicts(found: Report, runs: Sequence[RunDirectory]) -> str:
    words = [found[run.name]["verdict"] for run in runs]
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def ablations(arrays: Mapping[str, Arrays], reports: Mapping[str, Report], path: Path) -> None:
    """Change of pattern accuracy without each head, over the training; beside it, without pairs of
    heads at its end.
    """
    columns = 2
    rows = -(-len(arrays) // columns)

    with drawing(path, width=12.0, height=2.0 + 2.5 * rows) as figure:
        grid = figure.subplots(
            rows, 2 * columns, sharey=True, squeeze=False, width_ratios=[3.2, 1] * columns
        ).reshape(-1, 2)
        for axes in grid[len(arrays) :].ravel():
            axes.set_axis_off()

        for (left, right), (name, found) in zip(grid, arrays.items(), strict=False):
            _each_head(left, found)
            left.set_title(name, loc="left", fontsize=11.5)
            left.set_xlabel("training step")
            _pairs(right, reports[name])

        for left, _ in grid[::columns]:
            left.set_ylabel("change of\npattern accuracy")

        handles, labels = grid[0, 0].get_legend_handles_labels()
        more, named = grid[0, 1].get_legend_handles_labels()
        figure.legend(
            [*handles, *more],
            [*labels, *named],
            loc="outside upper center",
            ncols=3,
            title="Pattern accuracy without heads, each replaced by its mean",
        ).get_title().set(fontsize=13.5)

        report = next(iter(reports.values()))["induction"]
        note(
            figure,
            "left: a head alone, over the training · right: a pair, at its end · "
            f"bands and coloured bars: 95 % over {report['change']['n']} held-out rows\n"
            "grey: mean of the other pairs of that layer, and down to the one that costs most; "
            "they are too few for a test",
        )


def _each_head(axes: Axes, found: Arrays) -> None:
    """A line for each head; the three that cost most at the end are coloured and named."""
    steps, last = found["step"].astype(float), found["effect"][-1]
    limit = np.sort(last, axis=None)[min(2, last.size - 1)]
    named: list[tuple[float, int, int]] = []

    for layer, head in np.ndindex(*last.shape):
        strong = bool(last[layer, head] <= limit)
        colour = ABLATED if strong else NULL
        low, high = (found[f"effect_{end}"][:, layer, head] for end in ("low", "high"))
        axes.plot(steps, found["effect"][:, layer, head], color=colour, linewidth=1.4)
        band(axes, steps, low, high, colour=colour)
        if strong:
            named.append((float(last[layer, head]), layer, head))

    axes.plot([], [], color=ABLATED, label="the three heads that cost most at the end")
    axes.plot([], [], color=NULL, label="the other heads")
    _names(axes, float(steps[-1]), named)
    axes.axhline(0, color=INK, linewidth=0.8)


def _pairs(axes: Axes, report: Report) -> None:
    """The best pair of either kind, and all other pairs of the same layer."""
    kinds = {
        "induction": (INDUCTION, "best two induction heads"),
        "previous_token": (PREVIOUS_TOKEN, "best two previous-token heads"),
    }
    axes.axhline(0, color=INK, linewidth=0.8)

    for x, (kind, (colour, label)) in enumerate(kinds.items()):
        change, others = report[kind]["change"], report[kind]["others"]["random"]
        _upright(axes, x - 0.15, change, colour=colour, marker="o", label=label)
        if others["value"] is not None:
            told = "other pairs of their layer" if x == 0 else None
            # Five pairs have no 95 %: the report has their mean and the lowest of them.
            lowest = report[kind]["others"]["lowest"]
            shown = {"value": others["value"], "low": lowest, "high": others["value"]}
            _upright(axes, x + 0.15, shown, colour=NULL, marker="s", label=told)

    pairs = ["\n".join(report[kind]["heads"]) for kind in kinds]
    axes.set_xticks(range(len(kinds)), pairs, fontsize=10)
    axes.set_xlim(-0.6, len(kinds) - 0.4)


def _upright(
    axes: Axes, x: float, entry: Report, *, colour: str, marker: str, label: str | None
) -> None:
    axes.plot([x, x], [entry["low"], entry["high"]], color=colour, linewidth=3, alpha=0.55)
    axes.plot(x, entry["value"], marker, color=colour, label=label)


def _names(axes: Axes, step: float, named: list[tuple[float, int, int]]) -> None:
    """Heads at the ends of their lines, none over another; lowest first."""
    place = -np.inf
    for effect, layer, head in sorted(named):
        place = max(effect, place + LABEL_GAP)
        axes.annotate(f" L{layer}H{head}", (step, place), fontsize=9.5, va="center")


def alignment(runs: Sequence[RunDirectory], arms: Mapping[str, Arrays], path: Path) -> None:
    """How much of gradients and steps lies in the top subspace, and what steps inside and outside
    it do.
    """
    example = next((run for run in runs if run.name in arms), runs[0])

    with drawing(path, width=12.0, height=4.6 + 3.1 * len(arms)) as figure:
        panels = figure.subplots(
            1 + len(arms), 2, squeeze=False, height_ratios=[1.15, *[1.0] * len(arms)]
        )
        alignment_lines(panels[0, 0], example)
        panels[0, 0].set_title(f"{example.name}: share inside the subspace", loc="left")
        panels[0, 0].set_xlabel("training step")
        panels[0, 0].set_ylim(1e-6, 2.0)
        panels[0, 0].legend(fontsize=9.5, loc="lower left", ncols=2)
        _over_seeds(panels[0, 1], runs)

        for row, (name, found) in zip(panels[1:], arms.items(), strict=True):
            for axes, (against, looks) in zip(row, ARMS.items(), strict=True):
                _arms(axes, found, looks)
                axes.set_title(f"{name}: {against}", loc="left")
                axes.set_xlabel("training step")
            row[0].set_ylabel("pattern accuracy")

        figure.suptitle("Gradients and steps in the top subspace, and steps inside and outside it")
        note(
            figure,
            "below: the run continued with AdamW's steps whole (free) or changed; same batches and"
            " rates\nAdam's own: top eigenvectors of the Hessian in Adam's geometry",
        )


def _arms(axes: Axes, found: Arrays, looks: Mapping[str, tuple[str, str, float, str]]) -> None:
    """Accuracy after changed steps, over the free ones as a broad line: arms that follow it lie in
    it.
    """
    steps = found["refresh_step"]
    axes.plot(steps, found[f"{FREE}_accuracy"], color=GRID, linewidth=7, label="free")

    for arm, (colour, line, width, label) in looks.items():
        values = found[f"{arm}_accuracy"]
        axes.plot(steps, values, linestyle=line, color=colour, label=label, linewidth=width)

    axes.set_ylim(-0.03, 1.03)
    axes.legend(fontsize=9.5, loc="upper left")


def _over_seeds(axes: Axes, runs: Sequence[RunDirectory]) -> None:
    """Mean share over the training, a point for each run, in the colours of the curves."""
    kinds = {
        "alignment_mass": ("same\nbatch", CURVATURE),
        "alignment_independent": ("independent\nbatch", DUPLICATE_TOKEN),
        "alignment_training": ("training\nbatch", PREVIOUS_TOKEN),
        "alignment_update": ("update", ABLATED),
        "alignment_null": ("random\nK/p", NULL),
    }
    spread = np.linspace(-0.2, 0.2, len(runs)) if len(runs) > 1 else np.zeros(1)

    for x, (key, (_, colour)) in enumerate(kinds.items()):
        values = [np.nanmean(run.history[key]) for run in runs]
        axes.semilogy(x + spread, values, "o", color=colour, alpha=0.8, markersize=5)

    axes.set_xticks(range(len(kinds)), [label for label, _ in kinds.values()], fontsize=10)
    axes.set_ylim(1e-5, 1)
    axes.yaxis.set_major_formatter(plain)
    axes.set_title("mean over the training, a point for each run", loc="left")
