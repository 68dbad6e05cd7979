"""Claims about sizes, with trainings as units: are sizes alike, what says where a centre lies?

    alike = sizes_alike({"2l": centres_2l, "4l": centres_4l}, margin=0.1, alpha=0.05)
    alike.verdict            # "equivalent within 0.1", "different", "not decided" or too few
    alike.pairs[0].p_corrected               # what is said of one pair among all of them
    rivals = compare_rivals([Training("2l", 2, 0.9, 0.4), ...])      # RIVALS, by prediction error

Several trainings of each size differ by their seeds alone; without two of each there is no test,
which the results carry as a value. A seed draws the tokens of every size's training, so sizes are
compared seed by seed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import special

from interp_core.errors import InputError
from interp_core.statistics.interval import Interval, student
from interp_core.statistics.resampling import Equivalence, equivalence_normal

FEWEST = 2  # trainings of a size: one has no spread
UNIT = "trainings"


@dataclass(frozen=True)
class PairOfSizes:
    """Second less first in each seed: the mean with Student's 95 % interval, n seeds.

    The equivalence test (TOST) has an interval of its own. `p_corrected` is Holm's over all pairs
    (Holm 1979): what is said of one pair alone is said with it.
    """

    sizes: tuple[str, str]
    difference: Interval
    low: float  # ends of the 1 - 2 alpha interval, which equivalence wants inside the margin
    high: float
    p: float
    p_corrected: float
    equivalent: bool


@dataclass(frozen=True)
class SizesAlike:
    """Every pair, and one verdict; p is the pairs' largest. None without enough trainings."""

    margin: float
    alpha: float
    pairs: list[PairOfSizes]
    p: float | None
    verdict: str

    @property
    def widest(self) -> PairOfSizes | None:
        """The pair that is farthest apart: the estimate to print."""
        return max(self.pairs, key=lambda pair: abs(pair.difference.value), default=None)

    def to_json(self) -> dict[str, Any]:
        """Flat entries; intervals in the core's one shape."""
        return asdict(self)


def sizes_alike(
    values: Mapping[str, Sequence[float | None]], *, margin: float, alpha: float
) -> SizesAlike:
    """TOST over seeds for every pair of sizes; `values` are each size's, one a seed, in one order.

    None is a training without a value: pairs leave its seed out. Equivalent when every pair is (an
    intersection-union test: no correction), different when the interval of some pair at 1 - alpha,
    corrected for the number of pairs, excludes 0. InputError for sizes with other numbers of seeds.
    """
    pairs = list(combinations(values, 2))
    too_few = not_enough({size: _count(seeds) for size, seeds in values.items()})

    if too_few is None and len({len(seeds) for seeds in values.values()}) > 1:
        counts = ", ".join(f"{len(seeds)} of {size}" for size, seeds in values.items())
        raise InputError(f"sizes are compared seed by seed, and there are {counts} trainings")

    if too_few is None:
        too_few = _too_few_in_common(values, pairs)

    if too_few is not None:
        return SizesAlike(margin, alpha, [], None, too_few)

    differences = [_by_seed(values[one], values[other]) for one, other in pairs]
    tests = [_equivalence(each, margin=margin, alpha=alpha) for each in differences]
    corrected = holm([test.p for test in tests])
    found = [
        PairOfSizes(
            sizes, student(each, unit=UNIT), test.low, test.high, test.p, p, test.equivalent
        )
        for sizes, each, test, p in zip(pairs, differences, tests, corrected, strict=True)
    ]

    level = 1 - alpha / len(pairs)
    apart = any(student(each, unit=UNIT, level=level).excludes(0.0) for each in differences)

    if all(pair.equivalent for pair in found):
        verdict = f"equivalent within {margin:g}"
    else:
        verdict = "different" if apart else "not decided"

    return SizesAlike(margin, alpha, found, max(pair.p for pair in found), verdict)


def _count(seeds: Sequence[float | None]) -> int:
    return sum(value is not None for value in seeds)


def _by_seed(first: Sequence[float | None], second: Sequence[float | None]) -> np.ndarray:
    """Second less first, in the seeds where both have a value."""
    both = zip(first, second, strict=True)
    return np.array([b - a for a, b in both if a is not None and b is not None])


def _too_few_in_common(
    values: Mapping[str, Sequence[float | None]], pairs: Sequence[tuple[str, str]]
) -> str | None:
    for one, other in pairs:
        if len(_by_seed(values[one], values[other])) < FEWEST:
            return f"not enough trainings: fewer than {FEWEST} seeds of both {one} and {other}"

    return None


def not_enough(counts: Mapping[str, int]) -> str | None:
    """Why there is no test over seeds, or None where there can be one."""
    if len(counts) < 2:
        return f"not enough trainings: {len(counts)} size, and a comparison needs 2"

    few = [size for size, n in counts.items() if n < FEWEST]
    if few:
        return f"not enough trainings: fewer than {FEWEST} of {', '.join(few)}"

    return None


def _equivalence(differences: np.ndarray, *, margin: float, alpha: float) -> Equivalence:
    """One pair's TOST over its seeds."""
    mean, n = float(differences.mean()), len(differences)

    if np.ptp(differences) == 0:
        # Seeds that agree exactly: nothing is left to test.
        p = float(abs(mean) >= margin)
        return Equivalence(mean, mean, mean, p, equivalent=p == 0)

    error = float(differences.std(ddof=1)) / math.sqrt(n)
    return equivalence_normal(
        mean, error, margin=margin, alpha=alpha, degrees_of_freedom=float(n - 1)
    )


def holm(p: Sequence[float]) -> list[float]:
    """Each p corrected for all of them, in their order, at most 1: the least is times their number,
    the next times one less, and none is below the one before (Holm 1979).
    """
    corrected, least = [0.0] * len(p), 0.0

    for rank, place in enumerate(np.argsort(p, kind="stable")):
        least = max(least, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = least

    return corrected


@dataclass(frozen=True)
class Training:
    """One training of one size. Layers are counted from 0 and may lie between two."""

    size: str
    n_layers: int
    centre: float  # in layers
    previous: float  # layer of the previous-token heads


# Each rival has one free number c and predicts in layers. Depth is (centre + .5) / n_layers.
RIVALS: dict[str, tuple[Callable[[Training], float], Callable[[Training], float]]] = {
    # The centre is c times the first, plus the second.
    "constant relative depth": (lambda one: one.n_layers, lambda one: -0.5),
    "constant layer": (lambda one: 1.0, lambda one: 0.0),
    "a constant number of layers after the previous-token heads": (
        lambda one: 1.0,
        lambda one: one.previous,
    ),
}


@dataclass(frozen=True)
class Rival:
    """One hypothesis. Errors are root mean squares in layers, every size weighing the same."""

    name: str
    fitted: float  # c: a share of the depth, a layer, or layers after the previous-token heads
    residual: float  # over all trainings, each weighing the same
    prediction: Interval  # error on a size when c comes from the other sizes
    behind: Interval | None  # its prediction error less the best rival's; None for the best


@dataclass(frozen=True)
class Rivals:
    """All rivals, the best first, and whether trainings tell it from the others."""

    rivals: list[Rival]
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """Entries in the core's one shape of an interval."""
        return asdict(self)


def compare_rivals(trainings: Sequence[Training], *, level: float = 0.95) -> Rivals:
    """Which of RIVALS predicts best where the centre of a size that was left out lies.

    Each is fitted by least squares over trainings. Intervals are over seeds: the jackknife leaves
    out one training of a size at a time. The verdict names the best rival only where the interval
    of every other one's distance behind it, corrected for their number, lies above 0. It holds
    for these sizes: they are not a sample of sizes.
    """
    counts: dict[str, int] = {}
    for one in trainings:
        counts[one.size] = counts.get(one.size, 0) + 1

    too_few = not_enough(counts)
    if too_few is not None:
        return Rivals([], too_few)

    table = {name: _table(trainings, name) for name in RIVALS}
    sizes = np.array([one.size for one in trainings])
    everyone = np.ones(len(trainings), dtype=bool)

    order = sorted(RIVALS, key=lambda name: _left_out_error(*table[name], sizes, everyone))
    best = order[0]
    corrected = 1 - (1 - level) / (len(order) - 1)
    rivals, separate = [], True

    for name in order:
        slope, rest = table[name]
        c = _fit(slope, rest)
        residual = float(np.sqrt(((rest - c * slope) ** 2).mean()))

        def error(kept: np.ndarray, name: str = name) -> float:
            return _left_out_error(*table[name], sizes, kept)

        def behind(kept: np.ndarray, name: str = name) -> float:
            return error(kept, name) - error(kept, best)

        distance = None if name == best else jackknife(behind, sizes, level=corrected)
        if distance is not None and not (distance.low is not None and distance.low > 0):
            separate = False

        rivals.append(Rival(name, c, residual, jackknife(error, sizes, level=level), distance))

    verdict = best if separate else f"not decided: {best} predicts best, but not surely"
    return Rivals(rivals, verdict)


def _table(trainings: Sequence[Training], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Slopes, and centres less what the rival starts from: c times a slope is to meet the rest."""
    slope_of, start_of = RIVALS[name]
    slope = np.array([slope_of(one) for one in trainings], dtype=np.float64)
    rest = np.array([one.centre - start_of(one) for one in trainings], dtype=np.float64)
    return slope, rest


def _fit(slope: np.ndarray, rest: np.ndarray) -> float:
    return float(slope @ rest / (slope @ slope))


def _left_out_error(
    slope: np.ndarray, rest: np.ndarray, sizes: np.ndarray, kept: np.ndarray
) -> float:
    """Root mean square error on the kept trainings of each size, predicted from the others."""
    squares = []

    for size in dict.fromkeys(sizes):
        out, others = kept & (sizes == size), kept & (sizes != size)
        c = _fit(slope[others], rest[others])
        squares.append(((rest[out] - c * slope[out]) ** 2).mean())

    return float(np.sqrt(np.mean(squares)))


def jackknife(
    statistic: Callable[[np.ndarray], float], sizes: np.ndarray, *, level: float = 0.95
) -> Interval:
    """A statistic of the kept trainings, over seeds: one training left out at a time, by size.

    Student's quantile with Satterthwaite's degrees of freedom; needs 2 or more trainings of a size.
    """
    value = statistic(np.ones(len(sizes), dtype=bool))
    parts, freedom = [], []

    for size in dict.fromkeys(sizes):
        members = np.flatnonzero(sizes == size)
        if len(members) < FEWEST:
            raise InputError(f"fewer than {FEWEST} trainings of {size}: train it with another seed")

        without = np.array([statistic(np.arange(len(sizes)) != one) for one in members])
        n = len(members)
        parts.append((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
        freedom.append(n - 1)

    variance = math.fsum(parts)
    reach = 0.0

    if variance > 0:
        each = zip(parts, freedom, strict=True)
        df = variance**2 / math.fsum(part**2 / free for part, free in each)
        reach = float(special.stdtrit(df, (1 + level) / 2)) * math.sqrt(variance)

    return Interval(value, value - reach, value + reach, len(sizes), UNIT)
