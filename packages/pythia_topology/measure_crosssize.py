"""Do models of several sizes hold their induction heads at the same relative depth? Difference AND
equivalence."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from interp_core.errors import InputError
from interp_core.statistics.resampling import (
    equivalence_from_draws,
    hierarchical_bootstrap,
    percentile_interval,
    wasserstein_1,
)
from pythia_topology.measure_layer_profile import (
    HeadEvidence,
    Shape,
    Verdict,
    check_mode,
    find_induction_heads,
    layer_profile,
    profile_shape,
    relative_depth,
)


@dataclass(frozen=True)
class _Model:
    """What is compared of one model."""

    name: str
    n: int  # prompts
    verdict: Verdict
    excess: Float[np.ndarray, "layer head"]
    profile: Float[np.ndarray, " layer"]
    drawn: Float[np.ndarray, "draw layer"]
    shape: Shape
    shape_draws: Shape


def crosssize_summary(
    models: Mapping[str, HeadEvidence],
    rng: np.random.Generator,
    *,
    mode: str,
    q: float,
    margin: float,
    equivalence_alpha: float,
    alpha: float,
    draws: int,
    smallest_effect: float,
    resamples: int,
    grid_points: int,
) -> dict[str, Any]:
    """The cross-size file's content: every model's curve over relative depth, every pair's distance
    and equivalence, and one verdict. `margin`: largest difference of relative depth that counts as
    the same, in (0, 1).

    The overall verdict needs no correction for several pairs: "equivalent" only if every pair is
    (intersection-union). `wasserstein_p_adjusted` controls the false discovery rate over pairs.
    """
    check_mode(mode, q)
    if len(models) < 2:
        raise InputError(f"comparing sizes needs at least two models, got {len(models)}")
    measured = []
    for name, heads in models.items():
        verdict = find_induction_heads(
            heads, rng, alpha=alpha, draws=draws, smallest_effect=smallest_effect
        )
        above = max(verdict.test.threshold, smallest_effect)
        measured.append(
            _measure(name, heads, verdict, rng, mode=mode, q=q, above=above, resamples=resamples)
        )
    pairs = [
        _compare(first, second, rng, margin=margin, alpha=equivalence_alpha, draws=draws)
        for first, second in combinations(measured, 2)
    ]
    _adjust(pairs)
    return {
        "mode": mode,
        "q": q,
        "margin": margin,
        "equivalence_alpha": equivalence_alpha,
        "verdict": _overall([pair["verdict"] for pair in pairs], margin),
        "models": {model.name: _curve(model, grid_points) for model in measured},
        "grid": np.linspace(0, 1, grid_points).tolist(),
        "pairs": pairs,
    }


def _measure(
    name: str,
    heads: HeadEvidence,
    verdict: Verdict,
    rng: np.random.Generator,
    *,
    mode: str,
    q: float,
    above: float,
    resamples: int,
) -> _Model:
    excess = heads.excess
    head_means = excess.mean(axis=0)
    profile = layer_profile(head_means, mode=mode, q=q, threshold=above)
    drawn = hierarchical_bootstrap(
        excess,
        rng,
        resamples=resamples,
        statistic=lambda means: layer_profile(means, mode=mode, q=q, threshold=above),
    )
    return _Model(
        name,
        len(excess),
        verdict,
        head_means,
        profile,
        drawn,
        profile_shape(profile),
        profile_shape(drawn),
    )


def _curve(model: _Model, grid_points: int) -> dict[str, Any]:
    """A model's profile at its own layers and, interpolated linearly (constant beyond the first and
    the last layer's middle), on the common grid of relative depth.
    """
    depth, grid = relative_depth(len(model.profile)), np.linspace(0, 1, grid_points)
    interval = percentile_interval(model.profile, model.drawn)
    known = model.verdict.n > 0 and bool(np.isfinite(model.shape.centre_of_mass))
    entries: dict[str, Any] = {
        "n": model.n,
        "n_layers": len(model.profile),
        "n_induction_heads": model.verdict.n,
        "verdict": model.verdict.words,
        "depth": depth.tolist(),
        "per_layer": interval.value.tolist(),
        "per_layer_low": interval.low.tolist(),
        "per_layer_high": interval.high.tolist(),
        "curve": np.interp(grid, depth, interval.value).tolist(),
        "curve_low": np.interp(grid, depth, interval.low).tolist(),
        "curve_high": np.interp(grid, depth, interval.high).tolist(),
    }
    for name in ("centre_of_mass", "peak_rel", "bandwidth"):
        found = (
            percentile_interval(getattr(model.shape, name), getattr(model.shape_draws, name))
            if known
            else None
        )
        entries[name] = float(found.value) if found else None
        entries[f"{name}_ci"] = [float(found.low), float(found.high)] if found else None
    return entries


def _compare(
    first: _Model,
    second: _Model,
    rng: np.random.Generator,
    *,
    margin: float,
    alpha: float,
    draws: int,
) -> dict[str, Any]:
    """One pair: Wasserstein-1 between the depths of excess attention, heads as units, and TOST of
    centre and peak.
    """
    entries: dict[str, Any] = {"models": [first.name, second.name]}
    without = [model.name for model in (first, second) if model.verdict.n == 0]
    if without:
        nothing = ("wasserstein_1", "wasserstein_p", "centre_of_mass", "peak_rel")
        return (
            entries
            | dict.fromkeys(nothing)
            | {"verdict": f"not decided: no induction heads in {without[0]}"}
        )
    distance = wasserstein_1(*_depths(first), *_depths(second), rng, draws=draws)
    centre, peak = (
        _difference(first, second, name, margin=margin, alpha=alpha)
        for name in ("centre_of_mass", "peak_rel")
    )
    return entries | {
        "wasserstein_1": distance.value,
        "wasserstein_p": distance.p,
        "centre_of_mass": centre,
        "peak_rel": peak,
        "verdict": pair_verdict(
            equivalent=centre["equivalent"], interval=centre["ci"], margin=margin
        ),
    }


def pair_verdict(*, equivalent: bool, interval: list[float], margin: float) -> str:
    """Equivalent when TOST says so; different when the 95 % interval of the difference excludes
    zero; else open.
    """
    if equivalent:
        return f"equivalent within {margin:g}"
    return "different" if interval[0] > 0 or interval[1] < 0 else "not decided"


def _depths(model: _Model) -> tuple[Float[np.ndarray, " unit"], Float[np.ndarray, " unit"]]:
    """Relative depth and weight (excess prefix matching above zero) of each head."""
    depth = np.repeat(relative_depth(model.excess.shape[0]), model.excess.shape[1])
    return depth, np.clip(model.excess, 0, None).ravel()


def _difference(
    first: _Model, second: _Model, name: str, *, margin: float, alpha: float
) -> dict[str, Any]:
    """Second minus first with its 95 % interval, and TOST; the two models' draws are independent."""
    observed = float(getattr(second.shape, name) - getattr(first.shape, name))
    drawn = getattr(second.shape_draws, name) - getattr(first.shape_draws, name)
    interval = percentile_interval(observed, drawn)
    test = equivalence_from_draws(observed, drawn, margin=margin, alpha=alpha)
    return {
        "difference": observed,
        "ci": [float(interval.low), float(interval.high)],
        "ci_equivalence": [test.low, test.high],
        "p_equivalence": test.p,
        "equivalent": test.equivalent,
    }


def _adjust(pairs: list[dict[str, Any]]) -> None:
    """Add the Wasserstein p adjusted over pairs (Benjamini and Hochberg)."""
    tested = [pair for pair in pairs if pair["wasserstein_p"] is not None]
    adjusted = (
        stats.false_discovery_control([pair["wasserstein_p"] for pair in tested]) if tested else []
    )
    for pair in pairs:
        pair["wasserstein_p_adjusted"] = None
    for pair, p in zip(tested, adjusted, strict=True):
        pair["wasserstein_p_adjusted"] = float(p)


def _overall(verdicts: list[str], margin: float) -> str:
    if all(verdict.startswith("equivalent") for verdict in verdicts):
        return f"equivalent within {margin:g}"
    return "different" if "different" in verdicts else "not decided"
