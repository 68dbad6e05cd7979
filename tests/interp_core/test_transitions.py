"""Turns of training curves: planted ones found where they are, and none found in noise."""

import numpy as np
import pytest
from scipy import optimize
from scipy.special import expit

from interp_core.errors import InputError
from interp_core.statistics.transitions import LogisticFit, logistic_fit, turn_of

STEPS = np.arange(10, 610, 10)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def autocorrelated(rng: np.random.Generator, n: int, *, r: float, spread: float) -> np.ndarray:
    """AR(1) noise of this lag-one correlation and standard deviation."""
    noise = np.empty(n)
    noise[0] = rng.normal() * spread
    for i in range(1, n):
        noise[i] = r * noise[i - 1] + np.sqrt(1 - r**2) * spread * rng.normal()
    return noise


def rise(
    step: np.ndarray, *, midpoint: float, width: float, low: float = 0.1, high: float = 0.95
) -> np.ndarray:
    """A logistic in log steps."""
    return low + (high - low) * expit(np.log(step / midpoint) / width)


def test_the_logistic_fit_recovers_a_rise_and_its_intervals_cover() -> None:
    step = np.arange(0, 1000, 50)
    rng = _rng(9)
    covered = []

    def fitted() -> LogisticFit:
        shift = rng.normal(size=(30, 1)) * 20
        rise = (
            0.05 + 0.9 / (1 + np.exp(-(step - 600 - shift) / 30)) + 0.03 * rng.normal(size=(30, 20))
        )
        return logistic_fit(step, rise, rng, resamples=40)

    for _ in range(25):
        fit = fitted()
        covered.append(fit.midpoint.low <= 600 <= fit.midpoint.high)
    assert np.mean(covered) >= 0.8
    fit = fitted()
    assert fit.midpoint.value == pytest.approx(600, abs=15)
    assert 25 <= fit.width.value <= 45
    assert fit.low.value == pytest.approx(0.05, abs=0.03)
    assert fit.high.value == pytest.approx(0.95, abs=0.03)


def test_the_logistic_fit_equals_scipy_s_curve_fit() -> None:
    step, rng = np.log1p(np.geomspace(1, 2000, 24)), _rng(12)

    def rise(x: np.ndarray, midpoint: float, width: float, low: float, high: float) -> np.ndarray:
        return low + (high - low) / (1 + np.exp(-(x - midpoint) / width))

    curve = rise(step, 6.1, 0.2, 0.08, 0.97) + 0.02 * rng.normal(size=24)
    expected, _ = optimize.curve_fit(rise, step, curve, p0=[6, 0.3, 0.1, 0.9])
    fit = logistic_fit(step, np.stack([curve, curve]), rng, resamples=2)
    found = [float(part.value) for part in (fit.midpoint, fit.width, fit.low, fit.high)]
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_a_rise_sharper_than_the_steps_lies_in_the_middle_of_its_gap() -> None:
    fit = logistic_fit(
        np.arange(20) * 10, np.tile(np.arange(20) > 12, (3, 1)).astype(float), _rng(), resamples=2
    )
    assert fit.midpoint.value == pytest.approx(125, abs=0.5)
    assert fit.low.value == pytest.approx(0, abs=0.01)
    assert fit.high.value == pytest.approx(1, abs=0.01)


def test_few_steps_are_refused() -> None:
    with pytest.raises(InputError, match="at least 4 steps"):
        logistic_fit(np.arange(3), np.ones((2, 3)), _rng(), resamples=2)
    with pytest.raises(InputError, match="at least 8 points after step 0, got 5"):
        turn_of(np.arange(6), np.ones(6))


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_planted_rise_or_fall_is_found_where_it_is(width: float, sign: int) -> None:
    rng, hits = _rng(1), []
    for _ in range(30):
        noise = autocorrelated(rng, len(STEPS), r=0.3, spread=0.02)
        turn = turn_of(STEPS, sign * (rise(STEPS, midpoint=300, width=width) + noise))
        hits.append(turn.steps and abs(turn.midpoint / 300 - 1) < 0.05)
        assert turn.size * sign == pytest.approx(0.85, abs=0.1)
        assert abs(turn.change_point / 300 - 1) < 0.15
    assert np.mean(hits) > 0.96


def test_the_ratio_is_the_step_at_ninety_per_cent_over_that_at_ten() -> None:
    turn = turn_of(STEPS, rise(STEPS, midpoint=250, width=0.1, low=0, high=1))
    expected = np.exp(2 * np.log(9) * 0.1)
    assert turn.ratio == pytest.approx(expected, rel=0.01)
    dense = np.linspace(100, 600, 200000)
    curve = rise(dense, midpoint=250, width=0.1, low=0, high=1)
    assert dense[curve >= 0.9][0] / dense[curve >= 0.1][0] == pytest.approx(expected, rel=0.001)


@pytest.mark.parametrize("r", [0.0, 0.5, 0.8])
def test_noise_around_a_level_or_a_line_seldom_turns(r: float) -> None:
    rng, level, line = _rng(2), [], []
    for _ in range(200):
        noise = autocorrelated(rng, len(STEPS), r=r, spread=0.02)
        level.append(turn_of(STEPS, 0.15 + noise).turns)
        line.append(turn_of(STEPS, 0.1 + 0.1 * np.log(STEPS) / 6 + noise).turns)
    assert np.mean(level) <= 0.06
    assert np.mean(line) <= 0.06


@pytest.mark.parametrize("axis", [np.log(STEPS), STEPS.astype(float)])
def test_a_straight_line_is_a_line_on_either_axis(axis: np.ndarray) -> None:
    rng = _rng(3)
    turns = [
        turn_of(STEPS, axis / axis.max() + 0.02 * rng.normal(size=len(STEPS))) for _ in range(50)
    ]
    assert np.mean([turn.best == "line" for turn in turns]) > 0.9
    assert not any(turn.steps for turn in turns)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_rise_and_fall_is_a_bump_where_it_is(sign: int) -> None:
    rng, found = _rng(4), []
    for _ in range(30):
        curve = 2 + 8 * np.exp(-0.5 * (np.log(STEPS / 280) / 0.15) ** 2)
        turn = turn_of(STEPS, sign * (curve + autocorrelated(rng, len(STEPS), r=0.3, spread=0.2)))
        found.append(turn.turns and turn.best == "bump" and abs(turn.bump / 280 - 1) < 0.05)
        assert turn.height * sign == pytest.approx(8, abs=0.6)
    assert np.mean(found) > 0.95
    assert turn_of(STEPS, rise(STEPS, midpoint=300, width=0.05)).steps


def test_the_midpoint_does_not_depend_on_units() -> None:
    curve = rise(STEPS, midpoint=300, width=0.08) + 0.01 * _rng(5).normal(size=len(STEPS))
    turn = turn_of(STEPS, curve)
    assert turn_of(STEPS, 40 - 7 * curve).midpoint == pytest.approx(turn.midpoint, rel=1e-6)
    assert turn_of(STEPS * 13, curve).midpoint == pytest.approx(13 * turn.midpoint, rel=1e-6)
    assert turn_of(STEPS * 13, curve).ratio == pytest.approx(turn.ratio, rel=1e-6)


def test_step_zero_is_left_out_and_a_constant_is_flat() -> None:
    turn = turn_of(np.arange(0, 200, 10), np.full(20, 0.5))
    assert turn.best == "flat"
    assert not turn.steps
    assert turn.points == 19
