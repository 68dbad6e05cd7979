"""Scores against closed forms, against whole matrices, against the model's own output; and what
chance gives.
"""

from typing import Any

import numpy as np
import pytest
import torch

import known_mamba as known
import small_models as small
from interp_core.loading import subject_of
from interp_core.mamba.hidden_attention import attention_matrices, mixer_calls
from interp_core.mamba.subject import MambaSubject
from interp_core.models.hooks import capture
from interp_core.models.sites import Site
from interp_core.models.subject import Subject, as_transformer
from interp_core.stimuli.prompts import Prompts, Vocabulary, repeated_tokens
from mamba_induction.data import Bigrams, build_stimuli, sampled, with_pairs
from mamba_induction.measure import change, null_of, peak_offsets, summarise
from mamba_induction.measure_attention import hidden_similarity, offset_profiles, prefix_matching
from mamba_induction.measure_behaviour import behaviour_arrays, in_context_score, loss_by_copy
from mamba_induction.measure_gap import (
    Recognition,
    at_condition,
    beside_independence,
    decomposition,
    lens,
    recognition,
)
from mamba_induction.measure_sequences import sequence_arrays
from mamba_induction.model import effective_rows
from mamba_induction.params import OFFSETS, MambaInduction


def random_prompts(subject: Subject, n: int = 48) -> Prompts:
    vocabulary = Vocabulary.of(subject.vocab_size, bos=0, pad=0)
    return repeated_tokens(vocabulary, period=16, n_prompts=n, rng=np.random.default_rng(1))


@pytest.fixture
def twin() -> Subject:
    return subject_of(small.build("gpt_neox"), name="twin", bos=0)


def test_an_untrained_model_stays_inside_its_null_and_hidden_similarity_alone_does_not(
    untrained: MambaSubject, params: MambaInduction
) -> None:
    prompts = random_prompts(untrained)
    profiles = [
        offset_profiles(untrained, prompts, params, control=control) for control in (False, True)
    ]
    null = null_of(prefix_matching(profiles[0]) - prefix_matching(profiles[1]), params)
    assert null["induction_layers"] == []
    assert min(null["p"]) > 5 * params.null_level
    assert hidden_similarity(untrained, prompts, params).mean(axis=0).min() > 0.8
    assert (hidden_similarity(untrained, prompts, params, control=True).mean(axis=0) < 0.3).all()


def test_effective_attention_is_the_norm_of_what_a_key_writes(untrained: MambaSubject) -> None:
    ids = untrained.ids(random_prompts(untrained, 2).tokens)
    query = torch.tensor([5, 30])
    rows = effective_rows(untrained, ids, torch.tensor([0, 1]), query)
    for layer, call in enumerate(mixer_calls(untrained, ids)):
        alpha = attention_matrices(call)
        for row in range(2):
            i = int(query[row])
            inner = call.gate[row, i, :, None] * alpha[row, :, i] * call.x[row].T
            written = untrained.mixer(layer).out_proj.weight @ inner
            torch.testing.assert_close(rows[layer][row], written.norm(dim=0), atol=1e-5, rtol=1e-4)


def test_effective_attention_of_a_transformer_is_that_of_its_pattern(twin: Subject) -> None:
    ids = twin.ids(random_prompts(twin, 2).tokens)
    rows = effective_rows(twin, ids, torch.tensor([1]), torch.tensor([20]))
    with capture(twin, [Site(0, "attn.pattern"), Site(0, "attn.v")]) as seen:
        twin.trunk(ids)
    pattern, values = seen[Site(0, "attn.pattern")][1, :, 20], seen[Site(0, "attn.v")][1]
    written = torch.einsum("hk,khd,hdm->km", pattern, values, as_transformer(twin).out_weights(0))
    torch.testing.assert_close(rows[0][0], written.norm(dim=1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("which", ["untrained", "twin"])
def test_the_parts_of_a_logit_add_up_and_the_rest_is_the_embedding(
    which: str, request: pytest.FixtureRequest, params: MambaInduction
) -> None:
    subject: Subject = request.getfixturevalue(which)
    prompts = sampled(random_prompts(subject, 4), params)
    names, parts = decomposition(subject, prompts, params)
    pairs = prompts.pairs
    with torch.no_grad():
        logits = subject.logits(subject.ids(prompts.tokens))[pairs.batch, pairs.query].double()
    total = logits[np.arange(len(pairs)), pairs.target] - logits.mean(dim=1)
    np.testing.assert_allclose(parts.sum(axis=1), total, atol=1e-4)
    assert len(names) == parts.shape[1]
    if isinstance(subject, MambaSubject):
        with torch.no_grad(), subject.final_scale() as scales:
            subject.trunk(subject.ids(prompts.tokens))
        unembedding = subject.unembedding()
        unembedding = unembedding - unembedding.mean(dim=1, keepdim=True)
        embedded = subject.embedding()[prompts.tokens[pairs.batch, pairs.query]]
        scale = scales[0][pairs.batch, pairs.query]
        direct = (embedded * unembedding.T[pairs.target]).sum(dim=1) / scale
        np.testing.assert_allclose(parts[:, 0], direct, atol=1e-4)


def test_each_path_of_a_mamba_is_its_own_term(
    untrained: MambaSubject, params: MambaInduction
) -> None:
    prompts = sampled(random_prompts(untrained, 4), params)
    pairs = prompts.pairs
    names, parts = decomposition(untrained, prompts, params)

    ids = untrained.ids(prompts.tokens)
    with torch.no_grad(), untrained.final_scale() as scales:
        untrained.trunk(ids)

    unembedding = untrained.unembedding()
    unembedding = unembedding - unembedding.mean(dim=1, keepdim=True)
    direction = unembedding.T[pairs.target] / scales[0][pairs.batch, pairs.query][:, None]

    for layer, call in enumerate(mixer_calls(untrained, ids)):
        alpha, at = attention_matrices(call), torch.arange(len(pairs))
        rows = alpha[pairs.batch, :, pairs.query]  # [pair, channel, key]
        own = rows[at, :, pairs.query] * call.x[pairs.batch, pairs.query]
        read = torch.einsum("pck,pkc->pc", rows, call.x[pairs.batch])

        gate = call.gate[pairs.batch, pairs.query]
        terms = {
            "convolution": gate * own,
            "scan": gate * (read - own),
            "skip": gate * call.D * call.x[pairs.batch, pairs.query],
        }

        for path, term in terms.items():
            written = term.detach() @ untrained.mixer(layer).out_proj.weight.detach().T
            expected = (written * direction).sum(dim=1)
            found = parts[:, names.index(f"L{layer} {path}")]
            np.testing.assert_allclose(found, expected, atol=1e-4)
            assert np.abs(found).max() > 1e-3, (layer, path)


def test_the_last_depth_of_the_lens_is_the_models_output(
    untrained: MambaSubject, params: MambaInduction
) -> None:
    prompts = sampled(random_prompts(untrained, 4), params)
    pairs = prompts.pairs
    found = lens(untrained, prompts, pairs.target, params)
    with torch.no_grad():
        logits = untrained.logits(untrained.ids(prompts.tokens))[pairs.batch, pairs.query].double()
    probability = logits.softmax(dim=1)
    at = np.arange(len(pairs))
    np.testing.assert_allclose(found.probability[:, -1], probability[at, pairs.target], atol=1e-6)
    np.testing.assert_allclose(
        found.entropy[:, -1], torch.special.entr(probability).sum(dim=1), atol=1e-5
    )
    rank = 1 + (logits > logits[at, pairs.target][:, None]).sum(dim=1)
    np.testing.assert_allclose(np.exp(found.log_rank[:, -1]), rank, atol=1e-9)
    np.testing.assert_array_equal(found.top5[:, -1], rank <= 5)
    assert found.probability.shape == (len(pairs), untrained.n_layers + 1)


def test_the_first_occurrence_asks_for_the_same_target(params: MambaInduction) -> None:
    prompts = repeated_tokens(
        Vocabulary.of(96, bos=0, pad=0), period=16, n_prompts=3, rng=np.random.default_rng(0)
    )
    first = at_condition(prompts, "first")
    assert (first.tokens[first.pairs.batch, first.pairs.query + 1] == prompts.pairs.target).all()
    assert (first.pairs.query < prompts.pairs.query).all()
    assert (at_condition(prompts, "control").tokens == prompts.control).all()


def test_recognised_but_not_predicted_counts_what_exceeds_the_control_and_is_missed() -> None:
    vocabulary = Vocabulary.of(96, bos=0, pad=0)
    prompts = repeated_tokens(vocabulary, period=11, n_prompts=2, rng=np.random.default_rng(0))
    n = len(prompts.pairs)
    control = np.tile(np.arange(n, dtype=float)[:, None], (1, 2))
    score = np.zeros((n, 2))
    score[:, 1] = np.where(np.arange(n) < 5, 100.0, 0.0)  # five of the first prompt's ten
    score[:, 0] = -100.0
    predicted = (np.arange(n) < 2).astype(float)
    found = recognition(score, control, predicted, prompts, quantile=0.9)
    assert found.layer == 1
    assert found.threshold == pytest.approx(np.quantile(np.arange(n), 0.9))
    np.testing.assert_allclose(found.recognised, [0.5, 0.0])
    np.testing.assert_allclose(found.not_predicted, [0.3, 0.0])
    np.testing.assert_allclose(found.predicted, [0.2, 0.0])


def test_recognising_beside_predicting_is_told_from_independence(params: MambaInduction) -> None:
    n = 400
    rng = np.random.default_rng(0)
    recognised = rng.integers(0, 2, n).astype(float)

    def rates(predicted: np.ndarray) -> dict[str, dict[str, float]]:
        missed = recognised * (1 - predicted)
        found = Recognition(0, 0.0, recognised, missed, predicted)
        return beside_independence(found, params)

    unrelated = rates(rng.integers(0, 2, n).astype(float))
    above = unrelated["above_independence"]
    assert above["low"] < 0 < above["high"]
    assert unrelated["independent"]["value"] == pytest.approx(0.25, abs=0.06)

    # What is recognised is predicted, and nothing else.
    same = rates(recognised)
    assert same["above_independence"]["high"] < 0
    assert same["predicted_if_recognised"]["value"] == 1.0
    assert same["predicted_if_not"]["value"] == 0.0

    # What is recognised is missed: the gap that the name promises.
    opposite = rates(1 - recognised)
    assert opposite["above_independence"]["low"] > 0


def test_where_all_is_recognised_nothing_is_said_of_the_rest(params: MambaInduction) -> None:
    ones = np.ones(20)
    found = beside_independence(Recognition(0, 0.0, ones, ones * 0.0, ones), params)

    assert found["predicted_if_not"]["value"] is None
    assert found["predicted_if_recognised"]["value"] == 1.0
    assert found["above_independence"]["value"] == 0.0


def test_shares_near_one_have_room_below_them(params: MambaInduction) -> None:
    found = summarise({"repeat_accuracy": np.ones(32), "text_loss": np.ones(32)}, params)

    assert found["repeat_accuracy"].low < 0.95
    assert found["repeat_accuracy"].high == 1.0
    assert found["text_loss"].low == 1.0


def test_loss_by_copy_leaves_out_the_first_token_of_each_copy(
    planted: MambaSubject, params: MambaInduction
) -> None:
    prompts = repeated_tokens(
        known.VOCABULARY, period=params.period, copies=2, n_prompts=3, rng=np.random.default_rng(0)
    )
    losses = loss_by_copy(planted, prompts, params.model_copy(update={"copies": 2}))
    np.testing.assert_allclose(losses[:, 0], np.log(known.SIZE), atol=1e-5)
    assert losses[:, 1].max() < 1e-3


@pytest.mark.parametrize("kind", ["mamba"], indirect=True)
@pytest.mark.parametrize("offset", [1], indirect=True)
def test_a_circuit_that_copies_is_right_wherever_something_can_be_copied(
    planted: MambaSubject, offset: int, params: MambaInduction
) -> None:
    settings = params.model_copy(update={"period": 12})
    found = behaviour_arrays(planted, build_stimuli(planted, settings, None), settings)

    for name in ("repeat_accuracy", "accuracy_by_period", "accuracy_by_lag"):
        assert (found[name] == 1.0).all(), name

    assert found["control_accuracy"].mean() < 0.1
    np.testing.assert_allclose(found["loss_by_copy"][:, 0], np.log(known.SIZE), atol=0.2)
    np.testing.assert_allclose(found["repetition_gain"], np.log(known.SIZE), atol=0.2)


@pytest.mark.parametrize("kind", ["mamba"], indirect=True)
@pytest.mark.parametrize("offset", [1], indirect=True)
def test_a_sequence_shows_where_the_circuit_reads_and_what_it_is_sure_of(
    planted: MambaSubject, offset: int, params: MambaInduction
) -> None:
    settings = params.model_copy(update={"period": 12, "example_period": 12})
    stimuli = build_stimuli(planted, settings, None)
    found = sequence_arrays(planted, stimuli, settings)
    query, earlier, target = (found[f"0/{name}"] for name in ("query", "earlier", "target"))

    attention = found["0/attention"]
    reading = attention[0, query]
    np.testing.assert_allclose(reading.sum(axis=1), 1.0, rtol=1e-5)
    assert (reading[np.arange(len(query)), earlier + offset] > 0.9).all()

    # The last depth is the model's own output.
    assert (found["0/top_ids"][query, 0] == target).all()
    assert found["0/probability"][-1, query].min() > 0.99
    assert found["0/log_rank"][-1, query].max() == 0.0
    assert found["0/entropy"][-1, query].max() < 0.1


def test_the_last_depth_of_a_sequence_is_the_models_own_output(
    untrained: MambaSubject, params: MambaInduction
) -> None:
    settings = params.model_copy(update={"period": 12, "example_period": 12})
    found = sequence_arrays(untrained, build_stimuli(untrained, settings, None), settings)
    tokens = found["0/tokens"]
    with torch.no_grad():
        logits = untrained.logits(untrained.ids(tokens[None]))[0, :-1].double()
    shares = logits.softmax(dim=-1)
    target = shares[np.arange(len(shares)), tokens[1:]]

    entropy = torch.special.entr(shares).sum(dim=-1)
    np.testing.assert_allclose(found["0/entropy"][-1], entropy, atol=1e-4)
    np.testing.assert_allclose(found["0/probability"][-1], target, atol=1e-5)
    ranks = 1 + (shares > target[:, None]).sum(dim=-1)
    np.testing.assert_allclose(np.exp(found["0/log_rank"][-1]), ranks, rtol=1e-5)

    top = shares.topk(5, dim=-1)
    np.testing.assert_allclose(found["0/top_probability"], top.values, atol=1e-5)
    assert (found["0/top_ids"] == top.indices.numpy()).all()
    # Without a tokenizer a word is its number.
    assert found["0/top_words"].tolist() == [[str(i) for i in row] for row in found["0/top_ids"]]
    assert found["0/words"].tolist() == [str(token) for token in tokens]


def test_a_layer_that_reads_nothing_has_no_shares(
    untrained: MambaSubject, params: MambaInduction
) -> None:
    model: Any = untrained.model
    states = model.config.state_size
    model.backbone.layers[0].mixer.x_proj.weight.data[-states:] = 0  # C of Gu and Dao

    settings = params.model_copy(update={"period": 12, "example_period": 12})
    found = sequence_arrays(untrained, build_stimuli(untrained, settings, None), settings)
    nothing, something = found["0/attention"][:2]

    assert (nothing == 0).all()
    np.testing.assert_allclose(something.sum(axis=1), 1.0, rtol=1e-5)


def test_the_in_context_score_is_late_less_early(params: MambaInduction) -> None:
    losses = np.zeros((2, params.context - 1))
    losses[:, -params.around :] = 1.0
    early = round(params.early * params.context)
    losses[1, early - params.around : early] = 3.0
    np.testing.assert_allclose(in_context_score(losses, params), [1.0, -2.0])


def test_bigrams_name_the_most_frequent_successors_and_fall_back_on_frequent_ids() -> None:
    rows = [np.array([1, 2, 1, 2, 1, 3]), np.array([2, 1])]
    bigrams = Bigrams.of(rows, 6)
    assert (bigrams.first[1], bigrams.second[1]) == (2, 3)
    assert (bigrams.first[2], bigrams.second[2]) == (
        1,
        2,
    )  # nothing else follows 2: the most frequent other id
    assert (bigrams.first[5], bigrams.second[5]) == (1, 2)
    assert bigrams.competitor(np.array([1, 1]), np.array([2, 4])).tolist() == [3, 2]


def test_sampled_operations_have_room_for_every_offset_and_keep_their_prompts(
    params: MambaInduction,
) -> None:
    vocabulary = Vocabulary.of(96, bos=0, pad=0)
    prompts = repeated_tokens(vocabulary, period=16, n_prompts=5, rng=np.random.default_rng(0))
    asked = sampled(prompts, params)
    assert (np.bincount(asked.pairs.batch) == params.queries).all()
    assert (asked.pairs.query - asked.pairs.earlier >= max(OFFSETS)).all()
    assert (asked.tokens[asked.pairs.batch, asked.pairs.query + 1] == asked.pairs.target).all()
    fewer = with_pairs(prompts, np.flatnonzero(prompts.pairs.batch % 2 == 1))
    assert (fewer.tokens == prompts.tokens[1::2]).all()


def test_the_peak_is_found_with_its_interval(params: MambaInduction) -> None:
    excess = np.random.default_rng(0).normal(0, 0.01, (40, 2, len(OFFSETS)))
    excess[:, 0, OFFSETS.index(2)] += 0.5
    sharp, noise = peak_offsets(excess, params)
    assert (sharp["offset"], sharp["ci"], sharp["share_of_draws"]) == (2, [2, 2], 1.0)
    assert noise["share_of_draws"] < 1.0


def test_a_peak_that_prompts_disagree_about_has_both_places_in_its_interval(
    params: MambaInduction,
) -> None:
    excess = np.zeros((2, 1, len(OFFSETS)))
    excess[0, 0, OFFSETS.index(1)], excess[1, 0, OFFSETS.index(3)] = 1.0, 0.9
    (found,) = peak_offsets(excess, params)

    # Of two prompts a quarter of the draws hold the second alone.
    assert (found["offset"], found["ci"]) == (1, [1, 3])
    assert found["share_of_draws"] == pytest.approx(0.75, abs=0.1)


def test_what_fine_tuning_changed_is_paired_by_prompt(params: MambaInduction) -> None:
    rng = np.random.default_rng(0)
    before = {"prompts/text_loss": rng.normal(3, 1, 50), "prompts/untrained/x": rng.normal(size=50)}
    after = {name: values - 0.5 for name, values in before.items()}
    found = change(before, after, params)
    assert set(found) == {"text_loss", "perplexity"}
    assert found["text_loss"]["low"] == pytest.approx(-0.5)
    assert found["text_loss"]["high"] == pytest.approx(-0.5)
    assert found["perplexity"]["ratio"] == pytest.approx(np.exp(-0.5))
