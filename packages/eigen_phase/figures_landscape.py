"""The whole spectrum of a few runs: density, blocks of the eigenvectors, other matrices."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from eigen_phase.figures_run import CURVATURE, plain
from interp_core.plotting import ABLATED, COPYING, INK, drawing, model_styles, note, shades

Arrays = Mapping[str, np.ndarray]
FLOOR = 1e-6  # densities below it are not drawn


def density(name: str, arrays: Arrays, path: Path) -> None:
    """Density of a run's eigenvalues at a few steps."""
    with drawing(path, width=9.5, height=4.2) as figure:
        axes = figure.subplots()
        colours = colormaps["viridis"](np.linspace(0.85, 0.0, len(arrays["step"])))

        for step, curve, colour in zip(arrays["step"], arrays["density"], colours, strict=True):
            shown = np.maximum(curve, FLOOR)
            axes.semilogy(arrays["grid"], shown, color=colour, label=f"step {step}")

        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_ylim(FLOOR, None)
        axes.set(xlabel="eigenvalue of the Hessian", ylabel="density")
        axes.yaxis.set_major_formatter(plain)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=10)
        figure.suptitle(f"{name}: density of the Hessian's eigenvalues over the training")
        note(
            figure,
            "stochastic Lanczos quadrature, smoothed by a hundredth of the axis · one training",
        )


def blocks(name: str, arrays: Arrays, path: Path) -> None:
    """Where the first eigenvector's mass lies, over a run's training."""
    names = arrays["blocks"]
    steps = arrays["block_step"].astype(float)
    edges = np.concatenate([[steps[0]], (steps[1:] + steps[:-1]) / 2, [steps[-1]]])
    first = arrays["mass_by_block"][:, 0].T

    with drawing(path, width=9.5, height=2.1 + 0.2 * len(names)) as figure:
        axes = figure.subplots()
        image = axes.pcolormesh(
            edges, np.arange(len(names) + 1), first, cmap=shades(CURVATURE), vmin=0, vmax=1
        )
        axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=9)
        axes.invert_yaxis()
        axes.set_xlabel("training step")
        figure.colorbar(image, ax=axes, pad=0.01, label="share of squared length")
        figure.suptitle(f"{name}: where the eigenvector of the largest eigenvalue lives")
        note(
            figure,
            "QK: query and key weights of a head · OV: value and output weights · one training",
        )


def matrices(landscapes: Mapping[str, Arrays], path: Path) -> None:
    """Trace, Gauss-Newton, Adam's sharpness beside its edge, and the largest eigenvalue on
    independent probe batches of several sizes.
    """
    styles = model_styles(list(landscapes))
    with drawing(path, width=10.5, height=7.6) as figure:
        grid = figure.subplots(2, 2).ravel()
        for name, arrays in landscapes.items():
            style = styles[name]
            look = {"color": style.color, "marker": style.marker, "linestyle": style.linestyle}
            steps, error = arrays["step"], 1.96 * arrays["trace_error"]
            grid[0].errorbar(steps, arrays["trace"], yerr=error, label=name, capsize=3, **look)
            grid[1].plot(steps, arrays["gauss_newton"], label=name, **look)

            share = arrays["adam_sharpness"] / arrays["adam_edge"]
            grid[2].plot(arrays["adam_step"], share, label=name, markersize=4, **look)

        _probe_batches(grid[3], landscapes)
        grid[2].axhline(1.0, color=INK, linewidth=1.1, linestyle=(0.0, (2.0, 2.0)))
        titles = (
            "trace of the Hessian",
            "Gauss-Newton, largest eigenvalue",
            "Adam's sharpness over its edge of stability",
        )
        for axes, title in zip(grid, titles, strict=False):
            axes.set_title(title, loc="left", fontsize=11.5)
        for axes in grid:
            axes.set_xlabel("training step")
            axes.axhline(0, color=INK, linewidth=0.6)

        grid[0].legend(fontsize=10)
        figure.suptitle("Other matrices, and how far the batch decides")
        note(
            figure,
            "trace: Hutch++ with 95 % intervals over random signs · one training a line"
            "\nlower right: mean and range of independent batches of the same size",
        )


def _probe_batches(axes: Axes, landscapes: Mapping[str, Arrays]) -> None:
    """The largest eigenvalue by size of the batch, of the first run that has it."""
    measured = {name: arrays for name, arrays in landscapes.items() if arrays["probe_top"].size}
    if not measured:
        axes.set_axis_off()
        return

    name, arrays = next(iter(measured.items()))
    n = arrays["probe_top"].shape[2]
    colours = (COPYING, CURVATURE, ABLATED, INK)

    for i, size in enumerate(arrays["probe_sizes"]):
        top = arrays["probe_top"][:, i]
        mean = top.mean(axis=1)
        reach = np.stack([mean - top.min(axis=1), top.max(axis=1) - mean])
        axes.errorbar(
            arrays["step"],
            mean,
            yerr=reach,
            fmt="o-",
            capsize=4,
            color=colours[i % len(colours)],
            label=f"{n} batches of {size} rows",
        )

    axes.set_title(f"largest of the Hessian ({name})", loc="left", fontsize=11.5)
    axes.legend(fontsize=10)
