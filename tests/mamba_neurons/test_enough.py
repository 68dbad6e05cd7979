"""Units of a whole model: what is left without them, how they are ranked, how few are enough."""

import numpy as np
import pytest
import torch

import planted_mamba as planted
from interp_core.models.hooks import intervene
from interp_core.models.sites import Site
from interp_core.models.subject import as_transformer
from interp_core.statistics.enough import enough
from mamba_neurons.data import Texts
from mamba_neurons.intervene import neuron_effects
from mamba_neurons.intervene_enough import (
    Judge,
    bisect_together,
    halving,
    how_few,
    random_order,
    shortfall,
)
from mamba_neurons.intervene_estimates import estimate_all, whole_model
from mamba_neurons.intervene_joint import joint_order, removal_costs, single_effects
from mamba_neurons.intervene_units import (
    Means,
    clean_loss,
    keeping,
    kept_effects,
    scored_texts,
    unit_means,
)
from mamba_neurons.model import Model
from mamba_neurons.params import MambaNeurons

CARRIER = int(np.ravel_multi_index(planted.CARRIER, (2, 32)))


@pytest.fixture(params=["model", "twin"])
def either(request: pytest.FixtureRequest) -> Model:
    """A Mamba, and a transformer, whose attention heads are units too."""
    return request.getfixturevalue(request.param)


def test_a_transformers_units_are_its_neurons_and_its_heads(twin: Model, texts: Texts) -> None:
    means = unit_means(twin, texts, 3)
    heads = means.shape[1] - twin.n_neurons

    assert heads == as_transformer(twin.subject).n_heads
    assert str(means.name(1, twin.n_neurons - 1)) == f"L1C{twin.n_neurons - 1}"
    assert str(means.name(1, twin.n_neurons)) == "L1H0"


def test_keeping_every_unit_changes_nothing(
    either: Model, texts: Texts, params: MambaNeurons
) -> None:
    means = unit_means(either, texts, 4)
    batches = scored_texts(either, texts, params)
    kept = [np.ones(means.shape, dtype=bool), np.zeros(means.shape, dtype=bool)]

    found = kept_effects(either, batches, kept, params, means, label="")
    assert (found.kl[:, 0] < 1e-10).all()
    assert (found.kl[:, 1] > 1e-3).all()


def test_without_any_unit_a_prediction_follows_its_own_token_alone(
    either: Model, texts: Texts
) -> None:
    """A layer's other ways to write would show here: heads, where they were no units."""
    means = unit_means(either, texts, 4)
    none = torch.zeros(1, *means.shape, dtype=torch.bool)

    with torch.no_grad(), keeping(either, none, means):
        hidden = either.subject.trunk(either.subject.ids(texts.tokens))

    for token in np.unique(texts.tokens[texts.real]):
        same = hidden[torch.as_tensor((texts.tokens == token) & texts.real)]
        torch.testing.assert_close(same, same[:1].expand_as(same), atol=1e-5, rtol=1e-5)


def test_a_unit_that_is_left_out_is_its_mean(
    either: Model, texts: Texts, params: MambaNeurons
) -> None:
    means = unit_means(either, texts, params.batch_size)
    batches = scored_texts(either, texts, params)
    without = np.ones(means.shape, dtype=bool)
    without[1, 5] = False

    found = kept_effects(either, batches, [without], params, means, label="")
    alone = neuron_effects(either, texts, 1, [5], params, means=means.neurons)
    np.testing.assert_allclose(found.kl, alone.kl, atol=1e-6)
    assert alone.kl.max() > 1e-4


def test_a_head_that_is_left_out_is_its_mean(twin: Model, texts: Texts) -> None:
    means = unit_means(twin, texts, 3)
    kept = torch.ones(1, *means.shape, dtype=torch.bool)
    kept[0, 0, twin.n_neurons + 1] = False
    ids = twin.subject.ids(texts.tokens)

    def by_its_mean(z: torch.Tensor) -> torch.Tensor:
        edited = z.clone()
        edited[:, :, 1] = means.heads[0, 1]
        return edited

    with torch.no_grad():
        with keeping(twin, kept, means):
            found = twin.subject.trunk(ids)
        with intervene(twin.subject, {Site(0, "attn.z"): by_its_mean}):
            expected = twin.subject.trunk(ids)
    torch.testing.assert_close(found, expected)


def test_sets_in_one_batch_are_sets_one_at_a_time(
    either: Model, texts: Texts, params: MambaNeurons
) -> None:
    means = unit_means(either, texts, 4)
    batches = scored_texts(either, texts, params)
    rng = np.random.default_rng(0)
    kept = [rng.random(means.shape) < 0.6 for _ in range(5)]

    stacked, alone = (
        kept_effects(either, batches, kept, params.model_copy(update={"stack": n}), means, label="")
        for n in (4, 1)
    )
    np.testing.assert_allclose(stacked.kl, alone.kl, atol=1e-5)
    assert np.ptp(alone.kl.mean(axis=0)) > 1e-3


def test_before_anything_left_a_units_cost_is_fishers_estimate(
    either: Model, texts: Texts, params: MambaNeurons
) -> None:
    means = unit_means(either, texts, params.batch_size)
    generator = torch.Generator().manual_seed(3)
    of_neurons = estimate_all(either, texts, params, means=means.neurons, generator=generator)

    everything = np.ones(means.shape, dtype=bool)
    generator = torch.Generator().manual_seed(3)
    batches = scored_texts(either, texts, params)
    costs = removal_costs(either, batches, everything, params, means, generator)

    neurons = slice(0, either.n_neurons)
    expected = of_neurons.kl.mean(axis=0)
    np.testing.assert_allclose(costs[:, neurons], expected, rtol=2e-3, atol=1e-6)


def test_in_what_is_left_a_units_cost_is_the_rise_of_kl(params: MambaNeurons) -> None:
    """Exact in the limit of small writes; both orders are needed, since KL is not at its least."""
    module = planted.random_mamba(seed=5)
    for block in module.backbone.layers:
        block.mixer.out_proj.weight.data *= 0.05
    model = planted.model_of(module)
    texts = planted.random_texts(n=4)
    many = params.model_copy(update={"label_draws": 200, "stack": 16})

    means = unit_means(model, texts, 4)
    batches = scored_texts(model, texts, many)
    kept = np.random.default_rng(0).random(means.shape) < 0.5
    generator = torch.Generator().manual_seed(0)
    costs = removal_costs(model, batches, kept, many, means, generator)

    places = np.argwhere(kept)[::3]
    without = [kept.copy() for _ in places]
    for one, place in zip(without, places, strict=True):
        one[tuple(place)] = False

    found = kept_effects(model, batches, [kept, *without], many, means, label="").mean_kl
    exact = found[1:] - found[0]
    assert np.corrcoef(costs[tuple(places.T)], exact)[0, 1] > 0.97
    assert (exact < 0).any()  # some leave for the better: the first order says so
    np.testing.assert_array_equal(costs[~kept], 0)


def test_the_joint_order_holds_every_unit_once_and_the_carrier_first(
    carrier: Model, params: MambaNeurons
) -> None:
    texts = planted.own_texts(carrier)
    means = unit_means(carrier, texts, 4)
    batches = scored_texts(carrier, texts, params)

    for rounds in (1, 5, 200):
        chosen = params.model_copy(update={"joint_rounds": rounds})
        order = joint_order(carrier, batches, chosen, means, np.random.default_rng(0))
        assert sorted(order) == list(range(64))
        assert order[0] == CARRIER


def test_heads_are_ranked_by_their_exact_effects(
    twin: Model, texts: Texts, params: MambaNeurons
) -> None:
    means = unit_means(twin, texts, params.batch_size)
    batches = scored_texts(twin, texts, params)
    whole = whole_model(twin, texts, params, np.random.default_rng(0), measures=("kl",))
    found = single_effects(twin, batches, whole, params, means)

    without = np.ones(means.shape, dtype=bool)
    without[1, twin.n_neurons] = False
    exact = kept_effects(twin, batches, [without], params, means, label="").mean_kl[0]
    assert found[1, twin.n_neurons] == pytest.approx(exact)
    np.testing.assert_array_equal(found[:, : twin.n_neurons], whole.mean_kl)


def test_few_are_enough_where_one_carries_all(carrier: Model, params: MambaNeurons) -> None:
    texts = planted.own_texts(carrier, n=12)
    means = unit_means(carrier, texts, 4)
    batches = scored_texts(carrier, texts, params)
    best_first = np.array([CARRIER, *(i for i in range(64) if i != CARRIER)])

    chosen = params.model_copy(update={"random_orders": 20, "loss_tolerance": 0.2})
    orders = {"single": best_first, "joint": best_first[::-1].copy()}
    few = how_few(carrier, batches, orders, chosen, means, np.random.default_rng(0))

    first, last = few["rankings"]["single"], few["rankings"]["joint"]
    assert first["enough"] == {"value": 1, "low": 1, "high": 1, "n": 12, "unit": "texts"}
    assert first["against_random"]["random"]["value"] > 10
    assert first["against_random"]["p"] <= 2 / 21
    assert last["enough"]["value"] == 64
    assert last["enough_share"]["value"] == 1
    assert last["against_random"]["p"] == 1


def test_random_orders_deal_neurons_and_keep_heads_to_the_last(twin: Model, texts: Texts) -> None:
    means = unit_means(twin, texts, 4)
    orders = [random_order(means, np.random.default_rng(seed)) for seed in (0, 1)]
    units = means.shape[1]

    for order in orders:
        assert sorted(order) == list(range(means.shape[0] * units))
        n_heads = twin.n_layers * twin.n_heads
        assert (order[:n_heads] % units >= twin.n_neurons).all()
    assert (orders[0] != orders[1]).any()


def test_orders_bisected_together_are_orders_bisected_alone(
    model: Model, texts: Texts, params: MambaNeurons
) -> None:
    judge = judge_of(model, texts, params.model_copy(update={"loss_tolerance": 0.05}))
    clean = clean_loss(judge.batches)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(judge.total) for _ in range(4)]

    alone = [
        enough(
            shortfall(judge, order, clean, ""),
            total=judge.total,
            rng=rng,
            resamples=2,
            unit="texts",
        ).value
        for order in orders
    ]
    assert bisect_together(judge, clean, orders) == alone
    assert len(set(alone)) > 1


def test_the_curve_is_drawn_at_sizes_that_bisection_begins_with() -> None:
    assert halving(512, 3) == [64, 128, 192, 256, 320, 384, 448, 512]
    assert halving(1032, 1) == [516, 1032]
    assert halving(5, 1) == [2, 5]
    assert halving(3, 4) == [1, 2, 3]


def test_a_size_is_measured_once(
    model: Model, texts: Texts, params: MambaNeurons, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = judge_of(model, texts, params)
    order = np.arange(judge.total)
    first = judge.rises(order, [3, 9], "")

    monkeypatch.setattr(judge, "batches", [])
    np.testing.assert_array_equal(judge.rises(order, [9, 3], ""), first[:, ::-1])


def judge_of(model: Model, texts: Texts, params: MambaNeurons) -> Judge:
    means: Means = unit_means(model, texts, 4)
    return Judge(model, scored_texts(model, texts, params), params, means)
