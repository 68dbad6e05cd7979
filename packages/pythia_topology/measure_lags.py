"""Do long copies use later layers than short ones?

Layer profiles by lag, and the shift of their centre.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from interp_core.errors import InputError
from interp_core.statistics.resampling import percentile_interval, resampled_heads, resampled_means
from pythia_topology.measure_layer_profile import (
    HeadEvidence,
    check_mode,
    find_induction_heads,
    layer_profile,
    profile_shape,
    relative_depth,
    shape_entries,
)


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
    """The lag file's content: profiles of each lag and of the buckets short (lag <= split) and
    long, and the shift of the centre of mass, long minus short, in relative depth, with its
    interval and the p of exchanging prompts between the buckets. In a draw both buckets get the
    same resampled heads. The verdict on heads is from all prompts.

    InputError when all lags lie on one side of the split.
    """
    check_mode(mode, q)
    long = lag > split
    if long.all() or not long.any():
        raise InputError(
            f"the split {split} leaves a bucket empty: the lags are {np.unique(lag).tolist()}"
        )
    verdict = find_induction_heads(
        heads, rng, alpha=alpha, draws=draws, smallest_effect=smallest_effect
    )
    above = max(verdict.test.threshold, smallest_effect)
    excess = heads.excess
    drawn_heads = resampled_heads(excess.shape[1], excess.shape[2], rng, resamples=resamples)

    def profiles(
        chosen: Bool[np.ndarray, " prompt"],
    ) -> tuple[Float[np.ndarray, " layer"], Float[np.ndarray, "draw layer"]]:
        means = resampled_means(excess[chosen], rng, resamples=resamples)
        drawn = layer_profile(
            np.take_along_axis(means, drawn_heads, axis=2), mode=mode, q=q, threshold=above
        )
        return layer_profile(excess[chosen].mean(axis=0), mode=mode, q=q, threshold=above), drawn

    known = verdict.n > 0
    buckets = {"short": profiles(~long), "long": profiles(long)}
    chosen = {"short": ~long, "long": long}
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
                "lags": np.unique(lag[chosen[name]]).tolist(),
                "n": int(chosen[name].sum()),
                **_entries(*buckets[name], known=known),
            }
            for name in buckets
        },
        "per_lag": [
            {
                "lag": int(value),
                "n": int((lag == value).sum()),
                **_entries(*profiles(lag == value), known=known),
            }
            for value in np.unique(lag)
        ],
        "centre_of_mass_shift": _shift(
            buckets, excess, long, rng, mode=mode, q=q, above=above, draws=draws
        )
        if known
        else None,
    }


def _entries(
    profile: Float[np.ndarray, " layer"], drawn: Float[np.ndarray, "draw layer"], *, known: bool
) -> dict[str, Any]:
    interval = percentile_interval(profile, drawn)
    return {
        "per_layer": interval.value.tolist(),
        "per_layer_low": interval.low.tolist(),
        "per_layer_high": interval.high.tolist(),
        **shape_entries(profile, drawn, known=known),
    }


def _shift(
    buckets: dict[str, tuple[Float[np.ndarray, " layer"], Float[np.ndarray, "draw layer"]]],
    excess: Float[np.ndarray, "prompt layer head"],
    long: Bool[np.ndarray, " prompt"],
    rng: np.random.Generator,
    *,
    mode: str,
    q: float,
    above: float,
    draws: int,
) -> dict[str, Any] | None:
    """Long minus short centre of mass; None where a bucket's profile has no mass."""
    centres = {
        name: [profile_shape(part).centre_of_mass for part in both]
        for name, both in buckets.items()
    }
    observed = float(centres["long"][0] - centres["short"][0])
    if not np.isfinite(observed):
        return None
    interval = percentile_interval(observed, centres["long"][1] - centres["short"][1])

    def centre(members: Bool[np.ndarray, "draw prompt"]) -> Float[np.ndarray, " draw"]:
        means = np.tensordot(members / members.sum(axis=1, keepdims=True), excess, axes=1)
        return profile_shape(layer_profile(means, mode=mode, q=q, threshold=above)).centre_of_mass

    members = rng.permuted(np.broadcast_to(long, (draws, len(long))), axis=1)
    null = np.abs(centre(members) - centre(~members))
    hits = np.count_nonzero(~(null < abs(observed) - 1e-12))  # a draw without mass counts as a hit
    return {
        "value": observed,
        "ci": [float(interval.low), float(interval.high)],
        "p": (1 + hits) / (1 + draws),
        "draws": draws,
    }
