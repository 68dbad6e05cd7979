"""The hand-built models do what their docstrings say, seen in plain eager attention."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

import known_circuits as known
from interp_core.stimuli.prompts import Prompts, repeated_tokens, spaced_pairs
from interp_core.stimuli.text import natural_repeats


def _prompts(family: str) -> Prompts:
    rng = np.random.default_rng(0)
    if family == "repeated_tokens":
        return repeated_tokens(known.VOCABULARY, period=20, n_prompts=6, rng=rng)
    if family == "natural_repeats":
        stream = rng.integers(1, known.SIZE, 4000)
        return natural_repeats(
            stream, known.VOCABULARY, length=40, n_prompts=6, rng=rng, max_pairs=5
        )
    return spaced_pairs(known.VOCABULARY, lags=[1, 2, 8, 30], length=48, n_prompts=8, rng=rng)


def _scores(
    model: GPT2LMHeadModel, tokens: np.ndarray, prompts: Prompts, key: np.ndarray
) -> np.ndarray:
    """Mean attention from the queries to `key`, [layer, head], of the model's eager patterns."""
    model.set_attn_implementation("eager")
    pattern = torch.stack(model(torch.tensor(tokens), output_attentions=True).attentions).numpy()
    pairs = prompts.pairs
    return pattern[:, pairs.batch, :, pairs.query, key].mean(
        axis=0
    )  # advanced axes come first: [pair, layer, head]


def _accuracy(model: GPT2LMHeadModel, tokens: np.ndarray, prompts: Prompts) -> float:
    logits = model(torch.tensor(tokens)).logits.numpy()
    pairs = prompts.pairs
    return float((logits[pairs.batch, pairs.query].argmax(axis=-1) == pairs.target).mean())


FAMILIES = ["repeated_tokens", "spaced_pairs", "natural_repeats"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_induction_head_matches_every_prefix_and_no_other_head_does(family: str) -> None:
    prompts = _prompts(family)
    model = known.induction_model()
    scores = _scores(model, prompts.tokens, prompts, prompts.pairs.induction_key)
    others = np.delete(
        scores.ravel(), known.N_HEADS * known.INDUCTION_HEAD[0] + known.INDUCTION_HEAD[1]
    )
    assert scores[known.INDUCTION_HEAD] == pytest.approx(1.0, abs=1e-6)
    assert np.delete(others, known.PREVIOUS_TOKEN_HEAD[1]).max() < 0.2
    assert (
        _scores(model, prompts.control, prompts, prompts.pairs.induction_key)[known.INDUCTION_HEAD]
        < 1e-6
    )


@pytest.mark.parametrize("build", [known.induction_model, known.duplicate_token_model])
def test_the_previous_token_head_attends_one_back(build: Callable[[], GPT2LMHeadModel]) -> None:
    prompts = _prompts("repeated_tokens")
    model = build()
    scores = _scores(model, prompts.tokens, prompts, prompts.pairs.previous_key)
    assert scores[known.PREVIOUS_TOKEN_HEAD] == pytest.approx(1.0, abs=1e-6)
    assert np.sort(scores.ravel())[-2] < 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_copy_is_predicted_with_certainty_and_never_on_the_control(family: str) -> None:
    prompts = _prompts(family)
    model = known.induction_model()
    assert _accuracy(model, prompts.tokens, prompts) == 1.0
    assert _accuracy(model, prompts.control, prompts) == 0.0
    pairs = prompts.pairs
    logits = model(torch.tensor(prompts.tokens)).logits
    loss = -logits.log_softmax(-1).numpy()[pairs.batch, pairs.query, pairs.target]
    assert loss.max() < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_the_duplicate_token_head_finds_the_earlier_occurrence_and_copies_nothing(
    family: str,
) -> None:
    prompts = _prompts(family)
    model = known.duplicate_token_model()
    duplicate = _scores(model, prompts.tokens, prompts, prompts.pairs.duplicate_key)
    prefix = _scores(model, prompts.tokens, prompts, prompts.pairs.induction_key)
    assert duplicate[known.DUPLICATE_TOKEN_HEAD] == pytest.approx(1.0, abs=1e-6)
    assert prefix[known.DUPLICATE_TOKEN_HEAD] < 1e-6
    assert _accuracy(model, prompts.tokens, prompts) == 0.0


def test_heads_without_a_name_attend_uniformly_and_write_exactly_zero() -> None:
    model = known.induction_model()
    model.set_attn_implementation("eager")
    tokens = torch.tensor(_prompts("repeated_tokens").tokens)
    patterns = model(tokens, output_attentions=True).attentions
    blocks: Any = model.transformer.h
    for layer, block in enumerate(blocks):
        value = block.attn.c_attn.weight[:, 2 * known.D_MODEL :]
        for head in range(known.N_HEADS):
            if (layer, head) in (known.PREVIOUS_TOKEN_HEAD, known.INDUCTION_HEAD):
                continue
            assert not value[:, head * known.SIZE : (head + 1) * known.SIZE].any()
            last = patterns[layer][:, head, -1]
            torch.testing.assert_close(last, torch.full_like(last, 1 / tokens.shape[1]))


def test_layer_norms_are_the_identity_while_the_circuit_is_intact() -> None:
    model = known.induction_model()
    residuals = model(
        torch.tensor(_prompts("repeated_tokens").tokens), output_hidden_states=True
    ).hidden_states
    blocks: Any = model.transformer.h
    for layer, block in enumerate(blocks):
        torch.testing.assert_close(
            block.ln_1(residuals[layer]), residuals[layer], atol=2e-5, rtol=0
        )


def test_a_known_circuit_survives_a_directory(tmp_path: Path) -> None:
    prompts = _prompts("repeated_tokens")
    model = known.induction_model()
    model.save_pretrained(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    tokens = torch.tensor(prompts.tokens)
    assert torch.equal(again(tokens).logits, model(tokens).logits)
