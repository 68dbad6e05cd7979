"""Do these models hold their induction heads at the same relative depth? Difference AND
equivalence.

One training of each is compared: every interval is over prompts and heads of these models, and says
nothing of what another seed would give. Claims about sizes are measure_sizes's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import special, stats

from interp_core.errors import InputError
from interp_core.statistics.interval import Errors, Interval
from interp_core.statistics.resampling import equivalence_normal, wasserstein_1
from pythia_topology.measure_layer_profile import HeadEvidence, Verdict, find_induction_heads
from pythia_topology.measure_shape import (
    UNIT,
    Described,
    above_noise,
    check_mode,
    describe,
    relative_depth,
)


@dataclass(frozen=True)
class _Model:
    """What is compared of one model."""

    name: str
    verdict: Verdict
    mass: Float[np.ndarray, " layer"]  # excess prefix matching of a layer, above the noise
    described: Described

    @property
    def known(self) -> bool:
        """Whether there are induction heads, and so a depth to compare."""
        return self.described.known and bool(self.mass.any())


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
    """The cross-size file's content.

    Every model's curve over relative depth, every pair's distance and equivalence, and a verdict
    for the centre and one for the peak. `margin`: largest difference of relative depth that counts
    as the same, in (0, 1). A verdict needs no correction for several pairs: "equivalent" only if
    every pair is (intersection-union). `wasserstein_p_adjusted` controls the false discovery rate
    over pairs.
    """
    check_mode(mode, q)
    if len(models) < 2:
        raise InputError(f"comparing sizes needs at least two models, got {len(models)}")

    measured = []
    for name, heads in models.items():
        verdict = find_induction_heads(
            heads, rng, alpha=alpha, draws=draws, smallest_effect=smallest_effect
        )
        described = describe(
            heads.excess,
            rng,
            mode=mode,
            q=q,
            threshold=verdict.above,
            resamples=resamples,
            shaped=verdict.n > 0,
        )
        mass = above_noise(heads.excess.mean(axis=0), verdict.above).mean(axis=1)
        measured.append(_Model(name, verdict, mass, described))

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
        "peak_verdict": _overall([pair["peak_verdict"] for pair in pairs], margin),
        "models": {model.name: _curve(model, grid_points) for model in measured},
        "grid": np.linspace(0, 1, grid_points).tolist(),
        "pairs": pairs,
    }


def _curve(model: _Model, grid_points: int) -> dict[str, Any]:
    """A model's profile at its own layers and on the common grid of relative depth.

    Interpolated linearly, constant beyond the first and the last layer's middle.
    """
    depth, grid = relative_depth(len(model.mass)), np.linspace(0, 1, grid_points)
    band = model.described.band()

    curves = {
        f"curve{end}": np.interp(grid, depth, band[f"per_layer{end}"]).tolist()
        for end in ("", "_low", "_high")
    }
    return {
        "n": model.described.n,
        "n_layers": len(model.mass),
        "n_induction_heads": model.verdict.n,
        "verdict": model.verdict.words,
        "depth": depth.tolist(),
        **band,
        **curves,
        **model.described.entries(),
    }


def _compare(
    first: _Model,
    second: _Model,
    rng: np.random.Generator,
    *,
    margin: float,
    alpha: float,
    draws: int,
) -> dict[str, Any]:
    """One pair: Wasserstein-1 between the depths of excess attention, and TOST of centre and peak.

    Layers are the units that the permutation exchanges: the heads of a layer are alike, and dealt
    out one by one they would make chance differences look rare (.36 false positives at .05).
    """
    entries: dict[str, Any] = {"models": [first.name, second.name]}
    without = [model.name for model in (first, second) if not model.known]

    if without:
        words = f"not decided: no induction heads in {without[0]}"
        nothing = ("wasserstein_1", "wasserstein_p", "exchanges", "centre_of_mass", "peak_rel")
        return entries | dict.fromkeys(nothing) | {"verdict": words, "peak_verdict": words}

    places = [(relative_depth(len(model.mass)), model.mass) for model in (first, second)]
    distance = wasserstein_1(*places[0], *places[1], rng, draws=draws)

    centre, peak = (
        difference(
            first.described.shape[name],
            second.described.shape[name],
            margin=margin,
            alpha=alpha,
            n=first.described.n,
        )
        for name in ("centre_of_mass", "peak_rel")
    )
    return entries | {
        "wasserstein_1": distance.value,
        "wasserstein_p": distance.p,
        "exchanges": distance.exchanges,
        "centre_of_mass": centre,
        "peak_rel": peak,
        "verdict": pair_verdict(centre, margin=margin),
        "peak_verdict": pair_verdict(peak, margin=margin),
    }


def difference(
    first: Errors, second: Errors, *, margin: float, alpha: float, n: int
) -> dict[str, Any]:
    """Second less first with its 95 % interval, and TOST; both models' errors are independent.

    `low` and `high` are the ends that equivalence wants inside the margin, the 1 - 2 alpha
    interval. Where no draw moves either model (two peaks), there are no ends and no p: the
    difference is what it is. Where heads' spread is unknown (one a layer), nothing is equivalent.
    """
    value = float(second.value - first.value)
    variances = np.array([first.error, second.error], dtype=np.float64) ** 2
    variance = float(variances.sum())

    if not variance > 0:
        alone = Interval(value, None, None, n, UNIT)
        equivalent = variance == 0 and abs(value) < margin
        return _tested(alone, None, None, None, equivalent=equivalent)

    freedom = np.array([first.freedom, second.freedom], dtype=np.float64)
    together = variance**2 / float((variances**2 / freedom).sum())
    error = variance**0.5

    test = equivalence_normal(value, error, margin=margin, alpha=alpha, degrees_of_freedom=together)
    reach = float(special.stdtrit(together, 0.975)) * error
    interval = Interval(value, value - reach, value + reach, n, UNIT)
    return _tested(interval, test.low, test.high, test.p, equivalent=test.equivalent)


def _tested(
    interval: Interval,
    low: float | None,
    high: float | None,
    p: float | None,
    *,
    equivalent: bool,
) -> dict[str, Any]:
    ends = {"low": low, "high": high, "p": p, "equivalent": equivalent}
    return {"difference": interval.to_json(), **ends}


def pair_verdict(tested: Mapping[str, Any], *, margin: float) -> str:
    """Equivalent when TOST says so; different when the 95 % interval excludes zero; else open."""
    if tested["equivalent"]:
        return f"equivalent within {margin:g}"

    found = Interval.from_json(tested["difference"])
    # A difference that no draw moves is not of sampling.
    unmoved = found.ends is None and abs(found.value) >= margin
    return "different" if unmoved or found.excludes(0.0) else "not decided"


def _adjust(pairs: list[dict[str, Any]]) -> None:
    """Add the Wasserstein p adjusted over pairs (Benjamini and Hochberg)."""
    tested = [pair for pair in pairs if pair["wasserstein_p"] is not None]
    p = [pair["wasserstein_p"] for pair in tested]
    adjusted = stats.false_discovery_control(p) if tested else []

    for pair in pairs:
        pair["wasserstein_p_adjusted"] = None

    for pair, corrected in zip(tested, adjusted, strict=True):
        pair["wasserstein_p_adjusted"] = float(corrected)


def _overall(verdicts: Sequence[str], margin: float) -> str:
    if all(verdict.startswith("equivalent") for verdict in verdicts):
        return f"equivalent within {margin:g}"

    return "different" if "different" in verdicts else "not decided"
