"""Models built at the same depth are called equivalent, others different, and what cannot be told
is not decided.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from math import comb
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from interp_core.errors import InputError
from interp_core.statistics.interval import Errors, Interval
from interp_core.statistics.resampling import wasserstein_1
from planted_evidence import planted
from pythia_topology.measure_crosssize import crosssize_summary, difference, pair_verdict
from pythia_topology.measure_layer_profile import HeadEvidence
from pythia_topology.measure_shape import relative_depth

SETTINGS: dict[str, Any] = {
    "mode": "mean",
    "q": 0.75,
    "margin": 0.1,
    "equivalence_alpha": 0.05,
    "alpha": 0.001,
    "draws": 1999,
    "smallest_effect": 0.1,
    "resamples": 400,
    "grid_points": 21,
}


def _model(n_layers: int, depth: float, *, n_heads: int = 12, seed: int = 0) -> HeadEvidence:
    """Induction heads in the layers about a relative depth, in most heads of the layer so that
    resampling keeps it.
    """
    middle = round(depth * n_layers - 0.5)
    heads = {(middle, head): 0.6 for head in range(9)} | {
        (middle - 1, 0): 0.2,
        (middle + 1, 0): 0.2,
    }
    return planted(heads, n_layers=n_layers, n_heads=n_heads, seed=seed)


def _summary(models: Mapping[str, HeadEvidence], **changed: Any) -> dict[str, Any]:
    summary = crosssize_summary(models, np.random.default_rng(0), **SETTINGS | changed)
    json.dumps(summary, allow_nan=False)
    return summary


def test_three_sizes_with_heads_at_the_same_relative_depth_are_equivalent() -> None:
    summary = _summary({f"{n} layers": _model(n, 0.5, seed=n) for n in (5, 9, 15)})
    assert summary["verdict"] == "equivalent within 0.1"
    assert [pair["models"] for pair in summary["pairs"]] == [
        ["5 layers", "9 layers"],
        ["5 layers", "15 layers"],
        ["9 layers", "15 layers"],
    ]
    for pair in summary["pairs"]:
        assert abs(pair["centre_of_mass"]["difference"]["value"]) < 0.05
        assert pair["centre_of_mass"]["p"] <= 0.05
        assert pair["wasserstein_p_adjusted"] >= pair["wasserstein_p"]


def test_heads_at_other_depths_are_different_by_their_distance() -> None:
    summary = _summary({"early": _model(10, 0.35), "late": _model(10, 0.75, seed=1)})
    pair = summary["pairs"][0]
    assert summary["verdict"] == pair["verdict"] == "different"
    assert pair["peak_rel"]["difference"]["value"] == pytest.approx(0.4)
    assert summary["peak_verdict"] == pair["peak_verdict"] == "different"
    centre = pair["centre_of_mass"]["difference"]
    assert centre["value"] == pytest.approx(0.4, abs=0.1)
    assert centre["low"] > 0.2
    assert 0.2 < pair["wasserstein_1"] < 0.45


def test_too_little_evidence_is_not_decided_rather_than_equal() -> None:
    single = {(3, 0): 0.5, (5, 0): 0.5}  # whether a layer has a head at all depends on one head
    models = {name: planted(single, n_layers=8, seed=seed) for seed, name in enumerate(("a", "b"))}
    summary = _summary(models)
    assert abs(summary["pairs"][0]["centre_of_mass"]["difference"]["value"]) < 0.02
    assert summary["verdict"] == "not decided"


def test_one_different_pair_forbids_the_verdict_of_equivalence() -> None:
    summary = _summary(
        {"a": _model(9, 0.5), "b": _model(9, 0.5, seed=1), "c": _model(9, 0.8, seed=2)}
    )
    assert [pair["verdict"] for pair in summary["pairs"]] == [
        "equivalent within 0.1",
        "different",
        "different",
    ]
    assert summary["verdict"] == "different"


def test_a_model_without_induction_heads_decides_nothing() -> None:
    summary = _summary(
        {
            "a": _model(9, 0.5),
            "noise": planted({}, n_layers=6, n_heads=12),
            "b": _model(9, 0.5, seed=1),
        }
    )
    assert summary["verdict"] == "not decided"
    assert summary["pairs"][0]["verdict"] == "not decided: no induction heads in noise"
    assert summary["pairs"][0]["wasserstein_1"] is None
    assert summary["pairs"][1]["verdict"] == "equivalent within 0.1"
    assert summary["models"]["noise"]["centre_of_mass"] is None


def test_curves_share_one_axis_and_pass_through_their_layers() -> None:
    summary = _summary({"a": _model(10, 0.5), "b": _model(5, 0.5)}, grid_points=201)
    grid = np.array(summary["grid"])
    assert (grid[0], grid[-1]) == (0, 1)
    for model in summary["models"].values():
        at_layers = np.interp(model["depth"], grid, model["curve"])
        np.testing.assert_allclose(at_layers, model["per_layer"], atol=1e-6)
        assert (np.array(model["curve_low"]) <= np.array(model["curve_high"])).all()


@pytest.mark.parametrize(
    ("equivalent", "ends", "words"),
    [
        (True, (0.01, 0.03), "equivalent within 0.1"),
        (False, (0.01, 0.3), "different"),
        (False, (-0.3, -0.01), "different"),
        (False, (-0.2, 0.2), "not decided"),
        (False, (None, None), "different"),
        (True, (None, None), "equivalent within 0.1"),
    ],
)
def test_the_verdict_of_a_pair_comes_from_equivalence_first(
    *, equivalent: bool, ends: tuple[float | None, float | None], words: str
) -> None:
    found = Interval(0.15, *ends, 12, "prompts").to_json()
    tested = {"difference": found, "equivalent": equivalent}
    assert pair_verdict(tested, margin=0.1) == words


def test_the_peak_s_own_equivalence_stands_beside_the_centre_s() -> None:
    """The same centre, but one model's heads lie in two layers with a gap between them."""
    one = planted({(4, head): 0.6 for head in range(9)}, n_layers=9, n_heads=12)
    two = planted(
        {(2, head): 0.62 for head in range(9)} | {(6, head): 0.58 for head in range(9)},
        n_layers=9,
        n_heads=12,
        seed=1,
    )
    summary = _summary({"one": one, "two": two})
    (pair,) = summary["pairs"]
    assert abs(pair["centre_of_mass"]["difference"]["value"]) < 0.05
    assert not pair["peak_rel"]["equivalent"]
    assert summary["peak_verdict"] != summary["verdict"] == "equivalent within 0.1"


def test_a_difference_that_no_draw_moves_has_no_interval_and_no_p() -> None:
    still = Errors(np.array(0.4), np.array(0.0), np.array(1.0))
    same, other = (
        difference(still, replace(still, value=np.array(at)), margin=0.1, alpha=0.05, n=9)
        for at in (0.45, 0.6)
    )
    assert (same["difference"]["low"], same["p"], same["equivalent"]) == (None, None, True)
    assert (other["difference"]["high"], other["p"], other["equivalent"]) == (None, None, False)


def test_where_heads_spread_is_unknown_nothing_is_equivalent() -> None:
    unknown = Errors(np.array(0.4), np.array(np.nan), np.array(1.0))
    found = difference(unknown, unknown, margin=0.1, alpha=0.05, n=9)
    assert (found["p"], found["equivalent"]) == (None, False)


def test_equivalence_is_of_two_independent_models() -> None:
    """Errors of .03 and .04 make .05, whatever their order; the oracle is Student's t."""
    first = Errors(np.array(0.40), np.array(0.03), np.array(1e9))
    second = Errors(np.array(0.42), np.array(0.04), np.array(1e9))
    found = difference(first, second, margin=0.1, alpha=0.05, n=9)
    assert found["difference"]["high"] - 0.02 == pytest.approx(1.95996 * 0.05, rel=1e-4)
    assert found["p"] == pytest.approx(scipy_stats.norm.cdf(-0.08 / 0.05), rel=1e-4)
    assert found["high"] - 0.02 == pytest.approx(1.64485 * 0.05, rel=1e-4)


def test_layers_not_heads_are_exchanged_between_models() -> None:
    """Four and six layers have 210 exchanges; the sixteen and 24 heads have more than 10^10."""
    models = {"a": _model(4, 0.4), "b": _model(6, 0.4, seed=1)}
    (pair,) = _summary(models)["pairs"]
    assert pair["exchanges"] == comb(10, 4) - 1
    assert pair["wasserstein_p"] >= 1 / comb(10, 4)


def test_the_p_of_two_models_of_one_kind_is_uniform_where_layers_vary() -> None:
    """Every layer has a level of its own, which its heads share: exchanging heads finds .36 at
    .05."""
    rng = np.random.default_rng(3)
    p = []

    for _ in range(200):
        masses = [rng.exponential(size=6) for _ in range(2)]
        depth = relative_depth(6)
        p.append(wasserstein_1(depth, masses[0], depth, masses[1], rng, draws=1000).p)

    assert np.mean(np.array(p) <= 0.05) <= 0.09


def test_one_model_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="at least two models"):
        _summary({"a": _model(5, 0.5)})
