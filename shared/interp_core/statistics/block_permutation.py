"""Do texts differ? Blocks of tokens are dealt to texts, so that a null keeps autocorrelation.

block = block_length(values, texts)                  # 16 to 64 tokens for lag-1 values of .3 to .6
found = texts_differ(values, texts, rng, block=block, draws=199, alpha=0.05)
found.p                                              # family-wise, one for each channel
"""

import math

import numpy as np
from jaxtyping import Float, Int

from interp_core.errors import InputError
from interp_core.statistics.resampling import MaxTest, max_test

Values = Float[np.ndarray, "token unit"]
Texts = Int[np.ndarray, " token"]


def block_length(values: Values, texts: Texts, *, left_out: float = 0.03) -> int:
    """Tokens a block needs so that cutting it takes at most this share of the variance of a mean.

    For an AR(1) of lag-one correlation r, blocks of b keep all but 2 r / ((1 - r^2) b) of it. r is
    exceeded by a tenth of the units, and at least 4 tokens are kept together. A text much shorter
    than a block is dealt nearly whole, and then adds little power.
    """
    starts, _ = _texts(values, texts)
    standard = _within(values, starts)
    inside = texts[1:] == texts[:-1]

    products = (standard[1:] * standard[:-1])[inside].sum(axis=0)
    squares = np.maximum((standard**2).sum(axis=0), 1e-300)
    r = float(np.clip(np.quantile(products / squares, 0.9), 0.0, 0.95))

    return max(4, math.ceil(2 * r / ((1 - r**2) * left_out)))


def texts_differ(
    values: Values, texts: Texts, rng: np.random.Generator, *, block: int, draws: int, alpha: float
) -> MaxTest:
    """Test of the share of a unit's variance over tokens that lies between texts' means, against
    blocks dealt at random, family-wise over units.

    Tokens of one text stand together in `texts`. The series is cut into blocks at a random place,
    the blocks are shuffled, and the texts' lengths are cut out of them: the observed statistic and
    the null's are one function of the same tokens. InputError when there are too few blocks.
    """
    starts, lengths = _texts(values, texts)
    n = len(texts)

    if block < 1 or n < 4 * block:
        raise InputError(f"{n} tokens are too few for blocks of {block}: use more texts")

    standard = _standardised(values)
    observed = _between(standard, starts, lengths)
    maxima = np.empty(draws)

    for draw in range(draws):
        order = block_order(n, block, rng)
        maxima[draw] = _between(standard[order], starts, lengths).max()

    return max_test(observed, maxima, alpha=alpha)


def block_order(n: int, block: int, rng: np.random.Generator) -> Int[np.ndarray, " token"]:
    """Places of n tokens after blocks of them were dealt at random: one draw of the null."""
    block_of = np.arange(n) // block  # the last one may be shorter
    n_blocks = int(block_of[-1]) + 1

    # A random first cut, so that no token is always at the edge of its block.
    rolled = np.roll(np.arange(n), int(rng.integers(n)))
    place = rng.permutation(n_blocks)[block_of]
    return rolled[np.argsort(place, kind="stable")]


def _texts(values: Values, texts: Texts) -> tuple[np.ndarray, np.ndarray]:
    """Where each text begins, and its length. InputError unless its tokens stand together."""
    starts = np.concatenate([[0], np.flatnonzero(texts[1:] != texts[:-1]) + 1])
    if len(starts) != len(np.unique(texts)) or len(starts) < 2:
        raise InputError("tokens of each of 2 or more texts must stand together: sort them by text")

    return starts, np.diff([*starts, len(texts)])


def _standardised(values: Values) -> Values:
    """Mean 0 and sum of squares 1 over tokens; zeros for a unit that never varies."""
    centred = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    size = np.sqrt((centred**2).sum(axis=0))
    return centred / np.where(size > 0, size, 1.0)


def _within(values: Values, starts: np.ndarray) -> Values:
    """Values less their text's mean."""
    lengths = np.diff([*starts, len(values)])
    means = np.add.reduceat(values.astype(np.float64), starts, axis=0) / lengths[:, None]
    return values - np.repeat(means, lengths, axis=0)


def _between(
    standard: Values,
    starts: np.ndarray,
    lengths: np.ndarray,
) -> Float[np.ndarray, " unit"]:
    # The grand mean is 0 and the total is 1: a text adds n times its mean squared.
    sums = np.add.reduceat(standard, starts, axis=0)  # [text, unit]
    return (sums**2 / lengths[:, None]).sum(axis=0)
