"""Where a model's induction heads sit: layer profiles, their peak, centre and bandwidth, and
whether there are any.

Two nulls are subtracted from prefix matching A[t, s + 1], for they answer different questions.
EXCESS: minus the same place in the control prompt, whose antecedent was replaced, so that position
and lag are matched exactly; its sign flips give the test. OVER SHUFFLED: minus attention to wrong
antecedents of the same prompt, so that a head that looks at all repeated places alike scores zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from interp_core.errors import InputError
from interp_core.statistics.resampling import (
    MaxTest,
    effective_number,
    hierarchical_bootstrap,
    percentile_interval,
    sign_flip_threshold,
    split_half_rank,
)

Mode = Literal["mean", "top_quantile", "count"]


@dataclass(frozen=True)
class HeadEvidence:
    """One model's prefix matching on one family of prompts: on the prompts, on their controls, and
    at shuffled antecedents; attention shares in [0, 1].
    """

    prefix_matching: Float[np.ndarray, "prompt layer head"]
    control: Float[np.ndarray, "prompt layer head"]
    shuffled: Float[np.ndarray, "draw prompt layer head"]

    @property
    def excess(self) -> Float[np.ndarray, "prompt layer head"]:
        """Prefix matching minus the same on the control, in [-1, 1]."""
        return self.prefix_matching.astype(np.float64) - self.control.astype(np.float64)

    @property
    def over_shuffled(self) -> Float[np.ndarray, "prompt layer head"]:
        """Prefix matching minus attention to shuffled antecedents of the same prompt, in [-1, 1]."""
        return self.prefix_matching.astype(np.float64) - self.shuffled.mean(
            axis=0, dtype=np.float64
        )


@dataclass(frozen=True)
class Verdict:
    """Which heads are induction heads: [layer, head] by a family-wise test and a smallest effect of
    interest."""

    heads: Bool[np.ndarray, "layer head"]
    test: MaxTest
    words: str

    @property
    def n(self) -> int:
        """The number of induction heads."""
        return int(self.heads.sum())


@dataclass(frozen=True)
class Shape:
    """What a layer profile looks like, one value a draw; NaN where the profile has no mass."""

    peak_layer: Int[np.ndarray, "*draw"]  # index of the highest layer
    peak_rel: Float[np.ndarray, "*draw"]  # its relative depth, (l + 0.5) / L
    peak_parabolic_rel: Float[
        np.ndarray, "*draw"
    ]  # vertex of the parabola through the peak and its neighbours
    centre_of_mass: Float[np.ndarray, "*draw"]  # mean relative depth of the mass
    bandwidth: Float[np.ndarray, "*draw"]  # relative depth that holds the mass from 16 % to 84 %
    effective_layers: Float[np.ndarray, "*draw"]  # exp(entropy) of the mass over layers


def evidence(arrays: Mapping[str, np.ndarray], family: str) -> HeadEvidence:
    """The per-prompt scores of a family from a scores file. InputError when the file lacks one."""
    names = [
        f"prompts/{family}/{score}"
        for score in ("prefix_matching", "prefix_matching_control", "shuffled")
    ]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError(
            f"the scores hold no array `{missing[0]}`: compute them anew with family {family}"
        )
    return HeadEvidence(*(arrays[name] for name in names))


def relative_depth(n_layers: int) -> Float[np.ndarray, " layer"]:
    """(l + 0.5) / L: the middle of each layer, in (0, 1)."""
    return (np.arange(n_layers) + 0.5) / n_layers


def layer_profile(
    scores: Float[np.ndarray, "*draw layer head"], *, mode: str, q: float, threshold: float = np.inf
) -> Float[np.ndarray, "*draw layer"]:
    """One number a layer: the mean of its heads; the mean of its heads at or above their
    q-quantile; or the count of heads above `threshold`. InputError for an unknown mode or a q
    outside (0, 1).
    """
    check_mode(mode, q)
    if mode == "mean":
        return scores.mean(axis=-1)
    if mode == "count":
        return (scores > threshold).sum(axis=-1).astype(np.float64)
    high = scores >= np.quantile(scores, q, axis=-1, keepdims=True)
    return (scores * high).sum(axis=-1) / high.sum(axis=-1)


def check_mode(mode: str, q: float) -> None:
    """InputError for an unknown mode or a quantile outside (0, 1)."""
    if mode not in get_args(Mode):
        raise InputError(f"unknown profile mode `{mode}`; known: {', '.join(get_args(Mode))}")
    if not 0 < q < 1:
        raise InputError(f"the quantile of high scores must lie inside (0, 1), got {q}")


def profile_shape(profile: Float[np.ndarray, "*draw layer"]) -> Shape:
    """Peak, centre and width of profiles whose null was already subtracted; what lies below zero
    has no mass.
    """
    n_layers = profile.shape[-1]
    mass = np.clip(profile, 0, None)
    total = mass.sum(axis=-1)
    empty = total <= 0
    peak = profile.argmax(axis=-1)
    with np.errstate(invalid="ignore"):
        centre = mass @ relative_depth(n_layers) / total
    return Shape(
        peak_layer=np.asarray(peak),
        peak_rel=np.where(empty, np.nan, (peak + 0.5) / n_layers),
        peak_parabolic_rel=np.where(
            empty, np.nan, (peak + _parabolic_offset(profile, peak) + 0.5) / n_layers
        ),
        centre_of_mass=np.asarray(centre),
        bandwidth=np.where(empty, np.nan, _mass_quantile(mass, 0.84) - _mass_quantile(mass, 0.16)),
        effective_layers=effective_number(mass),
    )


def find_induction_heads(
    heads: HeadEvidence,
    rng: np.random.Generator,
    *,
    alpha: float,
    draws: int,
    smallest_effect: float,
) -> Verdict:
    """Heads whose prefix matching exceeds the control's by more than the null's 1 - alpha quantile
    of the maximum over heads, and which exceed control and shuffled antecedents by at least
    `smallest_effect` (attention share).
    """
    excess = heads.excess.mean(axis=0)
    test = sign_flip_threshold(heads.excess, rng, alpha=alpha, draws=draws)
    effect = np.minimum(excess, heads.over_shuffled.mean(axis=0))
    found = (test.p <= alpha) & (effect >= smallest_effect)
    n = int(found.sum())
    words = {0: "no induction heads", 1: "1 induction head"}.get(n, f"{n} induction heads")
    return Verdict(heads=found, test=test, words=words)


def head_labels(
    chosen: Bool[np.ndarray, "layer head"], by: Float[np.ndarray, "layer head"]
) -> list[str]:
    """Labels as L5H1 of the chosen heads, the highest score first."""
    places = sorted(zip(*np.nonzero(chosen), strict=True), key=lambda place: -by[place])
    return [f"L{layer}H{head}" for layer, head in places]


def layer_profile_summary(
    heads: HeadEvidence,
    rng: np.random.Generator,
    *,
    mode: str,
    q: float,
    alpha: float,
    draws: int,
    smallest_effect: float,
    resamples: int,
    splits: int,
) -> dict[str, Any]:
    """The profile file's content.

    Profiles are of excess prefix matching (in mode `count`: heads above the null's threshold);
    `*_low`, `*_high` and `*_ci` are 95 % hierarchical bootstrap intervals. Where no head is an
    induction head, everything that describes a peak or a band is None.
    """
    check_mode(mode, q)
    verdict = find_induction_heads(
        heads, rng, alpha=alpha, draws=draws, smallest_effect=smallest_effect
    )
    above = max(verdict.test.threshold, smallest_effect)
    excess = heads.excess
    head_means = excess.mean(axis=0)
    profile = layer_profile(head_means, mode=mode, q=q, threshold=above)
    drawn = hierarchical_bootstrap(
        excess,
        rng,
        resamples=resamples,
        statistic=lambda means: layer_profile(means, mode=mode, q=q, threshold=above),
    )
    interval = percentile_interval(profile, drawn)
    reliability = split_half_rank(excess, rng, splits=splits)
    return {
        "mode": mode,
        "q": q,
        "per_layer": profile.tolist(),
        "per_layer_low": interval.low.tolist(),
        "per_layer_high": interval.high.tolist(),
        "per_layer_prefix_matching": layer_profile(
            heads.prefix_matching.mean(axis=0, dtype=np.float64), mode=mode, q=q, threshold=above
        ).tolist(),
        **shape_entries(profile, drawn, known=verdict.n > 0),
        "n": len(excess),
        "n_layers": excess.shape[1],
        "n_heads": excess.shape[2],
        "verdict": verdict.words,
        "n_induction_heads": verdict.n,
        "induction_heads": head_labels(verdict.heads, head_means),
        "alpha": alpha,
        "null_threshold": verdict.test.threshold,
        "smallest_effect": smallest_effect,
        "p_best_head": float(verdict.test.p.min()),
        "split_half_rank": reliability if np.isfinite(reliability) else None,
    }


def shape_entries(
    profile: Float[np.ndarray, " layer"], drawn: Float[np.ndarray, "draw layer"], *, known: bool
) -> dict[str, Any]:
    """The shape of a profile as JSON entries with intervals; all None where there are no induction
    heads to describe or the profile has no mass. `bootstrap_without_mass`: share of draws that had
    none (they are left out).
    """
    shape, draws = profile_shape(profile), profile_shape(drawn)
    names = ("peak_rel", "peak_parabolic_rel", "centre_of_mass", "bandwidth", "effective_layers")
    known = known and bool(np.isfinite(shape.peak_rel))
    entries: dict[str, Any] = {"peak_layer": int(shape.peak_layer) if known else None}
    for name in names:
        interval = (
            percentile_interval(getattr(shape, name), getattr(draws, name)) if known else None
        )
        entries[name] = float(interval.value) if interval else None
        entries[f"{name}_ci"] = [float(interval.low), float(interval.high)] if interval else None
    return entries | {
        "bootstrap_without_mass": float(np.isnan(draws.peak_rel).mean()) if known else None
    }


def _parabolic_offset(
    profile: Float[np.ndarray, "*draw layer"], peak: Int[np.ndarray, "*draw"] | np.integer
) -> Float[np.ndarray, "*draw"]:
    """From the highest layer to the vertex of the parabola through it and its neighbours, in
    layers, within +-0.5; 0 at the first and the last layer.
    """
    last = profile.shape[-1] - 1

    def at(layer: Any) -> Float[np.ndarray, "*draw"]:
        index = np.expand_dims(np.clip(layer, 0, last), -1)
        return np.asarray(np.take_along_axis(profile, index, axis=-1)[..., 0])

    below, top, above = at(peak - 1), at(peak), at(peak + 1)
    curvature = below - 2 * top + above
    inner = (peak > 0) & (peak < last) & (curvature < 0)
    return np.asarray(np.where(inner, 0.5 * (below - above) / np.where(inner, curvature, 1.0), 0.0))


def _mass_quantile(
    mass: Float[np.ndarray, "*draw layer"], share: float
) -> Float[np.ndarray, "*draw"]:
    """Relative depth below which `share` of the mass lies, each layer's mass spread evenly over its
    1 / L of depth.
    """
    n_layers = mass.shape[-1]
    below = np.cumsum(mass, axis=-1)
    wanted = share * below[..., -1:]
    layer = np.minimum((below < wanted).sum(axis=-1, keepdims=True), n_layers - 1)
    inside = np.take_along_axis(mass, layer, axis=-1)
    start = np.take_along_axis(below, layer, axis=-1) - inside
    with np.errstate(invalid="ignore"):
        return np.asarray(((layer + (wanted - start) / inside) / n_layers)[..., 0])
