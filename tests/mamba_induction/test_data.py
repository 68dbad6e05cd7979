"""What stimuli are made of: held-out text alone, and repeats that no bigram predicts."""

from dataclasses import replace

import numpy as np
import pytest

from interp_core.loading import subject_of
from interp_core.mamba.subject import MambaSubject, as_mamba
from interp_core.models.subject import Subject
from interp_core.stimuli.prompts import Prompts
from mamba_induction.data import Bigrams, Stimuli, Texts, build_stimuli
from mamba_induction.params import MambaInduction
from mamba_project import random_mamba

HELD_OUT = np.arange(1, 60)  # ids of held-out text; training text has those from 60


@pytest.fixture
def subject() -> Subject:
    """A Mamba with 128 ids and room for every prompt."""
    found: MambaSubject = as_mamba(subject_of(random_mamba(seed=0, vocab=128), name="r", bos=0))
    return found


def text(rng: np.random.Generator, ids: np.ndarray) -> list[np.ndarray]:
    """Documents in which a few phrases come again and again between random tokens."""
    phrases = [rng.choice(ids, 3, replace=False) for _ in range(12)]
    rows = []

    for _ in range(60):
        parts = []
        for _ in range(8):
            parts += [phrases[int(rng.integers(12))], rng.choice(ids, 2)]
        rows.append(np.concatenate([[0], *parts]))

    return rows


@pytest.fixture
def texts() -> Texts:
    """Training and held-out text without a common id."""
    rng = np.random.default_rng(0)
    return Texts(text(rng, np.arange(60, 120)), text(rng, HELD_OUT), {})


def words_of(prompts: Prompts | np.ndarray | None) -> set[int]:
    assert prompts is not None
    tokens = prompts.tokens if isinstance(prompts, Prompts) else prompts
    return set(tokens.ravel().tolist()) - {0}


def test_real_text_is_held_out_text_and_no_other(
    subject: Subject, texts: Texts, params: MambaInduction
) -> None:
    stimuli = build_stimuli(subject, params, texts)

    for asked in (stimuli.repeated_text, stimuli.natural, stimuli.unpredicted, stimuli.windows):
        assert words_of(asked) <= set(HELD_OUT.tolist())


def pairs_in(prompts: Prompts | None) -> list[tuple[bytes, int, int]]:
    """Each copy operation by its prompt's tokens, its query and its target."""
    assert prompts is not None
    pairs = prompts.pairs
    rows = [prompts.tokens[at].tobytes() for at in pairs.batch]
    return list(zip(rows, pairs.query.tolist(), pairs.target.tolist(), strict=True))


def test_unpredicted_repeats_are_those_whose_target_no_bigram_gives(
    subject: Subject, texts: Texts, params: MambaInduction
) -> None:
    # Bigrams of the held-out text itself predict some of its repeats, and miss others.
    shared = replace(texts, train=texts.held_out)
    stimuli: Stimuli = build_stimuli(subject, params, shared)
    first = Bigrams.of(shared.train, subject.vocab_size).first

    assert stimuli.natural is not None
    token = stimuli.natural.tokens[stimuli.natural.pairs.batch, stimuli.natural.pairs.query]
    missed = first[token] != stimuli.natural.pairs.target
    assert 0 < missed.sum() < len(missed)

    expected = [pair for pair, out in zip(pairs_in(stimuli.natural), missed, strict=True) if out]
    assert pairs_in(stimuli.unpredicted) == expected
