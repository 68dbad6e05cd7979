"""Half-height crossings: planted steps dated where they are, and nothing dated where no step is."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import expit

from interp_core.errors import InputError
from interp_core.statistics.events import Event, Guards, half_height, lag_over_seeds

STEPS = np.arange(10, 610, 10)
GUARDS = Guards(edge=0.05, widest=0.5, noise=6.0)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def autocorrelated(rng: np.random.Generator, *, r: float, spread: float) -> np.ndarray:
    noise = rng.normal(size=len(STEPS))
    for i in range(1, len(STEPS)):
        noise[i] = r * noise[i - 1] + np.sqrt(1 - r**2) * noise[i]
    return spread * noise


def step_at(midpoint: float, width: float = 0.05) -> np.ndarray:
    return 0.1 + 0.85 * expit(np.log(STEPS / midpoint) / width)


@pytest.mark.parametrize("midpoint", [60.0, 150.0, 333.0])
@pytest.mark.parametrize("r", [0.0, 0.7])
def test_a_step_is_dated_where_it_is_rising_or_falling(midpoint: float, r: float) -> None:
    rng = _rng(int(midpoint))
    for _ in range(10):
        noisy = step_at(midpoint) + autocorrelated(rng, r=r, spread=0.02)
        rise = half_height(STEPS, noisy, GUARDS, direction="rise")
        fall = half_height(STEPS, 1 - noisy, GUARDS, direction="fall")
        assert rise.step == pytest.approx(midpoint, rel=0.08)
        assert fall.step == pytest.approx(rise.step)
        assert fall.height == pytest.approx(-rise.height)
        assert rise.low is not None
        assert rise.high is not None
        assert rise.low < midpoint < rise.high


def test_a_rise_to_a_peak_is_dated_at_half_of_its_height_not_at_a_cut() -> None:
    """Steep up, slow down, as the largest eigenvalue goes: half of the peak."""
    up = step_at(150.0)
    curve = np.where(STEPS < 200, up, up * np.exp(-(STEPS - 200) / 300))
    found = half_height(STEPS, curve, GUARDS, direction="rise")
    assert found.step == pytest.approx(150, rel=0.05)


def flat(rng: np.random.Generator, r: float) -> np.ndarray:
    return autocorrelated(rng, r=r, spread=0.05)


def drift(rng: np.random.Generator, r: float) -> np.ndarray:
    return 0.8 * STEPS / STEPS[-1] + autocorrelated(rng, r=r, spread=0.02)


def log_drift(rng: np.random.Generator, r: float) -> np.ndarray:
    return 0.8 * np.log(STEPS / 10) / np.log(60) + autocorrelated(rng, r=r, spread=0.02)


def power_law(rng: np.random.Generator, r: float) -> np.ndarray:
    return -((STEPS / 10) ** -0.5) + autocorrelated(rng, r=r, spread=0.01)


def steep_power_law(rng: np.random.Generator, r: float) -> np.ndarray:
    return -((STEPS / 10) ** -1.5) + autocorrelated(rng, r=r, spread=0.005)


@pytest.mark.parametrize("r", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("curve", [flat, drift, log_drift, power_law, steep_power_law])
def test_curves_without_a_step_have_no_event_in_any_seed(
    curve: Callable[[np.random.Generator, float], np.ndarray], r: float
) -> None:
    rng = _rng(7)
    for _ in range(40):
        values = curve(rng, r)
        for direction, sign in (("rise", 1), ("fall", -1)):
            found = half_height(STEPS, sign * values, GUARDS, direction=direction)  # pyright: ignore[reportArgumentType]
            assert not found.dated, found.says
            assert found.says.startswith("not dated")


@pytest.mark.parametrize("midpoint", [11.0, 585.0])
def test_a_step_at_the_edge_of_its_window_is_not_dated(midpoint: float) -> None:
    found = half_height(STEPS, step_at(midpoint), GUARDS, direction="rise")
    assert not found.dated
    assert found.says == "not dated: at the edge of its window"


def test_guards_refuse_what_is_too_wide_or_too_low() -> None:
    wide = half_height(
        STEPS, step_at(80.0, 0.35), Guards(edge=0.05, widest=0.2, noise=6.0), direction="rise"
    )
    assert wide.says == "not dated: wider than 0.2 of its window"

    low = half_height(
        STEPS, step_at(150.0) + 0.3 * _rng(1).normal(size=len(STEPS)), GUARDS, direction="rise"
    )
    assert low.says == "not dated: lower than 6 standard deviations of its noise"

    assert "no rise" in half_height(STEPS, -step_at(100.0), GUARDS, direction="rise").says
    with pytest.raises(InputError, match="at least 8 points"):
        half_height(STEPS[:7], STEPS[:7] / 1.0, GUARDS, direction="rise")


def at(step: float | None) -> Event:
    return Event(step, None, None, 1.0, "")


def test_noise_is_the_standard_deviation_of_a_sample() -> None:
    before = np.tile([0.0, 0.08], 10)
    curve = np.concatenate([before, np.ones(40)])

    # 20 values .04 from their mean: the spread of a sample is sqrt(20 / 19) of that.
    spread = 0.04 * np.sqrt(20 / 19)
    for noise, dated in ((0.995 / spread, True), (1.005 / spread, False)):
        guards = Guards(edge=0.05, widest=0.5, noise=noise)
        assert half_height(STEPS, curve, guards, direction="rise").dated == dated


def test_a_lag_is_that_of_all_seeds_or_of_none() -> None:
    accuracy = [at(step) for step in (100.0, 120.0, 90.0)]
    later = [at(step) for step in (120.0, 143.0, 109.0)]
    assert lag_over_seeds(later, accuracy).verdict == "lags"
    assert lag_over_seeds(accuracy, later).verdict == "leads"
    assert lag_over_seeds(accuracy, accuracy[::-1]).verdict == "no lead or lag shown"

    ratio = lag_over_seeds(later, accuracy).ratio
    assert ratio is not None
    assert ratio.value == pytest.approx(1.2, abs=0.01)

    one_missing = lag_over_seeds([*later[:2], at(None)], accuracy)
    assert one_missing.ratio is None
    assert one_missing.verdict == "no lead or lag: dated in 2 of 3 seeds"
    assert one_missing.to_json() == {
        "ratio": None,
        "dated": 2,
        "of": 3,
        "verdict": one_missing.verdict,
    }
    with pytest.raises(InputError, match="one of each a seed"):
        lag_over_seeds(later, accuracy[:2])


def test_lags_of_events_with_one_date_are_called_at_the_stated_rate() -> None:
    rng, called = _rng(8), []
    for _ in range(1500):
        draw = np.exp(5 + 0.1 * rng.normal(size=(2, 5)))
        called.append(
            lag_over_seeds(
                [at(s) for s in draw[0].tolist()], [at(s) for s in draw[1].tolist()]
            ).verdict
        )
    assert 1 - called.count("no lead or lag shown") / len(called) <= 0.07
