"""A planted shift between short and long lags is found with its size; none is found where none was
planted.
"""

import json
from typing import Any

import numpy as np
import pytest

from interp_core.errors import InputError
from planted_evidence import planted
from pythia_topology.measure_lags import lags_summary
from pythia_topology.measure_layer_profile import HeadEvidence

SETTINGS: dict[str, Any] = {
    "split": 8,
    "mode": "mean",
    "q": 0.75,
    "alpha": 0.001,
    "draws": 1999,
    "smallest_effect": 0.05,
    "resamples": 300,
}
LAGS = np.resize([1, 4, 8, 16, 32], 60)


def _shifted(short_layer: int, long_layer: int) -> HeadEvidence:
    """Six of eight heads of one layer serve short lags, those of another layer long lags."""
    heads = [
        planted({(layer, head): 0.6 for head in range(6)}, n_layers=8, n_heads=8, n_prompts=60)
        for layer in (short_layer, long_layer)
    ]
    long = (LAGS > 8)[:, None, None]
    return HeadEvidence(
        np.where(long, heads[1].prefix_matching, heads[0].prefix_matching),
        heads[0].control,
        heads[0].shuffled,
    )


def test_a_shift_between_short_and_long_lags_is_found_with_its_size() -> None:
    summary = lags_summary(_shifted(2, 5), LAGS, np.random.default_rng(0), **SETTINGS)
    shift = summary["centre_of_mass_shift"]
    assert shift["value"] == pytest.approx(3 / 8, abs=0.06)
    assert 0.2 < shift["low"] < shift["value"] < shift["high"]
    assert shift["p"] == 1 / 2000
    assert summary["buckets"]["short"]["peak_layer"] == 2
    assert summary["buckets"]["long"]["peak_layer"] == 5
    json.dumps(summary, allow_nan=False)


def test_without_a_shift_the_interval_holds_zero() -> None:
    summary = lags_summary(_shifted(4, 4), LAGS, np.random.default_rng(0), **SETTINGS)
    shift = summary["centre_of_mass_shift"]
    assert shift["low"] <= 0 <= shift["high"]
    assert shift["p"] > 0.05
    assert abs(shift["value"]) < 0.03


def test_every_lag_has_its_profile_and_its_n() -> None:
    summary = lags_summary(_shifted(2, 5), LAGS, np.random.default_rng(0), **SETTINGS)
    assert [row["lag"] for row in summary["per_lag"]] == [1, 4, 8, 16, 32]
    assert [row["peak_layer"] for row in summary["per_lag"]] == [2, 2, 2, 5, 5]
    assert sum(row["n"] for row in summary["per_lag"]) == summary["n"] == 60
    assert summary["buckets"]["short"]["lags"] == [1, 4, 8]
    assert summary["buckets"]["long"]["n"] == 24


def test_the_p_of_a_shift_is_uniform_when_lags_do_not_matter() -> None:
    small: dict[str, Any] = SETTINGS | {"draws": 99, "alpha": 0.05, "resamples": 2}
    p = [
        lags_summary(
            planted({(2, 0): 0.3, (3, 1): 0.3}, n_layers=5, n_prompts=30, seed=seed),
            np.resize([4, 16], 30),
            np.random.default_rng(seed),
            **small,
        )["centre_of_mass_shift"]["p"]
        for seed in range(120)
    ]
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.1
    assert 0.38 <= np.mean(np.array(p) <= 0.5) <= 0.62


def test_interval_and_p_answer_one_question() -> None:
    """Of these heads, over prompts: about as often as p is below .05, the interval leaves out 0."""
    small: dict[str, Any] = SETTINGS | {"draws": 199, "alpha": 0.05, "resamples": 200}
    agree, outside = [], []

    for seed in range(80):
        heads = planted({(2, 0): 0.3, (3, 1): 0.3}, n_layers=5, n_prompts=40, seed=seed)
        lag = np.resize([4, 16], 40)
        shift = lags_summary(heads, lag, np.random.default_rng(seed), **small)[
            "centre_of_mass_shift"
        ]
        excludes = not shift["low"] <= 0 <= shift["high"]
        agree.append(excludes == (shift["p"] <= 0.05))
        outside.append(excludes)

    assert np.mean(agree) >= 0.93
    assert 0.01 <= np.mean(outside) <= 0.13


def test_the_excess_at_the_peak_is_of_one_layer_for_all_lags() -> None:
    summary = lags_summary(_shifted(2, 5), LAGS, np.random.default_rng(0), **SETTINGS)
    at_peak = [row["at_peak"] for row in summary["per_lag"]]
    assert {entry["layer"] for entry in at_peak} == {2}
    assert at_peak[0]["low"] < at_peak[0]["value"] == pytest.approx(0.45, abs=0.03)
    assert at_peak[-1]["value"] == pytest.approx(0.0, abs=0.03)


def test_without_induction_heads_no_shift_is_claimed() -> None:
    heads = planted({}, n_layers=4, n_prompts=60)
    summary = lags_summary(heads, LAGS, np.random.default_rng(0), **SETTINGS)
    assert summary["verdict"] == "no induction heads"
    assert summary["centre_of_mass_shift"] is None
    assert summary["buckets"]["long"]["peak_rel"] is None
    json.dumps(summary, allow_nan=False)


def test_an_empty_bucket_is_said() -> None:
    settings: dict[str, Any] = SETTINGS | {"split": 32}
    with pytest.raises(
        InputError, match=r"split 32 leaves a bucket empty: the lags are \[1, 4, 8, 16, 32\]"
    ):
        lags_summary(
            planted({}, n_layers=2, n_prompts=60), LAGS, np.random.default_rng(0), **settings
        )
