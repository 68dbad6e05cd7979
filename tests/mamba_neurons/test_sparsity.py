"""Sparsity: the axioms of Hurley and Rickard, bounds and extremes, and that streaming changes
nothing.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

import planted_mamba as planted
from interp_core.mamba.hidden_attention import mixer_calls, state_after
from mamba_neurons import measure_sparsity as sparsity
from mamba_neurons.data import Texts
from mamba_neurons.measure_activity import KINDS, activations, states
from mamba_neurons.measure_kinds import kinds, kinds_of_layer
from mamba_neurons.measure_sparsity import (
    Lifetime,
    effective_dimension,
    entropy,
    gini,
    hoyer,
    near_zero,
    treves_rolls,
)
from mamba_neurons.model import Model, clean_run
from mamba_neurons.params import MambaNeurons

VECTORS = arrays_of.arrays(np.float64, st.integers(3, 30), elements=st.floats(0.01, 100))
MANY = settings(max_examples=80, deadline=None)


@MANY
@given(a=VECTORS, share=st.floats(0.05, 0.95), data=st.data())
def test_robin_hood_taking_from_the_rich_for_the_poor_lowers_gini(
    a: np.ndarray, share: float, data: st.DataObject
) -> None:
    rich, poor = int(a.argmax()), int(a.argmin())
    if a[rich] - a[poor] < 1e-3:
        return
    moved = a.copy()
    given_away = share * (a[rich] - a[poor]) / 2
    moved[rich] -= given_away
    moved[poor] += given_away
    assert gini(moved) < gini(a)


@MANY
@given(a=VECTORS, factor=st.floats(0.01, 1000))
def test_scaling_leaves_gini_hoyer_entropy_treves_rolls_and_the_share_near_zero(
    a: np.ndarray, factor: float
) -> None:
    for measure in (gini, hoyer, entropy, treves_rolls):
        assert float(measure(factor * a)) == pytest.approx(float(measure(a)), abs=1e-9)
    assert abs(float(near_zero(factor * a, 0.1)) - float(near_zero(a, 0.1))) <= 1 / len(a)


@MANY
@given(a=VECTORS, added=st.floats(0.01, 100))
def test_rising_tide_adding_the_same_to_all_lowers_gini(a: np.ndarray, added: float) -> None:
    if np.ptp(a) < 1e-3:
        return
    assert gini(a + added) < gini(a)


@MANY
@given(a=VECTORS, times=st.integers(2, 4))
def test_cloning_the_population_leaves_gini(a: np.ndarray, times: int) -> None:
    assert float(gini(np.tile(a, times))) == pytest.approx(float(gini(a)), abs=1e-9)


@MANY
@given(a=VECTORS, extra=st.floats(1, 10))
def test_bill_gates_one_getting_ever_richer_raises_gini(a: np.ndarray, extra: float) -> None:
    rich = a.copy()
    rich[0] += a.sum()  # beyond some wealth, more of it always means more inequality
    richer = rich.copy()
    richer[0] += extra * a.sum()
    assert gini(richer) > gini(rich)


@MANY
@given(a=VECTORS)
def test_babies_without_anything_raise_gini(a: np.ndarray) -> None:
    assert gini(np.append(a, 0.0)) > gini(a)


@MANY
@given(a=VECTORS)
def test_all_measures_stay_in_their_bounds(a: np.ndarray) -> None:
    for measure in (gini, hoyer, entropy, treves_rolls):
        assert -1e-12 <= float(measure(a)) <= 1 + 1e-12


def test_equal_and_single_activations_are_the_extremes() -> None:
    n = 8
    equal, single, none = np.ones(n), np.eye(n)[3], np.zeros(n)
    assert [float(m(equal)) for m in (gini, hoyer, treves_rolls, entropy)] == pytest.approx(
        [0, 0, 0, 1], abs=1e-12
    )
    assert [float(m(single)) for m in (gini, hoyer, treves_rolls, entropy)] == pytest.approx(
        [1 - 1 / n, 1, 1, 0]
    )
    assert [float(m(none)) for m in (gini, hoyer, treves_rolls, entropy)] == pytest.approx(
        [0, 0, 0, 1], abs=1e-12
    )
    assert float(near_zero(single, 0.1)) == 1 - 1 / n
    assert effective_dimension(np.eye(5)) == pytest.approx(5)
    assert effective_dimension(np.diag([4.0, 0, 0])) == pytest.approx(1)


def test_gini_is_half_the_relative_mean_difference() -> None:
    a = np.random.default_rng(0).exponential(size=40)
    mean_difference = np.abs(a[:, None] - a[None]).mean()
    assert float(gini(a)) == pytest.approx(mean_difference / (2 * a.mean()))
    curve = sparsity.lorenz(a[None])
    assert 1 - 2 * np.trapezoid(curve, np.linspace(0, 1, len(curve))) == pytest.approx(
        float(gini(a)), abs=2e-3
    )


def test_lifetime_values_from_histograms_lie_within_their_error() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.standard_normal((50, 6)) ** 3 * np.geomspace(1e-3, 1e2, 6) for _ in range(8)]
    lifetime = Lifetime.empty(4, 6)
    for index, a in enumerate(texts):
        lifetime.add(a, index // 2)
    whole = np.concatenate(texts).T
    found = lifetime.measures(np.ones(4), 0.1)
    assert (found["gini_error"] < 0.01).all()
    assert (
        (gini(whole) >= found["gini"] - 1e-9) & (gini(whole) <= found["gini"] + found["gini_error"])
    ).all()
    np.testing.assert_allclose(found["hoyer"], hoyer(whole), atol=1e-9)
    np.testing.assert_allclose(found["treves_rolls"], treves_rolls(whole), atol=1e-9)
    np.testing.assert_allclose(found["entropy"], entropy(whole), atol=2e-3)
    np.testing.assert_allclose(found["near_zero"], near_zero(whole, 0.1), atol=0.02)
    np.testing.assert_allclose(lifetime.variance, whole.var(axis=1), rtol=1e-9)
    twice = lifetime.measures(np.array([2.0, 0, 1, 1]), 0.1)
    again = np.concatenate([*texts[:2], *texts[:2], *texts[4:]]).T
    np.testing.assert_allclose(twice["gini"], gini(again), atol=0.01)


def test_what_is_kept_does_not_grow_with_the_number_of_tokens() -> None:
    sizes = []
    for tokens in (10, 1000):
        lifetime = Lifetime.empty(4, 6)
        lifetime.add(np.random.default_rng(0).standard_normal((tokens, 6)), 0)
        sizes.append(sum(part.nbytes for part in vars(lifetime).values()))
    assert sizes[0] == sizes[1]


def test_percentile_sparsity_is_the_percentile_and_a_fixed_threshold_follows_the_scale() -> None:
    """Why neither can compare models."""
    rng = np.random.default_rng(0)
    reports = []
    for scale in (1.0, 10.0):
        stream = sparsity.Stream(4, (0.01, 0.1), 0.1)
        for text in range(8):
            stream.add(scale * np.random.default_rng(text).standard_normal((20, 40)), text // 2)
        reports.append(
            sparsity.summarise(
                stream,
                percentiles=(10.0, 50.0),
                target=0.3,
                resamples=100,
                lifetime_draws=20,
                rng=rng,
            )[0]
        )
    for report in reports:
        assert [report["percentile"][p]["sparsity"] for p in ("p10", "p50")] == pytest.approx(
            [0.1, 0.5]
        )
        assert report["percentile"]["p50"]["neurons_below"] == 20
        assert report["optimal"]["sparsity"] == pytest.approx(0.3)
    one, ten = reports
    assert ten["percentile"]["p50"]["threshold"] == pytest.approx(
        100 * one["percentile"]["p50"]["threshold"]
    )
    assert one["traditional"]["0.1"] > 5 * ten["traditional"]["0.1"]
    assert one["population"]["gini"]["value"] == pytest.approx(ten["population"]["gini"]["value"])


def test_streaming_text_by_text_is_measuring_all_at_once(model: Model, texts: Texts) -> None:
    kinds = KINDS[True]
    found = list(activations(model, texts, [0, 1], kinds, 3))
    assert [row for row, _ in found] == list(range(len(texts)))
    streams = sparsity.stream_all(
        iter(found), n_texts=len(texts), groups=4, thresholds=(0.01,), share=0.1
    )
    for place, stream in streams.items():
        whole = np.concatenate([by_place[place] for _, by_place in found])
        assert sum(stream.tokens) == len(whole) == texts.lengths.sum()
        weighted = np.average(stream.population["gini"], weights=stream.tokens)
        assert weighted == pytest.approx(float(gini(whole).mean()))
        if stream.covariance is not None:
            np.testing.assert_allclose(
                stream.covariance, np.cov(whole.T, bias=True), atol=1e-9 + 1e-6 * whole.var()
            )


def test_states_are_the_scans_own(model: Model, texts: Texts) -> None:
    subject = planted.mamba_of(model)
    for call in mixer_calls(subject, subject.ids(texts.tokens)):
        found = states(call)
        for position in (0, 4, texts.tokens.shape[1] - 1):
            torch.testing.assert_close(
                found[:, position], state_after(call, position), atol=1e-5, rtol=1e-4
            )


def test_dead_detecting_and_positional_neurons_are_told_apart(params: MambaNeurons) -> None:
    rng = np.random.default_rng(0)
    token, position = rng.integers(0, 6, 300), np.tile(np.arange(30), 10)
    noise = 0.1 * rng.standard_normal((300, 5))
    a = noise + np.stack(
        [token == 3, position / 10, np.zeros(300), rng.standard_normal(300), np.zeros(300)], axis=1
    )
    a[:, 2] *= 1e-6
    text = np.repeat(np.arange(10), 30)
    many = params.model_copy(update={"permutation_draws": 39})
    found = kinds_of_layer(a, token, position, text, many, rng)
    assert found["token_units"].tolist() == [True, False, False, False, False]
    assert found["token_share"][0] > 0.8 > 0.2 > found["token_share"][1]
    assert found["position_units"].tolist() == [False, True, False, False, False]
    assert found["dead"].tolist() == [False, False, True, False, False]
    np.testing.assert_allclose(found["root_mean_square"], np.sqrt((a**2).mean(axis=0)))


def test_kinds_are_of_the_tokens_after_bos_and_counted_by_layer(
    model: Model, texts: Texts, params: MambaNeurons
) -> None:
    # Half of the units are dead: a count that is neither one nor none.
    few = params.model_copy(update={"permutation_draws": 19, "dead_share": 1.0})
    arrays, report = kinds(model, texts, [0, 1], "inner", few, np.random.default_rng(0))

    clean = clean_run(model, texts)
    inside = torch.as_tensor(texts.real)
    inside[:, 0] = False
    for layer in (0, 1):
        a = clean.neurons[layer][inside].double().numpy()
        size = np.sqrt((a**2).mean(axis=0))
        np.testing.assert_allclose(arrays["root_mean_square"][layer], size, rtol=1e-5)
        one = report[str(layer)]
        assert one["units"] == a.shape[1]
        assert one["dead"] == (size <= np.median(size)).sum() == a.shape[1] // 2
        assert one["token_detectors"] == arrays["token_units"][layer].sum()
        assert one["positional"] == arrays["position_units"][layer].sum()
        assert one["token_share_median"] == pytest.approx(np.median(arrays["token_share"][layer]))
