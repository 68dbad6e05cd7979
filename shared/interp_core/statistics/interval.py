"""A number with its interval: one shape in memory and in JSON, made by the method its data allow.

    found = student(centres, unit="trainings")       # or mean_share, bootstrap ...
    report["centre"] = found.to_json()               # {"value", "low", "high", "n", "unit"}
    found == Interval.from_json(report["centre"])    # True

Which one: `student` over trainings; `mean_share` for mean accuracies, above all near 0 or 1;
`bootstrap` for other means over texts or prompts (30 or more); `two_level_errors` where heads were
sampled as well as prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Num
from scipy import special

from interp_core.errors import InputError, first_line
from interp_core.statistics.resampling import Interval as Ends
from interp_core.statistics.resampling import mean_interval, resampled_means

Matrices = Float[np.ndarray, "draw layer head"]


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval (unless another level was asked for); no ends for one unit."""

    value: float
    low: float | None
    high: float | None
    n: int  # how many units the interval is over
    unit: str  # what was resampled: trainings, texts, prompts, heads ...

    @property
    def ends(self) -> tuple[float, float] | None:
        """Both ends, or None where there is no interval."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def excludes(self, value: float) -> bool:
        """Whether the value lies outside; never without an interval."""
        return self.ends is not None and not self.ends[0] <= value <= self.ends[1]

    def to_json(self) -> dict[str, Any]:
        """{"value", "low", "high", "n", "unit"}."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Interval":
        """The inverse of to_json. InputError when an entry lacks a key."""
        try:
            return cls(entry["value"], entry["low"], entry["high"], entry["n"], entry["unit"])
        except KeyError as missing:
            raise InputError(
                f"an interval lacks {first_line(missing)}: write its report again"
            ) from None

    @classmethod
    def of(cls, ends: Ends, *, n: int, unit: str) -> "Interval":
        """From the core's arrays of ends, when they hold one number."""
        return cls(float(ends.value), float(ends.low), float(ends.high), n, unit)


def array_json(ends: Ends, *, n: int, unit: str) -> dict[str, Any]:
    """The same shape for many intervals at once: value, low and high are lists."""
    return {
        "value": ends.value.tolist(),
        "low": ends.low.tolist(),
        "high": ends.high.tolist(),
        "n": n,
        "unit": unit,
    }


def bootstrap(
    values: Num[np.ndarray, " unit"],
    rng: np.random.Generator,
    *,
    resamples: int,
    unit: str,
    level: float = 0.95,
) -> Interval:
    """Mean with the percentile bootstrap's ends.

    Too narrow below some 30 units, and for shares near 0 or 1.
    """
    found = mean_interval(values, rng, resamples=resamples, level=level)
    return Interval.of(found, n=len(values), unit=unit)


def student(
    values: Sequence[float] | Num[np.ndarray, " unit"], *, unit: str, level: float = 0.95
) -> Interval:
    """Mean with Student's ends, for a handful of trainings; no ends for a single one.

    Exact for normal values.
    """
    numbers = np.asarray(values, dtype=np.float64)
    n = len(numbers)

    if n == 0:
        raise InputError(f"an interval over {unit} has no values: run at least one")

    value = float(numbers.mean())
    if n == 1:
        return Interval(value, None, None, 1, unit)

    # The mean is estimated from the same values, which takes one degree of freedom: ddof is 1.
    error = float(numbers.std(ddof=1)) / np.sqrt(n)
    reach = float(special.stdtrit(n - 1, (1 + level) / 2) * error)
    return Interval(value, value - reach, value + reach, n, unit)


def mean_share(values: Num[np.ndarray, " unit"], *, unit: str, level: float = 0.95) -> Interval:
    """Mean of shares in [0, 1], one for each unit (accuracy of each prompt), ends in [0, 1].

    Clopper-Pearson ends for the number of independent yes-or-no trials that would vary as these
    units do (Korn and Graubard 1998), at least one for each unit. Covers .95 or more for means of
    .9 to 1 and 32 to 128 units of several kinds. 64 prompts without a miss leave [.944, 1], where a
    bootstrap says [1, 1].
    """
    shares = np.asarray(values, dtype=np.float64)
    n = len(shares)

    if n < 2 or shares.min() < 0 or shares.max() > 1:
        raise InputError(f"a mean share needs 2 or more {unit} with values in [0, 1]")

    value = float(shares.mean())

    # Samples near 1 often lack their rare bad units, and would look too sure: one more unit that
    # misses a third is counted in the variance. Without it coverage falls to .85.
    variance = (float(shares.var(ddof=1)) + (1 / 3) ** 2 / n) / n

    # The variance is itself estimated from n units: Student's quantile over the normal one.
    upper = (1 + level) / 2
    stretch = (special.ndtri(upper) / special.stdtrit(n - 1, upper)) ** 2
    trials = value * (1 - value) / variance * float(stretch)

    # Units in [0, 1] vary at most as much as yes or no does: each is worth a trial at least.
    trials = max(trials, float(n))

    low, high = _beta_ends(value * trials, trials, level)
    return Interval(value, low, high, n, unit)


def _beta_ends(hits: float, trials: float, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    missed = max(trials - hits, 0.0)

    low = float(special.betaincinv(hits, missed + 1, tail)) if hits > 0 else 0.0
    high = float(special.betaincinv(hits + 1, missed, 1 - tail)) if missed > 0 else 1.0
    return low, high


@dataclass(frozen=True)
class Errors:
    """Values with standard errors and their degrees of freedom, for intervals and tests."""

    value: Float[np.ndarray, "*unit"]
    error: Float[np.ndarray, "*unit"]
    freedom: Float[np.ndarray, "*unit"]


def two_level_errors(
    values: Float[np.ndarray, "prompt layer head"],
    rng: np.random.Generator,
    *,
    resamples: int,
    statistic: Callable[[Matrices], Float[np.ndarray, "draw *unit"]],
) -> Errors:
    """A statistic of the matrix of means, over prompts and heads that could have been others.

    Each source of variance is resampled alone: prompts, and the heads of each layer. The bootstrap
    understates the variance between k heads by (k - 1) / k, which is made good; the quantile is
    Student's with Satterthwaite's degrees of freedom. With 4 heads a plain hierarchical bootstrap
    covers .84, this .93 or more. One head a layer tells nothing of how heads vary: errors are NaN.
    """
    n, n_layers, n_heads = values.shape
    if n < 2:
        raise InputError(f"an interval over prompts and heads needs 2 or more prompts, got {n}")

    means = values.mean(axis=0, dtype=np.float64)  # [layer, head]
    value = statistic(means[None])[0]

    by_prompts = statistic(resampled_means(values, rng, resamples=resamples))
    parts = [np.nanvar(by_prompts, axis=0) * n / (n - 1)]
    freedom = [float(n - 1)]

    # NaN, not 0: a single head says nothing about the others.
    inflation = n_heads / (n_heads - 1) if n_heads > 1 else np.nan

    for layer in range(n_layers):
        drawn = np.repeat(means[None], resamples, axis=0)
        drawn[:, layer] = means[layer][rng.integers(n_heads, size=(resamples, n_heads))]
        parts.append(np.nanvar(statistic(drawn), axis=0) * inflation)
        freedom.append(float(n_heads - 1))

    variance = np.sum(parts, axis=0)
    uncertain = sum(part**2 / max(df, 1.0) for part, df in zip(parts, freedom, strict=True))
    df = np.maximum(variance**2 / np.maximum(uncertain, 1e-300), 1.0)

    return Errors(np.asarray(value), np.asarray(np.sqrt(variance)), np.asarray(df))
