"""Verdicts, leads and lags on planted histories."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from eigen_phase.measure_transition import (
    geometric,
    metrics_of,
    over_seeds,
    transition_report,
)
from eigen_phase.params import EigenPhase, Transition
from eigen_phase.run_directory import RunDirectory
from interp_core.files.params import read_section
from interp_core.statistics.transitions import FEWEST

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
    report = transition_report(runs, settings)
    assert {found["verdict"] for found in report["runs"].values()} == {"transition"}

    for run in runs:
        accuracy, said = run.history["pattern_accuracy"], report["runs"][run.name]["sentence"]
        assert f"{accuracy[0]:.2f} at first, {accuracy[-1]:.2f} at the end" in said

    condition = report["conditions"]["tiled"]
    assert condition["midpoint"]["value"] == pytest.approx(199.5, rel=0.02)

    lag = condition["lags"]["prefix_matching of the best head"]
    assert lag["event"] == "rise"
    assert lag["ratio"]["value"] == pytest.approx(0.7, rel=0.02)
    assert lag["ratio"]["high"] < 0.75
    assert lag["verdict"] == "leads"

    # A rise to a peak is dated half way up: a Gaussian of width .15 at 1.1 is so at .83 widths.
    rise = condition["lags"]["top_eigenvalue"]
    half = 1.1 * np.exp(-0.15 * np.sqrt(2 * np.log(2)))
    assert rise["ratio"]["value"] == pytest.approx(half, rel=0.05)

    loss = condition["lags"]["pattern_loss"]
    assert loss["event"] == "fall"
    assert loss["ratio"]["value"] == pytest.approx(1.0, rel=0.02)


def test_of_several_metrics_one_leads_only_at_the_level_of_all_together(
    settings: Transition,
) -> None:
    runs = [planted(seed, midpoint=200) for seed in range(5)]

    # Mean over error is 3.3: above Student's 2.8 at .95, below 4.0 at .95 for all three metrics.
    seeds = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]) / np.sqrt(2.5)
    leads = np.exp(0.08 * (seeds - 3.3 / np.sqrt(5)))
    for run, lead in zip(runs, leads, strict=True):
        rise = expit(np.log(np.maximum(STEPS, 1) / (200 * lead)) / 0.06)
        run.history["pattern_loss"] = 3.5 - 3.3 * rise

    lags = transition_report(runs, settings)["conditions"]["tiled"]["lags"]
    assert len(lags) == 3
    assert lags["pattern_loss"]["ratio"]["high"] < 1.0
    assert lags["pattern_loss"]["verdict"] not in ("leads", "lags")


def test_a_metric_without_a_step_in_one_seed_has_no_lag(settings: Transition) -> None:
    runs = [planted(seed, midpoint=middle) for seed, middle in enumerate((180, 200, 220, 190, 210))]
    rng = np.random.default_rng(8)
    runs[3].history["pattern_loss"] = 3.5 + 0.1 * rng.normal(size=len(STEPS))
    lag = transition_report(runs, settings)["conditions"]["tiled"]["lags"]["pattern_loss"]

    assert lag["ratio"] is None
    assert (lag["dated"], lag["of"]) == (4, 5)
    assert lag["verdict"] == "no lead or lag: dated in 4 of 5 seeds"
    assert lag["undated"][0].startswith("not dated")


def test_curves_that_only_wander_lead_nothing(settings: Transition) -> None:
    verdicts = []

    for repetition in range(10):
        rng = np.random.default_rng([5, repetition])
        runs = [planted(seed, midpoint=200 + 5 * seed) for seed in range(5)]
        for run in runs:
            walk = np.cumsum(rng.normal(size=len(STEPS)))
            run.history["gradient_norm"] = 5 + 0.3 * walk
        lags = transition_report(runs, settings)["conditions"]["tiled"]["lags"]
        verdicts.append(lags["gradient_norm"]["verdict"])

    assert sum(verdict in ("leads", "lags") for verdict in verdicts) == 0


def test_the_largest_eigenvalue_on_many_rows_is_dated_and_its_peak_is_not_at_an_edge(
    settings: Transition,
) -> None:
    runs = [planted(seed, midpoint=200) for seed in range(2)]
    looks = STEPS[::2]
    hill = 1 + 9 * np.exp(-0.5 * (np.log(np.maximum(looks, 1) / 220) / 0.15) ** 2)
    hill = hill + 0.02 * np.sin(np.arange(len(looks)) * 2.0)
    up = np.where(looks < 390, 1.0, 9.0) + 0.02 * np.sin(np.arange(len(looks)) * 2.0)
    largest = {runs[0].name: (looks, hill), runs[1].name: (looks, up)}
    report = transition_report(runs, settings, largest)

    assert report["runs"]["tiled-s0"]["peak"]["step"] == 220
    assert report["runs"]["tiled-s1"]["peak"] is None
    assert report["conditions"]["tiled"]["peak_over_step"] is None
    dated = report["runs"]["tiled-s0"]["metrics"]["largest_eigenvalue"]["step"]
    assert dated == pytest.approx(220 * np.exp(-0.15 * np.sqrt(2 * np.log(2))), rel=0.05)
    assert report["conditions"]["tiled"]["lags"]["largest_eigenvalue"]["ratio"] is None


def test_no_transition_is_a_verdict_and_not_an_error(settings: Transition) -> None:
    runs = [planted(seed, midpoint=200, flat=True) for seed in range(3)]
    report = transition_report(runs, settings)
    assert {found["verdict"] for found in report["runs"].values()} == {"no transition"}
    assert report["conditions"]["tiled"]["midpoint"] is None
    assert report["conditions"]["tiled"]["lags"] == {}


@pytest.mark.parametrize(
    ("middle", "width", "verdict"),
    [(150, 0.2, "gradual"), (100, 0.6, "not dated"), (395, 0.05, "not dated")],
    ids=["slow", "all the way", "at the end"],
)
def test_a_rise_that_is_slow_or_not_over_is_called_so(
    middle: float, width: float, verdict: str, settings: Transition
) -> None:
    run = planted(0, midpoint=200)
    rise = expit(np.log(np.maximum(STEPS, 1) / middle) / width)
    noise = 0.005 * np.random.default_rng(3).normal(size=len(STEPS))
    run.history["pattern_accuracy"] = 0.1 + 0.8 * rise + noise
    report = transition_report([run], settings)
    assert report["runs"]["tiled-s0"]["verdict"] == verdict


def test_too_few_points_are_said(settings: Transition) -> None:
    run = planted(0, midpoint=200)
    # With step 0, which has no logarithm, they would be enough.
    short = {name: values[:FEWEST] for name, values in run.history.items()}
    few = run_of(run.name, short)
    report = transition_report([few], settings)
    assert report["runs"]["tiled-s0"]["verdict"] == "too few points"
    assert report["conditions"]["tiled"]["lags"] == {}


def test_of_heads_the_one_that_leads_at_the_end_is_followed() -> None:
    run = planted(0, midpoint=200)
    _, curve = metrics_of(run)["prefix_matching of the best head"]
    np.testing.assert_array_equal(curve, run.history["prefix_matching"][:, 1, 0])


def test_an_interval_over_seeds_is_students_and_none_is_left_out() -> None:
    values = [0.9, 1.0, 1.2, 1.1]
    logs = np.log(values)
    expected = stats.t.interval(0.95, 3, loc=logs.mean(), scale=stats.sem(logs, ddof=1))
    found = geometric(values)

    assert (found.low, found.high) == pytest.approx(tuple(np.exp(expected)), rel=1e-9)
    assert over_seeds([0.9, None, 1.2]) is None
    assert over_seeds([]) is None
    alone = over_seeds([2.0])
    assert alone is not None
    assert (alone["value"], alone["low"], alone["n"]) == (pytest.approx(2.0), None, 1)
