"""Verdicts, leads and lags on planted histories."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from eigen_phase.measure_transition import mean_over_seeds, metrics_of, transition_report
from eigen_phase.params import EigenPhase, Transition
from eigen_phase.run_directory import RunDirectory
from interp_core.files.params import read_section

STEPS = np.arange(0, 410, 10)


def run_of(name: str, history: dict[str, np.ndarray]) -> RunDirectory:
    """A run with this history, nothing of it on disk."""
    training = read_section("eigen_phase", EigenPhase, "smoke").training
    run = RunDirectory(Path("nowhere"), {"name": name}, training)
    run.__dict__["history"] = history
    return run


def planted(seed: int, *, midpoint: float, lead: float = 0.7, flat: bool = False) -> RunDirectory:
    rng = np.random.default_rng(seed)

    def logistic(middle: float, low: float, high: float) -> np.ndarray:
        rise = expit(np.log(np.maximum(STEPS, 1) / middle) / 0.06)
        return (
            low + (high - low) * (0 * rise if flat else rise) + 0.01 * rng.normal(size=len(STEPS))
        )

    eigenvalue = 1 + 10 * np.exp(
        -0.5 * (np.log(np.maximum(STEPS, 1) / (1.1 * midpoint)) / 0.15) ** 2
    )
    eigenvalue = eigenvalue + 0.2 * rng.normal(size=len(STEPS))
    eigenvalue[1::2] = np.nan
    heads = np.zeros((len(STEPS), 2, 2))
    heads[:, 1, 0] = logistic(lead * midpoint, 0.05, 0.8)
    history = {
        "step": STEPS,
        "pattern_accuracy": logistic(midpoint, 0.1, 0.95),
        "pattern_loss": logistic(midpoint, 3.5, 0.2),
        "top_eigenvalue": eigenvalue,
        "prefix_matching": heads,
    }
    return run_of(f"tiled-s{seed}", history)


@pytest.fixture
def settings(section: EigenPhase) -> Transition:
    return section.transition


def test_a_planted_lead_is_recovered_with_its_interval(settings: Transition) -> None:
    runs = [planted(seed, midpoint=middle) for seed, middle in enumerate((180, 200, 220, 190, 210))]
    report = transition_report(runs, settings, np.random.default_rng(0))
    assert {found["verdict"] for found in report["runs"].values()} == {"transition"}
    condition = report["conditions"]["tiled"]
    assert condition["midpoint"]["value"] == pytest.approx(199.5, rel=0.02)
    lag = condition["lags"]["prefix_matching of the best head"]
    assert lag["event"] == "midpoint"
    assert lag["lag"]["value"] == pytest.approx(0.7, rel=0.02)
    assert lag["lag"]["ci"][1] < 0.75
    assert lag["verdict"] == "leads"
    assert lag["lag"]["signs_p"] == pytest.approx(2 / 32)
    peak = condition["lags"]["top_eigenvalue"]
    assert peak["event"] == "peak"
    assert peak["lag"]["value"] == pytest.approx(1.1, rel=0.03)
    assert condition["lags"]["pattern_loss"]["lag"]["value"] == pytest.approx(1.0, rel=0.02)


def test_no_transition_is_a_verdict_and_not_an_error(settings: Transition) -> None:
    runs = [planted(seed, midpoint=200, flat=True) for seed in range(3)]
    report = transition_report(runs, settings, np.random.default_rng(0))
    assert {found["verdict"] for found in report["runs"].values()} == {"no transition"}
    assert report["conditions"]["tiled"]["midpoint"] is None
    assert report["conditions"]["tiled"]["lags"] == {}


def test_a_slow_rise_is_gradual(settings: Transition) -> None:
    run = planted(0, midpoint=200)
    rng = np.random.default_rng(3)
    slow = (
        0.1
        + 0.8 * expit(np.log(np.maximum(STEPS, 1) / 100) / 0.6)
        + 0.005 * rng.normal(size=len(STEPS))
    )
    run.history["pattern_accuracy"] = slow
    report = transition_report([run], settings, np.random.default_rng(0))
    assert report["runs"]["tiled-s0"]["verdict"] == "gradual"


def test_too_few_points_are_said(settings: Transition) -> None:
    run = planted(0, midpoint=200)
    short = {name: values[:6] for name, values in run.history.items()}
    few = run_of(run.name, short)
    report = transition_report([few], settings, np.random.default_rng(0))
    assert report["runs"]["tiled-s0"]["verdict"] == "too few points"


def test_of_heads_the_one_that_leads_at_the_end_is_followed() -> None:
    run = planted(0, midpoint=200)
    _, curve = metrics_of(run)["prefix_matching of the best head"]
    np.testing.assert_array_equal(curve, run.history["prefix_matching"][:, 1, 0])


def test_intervals_over_five_seeds_cover_at_their_rate() -> None:
    rng = np.random.default_rng(1)
    draws = [mean_over_seeds(rng.normal(0.3, 1.0, size=5)) for _ in range(2000)]
    assert np.mean([found["ci"][0] <= 0.3 <= found["ci"][1] for found in draws]) == pytest.approx(
        0.95, abs=0.015
    )
    null = [mean_over_seeds(rng.normal(size=5)) for _ in range(2000)]
    assert np.mean([found["p"] <= 0.05 for found in null]) == pytest.approx(0.05, abs=0.015)
    assert np.mean([found["signs_p"] <= 0.0625 for found in null]) == pytest.approx(
        0.0625, abs=0.015
    )
    assert mean_over_seeds(np.array([1.0]))["ci"] is None
