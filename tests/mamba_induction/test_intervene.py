"""Edits against the same computation done by hand; controls are what they say."""

import numpy as np
import pytest
import torch

import known_mamba as known
import small_models as small
from interp_core.loading import subject_of
from interp_core.mamba.hidden_attention import attention_matrices, mixer_calls
from interp_core.mamba.selective_scan import selective_scan
from interp_core.mamba.subject import MambaSubject
from interp_core.models.hooks import capture
from interp_core.models.sites import Site
from interp_core.models.subject import Subject, as_transformer
from interp_core.stimuli.prompts import Vocabulary, repeated_tokens
from mamba_induction.data import Stimuli
from mamba_induction.intervene import states, with_state, without_layer, without_reads, without_taps
from mamba_induction.intervene_causal import Bench, _on_new_tokens, _other_keys, causal
from mamba_induction.params import OFFSETS, MambaInduction


def ids_of(subject: Subject) -> torch.Tensor:
    return subject.ids(np.random.default_rng(0).integers(1, 96, (3, 20)))


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
    keys = _other_keys(bench, 3, np.random.default_rng(0)).numpy()
    assert keys.shape == (3, len(prompts.pairs))
    assert (keys <= prompts.pairs.query).all()
    assert all(len(set(column)) == 3 for column in keys.T)
    away = keys - prompts.pairs.earlier
    assert not np.isin(away, OFFSETS).any()


def test_new_tokens_are_those_that_did_not_occur_before(
    untrained: MambaSubject, params: MambaInduction
) -> None:
    windows = np.array([[0, 5, 6, 5, 7, 6]])
    found = _on_new_tokens(untrained, windows, params)
    with torch.no_grad():
        logp = untrained.logits(untrained.ids(windows)).double().log_softmax(-1)[0]
    expected = -(logp[0, 5] + logp[1, 6] + logp[3, 7]) / 3
    assert found[0, 0] == pytest.approx(float(expected))


@pytest.mark.parametrize("offset", [2], indirect=True)
def test_the_report_says_that_the_planted_read_is_the_one(
    planted: MambaSubject, offset: int, params: MambaInduction
) -> None:
    prompts = repeated_tokens(
        known.VOCABULARY, period=16, n_prompts=8, rng=np.random.default_rng(0)
    )
    stimuli = Stimuli(prompts, prompts, {}, prompts, prompts, None, None, None, None)
    changed = params.model_copy(update={"period": 16, "causal_draws": 9})
    report, arrays = causal(planted, stimuli, changed)
    read = report["reads"]["L0"]
    assert read[f"{offset:+d}"]["accuracy"]["value"] == -1.0
    assert read[f"{offset:+d}"]["p"] == pytest.approx(1 / 10)
    assert read["prefix"]["random"]["accuracy"]["value"] == 0.0
    assert {read[f"{other:+d}"]["accuracy"]["value"] for other in OFFSETS if other != offset} == {
        0.0
    }
    assert report["taps"]["L0"][f"lag {offset}"]["accuracy"]["value"] == -1.0
    assert report["taps"]["L1"]["all before"]["accuracy"]["value"] == 0.0
    assert report["states"]["L0"]["out"]["accuracy"]["value"] < -0.8
    assert report["states"]["L0"]["back"]["accuracy"]["value"] > 0.8
    assert report["layers"]["zero"]["L0"]["accuracy"]["value"] == -1.0
    assert report["layers"]["zero"]["L1"]["accuracy"]["value"] == 0.0
    assert arrays["reads/L0/random 1"].shape == (9, 2)
