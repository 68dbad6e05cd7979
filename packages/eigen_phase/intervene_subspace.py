"""Training that steps only inside, or only outside, the Hessian's dominant subspace.

Gradients align with the top eigenvectors, and yet, as Song, Ahn & Yun report (Does SGD really
happen in tiny subspaces?, ICLR 2025), steps along them do not lower the loss, and steps without
them do. The same is asked here of AdamW's steps, on the way into the transition.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from eigen_phase.data import batch_source
from eigen_phase.data_rows import held_out_rows, labelled, probe_rows
from eigen_phase.measure_alignment import flat, gradient_of
from eigen_phase.measure_curvature import next_token_hessian
from eigen_phase.measure_heads import behaviour
from eigen_phase.measure_spectrum import eigenpairs
from eigen_phase.model import Transformer
from eigen_phase.params import Controls, Training
from eigen_phase.run_directory import RunDirectory
from interp_core.errors import InputError

ARMS = ("free", "inside", "outside")
Report = dict[str, Any]
Arrays = dict[str, np.ndarray]
Projection = Callable[[Tensor], Tensor]


def subspace_arms(run: RunDirectory, settings: Controls) -> tuple[Arrays, Report]:
    """Three continuations of a run from the last look at the Hessian before pattern accuracy
    reached subspace_start.

    Weights, Adam's memory, batches and rates are those of the run, so the free arm repeats it. The
    other arms project each whole step (weight decay included) onto the span of the k eigenvectors
    largest by magnitude, looked up anew every subspace_refresh steps at their own weights, or onto
    its complement. Arrays: `step` [step + 1]; for each arm `ARM_loss` (training batches),
    `ARM_accuracy` and `ARM_pattern_loss` (held out, at refreshes; `refresh_step`), `ARM_inside`
    (share of the step's squared length inside the subspace, before projection). InputError when the
    run has no look at the Hessian.
    """
    start = start_step(run, settings.subspace_start)
    arms = {arm: _arm(run, settings, start, arm) for arm in ARMS}
    arrays = {
        f"{arm}_{name}": values for arm, found in arms.items() for name, values in found.items()
    }
    arrays["step"] = start + np.arange(settings.subspace_steps)
    arrays["refresh_step"] = start + np.arange(
        0, settings.subspace_steps + 1, settings.subspace_refresh
    )
    change = {
        arm: float(found["pattern_loss"][-1] - found["pattern_loss"][0])
        for arm, found in arms.items()
    }
    share = float(arms["free"]["inside"].mean())
    k = run.training.track_top_k_eigenvalues
    verdict = (
        f"{settings.subspace_steps} steps from step {start}: loss on predictable targets "
        f"{change['free']:+.2f} nats"
        f" freely, {change['inside']:+.2f} inside the top {k} eigenvectors, "
        f"{change['outside']:+.2f} outside;"
        f" {share:.1%} of a free step lies inside"
    )
    return arrays, {
        "name": run.name,
        "verdict": verdict,
        "start": start,
        "steps": settings.subspace_steps,
        "k": k,
        "change_of_pattern_loss": change,
        "final_accuracy": {arm: float(found["accuracy"][-1]) for arm, found in arms.items()},
        "first_accuracy": float(arms["free"]["accuracy"][0]),
        "share_of_free_steps_inside": share,
        "null_share": k / run.training.n_parameters,
    }


def start_step(run: RunDirectory, accuracy: float) -> int:
    """The last step with eigenvectors at which pattern accuracy was still below `accuracy`; never
    step 0.
    """
    known = dict(
        zip(run.history["step"].tolist(), run.history["pattern_accuracy"].tolist(), strict=True)
    )
    below = [step for step in run.eigenvector_steps if step > 0 and known[step] < accuracy]
    if not below:
        raise InputError(f"{run.folder}: no look at the Hessian before pattern accuracy {accuracy}")
    return below[-1]


def _arm(run: RunDirectory, settings: Controls, start: int, arm: str) -> Arrays:
    training = run.training
    model = run.model(start)
    adam = Adam.of(run, start, model)
    source = batch_source(training.data_settings, rows=training.batch_size, seed=training.seed)
    rows = held_out_rows(training, training.test_settings)
    vectors = torch.empty(0)
    found: dict[str, list[float]] = {
        name: [] for name in ("loss", "accuracy", "pattern_loss", "inside")
    }
    for number in range(settings.subspace_steps + 1):
        if number % settings.subspace_refresh == 0:
            now = behaviour(model, rows, copies=training.copies)
            found["accuracy"].append(now["pattern_accuracy"])
            found["pattern_loss"].append(now["pattern_loss"])
            vectors = _top(model, training)
        if number == settings.subspace_steps:
            break
        gradient, loss = gradient_of(model, *source(start + number))
        step = adam.step(
            gradient, flat(list(model.parameters())), rate=training.recipe.rate(start + number)
        )
        inside = (vectors @ step) @ vectors
        found["loss"].append(loss)
        found["inside"].append(float(inside.square().sum() / step.square().sum()))
        _move(model, {"free": step, "inside": inside, "outside": step - inside}[arm])
    return {name: np.array(values) for name, values in found.items()}


def _top(model: Transformer, training: Training) -> Float[Tensor, "k parameter"]:
    with model.explicit_attention():
        operator = next_token_hessian(
            model, *labelled(probe_rows(training), training), micro_batch=training.micro_batch
        )
        return eigenpairs(
            operator,
            k=training.track_top_k_eigenvalues,
            tolerance=training.lanczos_tolerance,
            max_products=training.max_products,
            generator=torch.Generator().manual_seed(training.seed),
            most_negative=False,
        ).vectors


@torch.no_grad()
def _move(model: Transformer, by: Float[Tensor, " parameter"]) -> None:
    start = 0
    for parameter in model.parameters():
        parameter += by[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()


@dataclass
class Adam:
    """AdamW on flat vectors (Loshchilov & Hutter 2019), begun where a run's own stood."""

    mean: Float[Tensor, " parameter"]
    square: Float[Tensor, " parameter"]
    count: int
    decay: Float[Tensor, " parameter"]  # weight decay of each parameter
    betas: tuple[float, float]
    clip: float

    @classmethod
    def of(cls, run: RunDirectory, step: int, model: Transformer) -> "Adam":
        """With the memory that the run had after `step` updates."""
        training = run.training
        decayed = [
            torch.full_like(p, training.weight_decay if p.ndim == 2 else 0.0)
            for p in model.parameters()
        ]
        return cls(*run.adam(step), step, flat(decayed), training.betas, training.clip)

    def step(
        self, gradient: Tensor, weights: Tensor, *, rate: float, epsilon: float = 1e-8
    ) -> Tensor:
        """The change of the weights; remembers the gradient, clipped as in training."""
        gradient = gradient * (self.clip / (gradient.norm() + 1e-6)).clamp(max=1.0)
        first, second = self.betas
        self.count += 1
        self.mean = first * self.mean + (1 - first) * gradient
        self.square = second * self.square + (1 - second) * gradient.square()
        scale = (self.square / (1 - second**self.count)).sqrt() + epsilon
        return -rate * (self.mean / (1 - first**self.count) / scale + self.decay * weights)
