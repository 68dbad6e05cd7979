"""The fewest units of a ranking that keep what a model does, by bisection in every bootstrap draw.

def shortfall(k):                                    # by text; at most 0 in the mean: enough
    return loss_with_best(k) - (1 + tolerance) * clean_loss
found = enough(shortfall, total=1536, rng=rng, resamples=1000, unit="texts")
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from interp_core.errors import InputError
from interp_core.statistics.interval import Interval


def enough(
    shortfall: Callable[[int], Float[np.ndarray, " text"]],
    *,
    total: int,
    rng: np.random.Generator,
    resamples: int,
    unit: str,
    level: float = 0.95,
) -> Interval:
    """The smallest k, 1 to total, whose mean shortfall is at most 0, with its interval over texts.

    `shortfall(k)` says by text how much is missing with the k best units kept. Every k is asked for
    once; draws share what was measured. Each draw halves its own bracket, so that ends are sizes
    where that draw crosses, not points of a grid. Where the curve crosses several times, k is
    enough and k - 1 is not. InputError when all units together are not enough.
    """
    known: dict[int, np.ndarray] = {}

    def measured(k: int) -> Float[np.ndarray, " text"]:
        if k not in known:
            known[k] = np.asarray(shortfall(k), dtype=np.float64)
        return known[k]

    n = len(measured(total))
    if measured(total).mean() > 0:
        raise InputError(f"all {total} units together are not enough: allow a larger loss")

    def fewest(weights: Float[np.ndarray, " text"]) -> int:
        # `below` is not enough (0 never is), `above` is; a draw that even all units fail gets all.
        below, above = 0, total

        while above - below > 1:
            middle = (below + above) // 2
            if weights @ measured(middle) <= 0:
                above = middle
            else:
                below = middle

        return above

    value = fewest(np.full(n, 1 / n))
    shares = rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n
    drawn = np.array([fewest(row) for row in shares])

    # Ends are sizes that a draw had: no value between two sizes means anything.
    low = np.quantile(drawn, (1 - level) / 2, method="lower")
    high = np.quantile(drawn, (1 + level) / 2, method="higher")
    return Interval(float(value), float(low), float(high), n, unit)
