"""How few units carry the activity: population measures (over units at a token) and lifetime ones
(over a unit's tokens), streamed: memory depends on units and groups of texts, never on the number
of tokens.

All measures are of |a|. Gini is the only one of the usual measures that meets all six axioms of
Hurley & Rickard (2009). Lifetime values come from histograms of |a| with exact counts and sums a
bin, so that they carry an error bound.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from interp_core.statistics.resampling import percentile_interval, resampled_means

# Bins of |a|: four an octave, from 2^-24 to 2^16; the ends take what is beyond.
PER_OCTAVE, LOWEST, HIGHEST = 4, -24, 16
BINS = PER_OCTAVE * (HIGHEST - LOWEST) + 1
CURVE = 101  # points of a Lorenz curve
LIFETIME_DRAWS = 200  # bootstrap draws of histograms
MEASURES = ("gini", "hoyer", "treves_rolls", "entropy", "near_zero")


def gini(a: Float[np.ndarray, "*batch unit"]) -> Float[np.ndarray, "*batch"]:
    """Gini's coefficient of |a|, in [0, 1): 0 when all are equal, 1 - 1/n when one has it all; 0
    for all zeros.
    """
    ascending = np.sort(np.abs(a), axis=-1)
    n = ascending.shape[-1]
    total = ascending.sum(axis=-1)
    weighted = ascending @ (n - np.arange(n) - 0.5)
    return np.where(
        total > 0,
        1 - 2 * np.divide(weighted, n * total, out=np.zeros_like(total), where=total > 0),
        0.0,
    )


def hoyer(a: Float[np.ndarray, "*batch unit"]) -> Float[np.ndarray, "*batch"]:
    """(sqrt n - |a|_1 / |a|_2) / (sqrt n - 1), in [0, 1]: 0 when all are equal, 1 for a single one
    (Hoyer 2004).
    """
    n = a.shape[-1]
    size = np.sqrt((a**2).sum(axis=-1))
    ratio = np.divide(
        np.abs(a).sum(axis=-1), size, out=np.full_like(size, np.sqrt(n)), where=size > 0
    )
    return np.asarray((np.sqrt(n) - ratio) / (np.sqrt(n) - 1))


def treves_rolls(a: Float[np.ndarray, "*batch unit"]) -> Float[np.ndarray, "*batch"]:
    """(1 - (E|a|)^2 / E a^2) / (1 - 1/n), in [0, 1] (Rolls & Tovee 1995; Vinje & Gallant 2000)."""
    n = a.shape[-1]
    square = (a**2).mean(axis=-1)
    share = np.divide(
        np.abs(a).mean(axis=-1) ** 2, square, out=np.ones_like(square), where=square > 0
    )
    return np.asarray((1 - share) / (1 - 1 / n))


def entropy(a: Float[np.ndarray, "*batch unit"]) -> Float[np.ndarray, "*batch"]:
    """Entropy of the shares of |a| over ln n, in [0, 1]: 1 when all are equal, 0 for a single one;
    it falls with sparsity.
    """
    total = np.abs(a).sum(axis=-1, keepdims=True)
    p = np.divide(np.abs(a), total, out=np.full(a.shape, 1 / a.shape[-1]), where=total > 0)
    return np.asarray(-(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1) / np.log(a.shape[-1]))


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
    ascending = np.sort(np.abs(a), axis=-1)
    total = np.maximum(ascending.sum(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    held = (np.cumsum(ascending, axis=-1) / total).mean(axis=0)
    return np.interp(
        np.linspace(0, 1, CURVE),
        np.arange(a.shape[-1] + 1) / a.shape[-1],
        np.concatenate([[0], held]),
    )


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
        return cls(
            np.zeros(shape), np.zeros(shape), np.zeros((groups, units)), np.zeros((groups, units))
        )

    def add(self, a: Float[np.ndarray, "token unit"], group: int) -> None:
        """Count the tokens of one text."""
        size = np.abs(a)
        with np.errstate(divide="ignore"):
            bins = np.floor(PER_OCTAVE * (np.log2(size) - LOWEST)) + 1
        place = np.clip(bins, 0, BINS - 1).astype(np.int64) + np.arange(a.shape[1]) * BINS
        self.counts[group] += np.bincount(place.ravel(), minlength=a.shape[1] * BINS).reshape(
            -1, BINS
        )
        weights = np.bincount(place.ravel(), weights=size.ravel(), minlength=a.shape[1] * BINS)
        self.sums[group] += weights.reshape(-1, BINS)
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
        safe = np.where(alive, total, 1.0)
        rank = (np.cumsum(counts, axis=1) - counts / 2) / n[:, None]
        lower = np.where(alive, 2 * (sums * rank).sum(axis=1) / safe - 1, 0.0)
        # Within a bin values differ at most by its ratio r: its own Gini is at most (sqrt r - 1) /
        # (sqrt r + 1). The two ends are open: at most 1.
        root = 2 ** (0.5 / PER_OCTAVE)
        own = np.full(BINS, (root - 1) / (root + 1))
        own[[0, -1]] = 1.0
        inside = (counts / n[:, None] * sums) @ own / safe
        one_norm = total / np.sqrt(np.where(alive, square, 1.0))
        p = sums / np.maximum(counts, 1) / safe[:, None]  # a bin's tokens counted as equal
        spread = -(counts * p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1) / np.log(n)
        limit = (
            PER_OCTAVE * (np.log2(share * np.sqrt(np.where(alive, square, 1.0) / n)) - LOWEST) + 1
        )
        inside_bin = np.clip(limit[:, None] - np.arange(BINS), 0, 1)
        return {
            "gini": lower,
            "gini_error": np.where(alive, inside, 0.0),
            "hoyer": np.where(alive, (np.sqrt(n) - one_norm) / (np.sqrt(n) - 1), 0.0),
            "treves_rolls": np.where(
                alive, (1 - total**2 / n / np.where(alive, square, 1)) / (1 - 1 / n), 0.0
            ),
            "entropy": np.where(alive, spread, 1.0),
            "near_zero": np.where(alive, (counts * inside_bin).sum(axis=1) / n, 1.0),
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
    below: list[list[float]] = field(
        default_factory=list
    )  # by text: share of |a| below each fixed threshold
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
    rng: np.random.Generator,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A stream's measures with intervals over texts, the seed's measures with the thresholds they
    find, and arrays.
    """
    assert stream.lifetime is not None
    report: dict[str, Any] = {
        "units": stream.lifetime.counts.shape[1],
        "tokens": sum(stream.tokens),
    }
    per_text = np.stack([np.array(stream.population[name]) for name in MEASURES], axis=1)
    draws = resampled_means(per_text, rng, resamples=resamples)
    interval = percentile_interval(per_text.mean(axis=0), draws)
    report["population"] = {
        name: {"value": interval.value[i], "ci": [interval.low[i], interval.high[i]]}
        for i, name in enumerate(MEASURES)
    }
    report["lifetime"], by_unit = _lifetime(stream, resamples, rng)
    covariance = stream.covariance
    report["effective_dimension"] = None if covariance is None else effective_dimension(covariance)
    report |= seeds_measures(stream, percentiles=percentiles, target=target)
    arrays = {f"lifetime_{name}": values for name, values in by_unit.items()}
    arrays |= {
        "lorenz": stream.curve / sum(stream.tokens),
        "variance": stream.lifetime.variance,
        "root_mean_square": stream.lifetime.root_mean_square,
        "text_population": per_text,
    }
    return report, arrays


def _lifetime(
    stream: Stream, resamples: int, rng: np.random.Generator
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Means over units, with intervals from resampled groups of texts (none for a single group);
    the tokens of the groups drawn are pooled before anything is measured.
    """
    lifetime = stream.lifetime
    assert lifetime is not None
    groups = lifetime.counts.shape[0]
    by_unit = lifetime.measures(np.ones(groups), stream.share)
    n_draws = min(resamples, LIFETIME_DRAWS) if groups > 1 else 0
    weights = rng.multinomial(groups, np.full(groups, 1 / groups), size=n_draws).astype(np.float64)
    drawn = [lifetime.measures(weight, stream.share) for weight in weights]
    report: dict[str, Any] = {
        "gini_error": float(by_unit["gini_error"].max()),
        "groups": groups,
        "draws": len(weights),
    }
    for name in MEASURES:
        means = np.array([found[name].mean() for found in drawn])
        interval = percentile_interval(by_unit[name].mean(), means) if groups > 1 else None
        ends = None if interval is None else [float(interval.low), float(interval.high)]
        report[name] = {"value": float(by_unit[name].mean()), "ci": ends}
    return report, by_unit


def seeds_measures(
    stream: Stream, *, percentiles: tuple[float, ...], target: float
) -> dict[str, Any]:
    """Percentile, optimal and fixed-threshold sparsity, and entropy and Gini of the units'
    variances.

    The sparsity of a percentile is the percentile and that of the optimal threshold its target, by
    construction: what they find is the threshold. A fixed threshold depends on the scale of the
    activations.
    """
    assert stream.lifetime is not None
    variance = stream.lifetime.variance
    by_percentile = {}
    for percentile in percentiles:
        threshold = float(np.percentile(variance, percentile))
        below = int((variance < threshold).sum())
        name = f"p{percentile:g}"
        by_percentile[name] = {
            "threshold": threshold,
            "sparsity": below / len(variance),
            "neurons_below": below,
        }
    optimal = float(np.quantile(variance, target))
    share = np.average(np.array(stream.below), axis=0, weights=stream.tokens)
    return {
        "percentile": by_percentile,
        "optimal": {
            "target": target,
            "threshold": optimal,
            "sparsity": float((variance < optimal).mean()),
        },
        "traditional": {
            f"{threshold:g}": float(s)
            for threshold, s in zip(stream.thresholds, share, strict=True)
        },
        "entropy": float(entropy(variance)),
        "gini": float(gini(variance)),
    }


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
                many = (
                    place[0] == "state"
                )  # d_state times as many units: no covariance, and one group of texts
                streams[place] = Stream(
                    1 if many else groups, thresholds, share, with_covariance=not many
                )
            of = streams[place]
            of.add(a, text * of.groups // n_texts)
    return streams
