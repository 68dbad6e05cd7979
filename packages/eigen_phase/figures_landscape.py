"""The whole spectrum of a few runs: density, blocks of the eigenvectors, other matrices."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps

from eigen_phase.figures_run import CURVATURE, plain
from interp_core.plotting import ABLATED, COPYING, INK, drawing, model_styles, note, shades

Arrays = Mapping[str, np.ndarray]
FLOOR = 1e-6  # densities below it are not drawn


def densities(landscapes: Mapping[str, Arrays], path: Path) -> None:
    """Density of eigenvalues at a few steps of each run."""
    with drawing(path, width=9.5, height=1.2 + 3.0 * len(landscapes)) as figure:
        panels = figure.subplots(len(landscapes), 1, squeeze=False)[:, 0]
        for axes, (name, arrays) in zip(panels, landscapes.items(), strict=True):
            colours = colormaps["viridis"](np.linspace(0.85, 0.0, len(arrays["step"])))
            for step, curve, colour in zip(arrays["step"], arrays["density"], colours, strict=True):
                axes.semilogy(
                    arrays["grid"], np.maximum(curve, FLOOR), color=colour, label=f"step {step}"
                )
            axes.axvline(0, color=INK, linewidth=0.8)
            axes.set_ylim(FLOOR, None)
            axes.set_ylabel("density")
            axes.yaxis.set_major_formatter(plain)
            axes.set_title(name, loc="left", fontsize=11.5)
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=10)
        panels[-1].set_xlabel("eigenvalue of the Hessian")
        figure.suptitle("Density of the Hessian's eigenvalues over the training")
        note(
            figure,
            "stochastic Lanczos quadrature, smoothed by a hundredth of the axis · one seed a panel",
        )


def blocks(landscapes: Mapping[str, Arrays], path: Path) -> None:
    """Where the first eigenvector's mass lies, over the training."""
    height = sum(0.9 + 0.2 * len(arrays["blocks"]) for arrays in landscapes.values())
    with drawing(path, width=9.5, height=1.2 + height) as figure:
        ratios = [len(arrays["blocks"]) for arrays in landscapes.values()]
        panels = figure.subplots(len(landscapes), 1, squeeze=False, height_ratios=ratios)[:, 0]
        for axes, (name, arrays) in zip(panels, landscapes.items(), strict=True):
            steps = arrays["block_step"].astype(float)
            edges = np.concatenate([[steps[0]], (steps[1:] + steps[:-1]) / 2, [steps[-1]]])
            names = arrays["blocks"]
            first = arrays["mass_by_block"][:, 0].T
            image = axes.pcolormesh(
                edges, np.arange(len(names) + 1), first, cmap=shades(CURVATURE), vmin=0, vmax=1
            )
            axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=9)
            axes.invert_yaxis()
            axes.set_title(name, loc="left", fontsize=11.5)
            figure.colorbar(image, ax=axes, pad=0.01, label="share of squared length")
        panels[-1].set_xlabel("training step")
        figure.suptitle("Where the eigenvector of the largest eigenvalue lives")
        note(
            figure,
            "QK: query and key weights of a head · OV: value and output weights · one seed a panel",
        )


def matrices(landscapes: Mapping[str, Arrays], path: Path) -> None:
    """Trace, Gauss-Newton, Adam's sharpness, and the top eigenvalue on probe batches of several
    sizes.
    """
    styles = model_styles(list(landscapes))
    with drawing(path, width=10.5, height=7.6) as figure:
        grid = figure.subplots(2, 2).ravel()
        for name, arrays in landscapes.items():
            style = styles[name]
            look = {"color": style.color, "marker": style.marker, "linestyle": style.linestyle}
            steps = arrays["step"]
            error = arrays["trace_error"]
            grid[0].errorbar(
                steps, arrays["trace"], yerr=1.96 * error, label=name, capsize=3, **look
            )
            grid[1].plot(steps, arrays["gauss_newton"], label=name, **look)
            grid[2].plot(steps, arrays["adam_sharpness"], label=name, **look)
        last = next(iter(landscapes.values()))
        name = next(iter(landscapes))
        for i, size in enumerate(last["probe_sizes"]):
            colour = (COPYING, CURVATURE, ABLATED, INK)[i % 4]
            grid[3].plot(
                last["step"], last["probe_top"][:, i], "o-", color=colour, label=f"{size} rows"
            )
        grid[0].set_title("trace of the Hessian", loc="left", fontsize=11.5)
        grid[1].set_title("Gauss-Newton, largest eigenvalue", loc="left", fontsize=11.5)
        grid[2].set_title("Adam-preconditioned sharpness", loc="left", fontsize=11.5)
        grid[3].set_title(
            f"largest of the Hessian, by probe batch ({name})", loc="left", fontsize=11.5
        )
        grid[2].set_yscale("symlog", linthresh=1.0)
        grid[2].yaxis.set_major_formatter(plain)
        for axes in grid:
            axes.set_xlabel("training step")
            axes.axhline(0, color=INK, linewidth=0.6)
        grid[0].legend(fontsize=10)
        grid[3].legend(fontsize=10)
        figure.suptitle("Other matrices, and how far the batch decides")
        note(figure, "trace: Hutch++ with 95 % intervals over random signs · one seed a line")
