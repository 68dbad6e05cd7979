"""How few units carry the activity: population measures (over units at a token) and lifetime ones
(over a unit's tokens), streamed: memory depends on units and groups of texts, never on the number
of tokens.

All measures are of |a|. Gini is the only one of the usual measures that meets all six axioms of
Hurley & Rickard (2009). Lifetime values come from histograms of |a| with exact counts and sums a
bin, so that they carry an error bound.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from interp_core.statistics.interval import Interval
from interp_core.statistics.resampling import percentile_interval, resampled_means

# Bins of |a|: four an octave, from 2^-24 to 2^16; the ends take what is beyond.
PER_OCTAVE, LOWEST, HIGHEST = 4, -24, 16
BINS = PER_OCTAVE * (HIGHEST - LOWEST) + 1
CURVE = 101  # points of a Lorenz curve
MEASURES = ("gini", "hoyer", "treves_rolls", "entropy", "near_zero")


def gini(a: Float[np.ndarray, "*batch unit"]) -> Float[np.ndarray, "*batch"]:
    """Gini's coefficient of |a|, in [0, 1): 0 when all are equal, 1 - 1/n when one has it all; 0
    for all zeros.
    """
    ascending = np.sort(np.abs(a), axis=-1)
    n = ascending.shape[-1]
    total = ascending.sum(axis=-1)

    weighted = ascending @ (n - np.arange(n) - 0.5)
    share = np.divide(weighted, n * total, out=np.zeros_like(total), where=total > 0)
    return np.where(total > 0, 1 - 2 * share, 0.0)


def hoyer(a: Float[np.ndarray, "*batch unit"]) -> Float[np.ndarray, "*batch"]:
    """(sqrt n - |a|_1 / |a|_2) / (sqrt n - 1), in [0, 1]: 0 when all are equal, 1 for a single one
    (Hoyer 2004).
    """
    n = a.shape[-1]
    size = np.sqrt((a**2).sum(axis=-1))

    # All zeros are all equal.
    equal = np.full_like(size, np.sqrt(n))
    ratio = np.divide(np.abs(a).sum(axis=-1), size, out=equal, where=size > 0)
    return np.asarray((np.sqrt(n) - ratio) / (np.sqrt(n) - 1))


def treves_rolls(a: Float[np.ndarray, "*batch unit"]) -> Float[np.ndarray, "*batch"]:
    """(1 - (E|a|)^2 / E a^2) / (1 - 1/n), in [0, 1] (Rolls & Tovee 1995; Vinje & Gallant 2000)."""
    n = a.shape[-1]
    square = (a**2).mean(axis=-1)
    squared_mean = np.abs(a).mean(axis=-1) ** 2

    share = np.divide(squared_mean, square, out=np.ones_like(square), where=square > 0)
    return np.asarray((1 - share) / (1 - 1 / n))


def entropy(a: Float[np.ndarray, "*batch unit"]) -> Float[np.ndarray, "*batch"]:
    """Entropy of the shares of |a| over ln n, in [0, 1]: 1 when all are equal, 0 for a single one;
    it falls with sparsity.
    """
    n = a.shape[-1]
    total = np.abs(a).sum(axis=-1, keepdims=True)
    p = np.divide(np.abs(a), total, out=np.full(a.shape, 1 / n), where=total > 0)

    logarithm = np.log(np.where(p > 0, p, 1.0))  # 0 log 0 is 0
    return np.asarray(-(p * logarithm).sum(axis=-1) / np.log(n))


def near_zero(a: Float[np.ndarray, "*batch unit"], share: float) -> Float[np.ndarray, "*batch"]:
    """Share of units below `share` times the root mean square of all: does not change with the
    scale.
    """
    limit = share * np.sqrt((a**2).mean(axis=-1, keepdims=True))
    return np.asarray((np.abs(a) < limit).mean(axis=-1))


def lorenz(a: Float[np.ndarray, "token unit"]) -> Float[np.ndarray, " point"]:
    """Mean over tokens of the Lorenz curve: the share of |a| that the lowest x of the units hold, x
    from 0 to 1.
    """
    n = a.shape[-1]
    ascending = np.sort(np.abs(a), axis=-1)
    total = np.maximum(ascending.sum(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    held = (np.cumsum(ascending, axis=-1) / total).mean(axis=0)

    of_units = np.arange(n + 1) / n
    return np.interp(np.linspace(0, 1, CURVE), of_units, np.concatenate([[0], held]))


def effective_dimension(covariance: Float[np.ndarray, "unit unit"]) -> float:
    """(tr C)^2 / tr C^2: n for n equal uncorrelated directions, 1 for a single one; 0 without any
    variance.
    """
    squares = float((covariance**2).sum())
    return float(np.trace(covariance)) ** 2 / squares if squares > 0 else 0.0


@dataclass
class Lifetime:
    """Histograms of |a| by unit and group of texts: a fixed number of counts and sums, however many
    tokens pass.
    """

    counts: Float[np.ndarray, "group unit bin"]
    sums: Float[np.ndarray, "group unit bin"]
    squares: Float[np.ndarray, "group unit"]
    values: Float[np.ndarray, "group unit"]  # signed sums

    @classmethod
    def empty(cls, groups: int, units: int) -> "Lifetime":
        """Before the first token."""
        shape = (groups, units, BINS)
        flat = (groups, units)
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(flat), np.zeros(flat))

    def add(self, a: Float[np.ndarray, "token unit"], group: int) -> None:
        """Count the tokens of one text."""
        size, units = np.abs(a), a.shape[1]
        with np.errstate(divide="ignore"):
            bins = np.floor(PER_OCTAVE * (np.log2(size) - LOWEST)) + 1

        # Bins of all units in one row, so that one count serves all.
        place = np.clip(bins, 0, BINS - 1).astype(np.int64) + np.arange(units) * BINS
        counts = np.bincount(place.ravel(), minlength=units * BINS)
        sums = np.bincount(place.ravel(), weights=size.ravel(), minlength=units * BINS)

        self.counts[group] += counts.reshape(-1, BINS)
        self.sums[group] += sums.reshape(-1, BINS)
        self.squares[group] += (a**2).sum(axis=0)
        self.values[group] += a.sum(axis=0)

    def measures(
        self, weight: Float[np.ndarray, " group"], share: float
    ) -> dict[str, Float[np.ndarray, " unit"]]:
        """Each unit's measures over its tokens, groups counted `weight` times; `gini_error` is how
        far above `gini` the exact value may lie.
        """
        counts, sums = (np.tensordot(weight, part, axes=1) for part in (self.counts, self.sums))
        square = weight @ self.squares
        n, total = counts.sum(axis=1), sums.sum(axis=1)
        alive = total > 0
        safe, safe_square = np.where(alive, total, 1.0), np.where(alive, square, 1.0)

        rank = (np.cumsum(counts, axis=1) - counts / 2) / n[:, None]
        lower = np.where(alive, 2 * (sums * rank).sum(axis=1) / safe - 1, 0.0)

        # Within a bin values differ at most by its ratio r: its own Gini is at most (sqrt r - 1) /
        # (sqrt r + 1). The two ends are open: at most 1.
        root = 2 ** (0.5 / PER_OCTAVE)
        own = np.full(BINS, (root - 1) / (root + 1))
        own[[0, -1]] = 1.0
        inside = (counts / n[:, None] * sums) @ own / safe

        one_norm = total / np.sqrt(safe_square)
        of_two_norms = (1 - total**2 / n / safe_square) / (1 - 1 / n)

        # A bin's tokens are counted as equal.
        p = sums / np.maximum(counts, 1) / safe[:, None]
        spread = -(counts * p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1) / np.log(n)

        # The bin that holds the limit counts by the part of it that lies below.
        limit = PER_OCTAVE * (np.log2(share * np.sqrt(safe_square / n)) - LOWEST) + 1
        inside_bin = np.clip(limit[:, None] - np.arange(BINS), 0, 1)
        below = (counts * inside_bin).sum(axis=1) / n

        return {
            "gini": lower,
            "gini_error": np.where(alive, inside, 0.0),
            "hoyer": np.where(alive, (np.sqrt(n) - one_norm) / (np.sqrt(n) - 1), 0.0),
            "treves_rolls": np.where(alive, of_two_norms, 0.0),
            "entropy": np.where(alive, spread, 1.0),
            "near_zero": np.where(alive, below, 1.0),
        }

    @property
    def variance(self) -> Float[np.ndarray, " unit"]:
        """Of each unit over all tokens."""
        n = self.counts.sum(axis=(0, 2))
        return np.maximum(self.squares.sum(axis=0) / n - (self.values.sum(axis=0) / n) ** 2, 0.0)

    @property
    def root_mean_square(self) -> Float[np.ndarray, " unit"]:
        """Of each unit over all tokens."""
        return np.sqrt(self.squares.sum(axis=0) / self.counts.sum(axis=(0, 2)))


@dataclass
class Stream:
    """What is kept of one kind of unit in one layer while texts pass by."""

    groups: int
    thresholds: tuple[float, ...]  # fixed thresholds on |a|
    share: float  # of the root mean square
    with_covariance: bool = True
    population: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in MEASURES}
    )
    # by text: share of |a| below each fixed threshold
    below: list[list[float]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    curve: Float[np.ndarray, " point"] = field(default_factory=lambda: np.zeros(CURVE))
    lifetime: Lifetime | None = None
    products: Float[np.ndarray, "unit unit"] | None = None

    def add(self, a: Float[np.ndarray, "token unit"], group: int) -> None:
        """Take in one text, in float64."""
        a = a.astype(np.float64)
        if self.lifetime is None:
            self.lifetime = Lifetime.empty(self.groups, a.shape[1])
            self.products = np.zeros((a.shape[1], a.shape[1])) if self.with_covariance else None

        for name, values in population(a, self.share).items():
            self.population[name].append(float(values.mean()))

        self.below.append([float((np.abs(a) < threshold).mean()) for threshold in self.thresholds])
        self.curve += len(a) * lorenz(a)
        self.tokens.append(len(a))
        self.lifetime.add(a, group)

        if self.products is not None:
            self.products += a.T @ a

    @property
    def shares_below(self) -> Float[np.ndarray, " threshold"]:
        """Share of |a| below each fixed threshold, over all tokens."""
        return np.average(np.array(self.below), axis=0, weights=self.tokens)

    @property
    def covariance(self) -> Float[np.ndarray, "unit unit"] | None:
        """Of the units over all tokens."""
        assert self.lifetime is not None
        if self.products is None:
            return None
        mean = self.lifetime.values.sum(axis=0) / sum(self.tokens)
        return self.products / sum(self.tokens) - np.outer(mean, mean)


def population(
    a: Float[np.ndarray, "token unit"], share: float
) -> dict[str, Float[np.ndarray, " token"]]:
    """Every population measure at every token."""
    return {
        "gini": gini(a),
        "hoyer": hoyer(a),
        "treves_rolls": treves_rolls(a),
        "entropy": entropy(a),
        "near_zero": near_zero(a, share),
    }


def summarise(
    stream: Stream,
    *,
    percentiles: tuple[float, ...],
    target: float,
    resamples: int,
    lifetime_draws: int,
    rng: np.random.Generator,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A stream's measures with intervals over texts, the seed's measures with the thresholds they
    find, and arrays.
    """
    assert stream.lifetime is not None
    variance = stream.lifetime.variance
    per_text = np.stack([np.array(stream.population[name]) for name in MEASURES], axis=1)
    n = len(per_text)

    draws = resampled_means(per_text, rng, resamples=resamples)
    interval = percentile_interval(per_text.mean(axis=0), draws)
    parts = np.stack([interval.value, interval.low, interval.high], axis=1).tolist()
    of_population = {
        name: Interval(*ends, n=n, unit="texts").to_json()
        for name, ends in zip(MEASURES, parts, strict=True)
    }

    of_lifetime, by_unit = _lifetime(stream, lifetime_draws, rng)
    covariance = stream.covariance
    below = dict(zip(stream.thresholds, stream.shares_below.tolist(), strict=True))

    report: dict[str, Any] = {
        "units": stream.lifetime.counts.shape[1],
        "tokens": sum(stream.tokens),
        "population": of_population,
        "lifetime": of_lifetime,
        "effective_dimension": None if covariance is None else effective_dimension(covariance),
        **seeds_measures(variance, below, percentiles=percentiles, target=target),
    }
    arrays = {f"lifetime_{name}": values for name, values in by_unit.items()}
    arrays |= {
        "lorenz": stream.curve / sum(stream.tokens),
        "variance": variance,
        "root_mean_square": stream.lifetime.root_mean_square,
        "text_population": per_text,
    }
    return report, arrays


def _lifetime(
    stream: Stream, draws: int, rng: np.random.Generator
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Means over units, with intervals from resampled groups of texts (none for a single group);
    the tokens of the groups drawn are pooled before anything is measured.
    """
    lifetime = stream.lifetime
    assert lifetime is not None
    groups = lifetime.counts.shape[0]
    by_unit = lifetime.measures(np.ones(groups), stream.share)

    n_draws = draws if groups > 1 else 0
    weights = rng.multinomial(groups, np.full(groups, 1 / groups), size=n_draws).astype(np.float64)
    drawn = [lifetime.measures(weight, stream.share) for weight in weights]

    report: dict[str, Any] = {
        "gini_error": float(by_unit["gini_error"].max()),
        "groups": groups,
        "draws": n_draws,
    }
    for name in MEASURES:
        value = float(by_unit[name].mean())
        found = Interval(value, None, None, groups, "groups of texts")

        if groups > 1:
            means = np.array([one[name].mean() for one in drawn])
            ends = percentile_interval(value, means)
            found = Interval.of(ends, n=groups, unit="groups of texts")

        report[name] = found.to_json()

    return report, by_unit


def seeds_measures(
    variance: Float[np.ndarray, " unit"],
    below: Mapping[float, float],
    *,
    percentiles: tuple[float, ...],
    target: float,
) -> dict[str, Any]:
    """Percentile, optimal and fixed-threshold sparsity, and entropy and Gini of the units'
    variances; `below` is the share of |a| below each fixed threshold.

    The sparsity of a percentile is the percentile and that of the optimal threshold its target, by
    construction: what they find is the threshold. A fixed threshold depends on the scale of the
    activations.
    """
    by_percentile = {}
    for percentile in percentiles:
        threshold = float(np.percentile(variance, percentile))
        n_below = int((variance < threshold).sum())
        by_percentile[f"p{percentile:g}"] = {
            "threshold": threshold,
            "sparsity": n_below / len(variance),
            "neurons_below": n_below,
        }

    optimal = float(np.quantile(variance, target))
    return {
        "percentile": by_percentile,
        "optimal": {
            "target": target,
            "threshold": optimal,
            "sparsity": float((variance < optimal).mean()),
        },
        "traditional": {f"{threshold:g}": share for threshold, share in below.items()},
        "entropy": float(entropy(variance)),
        "gini": float(gini(variance)),
    }


def seeds_of_layers(
    streams: Sequence[Stream], percentiles: tuple[float, ...], target: float
) -> dict[str, Any]:
    """The seed's measures of several layers taken together: the keys that earlier users read."""
    variances = [of.lifetime.variance for of in streams if of.lifetime is not None]
    shares = np.mean([of.shares_below for of in streams], axis=0).tolist()
    below = dict(zip(streams[0].thresholds, shares, strict=True))

    return seeds_measures(np.concatenate(variances), below, percentiles=percentiles, target=target)


Activations = Iterator[tuple[int, Mapping[tuple[str, int], Float[np.ndarray, "token unit"]]]]


def stream_all(
    activations: Activations,
    *,
    n_texts: int,
    groups: int,
    thresholds: tuple[float, ...],
    share: float,
) -> dict[tuple[str, int], Stream]:
    """Pass over texts (index, activations by kind and layer) once and keep a Stream for each kind
    and layer.
    """
    groups = min(groups, n_texts)
    streams: dict[tuple[str, int], Stream] = {}
    for text, by_place in activations:
        for place, a in by_place.items():
            if place not in streams:
                # d_state times as many units: no covariance, and one group of texts.
                many = place[0] == "state"
                n_groups = 1 if many else groups
                streams[place] = Stream(n_groups, thresholds, share, with_covariance=not many)

            of = streams[place]
            of.add(a, text * of.groups // n_texts)

    return streams
