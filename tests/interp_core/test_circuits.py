"""Circuits from weights: against FactoredMatrix, against circuits built by hand, and calibrated on
random models.
"""

from typing import Any

import numpy as np
import pytest
import torch
from transformer_lens import FactoredMatrix
from transformers import GPTNeoConfig, GPTNeoForCausalLM

import known_circuits as known
import small_models as small
from interp_core.errors import InputError
from interp_core.loading import transformer_of
from interp_core.measures.circuits import (
    copying_eigenvalues,
    k_composition,
    k_composition_among_heads,
    vocabulary_covariance,
)
from interp_core.models.subject import Transformer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", small.ALL)
def test_copying_eigenvalues_are_those_of_the_full_circuit(name: str) -> None:
    """W_E W_V W_O W_U over the whole vocabulary, as TransformerLens's FactoredMatrix has them."""
    subject = transformer_of(small.build(name), bos=0, name=name)
    scores = copying_eigenvalues(subject)
    assert scores.shape == (small.LAYERS, small.HEADS)
    for layer in range(small.LAYERS):
        weights = subject.head_weights(layer)
        for head in range(small.HEADS):
            left = subject.embedding().double() @ weights.W_V[head].double()
            right = weights.W_O[head].double() @ subject.unembedding().double()
            eigenvalues = FactoredMatrix(left, right).eigenvalues
            expected = (eigenvalues.sum() / eigenvalues.abs().sum()).real.item()
            assert scores[layer, head] == pytest.approx(expected, abs=1e-6)


def test_planted_heads_copy_or_suppress_as_they_were_built(planted: Transformer) -> None:
    scores = copying_eigenvalues(planted)
    assert scores[known.INDUCTION_HEAD] == pytest.approx(1, abs=1e-3)
    model = known.induction_model()
    layer, head = known.INDUCTION_HEAD
    rows = slice(head * known.SIZE, (head + 1) * known.SIZE)
    model.transformer.h[layer].attn.c_proj.weight[rows] *= -1  # type: ignore[index]
    assert copying_eigenvalues(transformer_of(model))[known.INDUCTION_HEAD] == pytest.approx(
        -1, abs=1e-3
    )
    unnamed = np.ones_like(scores, dtype=bool)
    unnamed[known.INDUCTION_HEAD] = unnamed[known.PREVIOUS_TOKEN_HEAD] = False
    assert (scores[unnamed] == 0).all()


@pytest.mark.parametrize("name", small.NATIVE)
def test_composition_is_that_of_factored_matrices(name: str) -> None:
    subject = transformer_of(small.build(name), bos=0, name=name)
    distances = [1, 4, 9]
    composition = k_composition(subject, distances=distances, draws=2, generator=generator())
    for before, after in [(0, 1), (0, 2), (1, 2)]:
        writer, reader = subject.head_weights(before), subject.head_weights(after)
        for w in range(small.HEADS):
            for r in range(small.HEADS):
                ov = FactoredMatrix(writer.W_V[w], writer.W_O[w])
                values = []
                for distance in distances:
                    qk = FactoredMatrix(reader.W_K[r], subject.rotated(reader.W_Q, distance)[r].T)
                    values.append(((ov @ qk).norm() / ov.norm() / qk.norm()).item())
                assert composition.score[before, w, after, r] == pytest.approx(
                    np.mean(values), abs=1e-5
                )


def test_composition_runs_forward_only() -> None:
    subject = transformer_of(small.build("gpt_neox"), bos=0)
    composition = k_composition(subject, distances=[1], draws=5, generator=generator())
    for before in range(small.LAYERS):
        for after in range(before + 1):
            assert (composition.score[before, :, after] == 0).all()
            assert (composition.z[before, :, after] == 0).all()
    assert (composition.score[0, :, 1] > 0).all()
    assert composition.score.max() <= 1


@pytest.mark.parametrize("build", [known.induction_model, known.duplicate_token_model])
def test_the_planted_pair_composes_most_and_without_it_nothing_does(build: object) -> None:
    subject = transformer_of(build())  # type: ignore[operator]
    composition = k_composition(subject, distances=[1], draws=100, generator=generator())
    assert np.isfinite(composition.score).all()
    assert np.isfinite(composition.z).all()
    pair = (*known.PREVIOUS_TOKEN_HEAD, *known.INDUCTION_HEAD)
    if build is known.induction_model:
        assert np.unravel_index(np.argmax(composition.z), composition.z.shape) == pair
        assert np.unravel_index(np.argmax(composition.score), composition.score.shape) == pair
        assert composition.z[pair] > 50
    else:
        assert composition.score[pair] < 0.01  # it reads tokens, not previous tokens


def test_on_random_models_z_is_standard() -> None:
    """Heads of a random model are oriented at random: mean 0, spread 1, no more tails than a
    normal's.
    """
    found = []
    for seed in range(8):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            subject = transformer_of(small.gpt_neox(initializer_range=0.02), bos=0)
        composition = k_composition(
            subject, distances=[1, 5, 19], draws=200, generator=generator(seed)
        )
        found += [
            composition.z[before, :, after].ravel() for before, after in [(0, 1), (0, 2), (1, 2)]
        ]
    z = np.concatenate(found)
    assert abs(z.mean()) < 0.2
    assert 0.85 < z.std() < 1.2
    assert (np.abs(z) > 1.96).mean() < 0.1


def test_among_heads_z_is_that_of_exchanged_directions() -> None:
    """A writer's singular values with each other head's directions, one matrix at a time."""
    subject = transformer_of(small.build("llama"), bos=0)
    found = k_composition_among_heads(subject, distances=[2])
    same = k_composition(subject, distances=[2], draws=2, generator=generator())
    np.testing.assert_allclose(found.score, same.score, atol=1e-12)

    before = [(layer, head) for layer in (0, 1) for head in range(small.HEADS)]
    svd = {}
    for layer, head in before:
        weights = subject.head_weights(layer)
        ov = weights.W_V[head].double() @ weights.W_O[head].double()
        _, values, directions = torch.linalg.svd(ov, full_matrices=False)
        size = weights.W_V.shape[-1]
        svd[layer, head] = values[:size], directions[:size]

    reader = subject.head_weights(2)
    queries = subject.rotated(reader.W_Q, 2)
    qk = (reader.W_K[1].double() @ queries[1].double().T).numpy()

    def strength(writer: tuple[int, int], other: tuple[int, int]) -> float:
        made = (svd[writer][0][:, None] * svd[other][1]).numpy()
        return float(np.linalg.norm(made @ qk) / np.linalg.norm(made) / np.linalg.norm(qk))

    for writer in before:
        others = [strength(writer, other) for other in before if other != writer]
        z = (strength(writer, writer) - np.mean(others)) / np.std(others, ddof=1)
        assert found.z[(*writer, 2, 1)] == pytest.approx(z, abs=1e-4)


def test_among_heads_z_is_calibrated_where_random_orientations_are_not() -> None:
    """A model whose heads all write into, and read from, few directions of its stream."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small.build("gpt_neox", num_hidden_layers=5, seed=0)
        width = model.config.hidden_size
        loud = torch.ones(width)
        loud[: width // 4] = 8
        trunk: Any = model.gpt_neox
        for layer in trunk.layers:
            layer.attention.dense.weight.data *= loud[:, None]
            layer.attention.query_key_value.weight.data *= loud
    subject = transformer_of(model, bos=0)
    later = np.arange(5)[:, None] < np.arange(5)
    later[:2] &= np.arange(5) > 1  # a reader in layer 1 has few heads to compare with
    pairs = np.broadcast_to(later[:, None, :, None], (5, small.HEADS, 5, small.HEADS))

    oriented = k_composition(subject, distances=[1], draws=100, generator=generator()).z[pairs]
    among = k_composition_among_heads(subject, distances=[1]).z[pairs]
    assert (oriented > 2).mean() > 0.5
    assert (np.abs(among) > 2).mean() < 0.15
    assert abs(among.mean()) < 0.2


@pytest.mark.parametrize("heads_alike", [1, 2])
def test_a_reader_with_too_few_heads_before_it_has_no_z_among_them(heads_alike: int) -> None:
    subject = transformer_of(small.build("gpt_neox", num_attention_heads=heads_alike), bos=0)
    found = k_composition_among_heads(subject, distances=[1])
    assert (found.z[0, :, 1] == 0).all()
    assert np.isfinite(found.z).all()


def test_the_planted_pair_stands_out_among_heads() -> None:
    subject = transformer_of(known.induction_model())
    found = k_composition_among_heads(subject, distances=[1])
    pair = (*known.PREVIOUS_TOKEN_HEAD, *known.INDUCTION_HEAD)
    assert np.unravel_index(np.argmax(found.z), found.z.shape) == pair


def test_the_covariance_gives_the_variance_of_any_logits() -> None:
    unembedding = torch.randn(12, 50, generator=generator(), dtype=torch.float64)
    unembedding -= unembedding.mean(1, keepdim=True)
    direction = torch.randn(12, generator=generator(1), dtype=torch.float64)
    covariance = vocabulary_covariance(unembedding)
    torch.testing.assert_close(
        direction @ covariance @ direction, (direction @ unembedding).var(correction=0)
    )


def test_a_key_that_misleads_transformerlens_is_a_reason_and_no_traceback() -> None:
    layout = [[["global"], 1]]
    config = GPTNeoConfig(
        vocab_size=50, hidden_size=32, num_layers=1, num_heads=4, attention_types=layout
    )
    config.num_key_value_heads = 2  # which a GPT-Neo has not
    subject = transformer_of(GPTNeoForCausalLM(config), bos=0)

    with pytest.raises(InputError, match=r"TransformerLens does not give its W_K \("):
        copying_eigenvalues(subject)
