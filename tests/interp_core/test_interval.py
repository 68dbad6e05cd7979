"""Intervals cover at the rate they state, also where percentile bootstraps do not."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats as scipy_stats

from interp_core.errors import InputError
from interp_core.statistics.interval import (
    Interval,
    array_json,
    bootstrap,
    mean_share,
    student,
    two_level_errors,
)
from interp_core.statistics.resampling import mean_interval, resampled_means


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def covers(found: Interval, truth: float) -> bool:
    return not found.excludes(truth)


@pytest.mark.parametrize(
    "found", [Interval(0.5, 0.25, 0.75, 8, "texts"), Interval(0.5, None, None, 1, "trainings")]
)
def test_json_has_one_shape_and_reads_back(found: Interval) -> None:
    entry = json.loads(json.dumps(found.to_json()))
    assert set(entry) == {"value", "low", "high", "n", "unit"}
    assert Interval.from_json(entry) == found

    del entry["n"]
    with pytest.raises(InputError, match="lacks 'n'"):
        Interval.from_json(entry)


def test_many_intervals_have_the_same_shape() -> None:
    ends = mean_interval(_rng().normal(size=(40, 3)), _rng(), resamples=50)
    entry = json.loads(json.dumps(array_json(ends, n=40, unit="texts")))
    assert set(entry) == set(Interval(0.0, None, None, 1, "").to_json())
    assert len(entry["value"]) == len(entry["low"]) == len(entry["high"]) == 3


def test_a_bootstrap_is_the_cores_own() -> None:
    values = _rng().normal(size=50)
    found, expected = (
        bootstrap(values, _rng(1), resamples=99, unit="texts"),
        mean_interval(values, _rng(1), resamples=99),
    )
    assert (found.value, found.ends) == (
        float(expected.value),
        (float(expected.low), float(expected.high)),
    )


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_intervals_over_trainings_are_students(n: int) -> None:
    """scipy as the oracle; with ddof 0 the ends of two values would be too near by 1 / sqrt(2)."""
    values = _rng(n).normal(size=n)
    found = student(values.tolist(), unit="trainings")
    assert found.ends == pytest.approx(
        scipy_stats.t.interval(0.95, n - 1, values.mean(), scipy_stats.sem(values)), rel=1e-12
    )


def test_one_training_has_no_interval() -> None:
    found = student([0.4], unit="trainings")
    assert (found.value, found.ends, found.n) == (0.4, None, 1)
    assert not found.excludes(9.0)

    with pytest.raises(InputError, match="over trainings has no values"):
        student([], unit="trainings")


def alike(rng: np.random.Generator, p: float, n: int) -> np.ndarray:
    """20 targets a prompt, all with the same chance."""
    return rng.binomial(20, p, size=n) / 20


def unlike(rng: np.random.Generator, p: float, n: int) -> np.ndarray:
    """Prompts differ: chances from a beta distribution as wide as a half of a yes-or-no."""
    chance = rng.beta(p, 1 - p, size=n) if p < 1 else np.ones(n)
    return rng.binomial(20, chance) / 20


def failing(rng: np.random.Generator, p: float, n: int) -> np.ndarray:
    """Few prompts miss a half of their targets, all others none."""
    return np.where(rng.random(n) < 2 * (1 - p), 0.5, 1.0)


@pytest.mark.parametrize("n", [32, 64, 128])
@pytest.mark.parametrize("drawn", [alike, unlike, failing])
def test_mean_accuracies_near_one_are_covered(drawn: Callable[..., np.ndarray], n: int) -> None:
    rng = _rng(7)
    for p in (0.98, 0.99, 0.998, 1.0):
        covered = [covers(mean_share(drawn(rng, p, n), unit="prompts"), p) for _ in range(1500)]
        assert np.mean(covered) >= 0.93, p


def test_bootstraps_of_accuracies_near_one_do_not_cover() -> None:
    """Why there is another method: most samples show no miss, and their interval is a point."""
    rng = _rng(8)
    covered = [
        covers(bootstrap(failing(rng, 0.995, 64), rng, resamples=300, unit="prompts"), 0.995)
        for _ in range(400)
    ]
    assert np.mean(covered) < 0.55


def test_mean_shares_are_worth_as_many_trials_as_would_vary_so() -> None:
    shares = np.array([0.4, 0.5, 0.6, 0.5])
    n, value = 4, 0.5

    # Squared deviations by hand over n - 1, and one more unit that misses a third.
    variance = (0.02 / 3 + (1 / 9) / n) / n
    stretch = (scipy_stats.norm.ppf(0.975) / scipy_stats.t.ppf(0.975, n - 1)) ** 2
    trials = value * (1 - value) / variance * stretch
    assert trials > n

    hits = value * trials
    low = scipy_stats.beta.ppf(0.025, hits, trials - hits + 1)
    high = scipy_stats.beta.ppf(0.975, hits + 1, trials - hits)
    assert mean_share(shares, unit="prompts").ends == pytest.approx((low, high), rel=1e-9)


def test_mean_shares_stay_in_range_and_narrow_away_from_one() -> None:
    assert mean_share(np.ones(64), unit="prompts").ends == pytest.approx((0.025 ** (1 / 64), 1.0))
    assert mean_share(np.zeros(64), unit="prompts").ends == pytest.approx(
        (0.0, 1 - 0.025 ** (1 / 64))
    )

    middle = alike(_rng(2), 0.5, 400)
    found, normal = mean_share(middle, unit="prompts"), student(middle, unit="prompts")
    assert found.ends == pytest.approx(normal.ends, abs=1e-3)

    with pytest.raises(InputError, match="values in"):
        mean_share(np.array([0.5, 1.2]), unit="prompts")


Statistic = Callable[[np.ndarray], np.ndarray]


def ends(
    values: np.ndarray, rng: np.random.Generator, *, statistic: Statistic, resamples: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    found = two_level_errors(values, rng, resamples=resamples, statistic=statistic)
    reach = scipy_stats.t.ppf(0.975, found.freedom) * found.error
    return found.value - reach, found.value + reach


def plain_bootstrap(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Prompts are resampled, then heads within each layer, as if that were all."""
    means = resampled_means(values, rng, resamples=200)
    heads = rng.integers(0, means.shape[2], size=means.shape)
    return layer_means(np.take_along_axis(means, heads, axis=2))


def layer_means(drawn: np.ndarray) -> np.ndarray:
    return drawn.mean(axis=2)


@pytest.mark.parametrize(
    ("of_heads", "of_prompts", "of_both"), [(1.0, 0.0, 0.3), (1.0, 1.0, 1.0), (0.2, 2.0, 1.0)]
)
def test_four_heads_are_covered_where_a_plain_bootstrap_falls_short(
    of_heads: float, of_prompts: float, of_both: float
) -> None:
    """Truth: the mean over all heads and prompts that could have been there."""
    rng, covered, plain = _rng(11), [], []
    for _ in range(500):
        prompts = of_prompts * rng.normal(size=(30, 1, 1))
        values = (
            of_heads * rng.normal(size=(1, 2, 4)) + prompts + of_both * rng.normal(size=(30, 2, 4))
        )
        low, high = ends(values, rng, statistic=layer_means)
        covered.extend((low <= 0) & (high >= 0))
        low, high = np.quantile(plain_bootstrap(values, rng), [0.025, 0.975], axis=0)
        plain.extend((low <= 0) & (high >= 0))

    assert 0.93 <= np.mean(covered) <= 0.99
    if of_heads > of_prompts:
        assert np.mean(plain) < 0.88


def test_a_centre_over_layers_of_four_heads_is_covered() -> None:
    """A ratio over six layers: their heads add up to more degrees of freedom than one layer has."""
    rng, depth = _rng(12), np.arange(6) / 6
    profile = np.array([0.2, 0.4, 1.0, 1.4, 0.6, 0.3])
    truth = profile @ depth / profile.sum()

    def centre(drawn: np.ndarray) -> np.ndarray:
        by_layer = drawn.mean(axis=2)
        return by_layer @ depth / by_layer.sum(axis=1)

    covered, widths = [], []
    for _ in range(400):
        heads = profile[:, None] * rng.gamma(4, 1 / 4, size=(6, 4))
        values = heads + 0.2 * rng.normal(size=(40, 6, 4))
        low, high = ends(values, rng, statistic=centre)
        covered.append(low <= truth <= high)
        widths.append(high - low)

    assert 0.92 <= np.mean(covered) <= 0.99
    assert np.mean(widths) < 0.35


def test_one_head_a_layer_says_nothing_about_heads() -> None:
    low, _ = ends(_rng().normal(size=(9, 2, 1)), _rng(), resamples=20, statistic=layer_means)
    assert np.isnan(low).all()
    with pytest.raises(InputError, match="2 or more prompts"):
        ends(np.ones((1, 2, 4)), _rng(), resamples=20, statistic=layer_means)
