"""The whole spectrum, its trace and its other matrices at a few checkpoints of a finished run."""

from typing import Any

import numpy as np
import torch

from eigen_phase.data_rows import held_out_rows, labelled, probe_rows
from eigen_phase.intervene_heads import spread_steps
from eigen_phase.measure_curvature import (
    EPSILON,
    Operator,
    adam_preconditioned,
    next_token_gauss_newton,
    next_token_hessian,
)
from eigen_phase.measure_spectrum import (
    density,
    eigenpairs,
    largest_eigenvalue,
    mass_by_block,
    trace,
)
from eigen_phase.params import Spectrum, Training
from eigen_phase.run_directory import RunDirectory
from interp_core.errors import InputError
from interp_core.progress import progress
from interp_core.statistics.interval import student

Report = dict[str, Any]
Arrays = dict[str, np.ndarray]
GRID_POINTS = 400


def landscape(run: RunDirectory, settings: Spectrum) -> tuple[Arrays, Report]:
    """Density, trace, Gauss-Newton and Adam-preconditioned sharpness, probe batches, and blocks.

    Arrays over `step` [s]: `density` [s, grid] on `grid` (per unit of eigenvalue), `trace` and
    `trace_error`, `gauss_newton`, `probe_top` [s, size, batch] for independent batches of
    `probe_sizes` rows, `products`, `beyond` (eigenvalues as large as the tracked ones that equal
    one of them, and so were not tracked); over `block_step` [e] (every look at the Hessian):
    `mass_by_block` [e, k, block] of the kept eigenvectors, `blocks` their names; over `adam_step`
    (every look but step 0): `adam_sharpness`, on as many rows as a training batch has, and
    `adam_edge`. InputError for a run whose Hessian was not looked at.
    """
    _check_looked_at(run)
    steps = spread_steps(run, settings.checkpoints, among=run.eigenvector_steps)
    found = [
        _at(run, step, settings)
        for step in progress(steps, f"spectra of {run.name}", unit="checkpoint")
    ]
    names = [name for name in found[0] if name not in ("nodes", "weights")]
    arrays = {name: np.array([part[name] for part in found]) for name in names}
    arrays |= _on_one_grid(found) | _blocks(run) | _adam(run, settings)
    arrays |= {"step": np.array(steps), "probe_sizes": np.array(settings.probe_sizes)}

    edge = adam_edge(run.training)
    sharpest = int(arrays["adam_sharpness"].argmax())
    report = {
        "name": run.name,
        "steps": steps,
        "trace": arrays["trace"],
        "trace_error": arrays["trace_error"],
        "gauss_newton": arrays["gauss_newton"],
        "adam_edge_of_stability": edge,
        "adam_sharpness_rows": run.training.batch_size,
        "adam_sharpness_largest": float(arrays["adam_sharpness"][sharpest]),
        "adam_sharpness_largest_step": int(arrays["adam_step"][sharpest]),
        "adam_steps_above_edge": arrays["adam_step"][arrays["adam_sharpness"] > edge],
        "probe_top": _over_batches(arrays["probe_top"], steps, settings),
        "untracked_equal_eigenvalues": arrays["beyond"],
        "negative_mass": arrays["negative_mass"],
        "largest_block": _largest_blocks(arrays),
    }
    traces = arrays["trace"]
    share = arrays["adam_sharpness"][sharpest] / edge
    verdict = (
        f"trace {traces[0]:.1f} at first, {traces.max():.1f} at most, {traces[-1]:.1f} at the end;"
        f" Adam's sharpness reaches {share:.2f} of its edge"
        f" (step {arrays['adam_step'][sharpest]})"
    )
    return arrays, report | {"verdict": verdict}


def largest_course(run: RunDirectory, settings: Spectrum) -> Arrays:
    """The largest eigenvalue at every look on `largest_sequences` rows: `largest_step`, `largest`.

    The tracked one is on so few rows that which rows were drawn decides most of it. InputError for
    a run whose Hessian was not looked at.
    """
    _check_looked_at(run)
    training = run.training
    rows = labelled(probe_rows(training, rows=settings.largest_sequences), training)
    found = []

    for step in progress(run.eigenvector_steps, f"largest of {run.name}", unit="look"):
        model = run.model(step)
        with model.explicit_attention():
            hessian = next_token_hessian(model, *rows, micro_batch=settings.largest_sequences)
            value = largest_eigenvalue(
                hessian,
                tolerance=settings.largest_tolerance,
                max_products=training.max_products,
                generator=torch.Generator().manual_seed(training.seed),
            )
        found.append(value)

    return {"largest_step": np.array(run.eigenvector_steps), "largest": np.array(found)}


def _check_looked_at(run: RunDirectory) -> None:
    # At step 0 Adam has no means yet: its sharpness is measured at the later looks alone.
    if not any(step > 0 for step in run.eigenvector_steps):
        raise InputError(
            f"{run.folder}: the Hessian was not looked at after step 0;"
            " train with --track-top-k-eigenvalues above 0,"
            " and --eigen-interval at most --num-steps"
        )


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
    k = training.track_top_k_eigenvalues

    def largest(operator: Operator, tolerance: float) -> float:
        return largest_eigenvalue(
            operator,
            tolerance=tolerance,
            max_products=training.max_products,
            generator=generator,
        )

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
        gauss_newton = largest(
            next_token_gauss_newton(model, *batch, micro_batch=training.micro_batch),
            training.lanczos_tolerance,
        )
        both = [
            eigenpairs(
                hessian,
                k=k,
                tolerance=training.lanczos_tolerance,
                max_products=training.max_products,
                generator=generator,
                repeated=repeated,
            )
            for repeated in (False, True)
        ]
        sizes = []
        for size in settings.probe_sizes if run.name in settings.probe_runs else ():
            batches = [
                labelled(probe_rows(training, rows=size, draw_number=number), training)
                for number in range(settings.probe_batches)
            ]
            hessians = [next_token_hessian(model, *rows, micro_batch=size) for rows in batches]
            sizes.append([largest(one, settings.largest_tolerance) for one in hessians])
    first, second = (pairs.values[:k].numpy() for pairs in both)
    return {
        "nodes": spectrum.nodes,
        "weights": spectrum.weights,
        "negative_mass": float(spectrum.weights[spectrum.nodes < 0].sum()),
        "trace": found.value,
        "trace_error": found.error,
        "gauss_newton": gauss_newton,
        "probe_top": sizes,
        "beyond": _beyond(first, second, training),
    }


def _beyond(once: np.ndarray, repeated: np.ndarray, training: Training) -> int:
    """How many of the k largest, counted as often as they are there, the tracked ones lack."""
    apart = np.abs(np.abs(once) - np.abs(repeated))
    return int((apart > 2 * training.lanczos_tolerance * np.abs(once[0])).sum())


def _adam(run: RunDirectory, settings: Spectrum) -> Arrays:
    """Adam's sharpness at every look: whether a step is stable is a matter of its own batch's rows,
    so as many rows as a training batch has.
    """
    training = run.training
    rows = labelled(probe_rows(training, rows=training.batch_size), training)
    steps = [step for step in run.eigenvector_steps if step > 0]
    found = []

    for step in steps:
        model = run.model(step)
        with model.explicit_attention():
            hessian = next_token_hessian(model, *rows, micro_batch=training.batch_size)
            scaled = adam_preconditioned(
                hessian, run.adam(step)[1], step=step, beta=training.betas[1], epsilon=EPSILON
            )
            value = largest_eigenvalue(
                scaled,
                tolerance=settings.largest_tolerance,
                max_products=training.max_products,
                generator=torch.Generator().manual_seed(training.seed),
            )
        found.append(value)

    return {
        "adam_step": np.array(steps),
        "adam_sharpness": np.array(found),
        "adam_edge": np.array(adam_edge(training)),
    }


def _over_batches(top: np.ndarray, steps: list[int], settings: Spectrum) -> list[Report]:
    """By size and checkpoint: mean over independent batches, Student's interval, their range."""
    return [
        {
            "rows": size,
            "step": steps[i],
            **student(top[i, j], unit="batches").to_json(),
            "lowest": float(top[i, j].min()),
            "highest": float(top[i, j].max()),
        }
        for j, size in enumerate(settings.probe_sizes)
        for i in range(len(top))
        if top.size
    ]


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
