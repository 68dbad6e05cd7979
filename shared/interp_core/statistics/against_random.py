"""An observed value against the values of distinct random sets: the one comparison of all studies.

found = against_random(harm_of_top, [harm(one) for one in sets.sets], direction="above")
report["loss"] = found.to_json()
words = found.says               # "p = 0.0050, 200 distinct random sets", or why there is no test
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from interp_core.errors import InputError, first_line

Direction = Literal["above", "below"]

# 1 / (1 + 20) is the first p that can be below .05.
FEWEST_DISTINCT = 20


@dataclass(frozen=True)
class AgainstRandom:
    """An observed value, and the mean and central 95 % of the random sets' values, in its unit.

    p is (1 + sets at least as extreme) / (1 + distinct sets), one-sided; None where no test is
    possible. Mean and ends are None without any set.
    """

    observed: float
    direction: Direction
    mean: float | None
    low: float | None
    high: float | None
    n: int  # distinct random sets that were run
    p: float | None

    @property
    def possible(self) -> bool:
        """Whether there are enough distinct sets for a test."""
        return self.p is not None

    @property
    def says(self) -> str:
        """The outcome in words; "no test possible" and why."""
        if self.p is None:
            return f"no test possible: {self.n} distinct random sets, fewer than {FEWEST_DISTINCT}"

        return f"p = {self.p:.4f}, {self.n} distinct random sets"

    def beats(self, level: float) -> bool:
        """Whether the observed value is beyond chance at this level; never without a test."""
        return self.p is not None and self.p <= level

    def to_json(self) -> dict[str, Any]:
        """`random` has the shape of an interval: its n is the number of distinct sets."""
        return {
            "observed": self.observed,
            "direction": self.direction,
            "random": {
                "value": self.mean,
                "low": self.low,
                "high": self.high,
                "n": self.n,
                "unit": "sets",
            },
            "p": self.p,
            "says": self.says,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "AgainstRandom":
        """The inverse of to_json. InputError when an entry lacks a key."""
        try:
            random = entry["random"]
            ends = (random["value"], random["low"], random["high"])
            return cls(entry["observed"], entry["direction"], *ends, random["n"], entry["p"])
        except KeyError as missing:
            raise InputError(
                f"a comparison lacks {first_line(missing)}: write its report again"
            ) from None


def against_random(
    observed: float,
    random: Sequence[float] | np.ndarray,
    *,
    direction: Direction,
) -> AgainstRandom:
    """Compare with one value for each distinct set (`RandomSets.sets`, no set twice).

    `direction` says on which side an effect lies: "above" for a rise of the loss, "below" for a
    fall of accuracy.
    """
    values = np.asarray(random, dtype=np.float64)
    n = len(values)

    if not np.isfinite([observed, *values]).all():
        raise InputError("an effect of a set is not finite: look at the ablation that gave it")

    if n == 0:
        return AgainstRandom(float(observed), direction, None, None, None, 0, None)

    # The same effect computed in two batches differs in its last digits: such a tie is a hit.
    sign = 1.0 if direction == "above" else -1.0
    slack = 1e-12 * max(1.0, abs(observed))
    hits = int((sign * values >= sign * observed - slack).sum())
    p = (1 + hits) / (1 + n) if n >= FEWEST_DISTINCT else None

    low, high = np.quantile(values, [0.025, 0.975])
    mean = float(values.mean())
    return AgainstRandom(float(observed), direction, mean, float(low), float(high), n, p)
