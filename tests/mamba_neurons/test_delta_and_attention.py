"""Step sizes and half-lives in closed form; attention neurons against their definitions, entry by
entry.
"""

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

import planted_mamba as planted
from interp_core.mamba.hidden_attention import attention_matrices, mixer_calls
from interp_core.mamba.selective_scan import selective_scan
from mamba_neurons import measure_attention as attention
from mamba_neurons import measure_delta as delta
from mamba_neurons.data import Texts
from mamba_neurons.intervene_curves import faithfulness
from mamba_neurons.intervene_units import unit_means
from mamba_neurons.model import Model
from mamba_neurons.params import MambaNeurons

SLOW = 5  # channel


@torch.no_grad()
def slow_mamba(step: float, rate: float) -> Model:
    """A Mamba whose channel SLOW of layer 0 has a constant step size and one rate of forgetting."""
    module = planted.random_mamba()
    mixer = module.backbone.layers[0].mixer
    mixer.dt_proj.weight[SLOW] = 0
    mixer.dt_proj.bias[SLOW] = float(np.log(np.expm1(step)))  # softplus of it is the step
    mixer.A_log[SLOW] = float(np.log(rate))
    return planted.model_of(module)


@pytest.mark.parametrize(("step", "rate"), [(0.01, 0.5), (0.05, 2.0), (0.002, 1.0)])
def test_a_planted_slow_channel_has_the_half_life_of_its_step_and_rate(
    step: float, rate: float, texts: Texts
) -> None:
    model = slow_mamba(step, rate)
    subject = planted.mamba_of(model)
    steps = delta.step_sizes(subject, texts, [0], 3)[0]
    tau = delta.half_lives(steps)[SLOW]
    np.testing.assert_allclose(tau, np.log(2) / (step * rate), rtol=0.01)
    tokens = round(float(tau[0]))
    call = mixer_calls(subject, subject.ids(texts.tokens))[0]
    dt = call.dt[:1, :1].expand(1, tokens, -1).contiguous()
    quiet, one = torch.zeros_like(dt), torch.ones(1, tokens, planted.STATES)
    start = torch.ones(1, dt.shape[2], planted.STATES)
    left = (
        selective_scan(quiet, dt, call.A, one, one, call.D, initial_state=start)[0, -1, SLOW]
        / planted.STATES
    )
    assert float(left) == pytest.approx(0.5, abs=0.01)


def test_the_share_is_one_for_a_step_of_texts_and_zero_for_a_step_of_places() -> None:
    by_text = np.arange(6.0)[:, None].repeat(10, axis=1)
    by_place = np.arange(10.0)[None].repeat(6, axis=0)
    dt = np.stack([by_text, by_place, np.ones((6, 10))], axis=-1).reshape(60, 3).astype(np.float32)
    steps = delta.StepSizes(dt, np.repeat(np.arange(6), 10), np.ones((3, 2)))

    mean = steps.by_text(dt)
    within = steps.by_text((dt - mean[steps.text]) ** 2)
    np.testing.assert_allclose(delta.shares(mean, within, steps.sizes), [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(delta.half_lives(steps)[2], np.log(2), rtol=1e-6)


def test_the_share_of_texts_of_unequal_length_is_the_one_that_is_tested() -> None:
    steps = autocorrelated(np.random.default_rng(0), lag_one=0.4)
    mean = steps.by_text(steps.dt)
    within = steps.by_text((steps.dt.astype(np.float64) - mean[steps.text]) ** 2)

    found = delta.shares(mean, within, steps.sizes)
    values = steps.dt.astype(np.float64)
    between = mean[steps.text].var(axis=0) / values.var(axis=0)  # every token weighs the same
    np.testing.assert_allclose(found, between, rtol=1e-6)

    # Nor does a share depend on the unit and the level of a step.
    small = delta.shares(1 + 1e-6 * mean, 1e-12 * within, steps.sizes)
    np.testing.assert_allclose(small, found, rtol=1e-3)


def autocorrelated(rng: np.random.Generator, *, lag_one: float) -> delta.StepSizes:
    """Step sizes that follow themselves and no text; texts of 8 to 90 tokens."""
    sizes = rng.permutation(np.linspace(8, 90, 24).astype(int))
    text = np.repeat(np.arange(len(sizes)), sizes)
    noise = rng.standard_normal((len(text), 4))
    dt = np.asarray(lfilter([np.sqrt(1 - lag_one**2)], [1, -lag_one], noise, axis=0))
    return delta.StepSizes(dt.astype(np.float32), text, np.ones((4, 2)))


def test_texts_that_do_not_differ_are_seldom_said_to(params: MambaNeurons) -> None:
    rng = np.random.default_rng(0)
    settings = params.model_copy(update={"permutation_draws": 39, "bootstrap_resamples": 100})

    hits = 0
    for _ in range(60):
        steps = autocorrelated(rng, lag_one=0.4)
        classes = np.zeros(len(steps.text), dtype=np.int64)
        hits += int(delta.delta_layer(steps, classes, settings, rng)["share_p"].min() <= 0.05)

    assert hits <= 8  # 3 are expected; more than 8 come once in 150 times


def test_texts_that_differ_are_found(params: MambaNeurons) -> None:
    rng = np.random.default_rng(0)
    steps = autocorrelated(rng, lag_one=0.4)
    moved = steps.dt.copy()
    moved[:, 2] += 1.5 * rng.standard_normal(24)[steps.text]

    classes = np.zeros(len(steps.text), dtype=np.int64)
    planted_steps = delta.StepSizes(moved, steps.text, steps.A)
    found = delta.delta_layer(planted_steps, classes, params, rng)
    np.testing.assert_array_equal(found["share_p"] <= 0.05, [False, False, True, False])


def test_groups_in_runs_explain_no_more_than_runs_dealt_at_random() -> None:
    rng = np.random.default_rng(0)
    hits = 0

    for _ in range(40):
        steps = autocorrelated(rng, lag_one=0.8)
        n = len(steps.text)
        group = rng.integers(0, 4, n // 12 + 1).repeat(12)[:n]
        null = delta.explained_in_blocks(steps.dt, group, 60, 19, rng)
        hits += int((null >= delta.explained(steps.dt, group).max()).sum() == 0)

    assert hits <= 6  # 2 are expected


@pytest.mark.parametrize(("spread", "low", "high"), [(0.0, -0.3, 0.3), (1.0, 0.9, 1.0)])
def test_a_ranking_of_noise_does_not_repeat_in_the_other_half_and_one_of_channels_does(
    spread: float, low: float, high: float
) -> None:
    rng = np.random.default_rng(0)
    of_channel = np.exp(spread * rng.standard_normal(200))
    means = of_channel * rng.standard_normal((40, 200))
    sizes = np.full(40, 20)

    found = delta.split_half_share(means, np.ones((40, 200)), sizes, rng, 20)
    assert low < found < high


def test_the_begin_of_a_text_is_no_step_size(model: Model, texts: Texts) -> None:
    steps = delta.step_sizes(planted.mamba_of(model), texts, [0, 1], 3)
    np.testing.assert_array_equal(steps[1].sizes, texts.lengths - 1)

    call = mixer_calls(planted.mamba_of(model), planted.mamba_of(model).ids(texts.tokens))[1]
    expected = call.dt[0, 1 : int(texts.lengths[0])].numpy()
    np.testing.assert_allclose(steps[1].dt[: len(expected)], expected, atol=1e-6)


def test_explained_variance_is_one_when_groups_say_all_and_about_zero_when_they_say_nothing() -> (
    None
):
    rng = np.random.default_rng(0)
    group = rng.integers(0, 5, 400)
    values = np.stack([group * 2.0, rng.standard_normal(400), np.zeros(400)], axis=1)
    found = delta.explained(values, group)
    np.testing.assert_allclose(found, [1, 0, 0], atol=0.03)
    halfway = delta.explained(
        group[:, None] + np.sqrt(group.var()) * rng.standard_normal((400, 1)), group
    )
    assert float(halfway[0]) == pytest.approx(0.5, abs=0.1)


def test_every_importance_is_its_definition_entry_by_entry(
    model: Model, texts: Texts, params: MambaNeurons
) -> None:
    subject = planted.mamba_of(model)
    found, _ = attention.importances(model, texts, params)
    row = 2
    one = texts.rows(slice(row, row + 1))
    size = int(one.lengths[0])
    ids = subject.ids(one.tokens[:, :size])
    calls = mixer_calls(subject, ids)
    slopes: dict[int, torch.Tensor] = {}
    with torch.enable_grad():
        kept: dict[int, torch.Tensor] = {}

        def keep(layer: int):  # noqa: ANN202
            def leaf(a: torch.Tensor) -> torch.Tensor:
                kept[layer] = a.detach().requires_grad_() if layer == 0 else a
                return kept[layer]

            return leaf

        with model.edited({layer: keep(layer) for layer in range(model.n_layers)}):
            logits = subject.logits(ids)
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
        for layer, grad in enumerate(
            torch.autograd.grad(loss, [kept[i] for i in range(model.n_layers)])
        ):
            slopes[layer] = grad
    for layer, call in enumerate(calls):
        alpha = attention_matrices(call)[0]
        for c in (0, 7, 31):
            weighted = guided = 0.0
            for i in range(size):
                for j in range(i + 1):
                    product = float(alpha[c, i, j] * call.x[0, j, c])
                    weighted += abs(product) * abs(float(call.gate[0, i, c])) / size
                    slope = float(slopes[layer][0, i, c] * call.gate[0, i, c]) * float(
                        call.x[0, j, c]
                    )
                    guided += abs(float(alpha[c, i, j]) * slope) / size
            np.testing.assert_allclose(
                found["attention_weighted"][row, layer, c], weighted, rtol=1e-4
            )
            np.testing.assert_allclose(
                found["gradient_guided"][row, layer, c], guided, rtol=1e-3, atol=1e-9
            )


def test_rollout_without_a_channel_is_the_rollout_of_the_others(model: Model, texts: Texts) -> None:
    subject = planted.mamba_of(model)
    alphas = [
        attention_matrices(call)[0].double()
        for call in mixer_calls(subject, subject.ids(texts.tokens[:1]))
    ]
    whole = attention.rollout(alphas)
    torch.testing.assert_close(whole.sum(dim=-1), torch.ones(len(whole), dtype=torch.float64))
    assert float(whole.triu(1).abs().max()) == 0
    changes = attention.rollout_changes(alphas)
    for layer, channel in ((0, 3), (1, 30)):
        others = [
            torch.cat([a[:channel], a[channel + 1 :]]) if i == layer else a
            for i, a in enumerate(alphas)
        ]
        moved = 0.5 * (attention.rollout(others) - whole).abs().sum(dim=-1).mean()
        torch.testing.assert_close(changes[layer, channel], moved)


def test_the_carrier_is_first_in_each_method_and_its_ranking_is_faithful(
    carrier: Model, params: MambaNeurons
) -> None:
    texts = planted.own_texts(carrier)
    found, _ = attention.importances(carrier, texts, params)
    layer, channel = planted.CARRIER
    for method in params.attention_methods:
        assert found[method].mean(axis=0)[layer].argmax() == channel
    assert (
        np.unravel_index(found["gradient_guided"].mean(axis=0).argmax(), (2, 32)) == planted.CARRIER
    )
    few = params.model_copy(update={"fractions": (0.04, 0.5), "random_orders": 20})
    orders = {m: np.argsort(-found[m].mean(axis=0), axis=1) for m in params.attention_methods}
    means = unit_means(carrier, texts, 4)
    report = faithfulness(carrier, texts, orders, few, means, np.random.default_rng(0))

    for method in params.attention_methods:
        for kind in ("deletion", "insertion"):
            assert report[kind][method]["area"]["value"] > 0
            # A random order has the carrier first once in 32.
            assert report[kind][method]["against_random"]["p"] <= 0.15


def test_the_summary_has_the_keys_of_earlier_versions(
    model: Model, texts: Texts, params: MambaNeurons
) -> None:
    found, _ = attention.importances(model, texts, params)
    report = attention.attention_summary(found, params, np.random.default_rng(0))
    assert set(report["mamba_neurons"]) == set(params.attention_methods)
    for method in params.attention_methods:
        for layer in ("0", "1"):
            assert set(report["mamba_neurons"][method][layer]) == {
                "neuron_activations",
                "neuron_importance",
            }
            analysis = report["analysis_results"][method][layer]
            keys = {
                "layer_idx",
                "num_neurons",
                "mean_activation",
                "activation_std",
                "top_neurons",
                "neuron_diversity",
            }
            assert keys <= set(analysis)
            assert analysis["num_neurons"] == 32
            assert 0 < analysis["neuron_diversity"] <= 1
            assert (
                analysis["top_neurons"][0]
                == report["mamba_neurons"][method][layer]["neuron_importance"].argmax()
            )
