"""Controls and interventions: runs that should not turn, heads taken out, steps inside and outside
the subspace.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from eigen_phase.figures_run import CURVATURE, alignment_lines, plain
from eigen_phase.run_directory import RunDirectory
from interp_core.plotting import ABLATED, COPYING, INK, NULL, band, drawing, note

Arrays = Mapping[str, np.ndarray]
Report = Mapping[str, Any]
LABEL_GAP = 0.09  # of accuracy: two names of this size then do not touch
ARM_LOOKS = {
    "free": (INK, "-", "free"),
    "outside": (ABLATED, "-", "outside top eigenvectors"),
    "inside": (CURVATURE, "-", "inside them"),
    "long": (CURVATURE, "--", "inside, full length"),
    "short": (INK, "--", "free, as short as inside"),
    "random": (NULL, "-", "inside random directions"),
    "random_long": (NULL, "--", "the same, full length"),
    "own_outside": (COPYING, "-", "outside Adam's own"),
    "own_inside": (COPYING, "--", "inside Adam's own"),
}


def accuracies(runs: Sequence[RunDirectory], found: Report, clamped: Report, path: Path) -> None:
    """Pattern accuracy of every run, a panel for each condition, with verdicts and the oracle's
    ceiling.
    """
    conditions = list(dict.fromkeys(run.condition for run in runs))
    columns = 2
    rows = -(-len(conditions) // columns)
    with drawing(path, width=10.5, height=1.6 + 2.4 * rows) as figure:
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axes in grid[len(conditions) :]:
            axes.set_axis_off()
        for axes, condition in zip(grid, conditions, strict=False):
            members = [run for run in runs if run.condition == condition]
            for run in members:
                steps, values = run.series("pattern_accuracy")
                axes.plot(steps, values, color=COPYING, linewidth=1.5)
                if "own_accuracy" in run.history:
                    axes.plot(
                        *run.series("own_accuracy"), color=NULL, linestyle="--", linewidth=1.3
                    )
            # Where the dashed line lies on the floor there is nothing to point at.
            if any(run.history.get("own_accuracy", np.zeros(1))[-1] > 0.1 for run in members):
                axes.annotate(
                    "dashed: all targets of its own data",
                    (0.97, 0.6),
                    xycoords="axes fraction",
                    ha="right",
                )
            axes.axhline(
                members[0].config["bounds"]["ceiling"], color=INK, linestyle=":", linewidth=1.2
            )
            axes.set_title(
                f"{condition} ({len(members)}): {_verdicts(found, members)}",
                loc="left",
                fontsize=10.5,
            )
            axes.set_ylim(-0.02, 1.05)
            axes.set_xlabel("training step")
        for axes in grid[::columns]:
            axes.set_ylabel("pattern accuracy")
        told = clamped["verdict"].replace("; ", "\n")
        figure.suptitle(f"With and without what induction needs\n{told}", fontsize=11.5)
        note(
            figure,
            "a line for each training, accuracy on predictable targets of held-out test rows"
            " · dotted: oracle",
        )


def _verdicts(found: Report, runs: Sequence[RunDirectory]) -> str:
    words = [found[run.name]["verdict"] for run in runs]
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def ablations(arrays: Mapping[str, Arrays], reports: Mapping[str, Report], path: Path) -> None:
    """Change of pattern accuracy without each head, over the training; and without sets of heads at
    its end.
    """
    columns = 2
    rows = -(-len(arrays) // columns)
    with drawing(path, width=10.5, height=1.8 + 2.6 * rows) as figure:
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axes in grid[len(arrays) :]:
            axes.set_axis_off()
        for axes, (name, found) in zip(grid, arrays.items(), strict=False):
            _, layers, heads = found["effect"].shape
            weakest_named = np.sort(found["effect"][-1], axis=None)[
                min(2, layers * heads - 1)
            ]  # three are named
            named: list[tuple[float, int, int]] = []
            for layer in range(layers):
                for head in range(heads):
                    strong = found["effect"][-1, layer, head] <= weakest_named
                    colour = ABLATED if strong else NULL
                    axes.plot(
                        found["step"], found["effect"][:, layer, head], color=colour, linewidth=1.4
                    )
                    low, high = (
                        found["effect_low"][:, layer, head],
                        found["effect_high"][:, layer, head],
                    )
                    band(axes, found["step"].astype(float), low, high, colour=colour)
                    if strong:
                        named.append((float(found["effect"][-1, layer, head]), layer, head))
            _names(axes, float(found["step"][-1]), named)
            joint = reports[name]["induction"]
            axes.axhline(0, color=INK, linewidth=0.8)
            together, others = joint["change"]["value"], joint["others"]["random"]["value"]
            title = f"{name}: without {' and '.join(joint['heads'])} {together:+.2f}"
            if others is not None:
                title += f", others {others:+.2f}"
            axes.set_title(title, loc="left", fontsize=10.5)
            axes.set_xlabel("training step")
        for axes in grid[::columns]:
            axes.set_ylabel("change of\npattern accuracy")
        figure.suptitle("Each head alone replaced by its mean, over the training")
        n = next(iter(reports.values()))["induction"]["change"]["n"]
        note(
            figure,
            f"a line a head, 95 % intervals over {n} held-out rows · coloured and named: the three"
            " that cost most at the end\ntitle: the best induction heads of the final model"
            " together, and as many other heads of their layers, on average",
        )


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
    with drawing(path, width=12.5, height=4.2 + 3.0 * len(arms)) as figure:
        panels = figure.subplots(1 + len(arms), 2, squeeze=False)
        top, key_axes = panels[0], None
        alignment_lines(top[0], example)
        top[0].set_title(f"{example.name}: share inside the subspace", loc="left", fontsize=11.5)
        top[0].set_xlabel("training step")
        top[0].set_ylim(1e-7, 2.0)
        top[0].legend(fontsize=9, loc="lower left")
        _over_seeds(top[1], runs)
        for row, (name, found) in zip(panels[1:], arms.items(), strict=True):
            for axes, key, title in zip(
                row,
                ("pattern_loss", "accuracy"),
                ("loss on predictable targets (nats)", "pattern accuracy"),
                strict=True,
            ):
                for arm, (colour, line, label) in ARM_LOOKS.items():
                    axes.plot(
                        found["refresh_step"],
                        found[f"{arm}_{key}"],
                        marker="o",
                        linestyle=line,
                        color=colour,
                        label=label,
                        markersize=3,
                    )
                axes.set_title(f"{name}: {title}", loc="left", fontsize=11.5)
                axes.set_xlabel("training step")
                if key == "pattern_loss":
                    axes.set_yscale("log")  # steps at full length inside leave all others far below
            if key_axes is None:
                key_axes = row[1]
                row[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="steps")
        figure.suptitle(
            "Gradients and steps in the top subspace, and steps inside and outside it alone"
        )
        note(
            figure,
            "below: the run continued with AdamW's steps whole (free) or changed; same batches and"
            " rates\nAdam's own: top eigenvectors of the Hessian in Adam's geometry",
        )


def _over_seeds(axes: Any, runs: Sequence[RunDirectory]) -> None:
    """Mean share over the training, a point for each run."""
    keys = (
        "alignment_mass",
        "alignment_independent",
        "alignment_training",
        "alignment_update",
        "alignment_null",
    )
    labels = ("same\nbatch", "independent\nbatch", "training\nbatch", "update", "random\nK/p")
    colours = colormaps["viridis"](np.linspace(0, 0.85, len(runs)))
    for run, colour in zip(runs, colours, strict=True):
        values = [np.nanmean(run.history[key]) for key in keys]
        axes.semilogy(range(len(keys)), values, "o", color=colour, alpha=0.8, label=run.name)
    axes.set_xticks(range(len(keys)), labels, fontsize=9.5)
    axes.yaxis.set_major_formatter(plain)
    axes.set_title("mean over the training, a point for each run", loc="left", fontsize=11.5)
