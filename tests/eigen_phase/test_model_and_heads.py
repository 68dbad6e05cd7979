"""The transformer against itself in two ways, and its scores on a circuit built by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from eigen_phase.data import Data, Sequences, draw
from eigen_phase.intervene_heads import constant, mean_outputs
from eigen_phase.measure_heads import attention_scores, behaviour, heads
from eigen_phase.model import Transformer
from eigen_phase.model_shape import Shape
from eigen_phase.params import Training
from interp_core.errors import InputError
from interp_core.measures.circuits import copying_eigenvalues, matching_eigenvalues
from interp_core.statistics.heads import Head

VOCABULARY, LENGTH = 12, 24


def shape(**changes: object) -> Shape:
    values = {
        "vocab_size": VOCABULARY,
        "seq_length": LENGTH,
        "n_layers": 2,
        "n_heads": 2,
        "d_model": 64,
        "mlp_ratio": 0,
        "rotary_base": 1e6,
        "initializer_range": 0.2,
        "clamp_to": None,
    }
    return Shape.model_validate(values | changes)


def tokens(rows: int = 5, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def distinct_rows(n: int = 16) -> Sequences:
    """Tiled segments of distinct tokens: one earlier occurrence of each.

    The second token's copy is not counted: no head can look before position 0, so what lies there
    looks like its own antecedent.
    """
    rng = np.random.default_rng(0)
    segments = np.stack([rng.permutation(VOCABULARY) for _ in range(n)])
    ids = np.tile(segments, (1, 2))
    position = np.broadcast_to(np.arange(LENGTH), ids.shape)
    source = np.where(position >= VOCABULARY, position - VOCABULARY, -1)
    return Sequences(ids, source, source >= 2, position // VOCABULARY + 1)


@pytest.mark.parametrize(
    "changes", [{}, {"mlp_ratio": 2}, {"clamp_to": 1}, {"clamp_to": 2}, {"n_layers": 1}]
)
def test_fused_and_explicit_attention_give_the_same_logits(changes: dict[str, object]) -> None:
    model = Transformer(shape(**changes), seed=3)
    fused = model(tokens()).logits
    with model.explicit_attention():
        torch.testing.assert_close(model(tokens()).logits, fused, rtol=0, atol=2e-5)
    torch.testing.assert_close(model(tokens()).logits, fused, rtol=0, atol=0)


def test_a_token_changes_nothing_before_it() -> None:
    model, ids = Transformer(shape(), seed=3), tokens()
    changed = ids.clone()
    changed[:, 15] = (changed[:, 15] + 1) % VOCABULARY
    before, after = model(ids).logits, model(changed).logits
    torch.testing.assert_close(before[:, :15], after[:, :15])
    assert (before[:, 15:] - after[:, 15:]).abs().amax(dim=-1).min() > 1e-4


def test_patterns_are_what_the_heads_really_use() -> None:
    model, ids = Transformer(shape(), seed=3), tokens()
    patterns, outputs = model.patterns(ids), model.head_outputs(ids)
    torch.testing.assert_close(patterns.sum(dim=-1), torch.ones(patterns.shape[:-1]))
    x = model.blocks[0].norm(model.embed(ids))
    value = (x @ model.attentions[0].v.weight.T).unflatten(-1, (2, 32)).transpose(1, 2)
    torch.testing.assert_close(patterns[0] @ value, outputs[0], rtol=1e-4, atol=1e-5)


def test_the_clamped_head_looks_one_token_back_and_the_others_are_free() -> None:
    ids = tokens()
    clamped, free = (
        Transformer(shape(clamp_to=1), seed=3),
        Transformer(shape(), seed=3),
    )
    pattern = clamped.patterns(ids)[0]
    for query in range(1, LENGTH):
        assert (pattern[:, 0, query, query - 1] == 1).all()
    torch.testing.assert_close(pattern[:, 1], free.patterns(ids)[0, :, 1])
    z = clamped.head_outputs(ids)[0, :, 0]
    x = clamped.blocks[0].norm(clamped.embed(ids))
    value = (x @ clamped.attentions[0].v.weight.T)[..., :32]
    torch.testing.assert_close(z[:, 1:], value[:, :-1])


@pytest.mark.parametrize("offset", [0, 2])
def test_a_head_can_be_clamped_to_itself_and_further_back(offset: int) -> None:
    ids, model = tokens(), Transformer(shape(clamp_to=offset), seed=3)
    pattern = model.patterns(ids)[0]
    for query in range(LENGTH):
        assert (pattern[:, 0, query, max(query - offset, 0)] == 1).all()

    x = model.blocks[0].norm(model.embed(ids))
    value = (x @ model.attentions[0].v.weight.T)[..., :32]
    torch.testing.assert_close(model.head_outputs(ids)[0, :, 0], pattern[:, 0] @ value)


def test_a_row_shorter_than_the_clamp_looks_at_its_first_token() -> None:
    model = Transformer(shape(clamp_to=3), seed=3)
    short = tokens()[:, :2]
    torch.testing.assert_close(model(short).logits, model(tokens()).logits[:, :2])


def test_replaced_heads_write_their_constant_and_come_back_after_an_error() -> None:
    model, ids = Transformer(shape(), seed=3), tokens()
    clean = model(ids).logits
    with constant(model, {Head(0, 1): torch.zeros(32)}):
        assert not torch.allclose(model(ids).logits, clean)
    with pytest.raises(RuntimeError), constant(model, {Head(0, 1): torch.zeros(32)}):
        raise RuntimeError
    torch.testing.assert_close(model(ids).logits, clean, rtol=0, atol=0)
    with torch.no_grad():
        model.attentions[0].o.weight[:, 32:] = 0
    with constant(model, {Head(0, 1): torch.full((32,), 9.0)}):
        inside = model(ids).logits
    torch.testing.assert_close(inside, model(ids).logits)
    with (
        pytest.raises(InputError, match=r"attn\.z of 2 layers"),
        constant(model, {Head(2, 0): torch.zeros(32)}),
    ):
        pass


@pytest.mark.parametrize("distance", [0, 1, 7])
def test_rotated_queries_give_the_scores_of_that_distance(distance: int) -> None:
    model, ids = Transformer(shape(rotary_base=100.0), seed=3), tokens()
    weights = model.head_weights(0)
    stream = model.embed(ids)
    normed = stream / stream.pow(2).mean(dim=-1, keepdim=True).add(1e-5).sqrt()
    query = torch.einsum("btd,hde->bhte", normed, model.rotated(weights.W_Q, distance))
    key = torch.einsum("btd,hde->bhte", normed, weights.W_K)
    scores = torch.einsum("bhe,bhe->bh", query[:, :, 20], key[:, :, 20 - distance]) / 32**0.5
    pattern = model.patterns(ids)[0]
    anchor = (
        torch.einsum("bhe,bhe->bh", _turned(model, weights.W_Q, normed, 20), key[:, :, 20])
        / 32**0.5
    )
    ratio = torch.log(pattern[:, :, 20, 20 - distance] / pattern[:, :, 20, 20])
    torch.testing.assert_close(scores - anchor, ratio, rtol=1e-3, atol=1e-4)


def _turned(model: Transformer, weights: Tensor, normed: Tensor, position: int) -> Tensor:
    return torch.einsum("bd,hde->bhe", normed[:, position], model.rotated(weights, 0))


def test_every_parameter_learns_and_is_counted() -> None:
    profile = {"mlp_ratio": 3}
    model = Transformer(shape(**profile), seed=3)
    model(tokens()).logits.logsumexp(dim=-1).sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
    counted = sum(p.numel() for p in model.parameters())
    stand_in = Training.model_construct(vocab_size=VOCABULARY, d_model=64, n_layers=2, mlp_ratio=3)
    assert stand_in.n_parameters == counted


def test_weights_come_from_the_seed_alone() -> None:
    first, again, other = (Transformer(shape(), seed=seed) for seed in (1, 1, 2))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    assert not torch.equal(first.embed.weight, other.embed.weight)


def dense_positivity(matrix: Tensor) -> float:
    values = np.linalg.eigvals(matrix.double().numpy())
    return float(values.real.sum() / np.abs(values).sum())


def test_copying_and_matching_are_those_of_the_dense_vocabulary_matrices() -> None:
    model = Transformer(shape(), seed=3).double()
    with torch.no_grad():
        for norm in (model.norm, *(block.norm for block in model.blocks)):
            norm.weight.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(1))
    copying = copying_eigenvalues(model)
    matching = matching_eigenvalues(model, distances=(0,))
    for layer in range(2):
        attention, gain = model.attentions[layer], model.blocks[layer].norm.weight
        for head in range(2):
            part = slice(32 * head, 32 * head + 32)
            read = model.embed.weight.double() * gain.double()
            ov = read @ attention.v.weight[part].T.double() @ attention.o.weight[:, part].T.double()
            full = ov @ (model.unembed.weight * model.norm.weight).T.double()
            assert copying[layer, head] == pytest.approx(dense_positivity(full.detach()), abs=1e-8)
            queries, keys = (read @ w.weight[part].T.double() for w in (attention.q, attention.k))
            assert matching[layer, head] == pytest.approx(
                dense_positivity((queries @ keys.T).detach()), abs=1e-8
            )


def test_matching_at_a_distance_turns_the_query_as_attention_does() -> None:
    model = Transformer(shape(rotary_base=30.0), seed=3).double()
    here = matching_eigenvalues(model, distances=(0,))
    there = matching_eigenvalues(model, distances=(3, 9))
    by_hand = []

    for distance in (3, 9):
        # Scores of a query `distance` tokens after a key, for every pair of tokens.
        attention: Any = model.attentions[0]
        blocks: Any = model.blocks
        x = blocks[0].norm(model.embed.weight)
        rotary: Any = model.rotary
        turn = rotary[:, :32].to(torch.complex128)
        query, key = (x @ w.weight.T for w in (attention.q, attention.k))
        parts = [torch.view_as_complex(v[:, :32].reshape(-1, 16, 2)) for v in (query, key)]
        turned = [
            torch.view_as_real(part * turn[at, :16]).flatten(1)
            for part, at in zip(parts, (distance + 2, 2), strict=True)
        ]
        by_hand.append((turned[0], turned[1]))

    # The norm divides each token by its own length, which the circuit leaves out: undo it.
    length = (model.embed.weight.square().mean(dim=1) + 1e-5).sqrt()
    whole = [(length[:, None] * (q @ k.T) * length).detach() for q, k in by_hand]
    expected = np.mean([dense_positivity(scores) for scores in whole])

    assert there[0, 0] == pytest.approx(expected, abs=1e-6)
    assert abs(there[0, 0] - here[0, 0]) > 0.05


def induction_circuit() -> Transformer:
    """L0H0 is clamped one token back and writes what it read into a second room of the stream; L1H1
    asks there for its own token and copies the token it finds. The stream: room 0, this token; room
    1, the token before.
    """
    model = Transformer(shape(clamp_to=1), seed=0)
    code = torch.eye(VOCABULARY)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.zero_()
        model.embed.weight[:, :VOCABULARY] = code
        writer, reader = model.attentions
        writer.v.weight[:VOCABULARY, :VOCABULARY] = code
        writer.o.weight[VOCABULARY : 2 * VOCABULARY, :VOCABULARY] = code
        # Two dimensions turn together: the slow ones, at the end of the head, hold the match.
        slow = slice(64 - VOCABULARY, 64)
        reader.q.weight[slow, :VOCABULARY] = 8 * code
        reader.k.weight[slow, VOCABULARY : 2 * VOCABULARY] = 8 * code
        reader.v.weight[32 : 32 + VOCABULARY, :VOCABULARY] = code
        reader.o.weight[:VOCABULARY, 32 : 32 + VOCABULARY] = 20 * code
        model.unembed.weight[:, :VOCABULARY] = code
    return model


def test_the_hand_built_circuit_has_the_scores_of_its_heads() -> None:
    model, rows = induction_circuit(), distinct_rows()
    scores = attention_scores(model, rows)
    assert scores["previous_token"][0, 0] == pytest.approx(1.0)
    assert scores["prefix_matching"][1, 1] > 0.95
    assert scores["own_position"][0, 0] == 0
    assert scores["own_position"][1, 1] < 0.05
    assert scores["prefix_matching"][0].max() < 0.1
    assert scores["duplicate_token"].max() < 0.1
    found = behaviour(model, rows, copies=2)
    assert found["pattern_accuracy"] == 1.0
    assert found["copy_accuracy/2"] == 1.0
    assert "copy_accuracy/3" not in found
    assert found["other_loss"] > found["pattern_loss"]
    copying = copying_eigenvalues(model)
    assert copying[1, 1] == pytest.approx(1.0)
    with torch.no_grad():
        model.attentions[1].o.weight.neg_()
    assert copying_eigenvalues(model)[1, 1] == pytest.approx(-1.0)


def test_ablating_the_circuit_kills_copying_and_other_heads_do_nothing() -> None:
    model, rows = induction_circuit(), distinct_rows()
    means = mean_outputs(model, rows)
    for head, needed in {(0, 0): True, (1, 1): True, (0, 1): False, (1, 0): False}.items():
        with constant(model, {Head(*head): means[Head(*head)]}):
            accuracy = behaviour(model, rows, copies=1)["pattern_accuracy"]
        assert (accuracy < 0.3) if needed else (accuracy == 1.0)


def test_a_row_has_a_number_for_every_head_and_pair() -> None:
    data = Data(
        data="tiled",
        vocab_size=VOCABULARY,
        seq_length=LENGTH,
        patterns=1,
        pattern_length=(2, 4),
        placements=(2, 3),
        period=(3, 9),
        fixed_distance=5,
        leave_out_predictable=False,
    )
    training = Training.model_construct(
        composition_distances=(1, 4), composition_draws=4, copies=2, matching_distances=(3, 9)
    )
    found = heads(induction_circuit(), draw(np.random.default_rng(0), 8, data), training)
    assert len(found) == 7 * 4 + 4
    pairs = {name: value for name, value in found.items() if name.startswith("k_composition/")}
    assert max(pairs, key=lambda name: pairs[name]) == "k_composition/L0H0>L1H1"
