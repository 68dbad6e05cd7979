"""The fewest units that are enough: exact by formula, covered, no points of a grid."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp_core.errors import InputError
from interp_core.statistics.enough import enough


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(deadline=None, max_examples=40)
@given(total=st.integers(1, 5000), data=st.data())
def test_texts_that_agree_give_the_exact_size_and_no_width(total: int, data: st.DataObject) -> None:
    needed = data.draw(st.integers(1, total))
    asked: list[int] = []

    def shortfall(k: int) -> np.ndarray:
        asked.append(k)
        return np.full(6, float(needed - k))

    found = enough(shortfall, total=total, rng=_rng(), resamples=20, unit="texts")
    assert (found.value, found.low, found.high, found.n) == (needed, needed, needed, 6)
    assert len(asked) == len(set(asked)) <= 2 + np.log2(total)


def decay(rate: np.ndarray, *, keeps: float) -> Callable[[int], np.ndarray]:
    """A text's loss falls as exp(-k / rate); enough when the mean is below 1 - keeps."""
    return lambda k: np.exp(-k / rate) - (1 - keeps)


def test_intervals_over_texts_cover_the_size_that_all_texts_would_need() -> None:
    rng, keeps, covered = _rng(3), 0.9, []
    many = np.exp(0.4 * rng.normal(size=200_000)) * 100
    truth = enough(decay(many, keeps=keeps), total=1500, rng=rng, resamples=1, unit="texts").value

    for _ in range(200):
        rates = np.exp(0.4 * rng.normal(size=40)) * 100
        found = enough(decay(rates, keeps=keeps), total=1500, rng=rng, resamples=100, unit="texts")
        covered.append(not found.excludes(truth))
    assert 0.9 <= np.mean(covered) <= 0.99


def test_ends_are_sizes_that_draws_cross_at_not_points_of_the_search() -> None:
    """Every draw by brute force over all sizes: the same ends."""
    rates = np.exp(0.5 * _rng(1).normal(size=12)) * 60
    shortfall = decay(rates, keeps=0.95)
    found = enough(shortfall, total=800, rng=_rng(2), resamples=400, unit="texts")

    every = np.stack([shortfall(k) for k in range(1, 801)])  # [size, text]
    shares = _rng(2).multinomial(12, np.full(12, 1 / 12), size=400) / 12
    fewest = 1 + (shares @ every.T <= 0).argmax(axis=1)
    assert found.low == np.quantile(fewest, 0.025, method="lower")
    assert found.high == np.quantile(fewest, 0.975, method="higher")


def test_too_little_in_all_is_an_error() -> None:
    with pytest.raises(InputError, match="all 8 units together are not enough"):
        enough(lambda k: np.ones(5), total=8, rng=_rng(), resamples=5, unit="texts")
