"""The whole spectrum, its trace and its other matrices at a few checkpoints of a finished run."""

from typing import Any

import numpy as np
import torch

from eigen_phase.data_rows import held_out_rows, labelled, probe_rows
from eigen_phase.intervene_heads import spread_steps
from eigen_phase.measure_alignment import flat
from eigen_phase.measure_curvature import (
    Operator,
    adam_preconditioned,
    next_token_gauss_newton,
    next_token_hessian,
)
from eigen_phase.measure_spectrum import density, eigenpairs, mass_by_block, trace
from eigen_phase.params import Spectrum, Training
from eigen_phase.run_directory import RunDirectory
from interp_core.errors import InputError
from interp_core.progress import progress

Report = dict[str, Any]
Arrays = dict[str, np.ndarray]
GRID_POINTS = 400


def landscape(run: RunDirectory, settings: Spectrum) -> tuple[Arrays, Report]:
    """Density, trace, Gauss-Newton and Adam-preconditioned sharpness, dependence on the probe
    batch, and blocks.

    Arrays over `step` [s]: `density` [s, grid] on `grid` (per unit of eigenvalue), `trace` and
    `trace_error`, `gauss_newton`, `adam_sharpness` (not-a-number before the first update),
    `probe_top` [s, size] for batches of `probe_sizes` rows, `products`; over `block_step` [e]
    (every look at the Hessian): `mass_by_block` [e, k, block] of the kept eigenvectors, `blocks`
    their names. InputError for a run whose Hessian was not looked at.
    """
    if not run.eigenvector_steps:
        raise InputError(
            f"{run.folder}: the Hessian was not looked at; train with --track-top-k-eigenvalues "
            "above 0"
        )
    steps = spread_steps(run, settings.checkpoints, among=run.eigenvector_steps)
    found = [
        _at(run, step, settings)
        for step in progress(steps, f"spectra of {run.name}", unit="checkpoint")
    ]
    names = [name for name in found[0] if name not in ("nodes", "weights")]
    arrays = {name: np.array([part[name] for part in found]) for name in names}
    arrays |= _on_one_grid(found) | _blocks(run)
    arrays |= {"step": np.array(steps), "probe_sizes": np.array(settings.probe_sizes)}
    edge = adam_edge(run.training)
    report = {
        "name": run.name,
        "steps": steps,
        "trace": arrays["trace"],
        "trace_error": arrays["trace_error"],
        "gauss_newton": arrays["gauss_newton"],
        "adam_sharpness": [
            None if not np.isfinite(value) else float(value) for value in arrays["adam_sharpness"]
        ],
        "adam_edge_of_stability": edge,
        "probe_sizes": list(settings.probe_sizes),
        "probe_top": arrays["probe_top"],
        "negative_mass": arrays["negative_mass"],
        "largest_block": _largest_blocks(arrays),
    }
    last = arrays["adam_sharpness"][-1]
    verdict = (
        f"trace {arrays['trace'][0]:.1f} at first, {arrays['trace'].max():.1f} at most, "
        f"{arrays['trace'][-1]:.1f}"
    )
    return arrays, report | {
        "verdict": f"{verdict} at the end; Adam's sharpness ends at {last / edge:.2f} of its edge"
    }


def adam_edge(training: Training) -> float:
    """Adam-preconditioned sharpness above which Adam is unstable at the full rate (Cohen et al.
    2022).
    """
    first = training.betas[0]
    return (2 + 2 * first) / ((1 - first) * training.learning_rate)


def attention_patterns(run: RunDirectory) -> Arrays:
    """Patterns of one held-out row at kept steps: `patterns` [step, layer, head, query, key],
    `pattern_step`, `ids`.
    """
    rows = held_out_rows(run.training, run.training.test_settings)
    ids = torch.from_numpy(rows.ids[:1])
    steps = spread_steps(run, 4, among=run.checkpoint_steps)
    patterns = np.stack([run.model(step).patterns(ids)[:, 0].numpy() for step in steps])
    return {"patterns": patterns, "pattern_step": np.array(steps), "ids": rows.ids[0]}


def _at(run: RunDirectory, step: int, settings: Spectrum) -> dict[str, Any]:
    training, model = run.training, run.model(step)
    generator = torch.Generator().manual_seed(training.seed)
    vector_like = flat(list(model.parameters()))

    def largest(operator: Operator) -> float:
        """With its sign: the most negative eigenvalue of the operator turned over."""
        found = eigenpairs(
            Operator(lambda vector: -operator(vector), vector_like),
            k=1,
            tolerance=training.lanczos_tolerance,
            max_products=training.max_products,
            generator=generator,
        )
        return -float(found.values[-1])

    with model.explicit_attention():
        batch = labelled(probe_rows(training), training)
        hessian = next_token_hessian(model, *batch, micro_batch=training.micro_batch)
        spectrum = density(
            hessian,
            probes=settings.density_probes,
            steps=settings.density_steps,
            generator=generator,
        )
        found = trace(hessian, products=settings.trace_products, generator=generator)
        sharpness = float("nan")
        if step > 0:
            _, square = run.adam(step)
            scaled = adam_preconditioned(
                hessian, square, step=step, beta=training.betas[1], epsilon=1e-8
            )
            sharpness = largest(scaled)
        gauss_newton = largest(
            next_token_gauss_newton(model, *batch, micro_batch=training.micro_batch)
        )
        sizes = []
        for size in settings.probe_sizes:
            rows = labelled(probe_rows(training, rows=size), training)
            sizes.append(
                largest(next_token_hessian(model, *rows, micro_batch=training.micro_batch))
            )
    return {
        "nodes": spectrum.nodes,
        "weights": spectrum.weights,
        "negative_mass": float(spectrum.weights[spectrum.nodes < 0].sum()),
        "trace": found.value,
        "trace_error": found.error,
        "gauss_newton": gauss_newton,
        "adam_sharpness": sharpness,
        "probe_top": sizes,
    }


def _on_one_grid(found: list[dict[str, Any]]) -> Arrays:
    """Densities on a grid over all nodes, smoothed by a hundredth of its span."""
    nodes = np.concatenate([part["nodes"] for part in found])
    span = nodes.max() - nodes.min()
    grid = np.linspace(nodes.min() - 0.03 * span, nodes.max() + 0.03 * span, GRID_POINTS)
    bells = np.exp(-0.5 * ((grid[:, None] - nodes) / (span / 100)) ** 2) / (
        span / 100 * np.sqrt(2 * np.pi)
    )
    parts = np.split(bells, np.cumsum([len(part["nodes"]) for part in found])[:-1], axis=1)
    return {
        "grid": grid,
        "density": np.stack([b @ part["weights"] for b, part in zip(parts, found, strict=True)]),
    }


def _blocks(run: RunDirectory) -> Arrays:
    k = run.training.track_top_k_eigenvalues
    model = run.model()
    shares = [
        mass_by_block(model, run.eigenvectors(step)[:k], n_heads=model.n_heads)
        for step in run.eigenvector_steps
    ]
    return {
        "block_step": np.array(run.eigenvector_steps),
        "mass_by_block": np.stack([share for _, share in shares]),
        "blocks": np.array(shares[0][0]),
    }


def _largest_blocks(arrays: Arrays) -> dict[str, str]:
    """Of the first eigenvector: the block with most of its mass, by step."""
    first = arrays["mass_by_block"][:, 0]
    return {
        str(step): f"{arrays['blocks'][row.argmax()]} {row.max():.2f}"
        for step, row in zip(arrays["block_step"], first, strict=True)
    }
