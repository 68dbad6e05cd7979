"""Each null is what it says: counted by hand, against a second way, and on planted heads."""

import json
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from planted_evidence import planted
from pythia_topology.measure_nulls import (
    fullest_layer_p,
    head_permutation,
    nulls_summary,
    shuffled_antecedent_null,
    untrained_null,
)

SETTINGS: dict[str, Any] = {
    "mode": "mean",
    "q": 0.9,
    "alpha": 0.001,
    "draws": 1999,
    "smallest_effect": 0.1,
    "resamples": 200,
}


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("n_layers", "n_heads", "high"), [(3, 2, 2), (3, 3, 4), (2, 4, 5), (4, 2, 1)]
)
def test_the_fullest_layer_s_p_is_that_of_all_ways_to_deal_the_heads(
    n_layers: int, n_heads: int, high: int
) -> None:
    fullest = np.array(
        [
            np.bincount(np.array(dealt) // n_heads, minlength=n_layers).max()
            for dealt in combinations(range(n_layers * n_heads), high)
        ]
    )
    counts = np.arange(min(n_heads, high) + 1)
    expected = [(fullest >= count).mean() for count in counts]
    np.testing.assert_allclose(
        fullest_layer_p(counts, n_layers=n_layers, n_heads=n_heads, high=high), expected
    )


def test_the_fullest_layer_s_p_is_exact_for_a_large_model() -> None:
    rng = _rng()
    high = np.zeros(24 * 16, dtype=bool)
    high[:39] = True
    fullest = (
        rng.permuted(np.tile(high, (4000, 1)), axis=1).reshape(4000, 24, 16).sum(axis=2).max(axis=1)
    )
    p = fullest_layer_p(np.array([5, 6, 7]), n_layers=24, n_heads=16, high=39)
    np.testing.assert_allclose(p, [(fullest >= count).mean() for count in (5, 6, 7)], atol=0.025)


def test_the_permutation_band_is_the_hypergeometric_one() -> None:
    scores = _rng(1).random((6, 8))
    summary = head_permutation(scores, q=0.75)
    assert summary["n_high"] == 12
    assert summary["mean"] == pytest.approx([0.25] * 6)
    draws = (
        _rng(2)
        .permuted(np.tile(scores.ravel() >= summary["threshold"], (8000, 1)), axis=1)[:, :8]
        .mean(axis=1)
    )
    np.testing.assert_allclose(
        [summary["lo"][0], summary["hi"][0]], np.quantile(draws, [0.025, 0.975])
    )
    np.testing.assert_allclose(np.sum(summary["observed_density"]) * 8, 12)
    assert summary["p_max"] > 0.05


def test_heads_packed_into_one_layer_are_denser_than_chance() -> None:
    scores = np.zeros((6, 8)) + _rng(3).random((6, 8)) * 0.1
    scores[4, :5] = 0.9
    summary = head_permutation(scores, q=1 - 5 / 48)
    assert summary["observed_density"][4] == pytest.approx(5 / 8)
    assert summary["p_layer"][4] == summary["p_max"] < 0.001
    assert summary["p_layer"][0] == 1.0


def test_equal_scores_show_no_structure() -> None:
    summary = head_permutation(np.ones((3, 4)), q=0.9)
    assert summary["p_layer"] == [1.0, 1.0, 1.0]


def test_only_true_antecedents_count_against_shuffled_ones() -> None:
    heads = planted({(2, 1): 0.5}, n_layers=4, everywhere={(0, 0): 0.2})
    summary = shuffled_antecedent_null(heads, _rng(), alpha=0.001, draws=1999)
    assert summary["heads_above"] == ["L2H1"]
    assert summary["p_max"] == summary["p_head"][2][1] == 1 / 21
    assert summary["p_head"][1][1] > 0.5
    assert summary["observed_max"] > summary["null_max_hi"] > 0.2
    assert (
        shuffled_antecedent_null(planted({}, n_layers=4), _rng(), alpha=0.001, draws=1999)[
            "n_above"
        ]
        == 0
    )


def test_a_trained_model_exceeds_its_untrained_twin_and_a_twin_does_not() -> None:
    trained, twin = (
        planted({(1, 0): 0.6}, n_layers=4).excess,
        planted({}, n_layers=4, seed=1).excess,
    )
    summary = untrained_null(trained, twin, smallest_effect=0.1)
    assert summary["max"] < 0.1 < trained[:, 1, 0].mean()
    np.testing.assert_allclose(summary["per_layer"], twin.mean(axis=(0, 2)))
    assert summary["n_trained_above_max"] >= 1
    assert summary["p_best_head"] == 1 / 17
    assert summary["n_untrained_above_smallest_effect"] == 0
    assert untrained_null(twin, trained, smallest_effect=0.1)["p_best_head"] > 0.1


def test_the_summary_has_the_keys_that_earlier_users_read() -> None:
    heads = planted({(3, 0): 0.7, (3, 1): 0.6, (2, 2): 0.3}, n_layers=6, n_heads=4)
    summary = nulls_summary(heads, planted({}, n_layers=6).excess, _rng(), **SETTINGS)
    assert {"observed_density", "q", "thresh", "permute_summary", "bootstrap"} <= set(summary)
    assert {"q", "threshold", "observed_density", "mean", "lo", "hi"} <= set(
        summary["permute_summary"]
    )
    assert {"peak_rel_mean", "peak_rel_ci", "bandwidth_mean", "bandwidth_ci"} <= set(
        summary["bootstrap"]
    )
    assert summary["bootstrap"]["peak_rel_mean"] == pytest.approx(3.5 / 6)
    low, high = summary["bootstrap"]["bandwidth_ci"]
    assert low <= summary["bootstrap"]["bandwidth_mean"] <= high
    assert summary["n_induction_heads"] == 3
    json.dumps(summary, allow_nan=False)


def test_without_induction_heads_there_is_no_peak_to_bootstrap() -> None:
    summary = nulls_summary(planted({}, n_layers=4), None, _rng(), **SETTINGS)
    assert summary["untrained_summary"] is None
    assert summary["bootstrap"]["peak_rel_mean"] is None
    assert summary["bootstrap"]["bandwidth_ci"] is None
    json.dumps(summary, allow_nan=False)
