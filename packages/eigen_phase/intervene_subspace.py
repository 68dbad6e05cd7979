"""Training that steps only inside, or only outside, the Hessian's dominant subspace.

Gradients align with the top eigenvectors, and yet, as Song, Ahn & Yun report (Does SGD really
happen in tiny subspaces?, ICLR 2025), steps along them do not lower the loss, and steps without
them do. The same is asked here of AdamW's steps, all the way through the transition. A step inside
few directions is also a short one, so that arms of the same length and of random directions belong
to the question; and Adam has a geometry of its own, in which another subspace dominates.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from eigen_phase.data import Sequences, batch_source
from eigen_phase.data_rows import held_out_rows, labelled, probe_rows
from eigen_phase.measure_alignment import flat, gradient_of
from eigen_phase.measure_curvature import (
    EPSILON,
    Operator,
    adam_preconditioned,
    next_token_hessian,
)
from eigen_phase.measure_heads import behaviour
from eigen_phase.measure_spectrum import eigenpairs
from eigen_phase.model import Transformer
from eigen_phase.params import Controls, Training
from eigen_phase.run_directory import RunDirectory
from interp_core.errors import InputError
from interp_core.training.batches import BatchSource

ARMS = {
    "free": "whole steps",
    "inside": "their part inside the top eigenvectors",
    "outside": "the rest",
    "short": "whole steps, as short as their part inside",
    "long": "their part inside, as long as whole steps",
    "random": "their part inside as many random directions",
    "random_long": "the same, as long as whole steps",
    "own_inside": "their part inside the top eigenvectors of Adam's own Hessian",
    "own_outside": "the rest",
}

Report = dict[str, Any]
Arrays = dict[str, np.ndarray]
Vector = Float[Tensor, " parameter"]


def subspace_arms(run: RunDirectory, settings: Controls) -> tuple[Arrays, Report]:
    """Continuations of a run from the last look at the Hessian below subspace_start.

    Weights, Adam's memory, batches and rates are those of the run, so the free arm repeats it. The
    other arms change each whole step (weight decay included) as ARMS says, with k eigenvectors
    largest by magnitude, or k random directions, made anew every subspace_refresh steps at their
    own weights. All end where the free arm's pattern accuracy has reached subspace_until, or after
    subspace_steps. Arrays: `step`, `refresh_step`; for each arm `ARM_loss` (training batches),
    `ARM_accuracy` and `ARM_pattern_loss` (held out, at refreshes), `ARM_inside` (share of the whole
    step's squared length inside the subspace), `ARM_taken` (the same of the step taken) and
    `ARM_length` (of the step that was taken over the whole one's). InputError when the run has no
    look at the Hessian.
    """
    start = start_step(run, settings.subspace_start)
    free = Arm.at(run, start, "free").run(
        settings.subspace_steps, settings.subspace_refresh, until=settings.subspace_until
    )
    steps = len(free["loss"])
    arms = {"free": free}
    for arm in ARMS:
        if arm != "free":
            arms[arm] = Arm.at(run, start, arm).run(steps, settings.subspace_refresh)

    arrays = {
        f"{arm}_{name}": values for arm, found in arms.items() for name, values in found.items()
    }
    arrays["step"] = start + np.arange(steps)
    arrays["refresh_step"] = start + np.arange(0, steps + 1, settings.subspace_refresh)

    k = run.training.track_top_k_eigenvalues
    ends = {arm: found["pattern_loss"][[0, -1]] for arm, found in arms.items()}
    change = {arm: float(last - first) for arm, (first, last) in ends.items()}

    verdict = (
        f"{steps} steps from step {start}: loss on predictable targets {change['free']:+.2f} nats"
        f" freely, {change['inside']:+.2f} inside the top {k} eigenvectors,"
        f" {change['outside']:+.2f} outside"
    )
    return arrays, {
        "name": run.name,
        "verdict": verdict,
        "start": start,
        "steps": steps,
        "k": k,
        "change_of_pattern_loss": change,
        "final_accuracy": {arm: float(found["accuracy"][-1]) for arm, found in arms.items()},
        "length": {arm: float(found["length"].mean()) for arm, found in arms.items()},
        "first_accuracy": float(free["accuracy"][0]),
        "share_of_free_steps_inside": float(free["inside"].mean()),
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


@dataclass
class Arm:
    """One continuation: where it stands, and how it changes a step."""

    kind: str
    training: Training
    model: Transformer
    adam: "Adam"
    source: BatchSource
    rows: Sequences
    start: int
    generator: torch.Generator  # of random directions
    space: Float[Tensor, "k parameter"] | None = None  # orthonormal
    scale: Vector | None = None  # of Adam's geometry: P^-1/2, where the arm is in it

    @classmethod
    def at(cls, run: RunDirectory, start: int, kind: str) -> "Arm":
        """Where the run stood."""
        training, model = run.training, run.model(start)
        return cls(
            kind=kind,
            training=training,
            model=model,
            adam=Adam.of(run, start, model),
            source=batch_source(
                training.data_settings, rows=training.batch_size, seed=training.seed
            ),
            rows=held_out_rows(training, training.test_settings),
            start=start,
            generator=torch.Generator().manual_seed(training.seed),
        )

    def run(self, steps: int, refresh: int, *, until: float = 2.0) -> Arrays:
        """At most so many steps; they end at a refresh whose pattern accuracy reaches `until`."""
        names = ("loss", "accuracy", "pattern_loss", "inside", "taken", "length")
        found: dict[str, list[float]] = {name: [] for name in names}

        for number in range(steps + 1):
            if number % refresh == 0:
                now = behaviour(self.model, self.rows, copies=self.training.copies)
                found["accuracy"].append(now["pattern_accuracy"])
                found["pattern_loss"].append(now["pattern_loss"])

                if number > 0 and now["pattern_accuracy"] >= until:
                    break
                if number < steps:
                    self.look()

            if number == steps:
                break

            gradient, loss = gradient_of(self.model, *self.source(self.start + number))
            weights = flat(list(self.model.parameters()))
            rate = self.training.recipe.rate(self.start + number)
            step = self.adam.step(gradient, weights, rate=rate)

            inside = self._inside(step)
            taken = changed_step(self.kind, step, inside)

            found["loss"].append(loss)
            found["inside"].append(self._share(inside, step))
            found["taken"].append(self._share(self._inside(taken), taken))
            found["length"].append(float(taken.norm() / step.norm()))
            _move(self.model, taken)

        return {name: np.array(values) for name, values in found.items()}

    def look(self) -> None:
        """The subspace at the arm's own weights."""
        k = self.training.track_top_k_eigenvalues

        if self.kind.startswith("random"):
            size = self.training.n_parameters
            drawn = torch.randn(size, k, generator=self.generator, dtype=torch.float64)
            self.space = torch.linalg.qr(drawn).Q.T.to(self.adam.mean)
            return

        if self.kind.startswith("own"):
            self.scale = self.adam.scale()

        with self.model.explicit_attention():
            operator: Operator = next_token_hessian(
                self.model,
                *labelled(probe_rows(self.training), self.training),
                micro_batch=self.training.micro_batch,
            )
            if self.scale is not None:
                operator = adam_preconditioned(
                    operator,
                    self.adam.square,
                    step=self.adam.count,
                    beta=self.adam.betas[1],
                    epsilon=EPSILON,
                )
            found = eigenpairs(
                operator,
                k=k,
                tolerance=self.training.lanczos_tolerance,
                max_products=self.training.max_products,
                generator=torch.Generator().manual_seed(self.training.seed),
                most_negative=False,
                repeated=False,  # as in training, whose subspace this is
            )
        self.space = found.vectors

    def _inside(self, step: Vector) -> Vector:
        """The part of a step inside the subspace, projected where eigenvectors are orthogonal."""
        assert self.space is not None
        if self.scale is None:
            return (self.space @ step) @ self.space

        # In Adam's geometry a step x is P^1/2 x.
        return self.scale * ((self.space @ (step / self.scale)) @ self.space)

    def _share(self, part: Vector, whole: Vector) -> float:
        """Of squared lengths, in the geometry in which the part was projected."""
        scale = 1.0 if self.scale is None else self.scale
        length = float((whole / scale).norm())
        return float((part / scale).norm()) ** 2 / length**2 if length > 0 else 0.0


def changed_step(kind: str, step: Vector, inside: Vector) -> Vector:
    """What an arm makes of a whole step and its part inside the arm's subspace."""
    if kind == "free":
        return step

    if kind.endswith("outside"):
        return step - inside

    if kind == "short":
        return step * (inside.norm() / step.norm())

    if kind.endswith("long"):
        tiny = torch.finfo(step.dtype).tiny
        return inside * (step.norm() / inside.norm().clamp_min(tiny))

    return inside


@torch.no_grad()
def _move(model: Transformer, by: Vector) -> None:
    start = 0
    for parameter in model.parameters():
        parameter += by[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()


@dataclass
class Adam:
    """AdamW on flat vectors (Loshchilov & Hutter 2019), begun where a run's own stood."""

    mean: Vector
    square: Vector
    count: int
    decay: Vector  # weight decay of each parameter
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

    def step(self, gradient: Tensor, weights: Tensor, *, rate: float) -> Vector:
        """The change of the weights; remembers the gradient, clipped as in training."""
        gradient = gradient * (self.clip / (gradient.norm() + 1e-6)).clamp(max=1.0)
        first, second = self.betas

        self.count += 1
        self.mean = first * self.mean + (1 - first) * gradient
        self.square = second * self.square + (1 - second) * gradient.square()

        divisor = (self.square / (1 - second**self.count)).sqrt() + EPSILON
        return -rate * (self.mean / (1 - first**self.count) / divisor + self.decay * weights)

    def scale(self) -> Vector:
        """P^-1/2 with P = sqrt(second moment) + epsilon, as in measure_curvature."""
        return ((self.square / (1 - self.betas[1] ** self.count)).sqrt() + EPSILON).rsqrt()
