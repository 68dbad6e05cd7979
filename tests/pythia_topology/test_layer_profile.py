"""Profiles have their closed forms, planted heads are found where they were planted, and noise is
called noise.
"""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from interp_core.errors import InputError
from planted_evidence import planted
from pythia_topology.measure_layer_profile import (
    HeadEvidence,
    evidence,
    find_induction_heads,
    head_labels,
    layer_profile_summary,
)
from pythia_topology.measure_shape import (
    describe,
    layer_profile,
    previous_token_layer,
    profile_shape,
    relative_depth,
)

SETTINGS: dict[str, Any] = {
    "mode": "mean",
    "q": 0.75,
    "alpha": 0.001,
    "draws": 1999,
    "smallest_effect": 0.1,
    "resamples": 200,
    "splits": 20,
}


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_noise_of_many_layers_does_not_pull_the_centre_of_a_deep_model() -> None:
    planted_heads = {(24, 0): 0.6, (26, 1): 0.6}
    deep = planted(planted_heads, n_layers=30, n_heads=9, n_prompts=24)
    profile = layer_profile_summary(deep, _rng(), **SETTINGS)

    centre = profile["centre_of_mass"]
    assert centre["value"] == pytest.approx(25.5 / 30, abs=0.002)
    assert centre["low"] <= 25.5 / 30 <= centre["high"]
    assert profile["effective_layers"]["value"] == pytest.approx(2, abs=0.01)
    assert profile["bandwidth"]["value"] < 4 / 30

    # All that is above zero, noise too, lies half a layer and more nearer to the middle.
    with_noise = profile_shape(np.array(profile["per_layer"]))
    assert with_noise.centre_of_mass < centre["value"] - 0.5 / 30


def test_the_modes_are_mean_top_heads_and_count() -> None:
    scores = np.array([[0.0, 0.1, 0.2, 0.9], [0.5, 0.5, 0.5, 0.5]])
    np.testing.assert_allclose(layer_profile(scores, mode="mean", q=0.75), [0.3, 0.5])
    np.testing.assert_allclose(layer_profile(scores, mode="top_quantile", q=0.75), [0.9, 0.5])
    np.testing.assert_allclose(layer_profile(scores, mode="top_quantile", q=0.3), [1.2 / 3, 0.5])
    np.testing.assert_allclose(layer_profile(scores, mode="count", q=0.75, threshold=0.15), [2, 4])


@given(
    arrays(np.float64, (3, 5, 4), elements=st.floats(-1, 1)),
    st.sampled_from(["mean", "top_quantile", "count"]),
)
def test_profiles_and_shapes_of_many_draws_are_those_of_each(scores: np.ndarray, mode: str) -> None:
    together = layer_profile(scores, mode=mode, q=0.6, threshold=0.2)
    shape = profile_shape(together)
    for i, one in enumerate(scores):
        alone = layer_profile(one, mode=mode, q=0.6, threshold=0.2)
        np.testing.assert_allclose(together[i], alone, atol=1e-12)
        for name, value in vars(profile_shape(alone)).items():
            np.testing.assert_allclose(getattr(shape, name)[i], value, atol=1e-6)


def test_relative_depth_is_the_middle_of_a_layer() -> None:
    np.testing.assert_allclose(relative_depth(4), [0.125, 0.375, 0.625, 0.875])


@pytest.mark.parametrize("n_layers", [1, 4, 9])
def test_a_flat_profile_has_its_centre_in_the_middle_and_68_percent_of_the_depth(
    n_layers: int,
) -> None:
    shape = profile_shape(np.full(n_layers, 0.3))
    assert shape.centre_of_mass == pytest.approx(0.5)
    assert shape.bandwidth == pytest.approx(0.68)
    assert shape.effective_layers == pytest.approx(n_layers)


@pytest.mark.parametrize("layer", [0, 2, 5])
def test_a_profile_of_one_layer_lies_in_it(layer: int) -> None:
    profile = np.full(6, -0.1)
    profile[layer] = 0.4
    shape = profile_shape(profile)
    assert shape.peak_layer == layer
    assert shape.peak_rel == pytest.approx((layer + 0.5) / 6)
    assert shape.centre_of_mass == pytest.approx((layer + 0.5) / 6)
    assert shape.bandwidth == pytest.approx(0.68 / 6)
    assert shape.effective_layers == pytest.approx(1)


def test_the_bandwidth_follows_the_normal_curve() -> None:
    depth = relative_depth(400)
    shape = profile_shape(np.exp(-0.5 * ((depth - 0.6) / 0.08) ** 2))
    assert shape.bandwidth == pytest.approx(
        2 * 0.9945 * 0.08, abs=0.002
    )  # 16 % lie below -0.9945 sigma
    assert shape.centre_of_mass == pytest.approx(0.6, abs=0.001)


def test_the_parabola_finds_the_vertex_between_layers() -> None:
    layers = np.arange(8.0)
    assert profile_shape(5 - (layers - 3.3) ** 2).peak_parabolic_rel == pytest.approx(
        (3.3 + 0.5) / 8
    )
    assert profile_shape(layers).peak_parabolic_rel == pytest.approx(7.5 / 8)
    assert profile_shape(np.array([1.0, 1, 1])).peak_parabolic_rel == pytest.approx(0.5 / 3)


def test_a_profile_without_mass_has_no_shape() -> None:
    shape = profile_shape(np.array([[-1.0, 0, 0], [0, 1, 0]]))
    assert np.isnan(
        [shape.peak_rel[0], shape.bandwidth[0], shape.centre_of_mass[0], shape.effective_layers[0]]
    ).all()
    assert shape.centre_of_mass[1] == pytest.approx(0.5)


def test_planted_heads_are_found_and_described() -> None:
    heads = planted({(3, 1): 0.6, (4, 0): 0.8, (4, 2): 0.5}, n_layers=6)
    summary = layer_profile_summary(heads, _rng(), **SETTINGS)
    assert summary["induction_heads"] == ["L4H0", "L3H1", "L4H2"]
    assert summary["n_induction_heads"] == 3
    assert summary["verdict"] == "3 induction heads"
    assert summary["peak_layer"] == 4
    assert summary["peak_rel"]["value"] == pytest.approx(0.75)
    centre = summary["centre_of_mass"]
    assert centre["value"] == pytest.approx((0.6 * 3.5 + 1.3 * 4.5) / 1.9 / 6, abs=0.02)
    assert centre["low"] < centre["value"] < centre["high"]
    layers = summary["centre_in_layers"]["value"]
    assert layers == pytest.approx(6 * centre["value"] - 0.5)
    assert summary["per_layer"][4] == pytest.approx(1.3 / 4, abs=0.02)
    assert summary["per_layer_low"][4] <= summary["per_layer"][4] <= summary["per_layer_high"][4]
    assert summary["per_layer_prefix_matching"][0] == pytest.approx(0.05, abs=0.02)
    assert summary["p_best_head"] == pytest.approx(1 / 2000)
    assert 0.3 < summary["split_half_rank"] < 1
    assert (summary["n"], summary["n_layers"], summary["n_heads"]) == (40, 6, 4)
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize("n_layers", [4, 6, 7, 9])
def test_a_peak_that_no_draw_moves_has_no_interval(n_layers: int) -> None:
    """Also where its relative depth is no binary fraction, so that draws vary by rounding."""
    places = {(2, head): 0.7 for head in range(4)} | {(3, 0): 0.3}
    summary = layer_profile_summary(planted(places, n_layers=n_layers), _rng(), **SETTINGS)
    assert summary["peak_rel"]["value"] == pytest.approx(2.5 / n_layers)
    assert (summary["peak_rel"]["low"], summary["peak_rel"]["high"]) == (None, None)
    assert summary["centre_of_mass"]["low"] is not None


def test_intervals_of_a_centre_cover_over_prompts_and_heads() -> None:
    """Heads drawn from a layer's own distribution: a plain hierarchical bootstrap covers .84."""
    rng = _rng(5)
    # The mass of each of three layers, over all heads that it could have had.
    levels = np.array([0.2, 0.6, 0.3])
    truth = profile_shape(levels).centre_of_mass
    covered = 0

    for _ in range(150):
        heads = levels[:, None] + 0.15 * rng.standard_normal((3, 4))
        excess = heads + 0.1 * rng.standard_normal((40, 3, 4))
        described = describe(
            excess, rng, mode="mean", q=0.5, threshold=0.1, resamples=150, shaped=True
        )
        ends = described.interval("centre_of_mass").ends
        covered += ends is not None and ends[0] <= truth <= ends[1]

    assert covered / 150 >= 0.9


def test_the_layer_of_previous_token_heads_weighs_them_as_they_attend() -> None:
    attention = np.array([[0.2, 0.6], [0.9, 0.1], [0.0, 0.49]])
    assert previous_token_layer(attention, share=0.5) == pytest.approx(0.9 / 1.5)
    assert previous_token_layer(attention, share=0.95) is None


@pytest.mark.parametrize("mode", ["mean", "top_quantile", "count"])
def test_noise_has_no_induction_heads_and_no_peak(mode: str) -> None:
    settings: dict[str, Any] = SETTINGS | {"mode": mode}
    summary = layer_profile_summary(planted({}, n_layers=6), _rng(), **settings)
    assert summary["verdict"] == "no induction heads"
    assert summary["n_induction_heads"] == 0
    assert summary["induction_heads"] == []
    for name in (
        "peak_layer",
        "peak_rel",
        "bandwidth",
        "centre_of_mass",
        "effective_layers",
        "centre_in_layers",
    ):
        assert summary[name] is None
    assert len(summary["per_layer"]) == 6
    json.dumps(summary, allow_nan=False)


def test_certain_but_tiny_effects_are_no_induction_heads() -> None:
    heads = planted({(2, 2): 0.05}, n_layers=4, n_prompts=200)
    verdict = find_induction_heads(heads, _rng(), alpha=0.001, draws=1999, smallest_effect=0.1)
    assert verdict.test.p[2, 2] <= 0.001
    assert verdict.n == 0
    assert find_induction_heads(heads, _rng(), alpha=0.001, draws=1999, smallest_effect=0.02).n == 1


def test_a_head_that_looks_at_all_repeated_places_alike_is_no_induction_head() -> None:
    heads = planted({(3, 1): 0.5}, n_layers=4, everywhere={(1, 1): 0.5})
    summary = layer_profile_summary(heads, _rng(), **SETTINGS)
    assert summary["induction_heads"] == ["L3H1"]


def test_models_without_circuits_are_called_so_at_the_stated_rate() -> None:
    wrong = sum(
        find_induction_heads(
            planted({}, n_layers=3, n_prompts=16, seed=seed),
            _rng(seed),
            alpha=0.1,
            draws=199,
            smallest_effect=0.0,
        ).n
        > 0
        for seed in range(200)
    )
    # Heads must also exceed the shuffled antecedents, so the rate may fall below alpha, never above
    # it.
    assert 0.04 <= wrong / 200 <= 0.15


def test_labels_are_ordered_by_score() -> None:
    scores = np.array([[0.1, 0.9], [0.5, 0.2]])
    assert head_labels(scores > 0.15, scores) == ["L0H1", "L1H0", "L1H1"]


def test_evidence_is_read_from_a_scores_file_s_arrays() -> None:
    heads = planted({}, n_layers=2, n_prompts=3)
    names = {
        "prefix_matching": heads.prefix_matching,
        "prefix_matching_control": heads.control,
        "shuffled": heads.shuffled,
    }
    file = {f"prompts/names/{name}": values for name, values in names.items()}
    found = evidence(file, "names")
    assert isinstance(found, HeadEvidence)
    np.testing.assert_allclose(found.excess, heads.excess)
    with pytest.raises(InputError, match="no array `prompts/spaced_pairs/prefix_matching`"):
        evidence(file, "spaced_pairs")


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"mode": "median"}, "unknown profile mode `median`"), ({"q": 1.0}, "q")],
)
def test_bad_settings_are_said(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        layer_profile_summary(planted({}, n_layers=2), _rng(), **SETTINGS | changed)


def test_the_same_seed_gives_the_same_summary() -> None:
    heads = planted({(1, 1): 0.5}, n_layers=3)
    assert layer_profile_summary(heads, _rng(4), **SETTINGS) == layer_profile_summary(
        heads, _rng(4), **SETTINGS
    )
