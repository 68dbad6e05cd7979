"""A Mamba-2's channels, states and heads: each effect against the model run with that edit."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, silu

import planted_mamba as planted
from interp_core.mamba.head_attention import HeadCall
from interp_core.mamba.hidden_attention import attention_matrices, mixer_calls
from interp_core.mamba.mamba2 import Mamba2Subject
from interp_core.models.hooks import intervene
from interp_core.models.sites import Site
from mamba_neurons import measure_attention as attention
from mamba_neurons.data import Texts
from mamba_neurons.intervene import neuron_effects
from mamba_neurons.intervene_channels import causal
from mamba_neurons.intervene_states import head_effects, state_effects
from mamba_neurons.measure_activity import activations
from mamba_neurons.measure_delta import half_lives, step_sizes
from mamba_neurons.model import Model, neuron_means
from mamba_neurons.params import MambaNeurons

LAYER = 0
SITE = Site(LAYER, "mixer.gated_y")


@pytest.fixture(scope="module")
def heads() -> Model:
    """A small Mamba-2 with random weights."""
    return planted.model_of(planted.random_mamba2(), "heads")


def subject_of(model: Model) -> Mamba2Subject:
    subject = planted.mamba_of(model)
    assert isinstance(subject, Mamba2Subject)
    return subject


def call_of(model: Model, ids: Tensor, layer: int = LAYER) -> HeadCall:
    call = mixer_calls(subject_of(model), ids)[layer]
    assert isinstance(call, HeadCall)
    return call


@torch.no_grad()
def moved(model: Model, texts: Texts, edit: Callable[[], AbstractContextManager[None]]) -> float:
    """KL that an edit of the running model makes, mean over texts of their scored positions."""
    ids = model.subject.ids(texts.tokens)
    clean = model.subject.logits(ids).double().log_softmax(dim=-1)
    with edit():
        changed = model.subject.logits(ids).double().log_softmax(dim=-1)

    kl = kl_div(changed, clean, log_target=True, reduction="none").sum(dim=-1)
    counted = torch.as_tensor(texts.counted)
    return float(((kl * counted).sum(dim=1) / counted.sum(dim=1)).mean())


def mean_over_tokens(values: Tensor, texts: Texts) -> Tensor:
    return values[torch.as_tensor(texts.real)].mean(dim=0)


def test_a_channels_effect_is_that_of_the_model_run_with_its_mean(
    heads: Model, texts: Texts, params: MambaNeurons
) -> None:
    found = neuron_effects(heads, texts, LAYER, [3, 20], params).mean_kl
    means = neuron_means(heads, texts, params.batch_size)[LAYER]

    for channel, kl in zip((3, 20), found, strict=True):

        def put(a: Tensor, channel: int = channel) -> Tensor:
            edited = a.clone()
            edited[..., channel] = means[channel]
            return edited

        expected = moved(heads, texts, lambda put=put: intervene(heads.subject, {SITE: put}))
        assert kl == pytest.approx(expected, rel=2e-3, abs=1e-6)


def test_a_states_effect_goes_through_the_norm(
    heads: Model, texts: Texts, params: MambaNeurons
) -> None:
    subject = subject_of(heads)
    found = state_effects(heads, texts, LAYER, np.array([3, 20]), params)
    call = call_of(heads, subject.ids(texts.tokens))
    gate = silu(call.z)

    for place, channel in enumerate((3, 20)):
        for state in range(planted.STATES):
            given = call.read_of_states()[:, :, channel, state]
            mean = mean_over_tokens(given * gate[..., channel], texts)

            def put(
                y: Tensor, channel: int = channel, given: Tensor = given, mean: Tensor = mean
            ) -> Tensor:
                edited = y.clone()
                edited[..., channel] += mean / gate[..., channel] - given
                return edited

            expected = moved(heads, texts, lambda put=put: subject.at_scan(LAYER, put))
            kl = found.mean_kl[place * planted.STATES + state]
            assert kl == pytest.approx(expected, rel=2e-3, abs=1e-6)


def test_a_heads_effect_is_that_of_all_its_channels_and_has_random_sets_beside(
    heads: Model, texts: Texts, params: MambaNeurons
) -> None:
    arrays, report = head_effects(heads, texts, params, np.random.default_rng(0))
    means = neuron_means(heads, texts, params.batch_size)[params.layer]
    site = Site(params.layer, "mixer.gated_y")

    for head in range(4):
        own = slice(8 * head, 8 * head + 8)

        def put(a: Tensor, own: slice = own) -> Tensor:
            edited = a.clone()
            edited[..., own] = means[own]
            return edited

        expected = moved(heads, texts, lambda put=put: intervene(heads.subject, {site: put}))
        assert arrays["head_kl"][head] == pytest.approx(expected, rel=2e-3, abs=1e-6)
        assert report["heads"][head]["head"] == f"L{params.layer}H{head}"

    assert len(arrays["head_random_kl"]) == params.random_sets
    assert "distinct random sets" in report["random_sets"]


def test_causal_reports_heads_of_a_mamba2(heads: Model, texts: Texts, params: MambaNeurons) -> None:
    arrays, report = causal(heads, texts, params, np.random.default_rng(0))
    assert len(report["heads"]["heads"]) == 4
    assert arrays["state_kl"].shape == (params.top_k, planted.STATES)


def test_importances_of_a_mamba2_are_their_definitions(
    heads: Model, texts: Texts, params: MambaNeurons
) -> None:
    found, _ = attention.importances(heads, texts, params)
    row, subject = 2, subject_of(heads)
    size = int(texts.lengths[row])
    ids = subject.ids(texts.tokens[row : row + 1, :size])
    call = call_of(heads, ids)

    leaves: list[Tensor] = []

    def leaf(y: Tensor) -> Tensor:
        leaves.append(y.detach().requires_grad_())
        return leaves[0]

    with torch.enable_grad(), subject.at_scan(LAYER, leaf):
        loss = cross_entropy(subject.logits(ids)[0, :-1], ids[0, 1:])
        (slope,) = torch.autograd.grad(loss, leaves)

    alpha = attention_matrices(call)[0]
    for channel in (0, 11, 31):
        reads = alpha[channel // 8] * call.x[0, :, channel]  # [query, key]
        reach = reads.abs().sum(dim=1)
        weighted = (reach * call.gate[0, :, channel].abs()).mean()
        guided = (reach * slope[0, :, channel].abs()).mean()

        ours = {name: found[name][row, LAYER, channel] for name in found}
        assert ours["attention_weighted"] == pytest.approx(float(weighted), rel=1e-4)
        assert ours["gradient_guided"] == pytest.approx(float(guided), rel=1e-3)


def test_a_head_has_one_step_and_its_states_one_half_life(texts: Texts) -> None:
    module = planted.random_mamba2()
    mixer, step, rate = module.backbone.layers[0].mixer, 0.05, 2.0
    with torch.no_grad():
        mixer.in_proj.weight[-2] = 0  # dt of head 2
        mixer.dt_bias[2] = float(np.log(np.expm1(step)))
        mixer.A_log[2] = float(np.log(rate))

    subject = planted.mamba_of(planted.model_of(module))
    steps = step_sizes(subject, texts, [0], 3)[0]
    tau = half_lives(steps)
    assert tau.shape == (4, 1)
    np.testing.assert_allclose(tau[2], np.log(2) / (step * rate), rtol=1e-4)


def test_gates_and_states_of_a_mamba2_are_those_of_its_scan(heads: Model, texts: Texts) -> None:
    call = call_of(heads, heads.subject.ids(texts.tokens))
    size = int(texts.lengths[0])
    _, found = next(activations(heads, texts, [LAYER], ["gate", "state"], batch_size=8))

    np.testing.assert_allclose(found["gate", LAYER], silu(call.z)[0, :size], atol=1e-6)
    states = torch.from_numpy(found["state", LAYER]).unflatten(1, (32, planted.STATES))
    C = call.C[0, :size].repeat_interleave(16, dim=1)  # [position, channel, state]
    y = torch.einsum("tcn,tcn->tc", states, C.double()) + call.D * call.x[0, :size]
    torch.testing.assert_close(y, call.y[0, :size].double(), atol=1e-5, rtol=1e-4)
