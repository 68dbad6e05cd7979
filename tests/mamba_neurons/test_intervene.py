"""Exact effects are what a whole forward pass with the edit gives; estimates approach them; the
carrier is first.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import planted_mamba as planted
from interp_core.files.artifacts import as_saved
from interp_core.loading import load_model
from interp_core.mamba.hidden_attention import mixer_calls
from interp_core.models.hooks import intervene
from interp_core.models.sites import Site
from interp_core.models.spec import ModelSpec
from interp_core.training import shares
from interp_core.training.shares import Elsewhere, dealing
from mamba_neurons import intervene as exact
from mamba_neurons.data import Texts
from mamba_neurons.intervene import ABLATIONS, Ablation, neuron_effects, replacement
from mamba_neurons.intervene_channels import causal, joint_effects
from mamba_neurons.intervene_estimates import estimate_all, rank_agreement, whole_model
from mamba_neurons.intervene_influence import neuron_spread
from mamba_neurons.intervene_states import state_effects
from mamba_neurons.intervene_units import unit_means
from mamba_neurons.measure_activity import states
from mamba_neurons.measure_divergence import divergence
from mamba_neurons.model import Model, neuron_means
from mamba_neurons.params import MambaNeurons


def full_forward(
    model: Model, texts: Texts, layer: int, edit: object
) -> tuple[np.ndarray, np.ndarray]:
    """KL and change of loss by text, from two whole forward passes in the model authors' own code,
    in float64.
    """
    ids = model.subject.ids(texts.tokens)
    logits = []
    for edits in ({}, {layer: edit}):
        with torch.no_grad(), model.edited(edits):  # pyright: ignore[reportArgumentType]
            logits.append(model.subject.logits(ids).double().log_softmax(dim=-1))
    clean, ablated = (part[:, :-1] for part in logits)
    counted = torch.as_tensor(texts.counted[:, :-1]).double()
    kl = (clean.exp() * (clean - ablated)).sum(dim=-1)
    loss = (clean - ablated).gather(-1, ids[:, 1:, None])[..., 0]
    return tuple(((part * counted).sum(dim=1) / counted.sum(dim=1)).numpy() for part in (kl, loss))  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("which", ["model", "twin"])
def test_batched_suffix_effects_equal_whole_forwards_one_at_a_time(
    which: str,
    ablation: Ablation,
    texts: Texts,
    params: MambaNeurons,
    request: pytest.FixtureRequest,
) -> None:
    model: Model = request.getfixturevalue(which)
    whole_batch = params.model_copy(update={"batch_size": len(texts), "stack": 3})
    means, largest = neuron_means(model, texts, len(texts)), 0.0
    for layer in range(model.n_layers):
        chosen = [0, 5, 7, model.n_neurons - 1]
        found = neuron_effects(model, texts, layer, chosen, whole_batch, ablation=ablation)
        for place, neuron in enumerate(chosen):

            def edit(a: Tensor, neuron: int = neuron, layer: int = layer) -> Tensor:
                edited = a.clone()
                edited[..., neuron] = replacement(a, ablation, means[layer], texts)[..., neuron]
                return edited

            kl, loss = full_forward(model, texts, layer, edit)
            np.testing.assert_allclose(found.kl[:, place], kl, atol=1e-4)
            np.testing.assert_allclose(found.loss[:, place], loss, atol=1e-4)
            largest = max(largest, float(kl.max()))
    assert largest > 1e-3


def test_effects_do_not_depend_on_how_texts_and_units_are_batched(
    model: Model, texts: Texts, params: MambaNeurons
) -> None:
    ways = [
        params.model_copy(update={"batch_size": size, "stack": stack})
        for size, stack in ((2, 1), (5, 7), (6, 32))
    ]
    found = [neuron_effects(model, texts, 0, range(model.n_neurons), way) for way in ways]
    for other in found[1:]:
        np.testing.assert_allclose(other.kl, found[0].kl, atol=1e-6)


def test_channels_that_are_dealt_out_have_the_same_effects_to_the_bit(
    project_folder: Path, params: MambaNeurons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(source="local", path=project_folder / "models" / "tiny-mamba")
    model, texts = Model(load_model(spec, name="tiny-mamba")), planted.random_texts()
    # No stack is whole at the end of a layer, and every layer is exact.
    params = params.model_copy(update={"stack": 3, "least_agreement": 1.0})
    whole, expected = causal(model, texts, params, np.random.default_rng(0))

    monkeypatch.setattr(shares, "_size", lambda *_: 2)
    kept, digest = tmp_path / "kept", model.subject.hash
    with dealing(Elsewhere(spec, "tiny-mamba", digest, "cpu", "float32", "own", 1, kept)):
        arrays, report = causal(model, texts, params, np.random.default_rng(0))

    assert len(list(kept.iterdir())) > 10
    for name, values in whole.items():
        np.testing.assert_array_equal(arrays[name], values, strict=True)
    assert as_saved(report) == as_saved(expected)


def test_a_residual_dimension_ablated_is_the_edit_of_the_residual_stream(
    model: Model, params: MambaNeurons
) -> None:
    texts = planted.random_texts(ragged=False)
    found = exact.residual_effects(model, texts, 0, params)
    ids = model.subject.ids(texts.tokens)
    residual = exact.clean_run(model, texts).residual[1]
    mean = residual.flatten(0, 1).mean(dim=0)

    def edit(a: Tensor) -> Tensor:
        edited = a.clone()
        edited[..., 3] = mean[3]
        return edited

    with torch.no_grad():
        clean = model.subject.logits(ids).double().log_softmax(-1)
        with intervene(model.subject, {Site(0, "resid_post"): edit}):
            ablated = model.subject.logits(ids).double().log_softmax(-1)
    kl = (clean.exp() * (clean - ablated)).sum(-1)[:, :-1].mean(dim=1)
    np.testing.assert_allclose(found.kl[:, 3], kl.numpy(), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(scale=st.floats(1e-6, 30), seed=st.integers(0, 1000))
def test_kl_is_never_negative_and_is_what_two_distributions_give(scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    clean = 3 * torch.randn(5, 40, generator=generator)
    other = clean + scale * torch.randn(2, 5, 40, generator=generator)
    target = torch.randint(40, (5,), generator=generator)
    p, q = (part.double().log_softmax(-1) for part in (clean, other))
    kl, loss = divergence(other.clone(), clean, clean.softmax(-1), target)
    assert (kl >= 0).all()
    expected = (p.exp() * (p - q)).sum(-1)
    torch.testing.assert_close(kl.double(), expected, rtol=2e-3, atol=1e-9 + 1e-6 * scale)
    at_target = (p - q).gather(-1, target.expand(2, 5)[..., None])[..., 0]
    torch.testing.assert_close(loss.double(), at_target, rtol=1e-3, atol=1e-5)


def test_the_channel_that_carries_the_answer_is_first_in_every_causal_ranking(
    carrier: Model, params: MambaNeurons
) -> None:
    texts = planted.own_texts(carrier)
    layer, channel = planted.CARRIER
    for ablation in ABLATIONS:
        found = neuron_effects(
            carrier, texts, layer, range(carrier.n_neurons), params, ablation=ablation
        )
        assert found.mean_kl.argmax() == channel
        assert found.mean_kl[channel] > 20 * np.sort(found.mean_kl)[-2]
    means = neuron_means(carrier, texts, params.batch_size)
    estimated = estimate_all(
        carrier, texts, params, means=means, generator=torch.Generator().manual_seed(0)
    )
    whole = whole_model(carrier, texts, params, np.random.default_rng(0))
    for ranking in (estimated.kl.mean(axis=0), whole.mean_kl, whole.loss.mean(axis=0)):
        assert np.unravel_index(ranking.argmax(), ranking.shape) == planted.CARRIER
    assert whole.top(1) == [planted.CARRIER]


def test_the_carrier_alone_is_worth_more_than_random_sets(
    carrier: Model, params: MambaNeurons
) -> None:
    texts = planted.own_texts(carrier)
    at_its_layer = params.model_copy(update={"layer": 1, "dose_k": (1, 32), "random_sets": 31})
    single = neuron_effects(carrier, texts, 1, range(carrier.n_neurons), params)
    arrays, report = joint_effects(carrier, texts, single, at_its_layer, np.random.default_rng(0))

    # All 31 other channels, each once: the carrier beats them all.
    alone, everyone = report["doses"]
    assert alone["against_random"]["random"]["n"] == 31
    assert alone["against_random"]["p"] == 1 / 32
    assert len(np.unique(arrays["together_random_kl/1"])) == 31
    assert alone["kl"]["value"] == pytest.approx(alone["sum_of_single"], rel=1e-4)

    # There is no other set of all channels, and so no test.
    assert everyone["against_random"]["random"]["n"] == 0
    assert everyone["against_random"]["p"] is None


def effects_of(how: Ablation) -> Callable[[Model, Texts, MambaNeurons], np.ndarray]:
    """KL of ablating a few neurons so."""

    def measure(model: Model, texts: Texts, params: MambaNeurons) -> np.ndarray:
        return neuron_effects(model, texts, 0, range(6), params, ablation=how).kl

    return measure


@pytest.mark.parametrize(
    "measure",
    [
        lambda model, texts, params: neuron_means(model, texts, 3).numpy(),
        lambda model, texts, params: unit_means(model, texts, 3).neurons.numpy(),
        lambda model, texts, params: unit_means(model, texts, 3).heads.numpy(),
        lambda model, texts, params: neuron_spread(model, texts, params).numpy(),
        *(effects_of(how) for how in ABLATIONS),
        lambda model, texts, params: exact.residual_effects(model, texts, 0, params).kl,
    ],
    ids=["means", "unit means", "heads", "spread", *ABLATIONS, "residual"],
)
@pytest.mark.parametrize("which", ["model", "twin"])
def test_what_stands_in_padding_changes_nothing(
    which: str,
    measure: Callable[[Model, Texts, MambaNeurons], np.ndarray],
    texts: Texts,
    params: MambaNeurons,
    request: pytest.FixtureRequest,
) -> None:
    model: Model = request.getfixturevalue(which)
    other = texts.tokens.copy()
    other[~texts.real] = planted.VOCAB - 1
    assert (other != texts.tokens).any()

    padded_otherwise = replace(texts, tokens=other)
    found = [measure(model, one, params) for one in (texts, padded_otherwise)]
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)


def test_estimates_approach_exact_effects_as_effects_get_small(params: MambaNeurons) -> None:
    """The second-order KL and the first-order loss are exact in the limit; 400 label draws leave
    some per cent.
    """
    module = planted.random_mamba(seed=5)
    for block in module.backbone.layers:
        block.mixer.out_proj.weight.data *= 0.02
    model = planted.model_of(module)
    texts = planted.random_texts(n=4)
    many = params.model_copy(update={"label_draws": 400})
    means = neuron_means(model, texts, 4)
    estimated = estimate_all(
        model, texts, many, means=means, generator=torch.Generator().manual_seed(0)
    )
    for layer in range(model.n_layers):
        found = neuron_effects(model, texts, layer, range(model.n_neurons), params)
        strong = np.argsort(-found.mean_kl)[:8]
        ratio = estimated.kl[:, layer, strong].mean(axis=0) / found.mean_kl[strong]
        np.testing.assert_allclose(ratio, 1, atol=0.25)
        np.testing.assert_allclose(ratio.mean(), 1, atol=0.08)
        exact_loss, first = found.loss.mean(axis=0), estimated.loss[:, layer].mean(axis=0)
        assert np.corrcoef(exact_loss, first)[0, 1] > 0.98


def test_layers_whose_estimates_rank_badly_are_computed_exactly_and_named(
    model: Model, texts: Texts, params: MambaNeurons
) -> None:
    strict, lax = (
        params.model_copy(update={"least_agreement": least, "candidates": 1})
        for least in (1.0, 0.0)
    )
    all_exact = whole_model(model, texts, strict, np.random.default_rng(0))
    assert all_exact.exact_layers == [0, 1]
    assert all_exact.exact.all()
    estimated = whole_model(model, texts, lax, np.random.default_rng(0), measures=("kl",))
    assert estimated.exact_layers == []
    assert not estimated.exact.all()
    for place in estimated.top(lax.top_k):
        assert estimated.exact[place]
        np.testing.assert_allclose(estimated.mean_kl[place], all_exact.mean_kl[place], rtol=1e-4)


def test_states_and_the_skip_add_up_to_what_the_channel_writes(model: Model, texts: Texts) -> None:
    subject = planted.mamba_of(model)
    for call in mixer_calls(subject, subject.ids(texts.tokens)):
        given_by_states = torch.einsum("btcn,btn->btc", states(call), call.C)
        torch.testing.assert_close(
            (given_by_states + call.D * call.x) * call.gate, call.gated_y, atol=1e-5, rtol=1e-4
        )


def test_one_state_of_a_channel_can_be_ablated_and_a_dead_one_does_nothing(
    params: MambaNeurons, texts: Texts
) -> None:
    module = planted.random_mamba(seed=2)
    mixer = module.backbone.layers[1].mixer
    rank = mixer.time_step_rank
    mixer.x_proj.weight.data[rank + 1] = 0  # nothing is ever written to state 1
    model = planted.model_of(module)
    found = state_effects(model, texts, 1, np.array([4, 9]), params).mean_kl.reshape(
        2, planted.STATES
    )
    assert (found[:, 1] < 1e-12).all()
    assert (found[:, [0, 2, 3]] > 1e-9).all()


def test_causal_reports_the_layer_asked_for(
    model: Model, texts: Texts, params: MambaNeurons
) -> None:
    for layer in range(model.n_layers):
        chosen = params.model_copy(update={"layer": layer})
        arrays, report = causal(model, texts, chosen, np.random.default_rng(0))
        expected = neuron_effects(model, texts, layer, range(model.n_neurons), chosen).mean_kl
        np.testing.assert_allclose(arrays["layer_mean_kl"], expected, rtol=1e-4, atol=1e-9)
        assert report["layer"]["top"][0]["neuron"] == f"L{layer}C{expected.argmax()}"
        assert len(report["layer"]["top"]) == params.top_k


def test_rank_agreement_knows_order_and_nothing_else() -> None:
    assert rank_agreement(np.array([1.0, 2, 3]), np.array([1.0, 8, 27])) == pytest.approx(1)
    assert rank_agreement(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1)
    assert rank_agreement(np.zeros(3), np.arange(3.0)) == 0
