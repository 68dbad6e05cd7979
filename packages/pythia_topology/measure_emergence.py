"""When heads form: the same scores on every training checkpoint of a model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from interp_core.errors import InputError
from interp_core.files.artifacts import file_sha256, load_weights
from interp_core.loading import load_model
from interp_core.measures.scores import score_heads
from interp_core.models.spec import ModelSpec
from interp_core.models.subject import Subject
from interp_core.progress import progress
from interp_core.statistics.transitions import logistic_fit
from interp_core.stimuli.prompts import Prompts
from pythia_topology.measure_layer_profile import profile_shape
from pythia_topology.params import PythiaTopology


@dataclass(frozen=True)
class Checkpoint:
    """Weights after `step` training steps: a file beside a model trained here, or a branch of a hub
    model.
    """

    step: int
    weights: Path | str


def checkpoints(spec: ModelSpec, params: PythiaTopology) -> list[Checkpoint]:
    """All checkpoints of a model, in order. InputError when it has none."""
    if spec.source == "hub":
        found = [Checkpoint(_step_of(revision), revision) for revision in params.revisions]
        way_out = "name its branches in `revisions`, such as step1000"
    else:
        folder = (spec.path or Path()) / "checkpoints"
        found = [
            Checkpoint(_step_of(file.stem), file) for file in folder.glob("step-*.safetensors")
        ]
        way_out = f"{folder} holds no step-*.safetensors"
    if len(found) < 4:
        raise InputError(
            f"emergence needs at least 4 training checkpoints of {spec.repo or spec.path}: "
            f"{way_out}"
        )
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def emergence(
    subject: Subject, spec: ModelSpec, prompts: Prompts, params: PythiaTopology
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The report and arrays of emergence_<name>: copying, induction heads and previous-token heads
    at each checkpoint.

    Onsets are midpoints of logistic rises over log(1 + step); the heads followed are the best ones
    at the end.
    """
    steps, series = _series(subject, spec, prompts, params)
    excess = series["prefix_matching"] - series["prefix_matching_control"]
    followed = {
        "copy_accuracy": series["accuracy"],
        "induction_head": _best_at_end(excess),
        "previous_token_head": _best_at_end(series["previous_token"]),
    }
    onset = {name: _onset(steps, values, params) for name, values in followed.items()}
    report = {
        "name": subject.name,
        "seed": params.seed,
        "n": len(prompts.tokens),
        "steps": steps,
        "onset": onset,
        "verdict": _verdict(onset),
        "centre_of_mass": [_centre(at_step, params) for at_step in excess.mean(axis=1)],
    }
    arrays = {
        name: series[name].mean(axis=1)
        for name in ("prefix_matching", "previous_token", "accuracy", "loss")
    }
    arrays |= {"excess_prefix_matching": excess.mean(axis=1)}
    return report, {"steps": np.array(steps)} | {
        name: a.astype(np.float32) for name, a in arrays.items()
    }


def _series(
    subject: Subject, spec: ModelSpec, prompts: Prompts, params: PythiaTopology
) -> tuple[list[int], dict[str, Float[np.ndarray, "checkpoint prompt ..."]]]:
    pairs = prompts.pairs
    keys = {"prefix_matching": pairs.induction_key, "previous_token": pairs.previous_key}
    steps: list[int] = []
    columns: dict[str, list[np.ndarray]] = {}
    listed = checkpoints(spec, params)
    for step, at_step in progress(
        _subjects(subject, spec, listed, params), f"{subject.name}: checkpoints", total=len(listed)
    ):
        scores = score_heads(
            at_step, prompts.tokens, pairs, keys, batch_size=params.batch_size, behaviour=True
        )
        control = score_heads(
            at_step,
            prompts.control,
            pairs,
            {"prefix_matching": pairs.induction_key},
            batch_size=params.batch_size,
        )
        steps.append(step)
        found = dict(scores.heads) | {"accuracy": scores.accuracy, "loss": scores.loss}
        for name, values in (
            found | {"prefix_matching_control": control.heads["prefix_matching"]}
        ).items():
            columns.setdefault(name, []).append(values)
    return steps, {name: np.stack(values) for name, values in columns.items()}


def _subjects(
    subject: Subject, spec: ModelSpec, listed: Sequence[Checkpoint], params: PythiaTopology
) -> Iterator[tuple[int, Subject]]:
    """The subject at each checkpoint; two checkpoints with the same weights are an error, as on
    hubs where branches were never filled.
    """
    seen: dict[str, int] = {}
    for checkpoint in listed:
        if isinstance(checkpoint.weights, Path):
            digest, at_step = file_sha256(checkpoint.weights), subject
            _put(subject, checkpoint.weights)
        else:
            revision = spec.model_copy(update={"revision": checkpoint.weights})
            at_step = load_model(
                revision, name=subject.name, device=params.device, dtype=params.dtype
            )
            digest = at_step.hash
        if digest in seen:
            raise InputError(
                f"{subject.name}: the weights at step {checkpoint.step} are those of step "
                f"{seen[digest]}: not the "
                "training checkpoints of one run"
            )
        seen[digest] = checkpoint.step
        yield checkpoint.step, at_step


def _put(subject: Subject, file: Path) -> None:
    """Give the subject the weights of a checkpoint, all of them."""
    weights = load_weights(file)
    own = {name: tensor.shape for name, tensor in subject.model.state_dict().items()}
    for name in sorted(own.keys() ^ weights.keys()):
        raise InputError(f"{file} is no checkpoint of {subject.name}: only one of them has {name}")
    for name, tensor in weights.items():
        if tensor.shape != own[name]:
            raise InputError(f"{file} is no checkpoint of {subject.name}: {name} has another shape")
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{file}: weight {name} holds numbers that are not finite")
    subject.model.load_state_dict(weights)


def _step_of(name: str) -> int:
    digits = name.lower().removeprefix("step").lstrip("-")
    if not digits.isdigit():
        raise InputError(f"{name!r} is not a checkpoint: write step1000")
    return int(digits)


def _best_at_end(
    values: Float[np.ndarray, "checkpoint prompt layer head"],
) -> Float[np.ndarray, "checkpoint prompt"]:
    """The head that is best at the last checkpoint, at all of them."""
    layer, head = np.unravel_index(values[-1].mean(axis=0).argmax(), values.shape[2:])
    return values[:, :, layer, head]


def _onset(
    steps: Sequence[int], values: Float[np.ndarray, "checkpoint prompt"], params: PythiaTopology
) -> dict[str, Any] | None:
    """Midpoint of the rise, in steps, with its interval over prompts; None when there is no rise to
    speak of.
    """
    rng = np.random.default_rng([params.seed, 9])
    fit = logistic_fit(
        np.log1p(steps),
        values.T.astype(np.float64),
        rng,
        resamples=min(200, params.bootstrap_resamples),
    )
    if float(fit.high.low - fit.low.high) <= params.smallest_excess:
        return None
    ends = np.expm1([fit.midpoint.value, fit.midpoint.low, fit.midpoint.high])
    return {
        "step": float(ends[0]),
        "ci": [float(ends[1]), float(ends[2])],
        "low": float(fit.low.value),
        "high": float(fit.high.value),
    }


def _centre(excess: Float[np.ndarray, "layer head"], params: PythiaTopology) -> float | None:
    """Centre of mass of the heads above the smallest excess of interest, relative depth; None
    without such heads.
    """
    mass = np.where(excess > params.smallest_excess, excess, 0.0).sum(axis=1)
    return float(profile_shape(mass).centre_of_mass) if mass.any() else None


def _verdict(onset: Mapping[str, Mapping[str, Any] | None]) -> str:
    emerged = {name: found["step"] for name, found in onset.items() if found is not None}
    if "induction_head" not in emerged:
        return "no induction head emerges"
    order = sorted(emerged, key=lambda name: emerged[name])
    return "in order: " + ", ".join(
        f"{name.replace('_', ' ')} at step {emerged[name]:.0f}" for name in order
    )
