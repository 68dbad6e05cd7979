"""What prompts begin with: never an id that nobody named, and nothing where that was asked for."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PretrainedConfig

import small_models as small
from interp_core.errors import InputError
from interp_core.loading import begins_with, subject_of, transformer_of
from interp_core.measures.scores import attention_scores
from interp_core.stimuli.opening import NO_BOS, opening, without_opening


class Tokens:
    """As much of a tokenizer as is asked."""

    def __init__(self, bos: int | None) -> None:
        self.bos_token_id = bos

    def get_vocab(self) -> dict[str, int]:
        return {"<s>": 1, "word": 7}


def config(**ids: Any) -> PretrainedConfig:
    return PretrainedConfig(**({"bos_token_id": None, "eos_token_id": None} | ids))


@pytest.mark.parametrize(
    ("tokenizer", "settings", "asked", "bos"),
    [
        (Tokens(3), {"bos_token_id": 5}, "own", 3),
        (Tokens(0), {}, "own", 0),
        (Tokens(None), {"bos_token_id": 5, "eos_token_id": 6}, "own", 5),
        (None, {"eos_token_id": [6, 8]}, "own", 6),
        (Tokens(3), {}, "none", NO_BOS),
        (Tokens(None), {}, "none", NO_BOS),
        (Tokens(3), {}, "<s>", 1),
        (Tokens(3), {}, "9", 9),
        (None, {}, 9, 9),
    ],
)
def test_prompts_begin_with_what_is_named(
    tokenizer: Any, settings: dict[str, Any], asked: str | int, bos: int
) -> None:
    assert opening("toy", tokenizer, config(**settings), 10, asked=asked) == bos


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("own", "names no token that begins a text"),
        ("<bos>", "no token of its tokenizer"),
        ("10", "outside its vocabulary of 10"),
    ],
)
def test_nothing_is_taken_for_a_token_that_is_not_there(asked: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as problem:
        opening("toy", Tokens(None), config(), 10, asked=asked)
    assert "--bos" in str(problem.value)


def test_a_model_in_memory_that_names_none_is_asked_about() -> None:
    model = small.build("llama", bos_token_id=None, eos_token_id=None)
    with pytest.raises(InputError, match="names no token that begins a text"):
        subject_of(model)
    assert begins_with(subject_of(model, bos="none")) == "nothing"
    assert begins_with(subject_of(model, bos=4)) == "id 4"


def test_without_an_opening_the_same_pairs_are_asked_one_place_earlier() -> None:
    prompts = small.prompts()
    bare = without_opening(prompts)
    pairs = bare.pairs

    assert bare.tokens.shape[1] == prompts.tokens.shape[1] - 1
    earlier, query = (bare.tokens[pairs.batch, place] for place in (pairs.earlier, pairs.query))
    assert np.array_equal(earlier, query)
    assert np.array_equal(bare.tokens[pairs.batch, pairs.query + 1], pairs.target)
    assert np.array_equal(pairs.lag, prompts.pairs.lag)

    subject = transformer_of(small.build("llama"), bos="none")
    scores = attention_scores(subject, bare)
    with torch.no_grad():
        patterns = _eager(bare.tokens)
    expected = patterns[pairs.batch, :, :, pairs.query, pairs.induction_key]
    mean = np.stack([expected[pairs.batch == i].mean(axis=0) for i in range(len(bare.tokens))])
    assert np.allclose(scores["prefix_matching"], mean, atol=1e-5)


def _eager(tokens: np.ndarray) -> np.ndarray:
    model = small.build("llama")
    model.set_attn_implementation("eager")
    seen = model(input_ids=torch.as_tensor(tokens), output_attentions=True).attentions
    return torch.stack(seen, dim=1).numpy()
