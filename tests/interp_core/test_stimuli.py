"""Every item of every family knows its right answer, and its control holds none."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from interp_core.errors import InputError
from interp_core.stimuli.names import FIRST_NAMES, LAST_NAMES, TEMPLATES
from interp_core.stimuli.prompts import (
    Pairs,
    Prompts,
    Vocabulary,
    oracle,
    repeated_tokens,
    shuffled_antecedents,
    shuffled_pairs,
    spaced_pairs,
    special_ids,
)
from interp_core.stimuli.text import names, natural_repeats, repeated_text

VOCABULARY = Vocabulary.of(400, bos=0, pad=1)
SEEDS = st.integers(0, 2**32 - 1)


def _byte_pair_tokenizer(size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=["<|endoftext|>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    texts = [" ".join(template) for template in TEMPLATES] + [
        f"Dear {name}" for name in FIRST_NAMES
    ]
    tokenizer.train_from_iterator([__doc__ or "", *texts], trainer)
    return tokenizer


TOKENIZER = _byte_pair_tokenizer(400)


def _text(rng: np.random.Generator, n: int = 4000) -> np.ndarray:
    """A stream with word-like repeats, as unsigned ids."""
    return rng.zipf(1.3, n).clip(2, 399).astype(np.uint16)


@st.composite
def prompts(draw: st.DrawFn) -> Prompts:
    """Prompts of any family with any sensible parameters."""
    rng = np.random.default_rng(draw(SEEDS))
    n = draw(st.integers(1, 6))
    families = [
        "repeated_tokens",
        "spaced_pairs",
        "shuffled_pairs",
        "names",
        "natural_repeats",
        "repeated_text",
    ]
    family = draw(st.sampled_from(families))
    if family == "repeated_tokens":
        period, copies = draw(st.integers(2, 40)), draw(st.integers(2, 4))
        return repeated_tokens(VOCABULARY, period=period, n_prompts=n, rng=rng, copies=copies)
    if family == "spaced_pairs":
        lags = draw(st.lists(st.integers(1, 40), min_size=1, max_size=n))
        length = draw(st.integers(max(lags) + 4, 120))
        return spaced_pairs(VOCABULARY, lags=lags, length=length, n_prompts=n, rng=rng)
    if family == "shuffled_pairs":
        return shuffled_pairs(VOCABULARY, n_pairs=draw(st.integers(2, 30)), n_prompts=n, rng=rng)
    if family == "repeated_text":
        return repeated_text(
            VOCABULARY, _text(rng), period=draw(st.integers(3, 40)), n_prompts=n, rng=rng
        )
    if family == "names":
        return names(TOKENIZER, VOCABULARY, length=draw(st.integers(60, 120)), n_prompts=n, rng=rng)
    length, most = draw(st.integers(20, 100)), draw(st.integers(1, 20))
    return natural_repeats(
        _text(rng), VOCABULARY, length=length, n_prompts=n, rng=rng, max_pairs=most
    )


@given(prompts())
@settings(max_examples=150)
def test_every_pair_is_a_copy_operation_within_its_prompt(item: Prompts) -> None:
    pairs, tokens = item.pairs, item.tokens
    assert len(pairs) > 0
    assert set(pairs.batch) == set(range(len(tokens)))
    np.testing.assert_array_equal(
        tokens[pairs.batch, pairs.query], tokens[pairs.batch, pairs.earlier]
    )
    np.testing.assert_array_equal(tokens[pairs.batch, pairs.query + 1], pairs.target)
    np.testing.assert_array_equal(tokens[pairs.batch, pairs.induction_key], pairs.target)
    assert (pairs.earlier >= 1).all()  # never BOS
    assert (
        pairs.query + 1 < item.lengths[pairs.batch]
    ).all()  # neither query nor target is padding
    assert (pairs.lag >= 1).all()
    np.testing.assert_array_equal(pairs.query - pairs.lag, pairs.induction_key)


@given(prompts())
@settings(max_examples=150)
def test_the_oracle_is_always_right_on_stimuli_and_always_without_an_answer_on_controls(
    item: Prompts,
) -> None:
    np.testing.assert_array_equal(oracle(item.tokens, item.pairs), item.pairs.target)
    np.testing.assert_array_equal(oracle(item.control, item.pairs), -1)


@given(prompts())
@settings(max_examples=150)
def test_the_control_keeps_the_layout_and_what_is_asked(item: Prompts) -> None:
    assert item.control.shape == item.tokens.shape
    pairs = item.pairs
    same = item.tokens == item.control
    # Of repeated tokens only the last copy stays; elsewhere every query and target.
    last = pairs.query >= item.lengths[pairs.batch] - pairs.lag - 1
    kept = last if item.family == "repeated_tokens" else np.ones(len(pairs), dtype=bool)
    assert same[pairs.batch, pairs.query][kept].all()
    assert same[pairs.batch, pairs.query + 1][kept].all()
    assert not same[pairs.batch, pairs.earlier].any()
    assert same[:, 0].all()
    padding = np.arange(item.tokens.shape[1]) >= item.lengths[:, None]
    assert (item.tokens[padding] == VOCABULARY.pad).all()
    assert (item.control[padding] == VOCABULARY.pad).all()
    assert not (item.tokens[~padding] == VOCABULARY.pad).any()


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 20), min_size=1, max_size=4))
@settings(max_examples=60)
def test_spaced_pairs_have_the_lags_asked_for_and_no_other_repeat(
    seed: int, lags: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    item = spaced_pairs(VOCABULARY, lags=lags, length=60, n_prompts=2 * len(lags), rng=rng)
    np.testing.assert_array_equal(item.pairs.lag, np.resize(lags, 2 * len(lags))[item.pairs.batch])
    for prompt, row in enumerate(item.tokens):
        blocks = 59 // (lags[prompt % len(lags)] + 3)
        assert (item.pairs.batch == prompt).sum() == blocks
        assert len(np.unique(row)) == 60 - 2 * blocks
        changed = np.flatnonzero(row != item.control[prompt])
        np.testing.assert_array_equal(changed, item.pairs.earlier[item.pairs.batch == prompt])


def test_repeated_tokens_are_bos_and_exact_copies_of_distinct_ids() -> None:
    item = repeated_tokens(VOCABULARY, period=20, n_prompts=5, rng=np.random.default_rng(0))
    assert (item.tokens[:, 0] == VOCABULARY.bos).all()
    np.testing.assert_array_equal(item.tokens[:, 1:21], item.tokens[:, 21:])
    assert (item.pairs.lag == 19).all()
    np.testing.assert_array_equal(item.pairs.query.reshape(5, -1), [range(21, 40)] * 5)
    assert all(len(np.unique(row)) == 41 for row in item.control)


def test_a_shuffled_pair_follows_another_token_than_the_first_time() -> None:
    item = shuffled_pairs(VOCABULARY, n_pairs=9, n_prompts=50, rng=np.random.default_rng(0))
    tokens, pairs = item.tokens, item.pairs
    before = tokens[pairs.batch, pairs.query - 1], tokens[pairs.batch, pairs.earlier - 1]
    assert (before[0] != before[1]).all()
    assert len(np.unique(pairs.lag)) > 10  # the lag tells nothing
    assert (np.sort(tokens[:, 1:19], axis=1) == np.sort(tokens[:, 19:], axis=1)).all()


def test_repeated_text_is_a_piece_of_the_text_twice() -> None:
    stream = _text(np.random.default_rng(1))
    item = repeated_text(VOCABULARY, stream, period=12, n_prompts=40, rng=np.random.default_rng(0))
    windows = {tuple(stream[i : i + 12]) for i in range(len(stream) - 11)}
    assert all(tuple(row[1:13]) in windows for row in item.tokens)
    assert (item.tokens[:, 1:13] == item.tokens[:, 13:]).all()


def test_name_pairs_lie_in_the_second_mention_and_controls_change_the_first_only() -> None:
    item = names(TOKENIZER, VOCABULARY, length=80, n_prompts=30, rng=np.random.default_rng(0))
    for prompt in range(30):
        text, control = (
            TOKENIZER.decode(list(rows[prompt, 1 : item.lengths[prompt]]))
            for rows in (item.tokens, item.control)
        )
        person = [name for name in FIRST_NAMES if text.count(name) == 2]
        assert len(person) == 1
        assert text.count(person[0]) == 2
        mine = item.pairs.batch == prompt
        first = text.index(person[0])
        before = TOKENIZER.decode(list(item.tokens[prompt, 1 : item.pairs.query[mine].min()]))
        assert len(before) > first + len(person[0])
        surname = next(name for name in LAST_NAMES if f"{person[0]} {name}" in text)
        pairs = ((given_name, family) for given_name in FIRST_NAMES for family in LAST_NAMES)
        others = [text.replace(f"{person[0]} {surname}", " ".join(pair), 1) for pair in pairs]
        assert control != text
        assert control in others


def test_a_tokenizer_may_be_a_function_or_a_tokenizer() -> None:
    item, other = (
        names(tokenizer, VOCABULARY, length=80, n_prompts=4, rng=np.random.default_rng(3))
        for tokenizer in (TOKENIZER, lambda text: TOKENIZER.encode(text).ids)
    )
    assert item.sha256 == other.sha256


def test_natural_repeats_are_windows_of_the_text() -> None:
    stream = _text(np.random.default_rng(5))
    item = natural_repeats(
        stream, VOCABULARY, length=32, n_prompts=20, rng=np.random.default_rng(0), max_pairs=2
    )
    windows = {
        tuple(window) for window in stream[: len(stream) // 31 * 31].reshape(-1, 31).tolist()
    }
    assert {tuple(row[1:].tolist()) for row in item.tokens} <= windows
    assert np.bincount(item.pairs.batch).max() <= 2
    for prompt in range(20):
        mine = item.pairs.batch == prompt
        asked = item.tokens[prompt, item.pairs.query[mine]]
        assert len(np.unique(asked)) == len(asked)


BUILDERS: dict[str, Callable[[np.random.Generator], Prompts]] = {
    "repeated_tokens": lambda rng: repeated_tokens(VOCABULARY, period=9, n_prompts=7, rng=rng),
    "spaced_pairs": lambda rng: spaced_pairs(
        VOCABULARY, lags=[1, 4], length=30, n_prompts=7, rng=rng
    ),
    "names": lambda rng: names(TOKENIZER, VOCABULARY, length=80, n_prompts=7, rng=rng),
    "shuffled_pairs": lambda rng: shuffled_pairs(VOCABULARY, n_pairs=6, n_prompts=7, rng=rng),
    "repeated_text": lambda rng: repeated_text(
        VOCABULARY, _text(np.random.default_rng(1)), period=9, n_prompts=7, rng=rng
    ),
    "natural_repeats": lambda rng: natural_repeats(
        _text(np.random.default_rng(1)), VOCABULARY, length=30, n_prompts=7, rng=rng, max_pairs=3
    ),
}


@pytest.mark.parametrize("family", BUILDERS)
def test_the_same_seed_gives_the_same_hash_and_another_seed_another(family: str) -> None:
    hashes = [BUILDERS[family](np.random.default_rng(seed)).sha256 for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


@given(prompts(), SEEDS)
@settings(max_examples=100)
def test_shuffled_antecedents_are_wrong_and_causal(item: Prompts, seed: int) -> None:
    keys = shuffled_antecedents(item.pairs, item.lengths, np.random.default_rng(seed), 8)
    assert keys.shape == (8, len(item.pairs))
    assert (keys <= item.pairs.query).all()
    assert (keys >= 1).all()
    assert (keys != item.pairs.induction_key).all()


def test_shuffled_antecedents_are_those_of_other_pairs_each_equally_often() -> None:
    item = repeated_tokens(VOCABULARY, period=6, n_prompts=3, rng=np.random.default_rng(0))
    keys = shuffled_antecedents(item.pairs, item.lengths, np.random.default_rng(1), 4000)
    for pair, own in enumerate(item.pairs.induction_key):
        drawn, counts = np.unique(keys[:, pair], return_counts=True)
        others = np.setdiff1d(
            item.pairs.induction_key[item.pairs.batch == item.pairs.batch[pair]], own
        )
        np.testing.assert_array_equal(drawn, others)
        assert (np.abs(counts / 4000 - 1 / len(others)) < 0.05).all()


def test_the_oracle_takes_the_most_recent_occurrence() -> None:
    tokens = np.array([[0, 5, 6, 5, 7, 5, 9]])
    at = np.array([0])
    pairs = Pairs(batch=at, query=np.array([5]), earlier=np.array([3]), target=np.array([9]))
    np.testing.assert_array_equal(oracle(tokens, pairs), [7])


def test_the_vocabulary_leaves_out_specials_and_the_ends_of_the_frequency_range() -> None:
    counts = np.arange(100, dtype=np.uint16)[::-1].copy()
    chosen = Vocabulary.of(100, bos=0, pad=1, special=[2, 3], counts=counts, excluded_share=0.25)
    np.testing.assert_array_equal(chosen.ids, np.arange(28, 76))
    np.testing.assert_array_equal(Vocabulary.of(10, bos=0, pad=0).ids, np.arange(1, 10))


RNG = np.random.default_rng(0)
BAD: list[tuple[Callable[[], object], str]] = [
    (
        lambda: repeated_tokens(VOCABULARY, period=1, n_prompts=1, rng=RNG),
        "period must be at least 2",
    ),
    (
        lambda: repeated_tokens(VOCABULARY, period=5, n_prompts=0, rng=RNG),
        "n_prompts must be at least 1",
    ),
    (lambda: repeated_tokens(VOCABULARY, period=200, n_prompts=1, rng=RNG), "vocabulary too small"),
    (
        lambda: spaced_pairs(VOCABULARY, lags=[57], length=60, n_prompts=1, rng=RNG),
        "lag 57 is longer than the seq",
    ),
    (
        lambda: spaced_pairs(VOCABULARY, lags=[4, 0], length=60, n_prompts=2, rng=RNG),
        r"lag_values\[1\] must be",
    ),
    (
        lambda: spaced_pairs(VOCABULARY, lags=[4, 5], length=60, n_prompts=1, rng=RNG),
        "cannot cover 2 lags",
    ),
    (
        lambda: spaced_pairs(VOCABULARY, lags=[400], length=450, n_prompts=1, rng=RNG),
        "vocabulary too small",
    ),
    (lambda: names(TOKENIZER, VOCABULARY, length=8, n_prompts=1, rng=RNG), "fits into 8 tokens"),
    (
        lambda: names(lambda text: [5], VOCABULARY, length=30, n_prompts=1, rng=RNG),
        "no repeated name",
    ),
    (
        lambda: natural_repeats(
            np.arange(2, 300), VOCABULARY, length=20, n_prompts=1, rng=RNG, max_pairs=1
        ),
        "only 0 windows",
    ),
    (
        lambda: natural_repeats(
            np.arange(3), VOCABULARY, length=20, n_prompts=1, rng=RNG, max_pairs=1
        ),
        "only 0 windows",
    ),
    (
        lambda: natural_repeats(
            np.tile(np.arange(2, 12), 30),
            Vocabulary.of(14, bos=0, pad=1),
            length=20,
            n_prompts=1,
            rng=RNG,
            max_pairs=9,
        ),
        "vocabulary too small",
    ),
    (
        lambda: shuffled_pairs(VOCABULARY, n_pairs=1, n_prompts=1, rng=RNG),
        "n_pairs must be at least 2",
    ),
    (
        lambda: repeated_text(VOCABULARY, np.arange(9), period=9, n_prompts=1, rng=RNG),
        "more than 9 tokens of text",
    ),
    (
        lambda: repeated_text(VOCABULARY, np.full(99, 7), period=9, n_prompts=1, rng=RNG),
        "unique continuation",
    ),
    (lambda: Vocabulary.of(10, bos=0, pad=0, excluded_share=0.5), "excluded share"),
    (
        lambda: Vocabulary.of(10, bos=0, pad=0, counts=np.ones(9, dtype=np.int64)),
        "counts are for 9 ids",
    ),
]


@pytest.mark.parametrize(("build", "message"), BAD)
def test_what_cannot_be_built_is_said_in_one_line(
    build: Callable[[], object], message: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        build()
    assert "\n" not in str(raised.value)


def test_added_tokens_in_a_tags_form_are_no_words_and_added_text_is() -> None:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(("a", "b", "c"))}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>")
    tokenizer.add_tokens(["<file_sep>", "<unused7>", "[PAD0]", "    "])
    tokens = tokenizer.convert_ids_to_tokens(special_ids(tokenizer, len(tokenizer)))
    assert tokens == ["<s>", "<file_sep>", "<unused7>", "[PAD0]"]
    assert special_ids(tokenizer, 5) == [3, 4]
