"""One run on one clock: loss, accuracy, heads, eigenvalues, alignment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eigen_phase.run_directory import RunDirectory
from interp_core.plotting import (
    ABLATED,
    COPYING,
    DIVERGING,
    DUPLICATE_TOKEN,
    INDUCTION,
    INK,
    NULL,
    PREVIOUS_TOKEN,
    centred,
    drawing,
    note,
    shades,
)

Report = Mapping[str, Any]
CURVATURE, NEGATIVE = "#4B3B8F", "#B07AA1"
FAMILIES = (
    ("prefix_matching", "prefix matching"),
    ("previous_token", "previous token"),
    ("duplicate_token", "duplicate token"),
    ("copying", "copying (OV)"),
    ("qk_matching", "matching an earlier occurrence (QK, turned)"),
    ("own_matching", "matching the own position (QK, not turned)"),
    ("own_position", "own position"),
)


def phase(
    run: RunDirectory,
    found: Report,
    path: Path,
    *,
    largest: Mapping[str, np.ndarray] | None = None,
) -> None:
    """What happens at the transition: every quantity over the same steps.

    `largest`: the largest eigenvalue on many rows, where it was measured.
    """
    curved = "eigenvalues" in run.history
    with drawing(path, width=9.5, height=12.0 if curved else 7.6) as figure:
        panels = figure.subplots(5 if curved else 3, 1, sharex=True)
        _losses(panels[0], run)
        _accuracies(panels[1], run)
        _best_heads(panels[2], run)
        if curved:
            _curvature(panels[3], run, largest)
            alignment_lines(panels[4], run)
        _finish(figure, panels, run, found)


def heads(run: RunDirectory, found: Report, path: Path) -> None:
    """Every head's scores over the training: a row a head, colour the score."""
    history, (layers, n_heads) = run.history, run.history["prefix_matching"].shape[1:]
    names = [f"L{layer}H{head}" for layer in range(layers) for head in range(n_heads)]

    # A cell reaches half way to the rows beside it.
    steps = history["step"].astype(float)
    edges = np.concatenate([[steps[0]], (steps[1:] + steps[:-1]) / 2, [steps[-1]]])

    with drawing(path, width=9.5, height=2.0 + len(FAMILIES) * (0.6 + 0.17 * len(names))) as figure:
        panels = figure.subplots(len(FAMILIES), 1, sharex=True)
        for axes, (family, title) in zip(panels, FAMILIES, strict=True):
            values = history[family].reshape(len(steps), -1).T
            signed = family in ("copying", "qk_matching", "own_matching")
            scale = (
                {"norm": centred(np.array([-1.0, 1.0]))} if signed else {"vmin": 0.0, "vmax": 1.0}
            )
            colours = (
                DIVERGING if signed else shades(INDUCTION if family == "prefix_matching" else NULL)
            )
            image = axes.pcolormesh(edges, np.arange(len(names) + 1), values, cmap=colours, **scale)
            axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=9)
            axes.invert_yaxis()
            axes.set_title(title, loc="left", fontsize=11.5)
            figure.colorbar(image, ax=axes, pad=0.01, label="share" if not signed else "-1 to 1")
        _finish(figure, panels, run, found, legends=False)


def patterns(run: RunDirectory, arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Attention of the two heads that end as the best of their kind, on one held-out row."""
    last = {family: run.history[family][-1] for family in ("previous_token", "prefix_matching")}
    chosen = {
        family: np.unravel_index(score.argmax(), score.shape) for family, score in last.items()
    }
    steps = arrays["pattern_step"]
    with drawing(path, width=2.6 * len(steps) + 0.8, height=6.2) as figure:
        grid = figure.subplots(2, len(steps), sharex=True, sharey=True, squeeze=False)
        for row, (family, (layer, head)) in zip(grid, chosen.items(), strict=True):
            colour = PREVIOUS_TOKEN if family == "previous_token" else INDUCTION
            for axes, step, pattern in zip(row, steps, arrays["patterns"], strict=True):
                axes.imshow(
                    pattern[layer, head],
                    cmap=shades(colour),
                    vmin=0,
                    vmax=1,
                    interpolation="nearest",
                )
                axes.set_title(f"step {step}", fontsize=11)
            row[0].set_ylabel(f"L{layer}H{head}, best {family.replace('_', ' ')}\nquery position")
        for axes in grid[-1]:
            axes.set_xlabel("key position")
        figure.suptitle(f"Attention on one held-out row, {run.name}")


def eigenvalues(run: RunDirectory, found: Report, path: Path) -> None:
    """All tracked eigenvalues, signs kept, and what finding them took."""
    history = run.history
    there = np.isfinite(history["products"])
    steps, k = history["step"][there], history["eigenvalues"].shape[1]
    ramp = colormaps["viridis"](np.linspace(0.0, 0.85, k))
    with drawing(path, width=9.5, height=7.4) as figure:
        panels = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1, 1])

        for i in range(k):
            panels[0].plot(
                steps, history["eigenvalues"][there, i], ".", color=ramp[i], markersize=6
            )
        panels[0].plot(
            steps,
            history["spectral_norm"][there],
            color=CURVATURE,
            label="spectral norm",
            linewidth=1.2,
            alpha=0.7,
        )
        panels[0].plot(
            steps,
            history["most_negative_eigenvalue"][there],
            "v-",
            color=NEGATIVE,
            markersize=5,
            label="most negative",
        )
        panels[0].axhline(0, color=INK, linewidth=0.8)
        panels[0].set_ylabel(f"eigenvalue\n({k} largest by magnitude)")

        panels[1].semilogy(steps, history["worst_residual"][there], ".-", color=INK)
        panels[1].axhline(
            run.training.lanczos_tolerance, color=NULL, linestyle="--", label="tolerance"
        )
        panels[1].set_ylabel("relative\nresidual")
        panels[1].yaxis.set_major_formatter(plain)

        panels[2].plot(steps, history["products"][there], ".-", color=INK)
        panels[2].set_ylim(bottom=0)
        panels[2].set_ylabel("Hessian\nproducts")
        _finish(figure, panels, run, found)


def alignment(run: RunDirectory, found: Report, path: Path) -> None:
    """Squared cosines of the gradient with each eigenvector, their sum against its null, and how
    the subspace turns.
    """
    history = run.history
    there = np.isfinite(history["products"])
    steps = history["step"][there].astype(float)
    edges = np.concatenate([[steps[0]], (steps[1:] + steps[:-1]) / 2, [steps[-1]]])
    k = history["alignment"].shape[1]
    with drawing(path, width=9.5, height=8.6) as figure:
        panels = figure.subplots(3, 1, sharex=True)
        cosines = np.log10(np.maximum(history["alignment"][there].T, 1e-8))
        image = panels[0].pcolormesh(
            edges, np.arange(k + 1), cosines, cmap=shades(CURVATURE), vmin=-5, vmax=0
        )
        panels[0].set_ylabel("eigenvector,\nlargest first")
        panels[0].invert_yaxis()
        figure.colorbar(image, ax=panels[0], pad=0.01, label="log10 squared cosine")
        alignment_lines(panels[1], run)
        if "persistence" in history:  # not before the second look
            overlap = history["persistence"][there]
            panels[2].plot(
                steps, overlap, "o-", color=CURVATURE, label="overlap with the look before"
            )
        panels[2].axhline(
            k / run.training.n_parameters,
            color=NULL,
            linestyle="--",
            label="two random subspaces of this size",
        )
        panels[2].set_ylabel(f"overlap of\ntop {k} subspaces")
        panels[2].set_ylim(-0.02, 1.02)
        _finish(figure, panels, run, found)


def alignment_lines(axes: Axes, run: RunDirectory) -> None:
    """Share of gradients and of the update in the top subspace, against what a random direction
    would have.
    """
    history = run.history
    there = np.isfinite(history["products"])
    steps, k = history["step"][there], run.training.track_top_k_eigenvalues
    lines = (
        ("alignment_mass", "gradient, same batch", CURVATURE, "o"),
        ("alignment_independent", "gradient, independent batch", DUPLICATE_TOKEN, "s"),
        ("alignment_training", "gradient, training batch", PREVIOUS_TOKEN, "^"),
        ("alignment_update", "the update itself", ABLATED, "v"),
    )
    for key, label, colour, marker in lines:
        axes.semilogy(
            steps,
            history[key][there],
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.5,
            label=label,
        )
    axes.semilogy(
        steps,
        history["alignment_null"][there],
        color=NULL,
        linestyle="--",
        label="random direction (K/p)",
    )
    axes.set_ylabel(f"share inside\ntop {k} of {run.training.n_parameters}")
    axes.yaxis.set_major_formatter(plain)


def plain(value: float, _: object = None) -> str:
    """0.001, not a power of ten in markup that the house's style does not parse."""
    return f"{value:g}"


def _losses(axes: Axes, run: RunDirectory) -> None:
    steps, history = run.history["step"], run.history
    axes.plot(steps, history["loss"], color=INK, label="training loss")
    axes.plot(steps, history["pattern_loss"], color=COPYING, label="predictable targets")
    axes.plot(steps, history["other_loss"], color=NULL, label="other targets")
    bounds = run.config["bounds"]
    kind = "floor" if bounds["entropy_floor_exact"] else "lower bound of the floor"
    axes.axhline(
        bounds["entropy_floor"],
        color=INK,
        linestyle=":",
        linewidth=1.4,
        label=f"{kind} of the training loss",
    )
    axes.set_ylabel("loss\n(nats a target)")
    axes.set_ylim(bottom=0)


def _accuracies(axes: Axes, run: RunDirectory) -> None:
    steps, history = run.history["step"], run.history
    axes.plot(steps, history["pattern_accuracy"], color=COPYING, label="predictable targets")
    copies = history.get("copy_accuracy", np.empty((len(steps), 0)))
    for i, colour in enumerate(colormaps["Greens"](np.linspace(0.45, 0.8, copies.shape[1]))):
        label = f"copy {i + 2}" if i + 1 < copies.shape[1] else f"copy {i + 2} and later"
        if np.isfinite(copies[:, i]).any():
            axes.plot(steps, copies[:, i], color=colour, linewidth=1.1, linestyle="--", label=label)
    axes.plot(steps, history["accuracy"], color=NULL, label="all targets")
    axes.axhline(
        run.config["bounds"]["ceiling"],
        color=COPYING,
        linestyle=":",
        linewidth=1.4,
        label="induction oracle",
    )
    axes.set_ylabel("accuracy")
    axes.set_ylim(-0.02, 1.05)


def _best_heads(axes: Axes, run: RunDirectory) -> None:
    history = run.history
    for family, title, colour in (
        ("prefix_matching", "prefix matching", INDUCTION),
        ("previous_token", "previous token", PREVIOUS_TOKEN),
        ("duplicate_token", "duplicate token", DUPLICATE_TOKEN),
    ):
        name, curve = best_head(history[family])
        axes.plot(history["step"], curve, color=colour, label=f"{title} ({name})")
    axes.set_ylabel("attention of\nthe best head")
    axes.set_ylim(-0.02, 1.05)


def best_head(scores: Float[np.ndarray, "row layer head"]) -> tuple[str, Float[np.ndarray, " row"]]:
    """Name and curve of the head that leads at the end."""
    layer, head = np.unravel_index(scores[-1].argmax(), scores[-1].shape)
    return f"L{layer}H{head}", scores[:, layer, head]


def _curvature(axes: Axes, run: RunDirectory, largest: Mapping[str, np.ndarray] | None) -> None:
    there = np.isfinite(run.history["products"])
    steps = run.history["step"][there]
    few = f"{run.training.probe_sequences} rows"

    top = run.history["top_eigenvalue"][there]
    thin: dict[str, Any] = (
        {"markersize": 3, "linewidth": 1.0, "alpha": 0.6} if largest else {"markersize": 4}
    )
    axes.plot(steps, top, "o-", color=CURVATURE, label=f"largest, {few}", **thin)

    if largest is not None:
        course = (largest["largest_step"], largest["largest"])
        axes.plot(*course, "s-", color=INK, markersize=4, label="largest, many rows")

    negative = run.history["most_negative_eigenvalue"][there]
    axes.plot(steps, negative, "v-", color=NEGATIVE, markersize=4, label=f"most negative, {few}")
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_ylabel("eigenvalue of\nthe Hessian")


def _finish(
    figure: Figure, panels: np.ndarray, run: RunDirectory, found: Report, *, legends: bool = True
) -> None:
    """Legends beside the panels, the transition marked in all of them, words below."""
    for axes in panels:
        if found["midpoint"] is not None:
            axes.axvline(found["midpoint"], color=INK, linewidth=1.1, linestyle=(0.0, (2.0, 2.0)))
        handles, _ = axes.get_legend_handles_labels()
        if legends and handles:
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=10)
    figure.align_ylabels(panels)
    panels[-1].set_xlabel("training step")
    figure.suptitle(f"{run.name}: {found['verdict']}")
    words = found["sentence"] if run.diverged is None else f"{found['sentence']}\n{run.diverged}"
    note(figure, f"{words}\ndashed line: pattern accuracy half way up · one training")
