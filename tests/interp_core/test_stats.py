"""Intervals cover and tests err at their stated rates; distances and fits meet closed forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from interp_core.errors import InputError
from interp_core.statistics.resampling import (
    effective_number,
    equivalence_normal,
    max_test,
    mean_interval,
    resampled_means,
    sign_flip_threshold,
    split_half_rank,
    wasserstein_1,
)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_intervals_of_means_cover_at_their_rate(shape: str) -> None:
    rng = _rng()
    sample = (
        rng.normal(size=(80, 1500)) if shape == "normal" else rng.exponential(size=(80, 1500)) - 1
    )
    interval = mean_interval(sample, rng, resamples=600)
    covered = ((interval.low <= 0) & (interval.high >= 0)).mean()
    assert 0.92 <= covered <= 0.965


def test_resampled_means_have_the_standard_error_of_the_mean() -> None:
    values = _rng(2).normal(size=(50, 3)).astype(np.float32)
    draws = resampled_means(values, _rng(), resamples=20_000)
    np.testing.assert_allclose(draws.mean(axis=0), values.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(draws.std(axis=0), values.std(axis=0) / np.sqrt(50), rtol=0.03)


def test_sign_flips_have_their_family_wise_error_rate_and_find_what_is_there() -> None:
    rng = _rng(3)
    wrong = found = 0
    for _ in range(300):
        shared = rng.normal(size=(24, 1, 1))
        null = sign_flip_threshold(shared + rng.normal(size=(24, 3, 4)), rng, alpha=0.1, draws=199)
        wrong += (null.p <= 0.1).any()
    assert 0.06 <= wrong / 300 <= 0.145
    differences = rng.normal(size=(24, 3, 4))
    differences[:, 1, 2] += 3
    test = sign_flip_threshold(differences, rng, alpha=0.001, draws=1999)
    found = test.p <= 0.001
    np.testing.assert_array_equal(found, differences.mean(axis=0) > test.threshold)
    assert list(zip(*np.nonzero(found), strict=True)) == [(1, 2)]


def test_a_strong_unit_does_not_hide_a_weak_one() -> None:
    """A single-step maximum would: the strong unit's signs alone spread by 10 / sqrt(40)."""
    differences = 0.1 * _rng(11).normal(size=(40, 5))
    differences[:, 0] += 10
    differences[:, 1] += 0.5
    test = sign_flip_threshold(differences, _rng(), alpha=0.001, draws=1999)
    np.testing.assert_array_equal(test.p <= 0.001, [True, True, False, False, False])
    assert test.threshold < 0.1
    everything = sign_flip_threshold(differences[:, :2], _rng(), alpha=0.001, draws=1999)
    assert (differences[:, :2].mean(axis=0) > everything.threshold).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.1, 0.25]), st.integers(19, 200))
def test_above_the_threshold_means_p_at_most_alpha(seed: int, alpha: float, draws: int) -> None:
    rng = _rng(seed)
    observed, maxima = (
        rng.integers(0, 8, (3, 4)).astype(float),
        rng.integers(0, 8, draws).astype(float),
    )
    test = max_test(observed, maxima, alpha=alpha)
    np.testing.assert_array_equal(observed > test.threshold, test.p <= alpha + 1e-12)
    assert test.p.min() >= 1 / (1 + draws)


def test_equivalence_is_claimed_at_the_margin_at_its_rate_and_at_zero_almost_always() -> None:
    rng, error, margin = _rng(6), 0.1, 0.4
    claimed = {}
    for truth in (margin, -margin, 0.0):
        estimates = truth + error * rng.normal(size=1000)
        results = [equivalence_normal(d, error, margin=margin, alpha=0.05) for d in estimates]
        assert all(r.equivalent == (-margin < r.low and r.high < margin) for r in results[:50])
        claimed[truth] = np.mean([r.equivalent for r in results])
    assert 0.03 <= claimed[margin] <= 0.075
    assert 0.03 <= claimed[-margin] <= 0.075
    assert claimed[0.0] > 0.95


def test_wasserstein_has_its_closed_forms_and_equals_scipy() -> None:
    one = np.ones(1)
    assert wasserstein_1(0.2 * one, one, 0.7 * one, one, _rng(), draws=9).value == pytest.approx(
        0.5
    )
    grid, flat = np.linspace(0, 1, 50), np.ones(50)
    assert wasserstein_1(grid, flat, grid + 0.3, 7 * flat, _rng(), draws=9).value == pytest.approx(
        0.3
    )
    rng = _rng(7)
    for _ in range(20):
        a, b = rng.random(6).round(1), rng.random(9).round(1)
        u, v = rng.random(6), rng.random(9)
        expected = scipy_stats.wasserstein_distance(a, b, u, v)
        assert wasserstein_1(a, u, b, v, rng, draws=9).value == pytest.approx(expected, abs=1e-12)


def test_wasserstein_p_is_uniform_without_a_difference_and_small_with_one() -> None:
    rng = _rng(8)

    def p(shift: float) -> float:
        return wasserstein_1(
            rng.random(20),
            rng.exponential(size=20),
            rng.random(14) + shift,
            rng.exponential(size=14),
            rng,
            draws=199,
        ).p

    without = [p(0.0) for _ in range(400)]
    assert 0.03 <= np.mean(np.array(without) <= 0.05) <= 0.075
    assert 0.4 <= np.mean(np.array(without) <= 0.5) <= 0.6
    assert np.median([p(0.5) for _ in range(20)]) <= 0.02


def test_few_exchanges_are_gone_through_one_by_one_and_p_is_exact() -> None:
    """Two and three units: ten ways, whatever the generator and the number of draws."""
    places = np.array([0.1, 0.2]), np.array([0.6, 0.7, 0.8])
    results = [
        wasserstein_1(places[0], np.ones(2), places[1], np.ones(3), _rng(seed), draws=draws)
        for seed, draws in ((0, 9), (1, 5000))
    ]
    assert {result.p for result in results} == {1 / 10}
    assert {result.exchanges for result in results} == {9}
    many = wasserstein_1(places[0], np.ones(2), places[1], np.ones(3), _rng(), draws=8)
    assert many.exchanges == 8


def test_wasserstein_permutes_heads_that_leave_a_side_empty_without_dividing_by_zero() -> None:
    positions, weights = np.linspace(0, 1, 6), np.array([0.0, 0, 0, 0, 0, 1])
    result = wasserstein_1(positions, weights, positions, weights, _rng(), draws=99)
    assert result.value == 0.0
    assert result.p == 1.0


def test_split_half_rank_is_the_reliability() -> None:
    rng = _rng(10)
    truth, noise = rng.normal(size=300), rng.normal(size=(50, 300))
    values = truth + np.sqrt(50) * noise  # the mean over 50 prompts has as much noise as signal
    assert split_half_rank(values, rng, splits=50) == pytest.approx(0.5, abs=0.1)
    assert split_half_rank(truth + 0 * noise, rng, splits=5) == pytest.approx(1.0)
    assert abs(split_half_rank(noise, rng, splits=50)) < 0.2
    assert np.isnan(split_half_rank(np.ones((4, 3)), rng, splits=5))


def test_the_effective_number_counts_equal_weights() -> None:
    np.testing.assert_allclose(effective_number(np.array([[2.0, 2, 2, 2], [0, 0, 5, 0]])), [4, 1])
    assert np.isnan(effective_number(np.zeros(3)))


def test_what_cannot_be_tested_is_said() -> None:
    with pytest.raises(InputError, match=r"cannot reach p = 0.001: use at least 999"):
        sign_flip_threshold(np.ones((20, 2)), _rng(), alpha=0.001, draws=998)
    with pytest.raises(
        InputError, match=r"8 prompts are too few for a test at 0.001: use at least 12"
    ):
        sign_flip_threshold(np.ones((8, 2)), _rng(), alpha=0.001, draws=999)
    with pytest.raises(InputError, match="margin must be above 0"):
        equivalence_normal(0.0, 1.0, margin=0.0, alpha=0.05)
    with pytest.raises(InputError, match="weight on both sides"):
        wasserstein_1(np.ones(2), np.zeros(2), np.ones(2), np.ones(2), _rng(), draws=9)
    with pytest.raises(InputError, match="at least 2 prompts"):
        split_half_rank(np.ones((1, 3)), _rng(), splits=2)
