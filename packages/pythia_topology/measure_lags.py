"""Do long copies use later layers than short ones, in this model?

Layer profiles by lag, and the shift of their centre. Interval and p answer one question, of this
model's heads as they are: other prompts could have been drawn, other heads could not.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from interp_core.errors import InputError
from interp_core.statistics.interval import Interval, bootstrap
from interp_core.statistics.resampling import percentile_interval, resampled_means
from pythia_topology.measure_layer_profile import HeadEvidence, find_induction_heads
from pythia_topology.measure_shape import (
    Shape,
    above_noise,
    check_mode,
    layer_profile,
    profile_shape,
    relative_depth,
)

Profile = Callable[[Float[np.ndarray, "*draw layer head"]], Float[np.ndarray, "*draw layer"]]
ShapeOf = Callable[[Float[np.ndarray, "*draw layer head"]], Shape]
UNIT = "prompts"


def lags_summary(
    heads: HeadEvidence,
    lag: Int[np.ndarray, " prompt"],
    rng: np.random.Generator,
    *,
    split: int,
    mode: str,
    q: float,
    alpha: float,
    draws: int,
    smallest_effect: float,
    resamples: int,
) -> dict[str, Any]:
    """The lag file's content.

    Profiles of each lag and of the buckets short (lag <= split) and long, and the shift of the
    centre of mass, long minus short, in relative depth, with its interval and the p of exchanging
    prompts between the buckets. `at_peak` is the mean excess in the layer that is the peak over all
    prompts. The verdict on heads is from all prompts too.

    InputError when all lags lie on one side of the split.
    """
    check_mode(mode, q)
    long = lag > split
    if long.all() or not long.any():
        values = np.unique(lag).tolist()
        raise InputError(f"the split {split} leaves a bucket empty: the lags are {values}")

    verdict = find_induction_heads(
        heads, rng, alpha=alpha, draws=draws, smallest_effect=smallest_effect
    )
    known = verdict.n > 0
    excess = heads.excess

    def profile(means: Float[np.ndarray, "*draw layer head"]) -> Float[np.ndarray, "*draw layer"]:
        return layer_profile(means, mode=mode, q=q, threshold=verdict.above)

    def shape(means: Float[np.ndarray, "*draw layer head"]) -> Shape:
        return profile_shape(profile(means), profile(above_noise(means, verdict.above)))

    peak = int(profile(excess.mean(axis=0)).argmax())

    def entries(chosen: Bool[np.ndarray, " prompt"]) -> dict[str, Any]:
        found = _entries(excess[chosen], profile, shape, rng, resamples=resamples, known=known)
        at_peak = excess[chosen, peak].mean(axis=1)
        mean = bootstrap(at_peak, rng, resamples=resamples, unit=UNIT)
        return found | {"at_peak": {"layer": peak, **mean.to_json()}}

    buckets = {"short": ~long, "long": long}
    shift = _shift(excess, long, shape, rng, draws=draws, resamples=resamples)

    return {
        "mode": mode,
        "q": q,
        "split": split,
        "n": len(lag),
        "verdict": verdict.words,
        "n_induction_heads": verdict.n,
        "depth": relative_depth(excess.shape[1]).tolist(),
        "buckets": {
            name: {
                "lags": np.unique(lag[chosen]).tolist(),
                "n": int(chosen.sum()),
                **entries(chosen),
            }
            for name, chosen in buckets.items()
        },
        "per_lag": [
            {"lag": int(value), "n": int((lag == value).sum()), **entries(lag == value)}
            for value in np.unique(lag)
        ],
        "centre_of_mass_shift": shift if known else None,
    }


def _entries(
    excess: Float[np.ndarray, "prompt layer head"],
    profile: Profile,
    shape_of: ShapeOf,
    rng: np.random.Generator,
    *,
    resamples: int,
    known: bool,
) -> dict[str, Any]:
    """A bucket's profile with its band, its peak and its centre, all over prompts."""
    mean, drawn = excess.mean(axis=0), resampled_means(excess, rng, resamples=resamples)
    band = percentile_interval(profile(mean), profile(drawn))

    shape, draws = shape_of(mean), shape_of(drawn)
    known = known and bool(np.isfinite(shape.centre_of_mass))
    centre = None

    if known:
        ends = percentile_interval(float(shape.centre_of_mass), draws.centre_of_mass)
        centre = Interval.of(ends, n=len(excess), unit=UNIT).to_json()

    return {
        "per_layer": band.value.tolist(),
        "per_layer_low": band.low.tolist(),
        "per_layer_high": band.high.tolist(),
        "peak_layer": int(shape.peak_layer) if known else None,
        "peak_rel": float(shape.peak_rel) if known else None,
        "centre_of_mass": centre,
    }


def _shift(
    excess: Float[np.ndarray, "prompt layer head"],
    long: Bool[np.ndarray, " prompt"],
    shape_of: ShapeOf,
    rng: np.random.Generator,
    *,
    draws: int,
    resamples: int,
) -> dict[str, Any] | None:
    """Long minus short centre of mass; None where a bucket's profile has no mass."""

    def centre(means: Float[np.ndarray, "*draw layer head"]) -> Float[np.ndarray, "*draw"]:
        return shape_of(means).centre_of_mass

    sides = [excess[~long], excess[long]]
    short_centre, long_centre = (float(centre(side.mean(axis=0))) for side in sides)
    observed = long_centre - short_centre

    if not np.isfinite(observed):
        return None

    short_draws, long_draws = (
        centre(resampled_means(side, rng, resamples=resamples)) for side in sides
    )
    ends = percentile_interval(observed, long_draws - short_draws)
    interval = Interval.of(ends, n=len(long), unit=UNIT)

    def mean_of(
        members: Bool[np.ndarray, "draw prompt"],
    ) -> Float[np.ndarray, "draw layer head"]:
        shares = members / members.sum(axis=1, keepdims=True)
        return np.tensordot(shares, excess, axes=1)

    members = rng.permuted(np.broadcast_to(long, (draws, len(long))), axis=1)
    null = np.abs(centre(mean_of(members)) - centre(mean_of(~members)))

    # A draw without mass has no centre and counts as a hit.
    hits = np.count_nonzero(~(null < abs(observed) - 1e-12))
    return {**interval.to_json(), "p": (1 + hits) / (1 + draws), "draws": draws}
