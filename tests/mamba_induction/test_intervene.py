"""Edits against the same computation done by hand; controls are what they say."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import known_mamba as known
import mamba_steps as steps
import small_models as small
from interp_core.loading import subject_of
from interp_core.mamba.hidden_attention import attention_matrices, mixer_calls
from interp_core.mamba.selective_scan import selective_scan
from interp_core.mamba.subject import MambaSubject, as_mamba
from interp_core.models.hooks import capture
from interp_core.models.sites import Site
from interp_core.models.subject import Subject, as_transformer
from interp_core.stimuli.prompts import Prompts, Vocabulary, repeated_tokens
from mamba_induction.data import Stimuli, as_control
from mamba_induction.intervene import (
    only_reads,
    random_direction,
    states,
    taps_at,
    with_state,
    without_layer,
    without_mixing,
    without_reads,
    without_taps,
)
from mamba_induction.intervene_bench import Bench
from mamba_induction.intervene_causal import causal, on_new_tokens, random_taps, swapped_states
from mamba_induction.intervene_kept import circuit_lags, kept
from mamba_induction.intervene_reads import other_keys, reads_of_answers
from mamba_induction.params import ANSWER_OFFSETS, OFFSETS, MambaInduction


def ids_of(subject: Subject) -> torch.Tensor:
    return subject.ids(np.random.default_rng(0).integers(1, 96, (3, 20)))


@pytest.mark.parametrize("kind", small.MAMBAS)
@pytest.mark.parametrize("how", [without_reads, only_reads])
def test_a_cut_is_the_recurrence_with_these_reads_masked(kind: str, how: Any) -> None:
    subject = as_mamba(subject_of(small.build(kind), name="small", bos=0))
    ids, layer = ids_of(subject), 1
    places = (torch.tensor([0, 2, 2]), torch.tensor([9, 15, 15]), torch.tensor([4, 15, 0]))
    cut = set(zip(*(index.tolist() for index in places), strict=True))

    if how is only_reads:
        queries = {(row, query) for row, query, _ in cut}
        every = {(row, query, key) for row, query in queries for key in range(query + 1)}
        cut = every - cut

    seen: list[torch.Tensor] = []
    block: Any = subject.model.get_submodule(f"backbone.layers.{layer}")
    handle = block.norm.register_forward_hook(lambda *given: seen.append(given[2]))
    with how(subject, [layer], *places), capture(subject, [Site(layer, "mixer_out")]) as written:
        subject.trunk(ids)
    handle.remove()

    expected = steps.mixed(subject.mixer(layer), seen[0], cut)
    whole = steps.mixed(subject.mixer(layer), seen[0])
    error = (written[Site(layer, "mixer_out")] - expected).abs().max()
    assert float(error / expected.abs().max()) < 1e-5
    assert float((whole - expected).abs().max()) > 100 * float(error)


def test_a_cut_read_leaves_the_rest_of_the_row(untrained: MambaSubject) -> None:
    ids = ids_of(untrained)
    batch, query, key = (torch.tensor(index) for index in ([0, 2, 2], [9, 15, 15], [4, 15, 0]))
    with torch.no_grad(), capture(untrained, [Site(0, "mixer.gated_y")]) as clean:
        untrained.trunk(ids)
    call = mixer_calls(untrained, ids)[0]
    with torch.no_grad(), without_reads(untrained, [0], batch, query, key):
        cut = mixer_calls(
            untrained, ids
        )  # an observer inside sees what was computed, before the cut
        with capture(untrained, [Site(0, "mixer_out")]) as seen:
            untrained.trunk(ids)
    alpha = attention_matrices(call)
    expected = clean[Site(0, "mixer.gated_y")].clone()
    for b, i, j in zip(batch, query, key, strict=True):
        expected[b, i] -= call.gate[b, i] * alpha[b, :, i, j] * call.x[b, j]
    out = expected @ untrained.mixer(0).out_proj.weight.T
    torch.testing.assert_close(seen[Site(0, "mixer_out")], out, atol=1e-5, rtol=1e-4)
    assert len(cut) == 2


def test_a_transformers_cut_read_takes_the_value_times_its_attention() -> None:
    twin = subject_of(small.build("gpt_neox"), name="twin", bos=0)
    ids = ids_of(twin)
    with capture(twin, [Site(1, "attn.z"), Site(1, "attn.pattern"), Site(1, "attn.v")]) as clean:
        twin.trunk(ids)
    expected = clean[Site(1, "attn.z")].clone()
    weight = clean[Site(1, "attn.pattern")][0, :, 9, 4]
    expected[0, 9] -= weight[:, None] * clean[Site(1, "attn.v")][0, 4]
    with (
        without_reads(twin, [1], torch.tensor([0]), torch.tensor([9]), torch.tensor([4])),
        capture(twin, [Site(1, "attn_out")]) as seen,
    ):
        twin.trunk(ids)
    out = torch.einsum("bphd,hdm->bpm", expected, as_transformer(twin).out_weights(1))
    difference = seen[Site(1, "attn_out")] - out
    torch.testing.assert_close(
        difference, difference[0, 0].expand_as(difference), atol=1e-5, rtol=0
    )  # the bias


def test_a_state_that_is_added_is_what_the_scan_makes_of_it(untrained: MambaSubject) -> None:
    ids, at = ids_of(untrained), 7
    call = mixer_calls(untrained, ids)[1]
    added = torch.randn(
        3, untrained.d_inner, untrained.d_state, generator=torch.Generator().manual_seed(0)
    )
    later = slice(at + 1, None)
    start = states(untrained, ids, at)[1] + added
    x, dt = call.x[:, later].contiguous(), call.dt[:, later].contiguous()
    y = selective_scan(
        x, dt, call.A, call.B[:, later], call.C[:, later], call.D, initial_state=start
    )
    with (
        torch.no_grad(),
        with_state(untrained, {1: added}, at),
        capture(untrained, [Site(1, "mixer_out")]) as seen,
    ):
        untrained.trunk(ids)
    expected = (y * call.gate[:, later]) @ untrained.mixer(1).out_proj.weight.T
    torch.testing.assert_close(seen[Site(1, "mixer_out")][:, later], expected, atol=1e-4, rtol=1e-4)


def test_a_state_added_to_heads_is_what_another_past_would_have_left() -> None:
    subject = as_mamba(subject_of(small.build("mamba2"), name="small", bos=0))
    ids, at = ids_of(subject), 7
    other = ids.clone()
    other[:, :4] = (other[:, :4] + 11) % 96  # so long before that the convolution forgot it

    added = {0: states(subject, other, at)[0] - states(subject, ids, at)[0]}
    with capture(subject, [Site(0, "mixer_out")]) as expected:
        subject.trunk(other)
    with with_state(subject, added, at), capture(subject, [Site(0, "mixer_out")]) as found:
        subject.trunk(ids)

    site, later = Site(0, "mixer_out"), slice(at + 1, None)
    torch.testing.assert_close(
        found[site][:, later], expected[site][:, later], atol=1e-5, rtol=1e-4
    )


def test_a_mamba2s_taps_are_those_of_x_B_and_C() -> None:
    subject = as_mamba(subject_of(small.build("mamba2"), name="small", bos=0))
    removed = taps_at(subject, [1, 3])
    assert removed.shape == (64 + 2 * 2 * 6, 4)

    weight = subject.mixer(0).conv1d.weight
    with without_taps(subject, [0], removed):
        assert [float(weight[:, 0, 3 - lag].abs().max()) > 0 for lag in range(4)] == [
            *(True, False, True, False)
        ]


def test_taps_are_gone_inside_the_block_and_back_after_it(untrained: MambaSubject) -> None:
    ids = ids_of(untrained)
    clean = untrained.trunk(ids)
    everything = torch.ones(untrained.d_inner, untrained.d_conv, dtype=torch.bool)
    weight = untrained.mixer(0).conv1d.weight.clone()
    with without_taps(untrained, [0], everything):
        assert float(untrained.mixer(0).conv1d.weight.abs().max()) == 0.0
    torch.testing.assert_close(untrained.mixer(0).conv1d.weight, weight, atol=0, rtol=0)
    torch.testing.assert_close(untrained.trunk(ids), clean, atol=0, rtol=0)


@pytest.mark.parametrize("how", ["zero", "mean", "resample"])
def test_an_ablated_layer_writes_what_was_asked(untrained: MambaSubject, how: str) -> None:
    ids = ids_of(untrained)
    site = Site(1, "mixer_out")
    with torch.no_grad(), capture(untrained, [site, Site(1, "resid_pre")]) as clean:
        untrained.trunk(ids)
    means = {site: torch.arange(32.0)}
    with (
        torch.no_grad(),
        without_layer(untrained, 1, how, means),  # pyright: ignore[reportArgumentType]
        capture(untrained, [Site(1, "resid_post")]) as seen,
    ):
        untrained.trunk(ids)
    written = seen[Site(1, "resid_post")] - clean[Site(1, "resid_pre")]
    expected = {
        "zero": torch.zeros(3, 20, 32),
        "mean": means[site].expand(3, 20, 32),
        "resample": clean[site].roll(1, 0),
    }
    torch.testing.assert_close(written, expected[how], atol=1e-5, rtol=1e-5)


def test_random_keys_are_others_and_as_many(untrained: MambaSubject) -> None:
    vocabulary = Vocabulary.of(96, bos=0, pad=0)
    prompts = repeated_tokens(vocabulary, period=16, n_prompts=6, rng=np.random.default_rng(0))
    bench = Bench.of(untrained, prompts)
    keys = other_keys(bench, 3, np.random.default_rng(0)).numpy()
    assert keys.shape == (3, len(prompts.pairs))
    assert (keys <= prompts.pairs.query).all()
    assert all(len(set(column)) == 3 for column in keys.T)
    away = keys - prompts.pairs.earlier
    assert not np.isin(away, OFFSETS).any()


def test_new_tokens_are_those_that_did_not_occur_before(
    untrained: MambaSubject, params: MambaInduction
) -> None:
    windows = np.array([[0, 5, 6, 5, 7, 6]])
    found = on_new_tokens(untrained, windows, params)
    with torch.no_grad():
        logp = untrained.logits(untrained.ids(windows)).double().log_softmax(-1)[0]
    expected = -(logp[0, 5] + logp[1, 6] + logp[3, 7]) / 3
    assert found[0, 0] == pytest.approx(float(expected))


def test_kept_reads_and_the_skip_are_all_that_a_query_gets(untrained: MambaSubject) -> None:
    ids = ids_of(untrained)
    batch, query, key = (torch.tensor(index) for index in ([0, 2, 2], [9, 15, 15], [4, 15, 3]))
    with torch.no_grad(), capture(untrained, [Site(0, "mixer.gated_y")]) as clean:
        untrained.trunk(ids)

    call = mixer_calls(untrained, ids)[0]
    alpha = attention_matrices(call)
    expected = clean[Site(0, "mixer.gated_y")].clone()

    for b, i, keys in ((0, 9, [4]), (2, 15, [15, 3])):
        read = sum(alpha[b, :, i, j] * call.x[b, j] for j in keys)
        expected[b, i] = call.gate[b, i] * (read + call.D * call.x[b, i])

    with (
        torch.no_grad(),
        only_reads(untrained, [0], batch, query, key),
        capture(untrained, [Site(0, "mixer_out")]) as seen,
    ):
        untrained.trunk(ids)

    out = expected @ untrained.mixer(0).out_proj.weight.T
    torch.testing.assert_close(seen[Site(0, "mixer_out")], out, atol=1e-5, rtol=1e-4)


def test_a_transformers_kept_read_is_the_value_times_its_attention() -> None:
    twin = subject_of(small.build("gpt_neox"), name="twin", bos=0)
    ids = ids_of(twin)
    with capture(twin, [Site(1, "attn.z"), Site(1, "attn.pattern"), Site(1, "attn.v")]) as clean:
        twin.trunk(ids)

    expected = clean[Site(1, "attn.z")].clone()
    weight = clean[Site(1, "attn.pattern")][0, :, 9, 4]
    expected[0, 9] = weight[:, None] * clean[Site(1, "attn.v")][0, 4]

    with (
        only_reads(twin, [1], torch.tensor([0]), torch.tensor([9]), torch.tensor([4])),
        capture(twin, [Site(1, "attn_out")]) as seen,
    ):
        twin.trunk(ids)

    out = torch.einsum("bphd,hdm->bpm", expected, as_transformer(twin).out_weights(1))
    bias = seen[Site(1, "attn_out")] - out
    torch.testing.assert_close(bias, bias[0, 0].expand_as(bias), atol=1e-5, rtol=0)


def test_without_mixing_no_token_moves_another_but_by_the_convolution(
    untrained: MambaSubject,
) -> None:
    ids = ids_of(untrained)
    other = ids.clone()
    other[:, 3] = (other[:, 3] + 7) % 96
    every = range(untrained.n_layers)

    def moved() -> torch.Tensor:
        with torch.no_grad():
            return (untrained.trunk(ids) - untrained.trunk(other)).abs().amax(dim=(0, 2))

    assert moved()[-1] > 1e-5  # the scan carries it to the end

    with without_mixing(untrained, list(every), (3, 20)):
        alone = moved()

    # Two convolutions of four taps reach three tokens each.
    assert alone[4:10].min() > 1e-5
    assert alone[10:].max() == 0.0


def test_noise_is_as_long_as_the_difference_it_stands_for() -> None:
    gap = torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(0))
    gap *= torch.tensor([0.1, 1.0, 3.0, 10.0, 30.0])[:, None, None]

    noise = random_direction(gap, torch.Generator().manual_seed(1))
    again = random_direction(gap, torch.Generator().manual_seed(2))

    torch.testing.assert_close(noise.flatten(1).norm(dim=1), gap.flatten(1).norm(dim=1))
    cosines = torch.cosine_similarity(noise.flatten(1), gap.flatten(1))
    assert cosines.abs().max() < 0.8
    assert not torch.allclose(noise, again)


def test_random_taps_are_as_many_as_one_lags(untrained: MambaSubject) -> None:
    removed = random_taps(untrained, torch.Generator().manual_seed(0))

    assert int(removed.sum()) == untrained.d_inner
    assert (removed.sum(dim=0) > 0).all()  # of every lag, that of the position itself too


@pytest.fixture
def bench_of_planted(planted: MambaSubject) -> Bench:
    prompts = repeated_tokens(
        known.VOCABULARY, period=16, n_prompts=8, rng=np.random.default_rng(0)
    )
    return Bench.of(planted, prompts)


def stimuli_of(prompts: Prompts) -> Stimuli:
    return Stimuli(prompts, prompts, {}, prompts, prompts, None, None, None, None)


def states_of(
    subject: MambaSubject, bench: Bench, params: MambaInduction, *, draws: int
) -> dict[str, Any]:
    control = Bench.of(subject, as_control(bench.prompts))
    changed = params.model_copy(update={"period": 16, "causal_draws": draws})
    return swapped_states(bench, control, subject, changed, {})


@pytest.mark.parametrize("offset", [1], indirect=True)
def test_the_state_is_swapped_after_the_first_copys_last_token(
    planted: MambaSubject, offset: int, bench_of_planted: Bench, params: MambaInduction
) -> None:
    state = states_of(planted, bench_of_planted, params, draws=2)["L0"]

    # One token earlier, the last pair's answer would be scanned after the swap, and survive.
    assert state["out"]["accuracy"]["value"] == -1.0
    assert state["back"]["accuracy"]["value"] == 1.0


def test_where_states_do_not_differ_the_noise_is_none_either(
    untrained: MambaSubject, params: MambaInduction
) -> None:
    vocabulary = Vocabulary.of(untrained.vocab_size, bos=0, pad=0)
    prompts = repeated_tokens(vocabulary, period=16, n_prompts=4, rng=np.random.default_rng(0))
    bench, same, other = (
        Bench.of(untrained, one)
        for one in (prompts, replace(prompts, control=prompts.tokens), as_control(prompts))
    )
    changed = params.model_copy(update={"period": 16, "causal_draws": 2})
    alike: dict[str, np.ndarray] = {}
    apart: dict[str, np.ndarray] = {}
    swapped_states(same, same, untrained, changed, alike)
    swapped_states(bench, other, untrained, changed, apart)

    for name in ("states/L0/out", "states/L0/random out"):
        assert np.abs(alike[name]).max() == 0.0
        assert np.abs(apart[name]).max() > 0.0


@pytest.mark.parametrize("kind", ["mamba"], indirect=True)
@pytest.mark.parametrize("offset", [1], indirect=True)
def test_each_other_prompts_state_is_a_control_once(
    planted: MambaSubject, offset: int, bench_of_planted: Bench, params: MambaInduction
) -> None:
    state = states_of(planted, bench_of_planted, params, draws=9)["L0"]

    back = state["back"]["random"]["accuracy"]
    assert back["random"]["n"] == 7
    assert back["p"] is None
    assert "no test possible" in back["says"]


@pytest.mark.parametrize(
    "kind", ["mamba", pytest.param("mamba2", marks=pytest.mark.slow)], indirect=True
)
@pytest.mark.parametrize("offset", [2], indirect=True)
def test_the_report_says_that_the_planted_read_is_the_one(
    planted: MambaSubject, offset: int, bench_of_planted: Bench, params: MambaInduction
) -> None:
    changed = params.model_copy(update={"period": 16, "causal_draws": 20})
    report, arrays = causal(planted, stimuli_of(bench_of_planted.prompts), changed)
    read = report["reads"]["L0"]

    assert read[f"{offset:+d}"]["accuracy"]["value"] == -1.0
    assert read[f"{offset:+d}"]["left"]["value"] == 0.0
    assert read[f"{offset:+d}"]["random"]["accuracy"]["p"] == pytest.approx(1 / 21)
    assert read["prefix"]["random"]["accuracy"]["random"]["value"] == 0.0
    others = [read[f"{other:+d}"]["accuracy"]["value"] for other in OFFSETS if other != offset]
    assert set(others) == {0.0}

    # Lag 0 is the query's own token, 2 the match, 1 the value that came after it.
    taps = report["taps"]["L0"]
    assert [taps[f"lag {lag}"]["accuracy"]["value"] for lag in range(4)] == [-1.0, -1.0, -1.0, 0.0]
    assert report["taps"]["L1"]["lag 0"]["accuracy"]["value"] == 0.0

    assert report["states"]["L0"]["out"]["accuracy"]["value"] < -0.8
    assert report["states"]["L0"]["back"]["accuracy"]["value"] > 0.8
    assert report["layers"]["zero"]["L0"]["accuracy"]["value"] == -1.0
    assert report["layers"]["zero"]["L1"]["accuracy"]["value"] == 0.0
    assert arrays["reads/L0/random 1"].shape == (20, 2)

    found = report["verdict"]
    assert found["copies"]
    assert (found["best"]["where"], found["best"]["offset"]) == ("L0", offset)
    assert found["other"]["accuracy"]["value"] == 0.0
    assert f"read in L0 at offset +{offset}" in found["says"]


@pytest.mark.parametrize("offset", [1, 2, 3], indirect=True)
def test_the_planted_read_and_taps_are_enough_and_no_others(
    planted: MambaSubject, offset: int, bench_of_planted: Bench, params: MambaInduction
) -> None:
    changed = params.model_copy(update={"causal_draws": 2})
    best = {"where": "L0", "offset": offset}
    left = kept(bench_of_planted, best, changed, {})

    reads = {name: found["accuracy"]["value"] for name, found in left["reads"].items()}
    assert reads == {f"{other:+d}": float(other == offset) for other in OFFSETS}

    needed = set(circuit_lags(offset))
    for name, found in left["taps"].items():
        enough = needed <= set(map(int, name.split("+")))
        assert found["value"] == float(enough), name

    assert {found["value"] for found in left["circuit"].values()} == {1.0}


def test_a_random_mamba_has_nothing_to_explain(
    untrained: MambaSubject, params: MambaInduction
) -> None:
    vocabulary = Vocabulary.of(96, bos=0, pad=0)
    prompts = repeated_tokens(vocabulary, period=16, n_prompts=8, rng=np.random.default_rng(0))
    changed = params.model_copy(update={"period": 16, "causal_draws": 2})

    report, _ = causal(untrained, stimuli_of(prompts), changed)

    assert report["verdict"]["best"] is None
    assert report["verdict"]["other"] is None
    assert report["kept"] is None
    assert "nothing to explain" in report["verdict"]["says"]
    assert "offset" not in report["verdict"]["says"]


def test_what_answers_read_is_cut_where_there_is_something_to_compare_with(
    params: MambaInduction,
) -> None:
    twin = subject_of(small.build("gpt_neox"), name="twin", bos=0)
    vocabulary = Vocabulary.of(96, bos=0, pad=0)
    prompts = repeated_tokens(vocabulary, period=16, n_prompts=4, rng=np.random.default_rng(0))
    bench, cut = Bench.of(twin, prompts), []

    def noted(
        _subject: Subject, layers: list[int], *places: torch.Tensor
    ) -> AbstractContextManager[None]:
        cut.append((layers, *(place.numpy() for place in places)))
        return nullcontext()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mamba_induction.intervene_reads.without_reads", noted)
        reads_of_answers(bench, params.model_copy(update={"causal_draws": 2}), {})

    answers = set(prompts.pairs.induction_key.tolist())
    by_layers = [read for read in cut if read[0] == [0]]
    assert len(by_layers) == 4 + len(ANSWER_OFFSETS) + 1

    for _, batch, query, key in by_layers[:2]:  # one random read each
        assert set(query.tolist()) <= answers
        assert (key < query + min(ANSWER_OFFSETS)).all()
        assert len(batch) == len(by_layers[4][1])

    for (_, _, query, key), offset in zip(by_layers[4:8], ANSWER_OFFSETS, strict=True):
        assert (key - query == offset).all()
        assert key.min() >= 1

    # All of the past: every key before every answer, once; as many random ones, all different.
    _, batch, query, key = by_layers[-1]
    assert len(set(zip(batch, query, key, strict=True))) == len(batch)
    assert len(batch) == 4 * sum(range(2, 17))
    assert {int(q): int((query == q).sum()) for q in answers} == {q: 4 * q for q in answers}

    _, random_batch, random_query, random_key = by_layers[2]
    assert len(set(zip(random_batch, random_query, random_key, strict=True))) == len(batch)
    assert (random_key < random_query).all()


def test_the_control_of_prompts_asks_the_same_of_nothing_repeated() -> None:
    prompts = repeated_tokens(
        known.VOCABULARY, period=16, n_prompts=3, rng=np.random.default_rng(0)
    )
    control = as_control(prompts)
    assert (control.tokens == prompts.control).all()
    assert control.pairs is prompts.pairs
