"""When heads form: the same scores on every training checkpoint of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from interp_core.statistics.interval import Interval
from interp_core.statistics.transitions import logistic_fit
from pythia_topology.measure_checkpoints import Series
from pythia_topology.measure_shape import above_noise, profile_shape
from pythia_topology.params import PythiaTopology
from pythia_topology.streams import STREAMS


def emergence(
    name: str, steps: Sequence[int], series: Series, params: PythiaTopology
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The report and arrays of emergence_<name>, at each checkpoint.

    Copying, induction heads and previous-token heads. Onsets are midpoints of logistic rises over
    log(1 + step); the heads followed are the best ones at the end.
    """
    excess = series["prefix_matching"] - series["prefix_matching_control"]
    followed = {
        "copy_accuracy": series["accuracy"],
        "induction_head": _best_at_end(excess),
        "previous_token_head": _best_at_end(series["previous_token"]),
    }
    onset = {what: _onset(steps, values, params) for what, values in followed.items()}

    report = {
        "name": name,
        "seed": params.seed,
        "n": series["accuracy"].shape[1],
        "steps": list(steps),
        "onset": onset,
        "verdict": _verdict(onset),
        "centre_of_mass": [_centre(at_step, params) for at_step in excess.mean(axis=1)],
    }
    saved = ("prefix_matching", "previous_token", "accuracy", "loss")
    arrays = {name: series[name].mean(axis=1) for name in saved}
    arrays |= {"excess_prefix_matching": excess.mean(axis=1)}

    single = {name: values.astype(np.float32) for name, values in arrays.items()}
    return report, {"steps": np.array(steps), **single}


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
    rng = STREAMS.rng("onset", params.seed)
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
