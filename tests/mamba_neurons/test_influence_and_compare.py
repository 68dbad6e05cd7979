"""Influence between layers is what whole forwards show; a model compared with itself differs in
nothing.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

import planted_mamba as planted
from mamba_neurons import measure_compare as comparing
from mamba_neurons.data import Texts, halves
from mamba_neurons.intervene_influence import cross_layer, influence_of, inter_layer, neuron_spread
from mamba_neurons.model import Model, clean_run, neuron_means
from mamba_neurons.params import MambaNeurons


@pytest.fixture(scope="module")
def deep() -> Model:
    """Three layers: between the first and the last there is one to go through."""
    return planted.model_of(planted.random_mamba(seed=4, layers=3), "deep")


def test_influence_is_the_change_that_a_whole_forward_shows(
    deep: Model, texts: Texts, params: MambaNeurons
) -> None:
    means, spread = neuron_means(deep, texts, 4), neuron_spread(deep, texts, params)
    found = influence_of(deep, texts, 0, [2, 9], params, means=means, spread=spread)
    clean = clean_run(deep, texts)

    def edit(a: Tensor) -> Tensor:
        edited = a.clone()
        edited[..., 9] = means[0, 9]
        return edited

    seen: dict[int, Tensor] = {}
    with torch.no_grad(), deep.edited({0: edit, 2: lambda a: seen.__setitem__(2, a)}):
        deep.subject.trunk(clean.ids)
    moved = (seen[2] - clean.neurons[2]).abs()[torch.as_tensor(texts.real)].mean(dim=0) / spread[2]
    np.testing.assert_allclose(found["total"][1, 1], moved.numpy(), rtol=1e-3, atol=1e-6)


def test_direct_is_total_into_the_next_layer_and_differs_beyond(
    deep: Model, texts: Texts, params: MambaNeurons
) -> None:
    means, spread = neuron_means(deep, texts, 4), neuron_spread(deep, texts, params)
    first = influence_of(deep, texts, 0, [2, 9], params, means=means, spread=spread)
    np.testing.assert_allclose(first["direct"][:, 0], first["total"][:, 0], rtol=1e-3, atol=1e-6)
    assert not np.allclose(first["direct"][:, 1], first["total"][:, 1], rtol=0.05)
    last = influence_of(deep, texts, 2, [2, 9], params, means=means, spread=spread)
    assert last["total"].shape == (2, 0, deep.n_neurons)
    np.testing.assert_allclose(last["direct_kl"], last["total_kl"], rtol=1e-4)


def test_cross_layer_compares_the_best_with_random_neurons_of_the_same_layer(
    deep: Model, texts: Texts, params: MambaNeurons
) -> None:
    kl = np.random.default_rng(0).random((3, deep.n_neurons))
    arrays, report = cross_layer(deep, texts, kl, params, np.random.default_rng(0))
    np.testing.assert_array_equal(arrays["1/top"], np.argsort(-kl[1])[: params.top_k])
    influence = report["influence"]
    for row in range(3):
        for column in range(3):
            assert (influence["total"][row][column] is None) == (column <= row)
    assert [(pair["from"], pair["to"]) for pair in influence["pairs"]] == [(0, 1), (0, 2), (1, 2)]
    for pair in influence["pairs"]:
        against = pair["against_random"]
        assert against["observed"] == influence["total"][pair["from"]][pair["to"]]
        assert against["random"]["n"] == params.permutation_draws
        assert against["p"] is None  # 19 sets are too few for a test
    assert all(len(layer["top"]) == params.top_k for layer in report["layers"])


def test_inter_layer_names_the_dimension_that_matters(params: MambaNeurons) -> None:
    texts = planted.random_texts()
    module = planted.random_mamba(seed=1)
    module.lm_head.weight.data[:, 5] *= 30
    arrays, report = inter_layer(planted.model_of(module), texts, params, np.random.default_rng(0))
    assert report["layers"][1]["top_dimension"] == 5
    assert arrays["kl"].shape == (2, planted.WIDTH)
    assert report["rank_correlation"][0][0] == pytest.approx(1)


def test_a_model_differs_from_itself_in_nothing(
    model: Model, texts: Texts, params: MambaNeurons
) -> None:
    measured = comparing.measure(model, texts, params)
    _, report = comparing.compare(measured, measured, params, np.random.default_rng(0))
    for section in ("dynamics", "sparsity"):
        for found in report[section].values():
            assert found["difference"]["value"] == 0
            assert (found["difference"]["low"], found["difference"]["high"]) == (0, 0)
            assert (found["first"]["n"], found["first"]["unit"]) == (len(texts), "texts")
    assert report["dynamics"]["lens_kl"]["first"]["value"] > 0


def test_the_lens_of_the_last_layer_is_the_model_itself(
    model: Model, twin: Model, texts: Texts, params: MambaNeurons
) -> None:
    for one in (model, twin):
        found, _ = comparing.layer_dynamics(one, texts, params)
        assert found["lens_kl"][:, -1].max() < 1e-9
        assert (found["lens_kl"][:, 0] > 0).all()


def test_layers_of_models_of_different_depth_meet_at_relative_depths() -> None:
    shallow = comparing.over_depth(np.array([[0.25, 0.75]]), np.array([0.25, 0.75]))[0]
    deeper = comparing.over_depth(
        np.array([[0.125, 0.375, 0.625, 0.875]]), (np.arange(4) + 0.5) / 4
    )[0]
    inside = (comparing.GRID >= 0.25) & (comparing.GRID <= 0.75)
    np.testing.assert_allclose(shallow[inside], comparing.GRID[inside])
    np.testing.assert_allclose(deeper[inside], comparing.GRID[inside])


@pytest.mark.parametrize("which", ["model", "twin"])
def test_the_fixed_threshold_is_that_of_the_models_own_kind(
    which: str, texts: Texts, params: MambaNeurons, request: pytest.FixtureRequest
) -> None:
    one: Model = request.getfixturevalue(which)
    apart = params.model_copy(update={"mamba_threshold": 0.2, "transformer_threshold": 0.01})
    found = comparing.seeds_efficiency(comparing.measure(one, texts, apart), apart)

    clean = clean_run(one, texts)
    real = torch.as_tensor(texts.real)
    threshold = 0.2 if one.is_mamba else 0.01
    below = [(a[real].abs() < threshold).double().mean() for a in clean.neurons]
    assert found["mean_sparsity"] == pytest.approx(float(torch.stack(below).mean()))


def test_active_neurons_are_those_above_a_share_of_their_layers_median(
    model: Model, texts: Texts, params: MambaNeurons
) -> None:
    real = torch.as_tensor(texts.real)
    neurons = [a[real].double() for a in clean_run(model, texts).neurons]
    sizes = torch.stack([a.square().mean(dim=0).sqrt() for a in neurons]).numpy()
    # A share at which some, not all, are active, and its inverse would leave none or all.
    strict = params.model_copy(update={"dead_share": 0.4})
    expected = (sizes > 0.4 * np.median(sizes, axis=1, keepdims=True)).sum()
    assert 0 < expected < sizes.size

    measured = comparing.measure(model, texts, strict)
    found = comparing.seeds_efficiency(measured, strict)
    assert found["active_neurons"] == expected
    assert found["efficiency_ratio"] == pytest.approx(expected / sizes.size)

    _, report = comparing.compare(measured, measured, strict, np.random.default_rng(0))
    by_layer = report["fixed_thresholds"][model.name]["root_mean_square_by_layer"]
    np.testing.assert_allclose(by_layer, np.sqrt((sizes**2).mean(axis=1)), rtol=1e-5)


def test_the_halves_share_no_text(texts: Texts) -> None:
    first, second = halves(texts)
    assert not set(first) & set(second)
    assert len(first) + len(second) == len(texts)
