"""Published numbers, on the real GPT-2 small: for people who reach a model hub."""

import numpy as np
import pytest

from interp_core.errors import InputError
from interp_core.loading import load_model
from interp_core.measures.scores import attention_scores
from interp_core.models.spec import ModelSpec
from interp_core.models.subject import Subject
from interp_core.stimuli.prompts import Vocabulary, repeated_tokens

pytestmark = pytest.mark.hub

REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
# Prefix matching on repeated random tokens: Olsson et al. 2022 and TransformerLens's demo of GPT-2
# small.
INDUCTION = {(5, 5): 0.93, (6, 9): 0.91, (7, 10): 0.91, (5, 1): 0.91, (7, 2): 0.83}
PREVIOUS_TOKEN = (4, 11)


@pytest.fixture(scope="module")
def gpt2() -> Subject:
    try:
        return load_model(
            ModelSpec(source="hub", repo="openai-community/gpt2", revision=REVISION), name="gpt2"
        )
    except InputError as problem:
        pytest.skip(f"needs real GPT-2 weights: {problem}")


@pytest.fixture(scope="module")
def scores(gpt2: Subject) -> dict[str, np.ndarray]:
    vocabulary = Vocabulary.of(gpt2.vocab_size, bos=gpt2.bos, pad=gpt2.bos)
    prompts = repeated_tokens(vocabulary, period=50, n_prompts=20, rng=np.random.default_rng(0))
    return {
        name: score.mean(axis=0)
        for name, score in attention_scores(gpt2, prompts, batch_size=10).items()
    }


def ranked(score: np.ndarray) -> list[tuple[int, int]]:
    """Heads (layer, head), the highest first."""
    layers, heads = np.unravel_index(np.argsort(-score, axis=None), score.shape)
    return [(int(layer), int(head)) for layer, head in zip(layers, heads, strict=True)]


def test_the_five_known_induction_heads_match_prefixes_best(scores: dict[str, np.ndarray]) -> None:
    assert set(ranked(scores["prefix_matching"])[:5]) == set(INDUCTION)
    for head, published in INDUCTION.items():
        assert scores["prefix_matching"][head] == pytest.approx(published, abs=0.05)


def test_the_known_previous_token_head_comes_first(scores: dict[str, np.ndarray]) -> None:
    assert ranked(scores["previous_token"])[0] == PREVIOUS_TOKEN
