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
from interp_core.models.subject import Transformer, as_transformer
from interp_core.progress import progress
from interp_core.statistics.interval import Interval
from interp_core.statistics.transitions import logistic_fit
from interp_core.stimuli.prompts import Prompts
from pythia_topology.measure_shape import above_noise, profile_shape
from pythia_topology.params import PythiaTopology


@dataclass(frozen=True)
class Checkpoint:
    """Weights after `step` training steps.

    A file beside a model trained here, or a branch of a hub model.
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
        model = spec.repo or spec.path
        raise InputError(f"emergence needs at least 4 training checkpoints of {model}: {way_out}")

    return sorted(found, key=lambda checkpoint: checkpoint.step)


def emergence(
    subject: Transformer, spec: ModelSpec, prompts: Prompts, params: PythiaTopology
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The report and arrays of emergence_<name>, at each checkpoint.

    Copying, induction heads and previous-token heads. Onsets are midpoints of logistic rises over
    log(1 + step); the heads followed are the best ones at the end.
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
    saved = ("prefix_matching", "previous_token", "accuracy", "loss")
    arrays = {name: series[name].mean(axis=1) for name in saved}
    arrays |= {"excess_prefix_matching": excess.mean(axis=1)}

    single = {name: values.astype(np.float32) for name, values in arrays.items()}
    return report, {"steps": np.array(steps), **single}


def _series(
    subject: Transformer, spec: ModelSpec, prompts: Prompts, params: PythiaTopology
) -> tuple[list[int], dict[str, Float[np.ndarray, "checkpoint prompt ..."]]]:
    pairs = prompts.pairs
    keys = {"prefix_matching": pairs.induction_key, "previous_token": pairs.previous_key}
    steps: list[int] = []
    columns: dict[str, list[np.ndarray]] = {}
    listed = checkpoints(spec, params)
    subjects = _subjects(subject, spec, listed, params)

    for step, at_step in progress(subjects, f"{subject.name}: checkpoints", total=len(listed)):
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
        found["prefix_matching_control"] = control.heads["prefix_matching"]
        for name, values in found.items():
            columns.setdefault(name, []).append(values)

    return steps, {name: np.stack(values) for name, values in columns.items()}


def _subjects(
    subject: Transformer, spec: ModelSpec, listed: Sequence[Checkpoint], params: PythiaTopology
) -> Iterator[tuple[int, Transformer]]:
    """The subject at each checkpoint.

    Two checkpoints with the same weights are an error, as on hubs where branches were never filled.
    """
    seen: dict[str, int] = {}

    for checkpoint in listed:
        if isinstance(checkpoint.weights, Path):
            digest, at_step = file_sha256(checkpoint.weights), subject
            _put(subject, checkpoint.weights)
        else:
            revision = spec.model_copy(update={"revision": checkpoint.weights})
            found = load_model(
                revision,
                name=subject.name,
                device=params.device,
                dtype=params.dtype,
                bos=params.bos,
            )
            at_step = as_transformer(found)
            digest = at_step.hash

        if digest in seen:
            raise InputError(
                f"{subject.name}: the weights at step {checkpoint.step} are those of step "
                f"{seen[digest]}: not the training checkpoints of one run"
            )

        seen[digest] = checkpoint.step
        yield checkpoint.step, at_step


def _put(subject: Transformer, file: Path) -> None:
    """Give the subject the weights of a checkpoint, all of them."""
    if any(parameter.is_meta for parameter in subject.model.parameters()):
        raise InputError(
            f"{subject.name} lies partly on disk: checkpoints are put into memory only"
        )

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
    """Midpoint of the rise, in steps, with its interval; the levels before and after it.

    None when there is no rise to speak of, and when it lies at the edge of what was saved. The
    interval is over prompts, and reaches at least to the checkpoints on both sides: between them
    nothing was measured.
    """
    rng = np.random.default_rng([params.seed, 9])
    curves = values.T.astype(np.float64)  # [prompt, checkpoint]
    fit = logistic_fit(np.log1p(steps), curves, rng, resamples=params.onset_resamples)

    if float(fit.high.low - fit.low.high) <= params.smallest_excess:
        return None

    ends = [fit.midpoint.value, fit.midpoint.low, fit.midpoint.high]
    middle, low, high = (float(end) for end in np.expm1(ends))
    after = int(np.searchsorted(steps, middle))

    if not 1 < after < len(steps):
        return None

    low, high = min(low, steps[after - 1]), max(high, steps[after])
    step = Interval(middle, float(low), float(high), len(curves), "prompts")
    levels = {"low": float(fit.low.value), "high": float(fit.high.value)}
    return {"step": step.to_json(), **levels}


def _centre(excess: Float[np.ndarray, "layer head"], params: PythiaTopology) -> float | None:
    """Centre of mass, relative depth, of the heads above the smallest excess of interest.

    None without such heads.
    """
    mass = above_noise(excess, params.smallest_excess).sum(axis=1)
    return float(profile_shape(mass).centre_of_mass) if mass.any() else None


def _verdict(onset: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Onsets by step; `with` joins one whose interval overlaps the one before: no order shown."""
    emerged = {name: found["step"] for name, found in onset.items() if found is not None}
    if "induction_head" not in emerged:
        return "no induction head emerges"

    order = sorted(emerged, key=lambda name: emerged[name]["value"])
    words = ""

    for before, name in zip([None, *order], order, strict=False):
        step = emerged[name]
        told = f"{name.replace('_', ' ')} at step {step['value']:.0f}"

        if before is None:
            words = told
        else:
            apart = emerged[before]["high"] < step["low"]
            words += f"{', then' if apart else ', with'} {told}"

    return f"in order: {words}"
