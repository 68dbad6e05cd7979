"""Models built at the same depth are called equivalent, others different, and what cannot be told
is not decided.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from interp_core.errors import InputError
from planted_evidence import planted
from pythia_topology.measure_crosssize import crosssize_summary, pair_verdict
from pythia_topology.measure_layer_profile import HeadEvidence

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
        assert abs(pair["centre_of_mass"]["difference"]) < 0.05
        assert pair["centre_of_mass"]["p_equivalence"] <= 0.05
        assert pair["wasserstein_p_adjusted"] >= pair["wasserstein_p"]


def test_heads_at_other_depths_are_different_by_their_distance() -> None:
    summary = _summary({"early": _model(10, 0.35), "late": _model(10, 0.75, seed=1)})
    pair = summary["pairs"][0]
    assert summary["verdict"] == pair["verdict"] == "different"
    assert pair["peak_rel"]["difference"] == pytest.approx(0.4)
    assert pair["centre_of_mass"]["difference"] == pytest.approx(0.4, abs=0.1)
    assert pair["centre_of_mass"]["ci"][0] > 0.2
    assert 0.2 < pair["wasserstein_1"] < 0.45
    assert pair["wasserstein_p"] < 0.05


def test_too_little_evidence_is_not_decided_rather_than_equal() -> None:
    single = {(3, 0): 0.5, (5, 0): 0.5}  # whether a layer has a head at all depends on one head
    models = {name: planted(single, n_layers=8, seed=seed) for seed, name in enumerate(("a", "b"))}
    summary = _summary(models)
    assert abs(summary["pairs"][0]["centre_of_mass"]["difference"]) < 0.02
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


def test_the_verdict_of_a_pair_comes_from_equivalence_first() -> None:
    assert (
        pair_verdict(equivalent=True, interval=[0.01, 0.03], margin=0.1) == "equivalent within 0.1"
    )
    assert pair_verdict(equivalent=False, interval=[0.01, 0.3], margin=0.1) == "different"
    assert pair_verdict(equivalent=False, interval=[-0.3, -0.01], margin=0.1) == "different"
    assert pair_verdict(equivalent=False, interval=[-0.2, 0.2], margin=0.1) == "not decided"


def test_one_model_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="at least two models"):
        _summary({"a": _model(5, 0.5)})
