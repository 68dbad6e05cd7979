"""Intervals, tests and fits, in float64 and vectorised; every random number comes from the
generator passed in.
"""

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Num
from scipy import special

from interp_core.errors import InputError


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its interval, one for each unit."""

    value: Float[np.ndarray, "*unit"]
    low: Float[np.ndarray, "*unit"]
    high: Float[np.ndarray, "*unit"]


@dataclass(frozen=True)
class MaxTest:
    """A one-sided test of many units at once: p is family-wise, and `observed > threshold` exactly
    where p <= alpha.
    """

    threshold: float
    p: Float[np.ndarray, "*unit"]


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests: p is the larger of the two; the interval is the one that must lie inside
    the margin.
    """

    difference: float
    low: float
    high: float
    p: float
    equivalent: bool


@dataclass(frozen=True)
class Distance:
    """A distance between two samples, at least 0, and its permutation p."""

    value: float
    p: float
    exchanges: int  # of units between the two, all of them distinct ones or random draws


def percentile_interval(
    value: Num[np.ndarray, "*unit"] | float,
    draws: Float[np.ndarray, "draw *unit"],
    *,
    level: float = 0.95,
) -> Interval:
    """The central `level` of bootstrap draws; draws where the statistic is undefined (NaN) are left
    out.
    """
    ends = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Interval(*(np.asarray(end, dtype=np.float64) for end in (value, *ends)))


def mean_interval(
    values: Float[np.ndarray, "prompt *unit"],
    rng: np.random.Generator,
    *,
    resamples: int,
    level: float = 0.95,
) -> Interval:
    """Mean over prompts with its percentile bootstrap interval; the prompts are resampled whole."""
    draws = resampled_means(values, rng, resamples=resamples)
    return percentile_interval(values.mean(axis=0, dtype=np.float64), draws, level=level)


def resampled_means(
    values: Float[np.ndarray, "prompt *unit"], rng: np.random.Generator, *, resamples: int
) -> Float[np.ndarray, "draw *unit"]:
    """Means over prompts drawn with replacement."""
    n = len(values)
    shares = rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n
    return np.tensordot(shares, values.astype(np.float64), axes=1)


def max_test(
    observed: Float[np.ndarray, "*unit"] | float,
    null_maxima: Float[np.ndarray, " draw"],
    *,
    alpha: float,
) -> MaxTest:
    """Compare each unit with the null's draws of the maximum over all units (family-wise error at
    most alpha).

    p = (1 + hits) / (1 + draws), a hit being a draw at least as large. InputError when so few draws
    cannot reach alpha.
    """
    draws = len(null_maxima)
    rank = math.floor(alpha * (1 + draws) + 1e-9)
    if rank < 1:
        raise InputError(
            f"{draws} draws cannot reach p = {alpha}: use at least {math.ceil(1 / alpha) - 1}"
        )
    ascending = np.sort(null_maxima)
    hits = draws - np.searchsorted(ascending, observed, side="left")
    return MaxTest(threshold=float(ascending[draws - rank]), p=np.asarray((1 + hits) / (1 + draws)))


def sign_flip_threshold(
    differences: Float[np.ndarray, "prompt *unit"],
    rng: np.random.Generator,
    *,
    alpha: float,
    draws: int,
) -> MaxTest:
    """Paired randomisation test of mean differences > 0, family-wise over units: signs of whole
    prompts are flipped.

    Null: each prompt's differences are symmetric about zero together. The statistic is the maximum
    over units, stepping down: a unit is compared with the maximum over itself and the units below
    it, so that strong units do not hide weak ones (Westfall and Young 1993). InputError when there
    are too few prompts, or draws, for alpha.
    """
    n = len(differences)
    needed = math.ceil(math.log2(4 / alpha))
    if n < needed:
        raise InputError(f"{n} prompts are too few for a test at {alpha}: use at least {needed}")
    units = differences.reshape(n, -1).astype(np.float64)
    null = rng.choice([-1.0, 1.0], size=(draws, n)) @ units / n
    return _step_down(differences.mean(axis=0, dtype=np.float64), null, alpha=alpha)


def _step_down(
    observed: Float[np.ndarray, "*unit"] | float,
    null: Float[np.ndarray, "draw flat_unit"],
    *,
    alpha: float,
) -> MaxTest:
    """Step-down p of each unit; the threshold is that of the units that are not rejected (of the
    last one if all are).
    """
    flat = np.ravel(observed)
    order = np.argsort(-flat, kind="stable")
    maxima = np.maximum.accumulate(null[:, order[::-1]], axis=1)[
        :, ::-1
    ]  # over a unit and all below it
    hits = (maxima >= flat[order] - 1e-12).sum(axis=0)
    p = np.empty(len(flat))
    p[order] = np.maximum.accumulate((1 + hits) / (1 + len(null)))
    first_kept = min(int((p <= alpha).sum()), len(flat) - 1)
    threshold = max_test(0.0, maxima[:, first_kept], alpha=alpha).threshold
    return MaxTest(threshold=threshold, p=p.reshape(np.shape(observed)))


def equivalence_normal(
    difference: float,
    standard_error: float,
    *,
    margin: float,
    alpha: float,
    degrees_of_freedom: float = math.inf,
) -> Equivalence:
    """TOST from a normal (or t) estimate and its standard error (Schuirmann 1987)."""
    _positive_margin(margin)
    # Student's t by its special functions: scipy.stats takes half a second to import, and calls
    # these.
    p = float(special.stdtr(degrees_of_freedom, -(margin - abs(difference)) / standard_error))
    reach = float(special.stdtrit(degrees_of_freedom, 1 - alpha)) * standard_error

    return Equivalence(difference, difference - reach, difference + reach, p, equivalent=p <= alpha)


def wasserstein_1(
    positions: Float[np.ndarray, " first"],
    weights: Float[np.ndarray, " first"],
    other_positions: Float[np.ndarray, " second"],
    other_weights: Float[np.ndarray, " second"],
    rng: np.random.Generator,
    *,
    draws: int,
) -> Distance:
    """Wasserstein-1 distance between two weighted distributions on a line, in the units of the
    positions, and the p of exchanging whole units (position and weight) between the two. Weights
    are not negative; each side is scaled to a mean weight of 1 first, so that only the distribution
    counts. An exchange that leaves a side without any weight counts as the farthest. At most
    `draws` distinct exchanges are gone through one by one: p is then exact.
    """
    if not (weights.sum() > 0 and other_weights.sum() > 0):
        raise InputError("a distance between distributions needs some weight on both sides")
    n = len(positions)
    place = np.concatenate([positions, other_positions]).astype(np.float64)
    both = [weights / weights.mean(), other_weights / other_weights.mean()]
    weight = np.concatenate(both).astype(np.float64)

    order = np.argsort(place, kind="stable")
    gaps = np.diff(place[order])
    sides = _exchanged(n, len(place), rng, draws=draws)
    distances = _distances(sides[:, order], weight[order], gaps)

    hits = np.count_nonzero(distances[1:] >= distances[0] - 1e-12)
    p = (1 + hits) / len(distances)
    return Distance(value=float(distances[0]), p=p, exchanges=len(distances) - 1)


def _exchanged(
    n: int, total: int, rng: np.random.Generator, *, draws: int
) -> Bool[np.ndarray, "exchange unit"]:
    """Which units are on the first side: as observed in the first row, then exchanged.

    All other ways where there are at most `draws`, so that p is exact and never below what they
    allow; else as many random ones.
    """
    observed = np.arange(total) < n

    if math.comb(total, n) - 1 > draws:
        return np.concatenate([observed[None], rng.permuted(np.tile(observed, (draws, 1)), axis=1)])

    ways = np.array(list(combinations(range(total), n)))  # the first one is what was observed
    sides = np.zeros((len(ways), total), dtype=bool)
    np.put_along_axis(sides, ways, values=True, axis=1)
    return sides


def _distances(
    mine: Bool[np.ndarray, "draw unit"],
    weight: Float[np.ndarray, " unit"],
    gaps: Float[np.ndarray, " gap"],
) -> Float[np.ndarray, " draw"]:
    """Area between the two cumulative distributions, for each assignment of the sorted units to the
    two sides.
    """
    own, others = mine * weight, ~mine * weight
    totals = [side.sum(axis=1, keepdims=True) for side in (own, others)]
    with np.errstate(invalid="ignore", divide="ignore"):
        between = np.cumsum(own / totals[0] - others / totals[1], axis=1)[:, :-1]
    distance = np.abs(between) @ gaps
    return np.where((totals[0] > 0)[:, 0] & (totals[1] > 0)[:, 0], distance, np.inf)


def split_half_rank(
    values: Float[np.ndarray, "prompt *unit"], rng: np.random.Generator, *, splits: int
) -> float:
    """How well the ranking of units repeats: Spearman's correlation between means of random halves
    of the prompts, averaged over splits and stepped up to all prompts (Spearman-Brown), at most 1.
    NaN when all units are equal.
    """
    from scipy import stats

    n = len(values)
    if n < 2:
        raise InputError(f"a split into halves needs at least 2 prompts, got {n}")
    units = values.reshape(n, -1).astype(np.float64)
    order = rng.permuted(np.tile(np.arange(n), (splits, 1)), axis=1)
    halves = (units[order[:, : n // 2]].mean(axis=1), units[order[:, n // 2 :]].mean(axis=1))
    ranks = [stats.rankdata(half, axis=1) for half in halves]
    centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    spread = np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1))
    with np.errstate(invalid="ignore"):
        correlation = float(((centred[0] * centred[1]).sum(axis=1) / spread).mean())
    return 2 * correlation / (1 + correlation)


def effective_number(weights: Float[np.ndarray, "*draw unit"]) -> Float[np.ndarray, "*draw"]:
    """exp(entropy) of weights that are not negative: n for n equal ones, 1 for a single one, NaN
    without any weight.
    """
    with np.errstate(invalid="ignore"):
        shares = weights / weights.sum(axis=-1, keepdims=True)
    return np.asarray(np.exp(special.entr(shares).sum(axis=-1)))


def _positive_margin(margin: float) -> None:
    if margin <= 0:
        raise InputError(f"an equivalence margin must be above 0, got {margin}")
