"""The texts to fine-tune on and the stimuli: the same token ids for every model that shares a
tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from interp_core.errors import InputError
from interp_core.models.subject import Subject
from interp_core.stimuli.corpus import Documents
from interp_core.stimuli.prompts import (
    Pairs,
    Prompts,
    Vocabulary,
    repeated_tokens,
    shuffled_pairs,
    spaced_pairs,
    special_ids,
)
from interp_core.stimuli.text import natural_repeats, repeated_text
from mamba_induction.params import OFFSETS, MambaInduction
from mamba_induction.streams import STREAMS

Row = Int[np.ndarray, " _"]  # of its own length each


@dataclass(frozen=True)
class Texts:
    """Documents as ids of one tokenizer; each begins with BOS and is cut at max_length."""

    train: list[Row]
    held_out: list[Row]
    source: dict[str, Any]  # where they came from

    @property
    def held_out_stream(self) -> Row:
        """The held-out documents in a row."""
        return np.concatenate(self.held_out)


@dataclass(frozen=True)
class Bigrams:
    """What follows each id most often in the training text, and second most often; where nothing
    else does, the most frequent ids take their place.
    """

    first: Int[np.ndarray, " vocab"]
    second: Int[np.ndarray, " vocab"]

    @classmethod
    def of(cls, rows: Sequence[Row], vocab: int) -> "Bigrams":
        """Counts over these documents; ties go to the smaller id."""
        codes = np.concatenate([row[:-1] * vocab + row[1:] for row in rows])
        pairs, counts = np.unique(codes, return_counts=True)

        # By first token, then the most frequent successor first, then the smaller id.
        order = np.lexsort((pairs, -counts, pairs // vocab))
        before, after = pairs[order] // vocab, pairs[order] % vocab
        starts = np.flatnonzero(np.diff(before, prepend=-1))

        frequent = np.argsort(-np.bincount(np.concatenate(rows), minlength=vocab), kind="stable")
        first = np.full(vocab, frequent[0])
        first[before[starts]] = after[starts]

        # Ids with one successor alone keep the most frequent other id as their second.
        second = np.where(first == frequent[0], frequent[1], frequent[0])
        more = starts[np.diff(np.append(starts, len(before))) > 1] + 1
        second[before[more]] = after[more]

        return cls(first, second)

    def competitor(self, token: Row, target: Row) -> Row:
        """The most frequent successor of each token that is not its target."""
        return np.where(self.first[token] == target, self.second[token], self.first[token])


@dataclass(frozen=True)
class Stimuli:
    """What a model is asked. Real text is None where the model has no tokenizer."""

    repeated: Prompts  # two copies: the scores of record
    copies: Prompts  # several copies
    by_period: dict[int, Prompts]
    spaced: Prompts  # prompt i has lag lags[i % len(lags)]
    shuffled: Prompts  # single-shot pairs
    repeated_text: Prompts | None
    natural: Prompts | None  # repeats that real text holds
    unpredicted: Prompts | None  # those of them whose target is not what a bigram model says
    windows: Int[np.ndarray, "window position"] | None  # real text

    @property
    def families(self) -> dict[str, Prompts]:
        """Prompts whose copy operations have whole rows of attention and a lens at every layer."""
        return {"repeated": self.repeated} | (
            {} if self.natural is None else {"natural": self.natural}
        )


def texts_of(documents: Documents, tokenizer: Any, bos: int, params: MambaInduction) -> Texts:
    """The data set in a model's ids. InputError when a document has no token."""
    train = _encode(tokenizer, documents.train[: params.texts], bos, params.max_length)
    return Texts(
        train, _encode(tokenizer, documents.validation, bos, params.max_length), documents.source
    )


def build_stimuli(subject: Subject, params: MambaInduction, texts: Texts | None) -> Stimuli:
    """Every stimulus of one model.

    InputError when it does not fit the model, its vocabulary or the text.
    """
    vocabulary, n = vocabulary_of(subject), params.n_prompts

    longest = max(params.copies * params.period + 1, 2 * max(params.periods) + 1, params.context)
    if longest > subject.n_ctx:
        raise InputError(
            f"{subject.name}: prompts of {longest} tokens are longer than its context, "
            f"{subject.n_ctx}"
        )

    def repeated(period: int, copies: int, purpose: str, *parts: str) -> Prompts:
        rng = STREAMS.rng(purpose, params.seed, *parts)
        return repeated_tokens(vocabulary, period=period, copies=copies, n_prompts=n, rng=rng)

    spaced = spaced_pairs(
        vocabulary,
        lags=params.lags,
        length=max(params.lags) + 8,
        n_prompts=n // len(params.lags) * len(params.lags),  # as many of each lag
        rng=STREAMS.rng("spaced", params.seed),
    )
    pairs = shuffled_pairs(
        vocabulary, n_pairs=params.n_pairs, n_prompts=n, rng=STREAMS.rng("shuffled", params.seed)
    )

    return Stimuli(
        repeated=repeated(params.period, 2, "repeated"),
        copies=repeated(params.period, params.copies, "copies"),
        by_period={period: repeated(period, 2, "period", str(period)) for period in params.periods},
        spaced=spaced,
        shuffled=pairs,
        **_of_text(subject, vocabulary, params, texts),
    )


def vocabulary_of(subject: Subject) -> Vocabulary:
    """Ids that random prompts may use: all of the tokenizer's (else of the embedding's) but the
    special ones.
    """
    tokenizer = subject.tokenizer
    size = subject.vocab_size if tokenizer is None else min(len(tokenizer), subject.vocab_size)
    special = [] if tokenizer is None else special_ids(tokenizer, size)
    return Vocabulary.of(size, bos=subject.bos, pad=subject.bos, special=special)


def chosen_pairs(pairs: Pairs, chosen: Int[np.ndarray, " pair"]) -> Pairs:
    """Some of the copy operations, in their order."""
    return Pairs(
        pairs.batch[chosen], pairs.query[chosen], pairs.earlier[chosen], pairs.target[chosen]
    )


def sampled(prompts: Prompts, params: MambaInduction) -> Prompts:
    """At most `queries` copy operations of each prompt, drawn at random among those that have room
    for every offset of the profile between them and their earlier occurrence.
    """
    pairs = prompts.pairs
    place = STREAMS.rng("queries", params.seed).permutation(len(pairs))
    place = place[pairs.query[place] - pairs.earlier[place] >= max(OFFSETS)]

    # In random order within each prompt: the first few of each are a random choice.
    by_prompt = place[np.argsort(pairs.batch[place], kind="stable")]
    batch = pairs.batch[by_prompt]
    rank = np.arange(len(batch)) - np.searchsorted(batch, batch)

    return with_pairs(prompts, np.sort(by_prompt[rank < params.queries]))


def with_pairs(prompts: Prompts, chosen: Int[np.ndarray, " pair"]) -> Prompts:
    """The prompts that still have a copy operation when only the chosen ones count."""
    pairs = chosen_pairs(prompts.pairs, chosen)
    kept, batch = np.unique(pairs.batch, return_inverse=True)
    pairs = Pairs(batch, pairs.query, pairs.earlier, pairs.target)
    return Prompts(
        prompts.family, prompts.tokens[kept], prompts.control[kept], pairs, prompts.lengths[kept]
    )


def as_control(prompts: Prompts) -> Prompts:
    """The same questions asked of the control, where nothing came before."""
    return Prompts(prompts.family, prompts.control, prompts.control, prompts.pairs, prompts.lengths)


def first_prompts(prompts: Prompts, n: int) -> Prompts:
    """The first n prompts."""
    return with_pairs(prompts, np.flatnonzero(prompts.pairs.batch < n))


def _of_text(
    subject: Subject, vocabulary: Vocabulary, params: MambaInduction, texts: Texts | None
) -> dict[str, Any]:
    if texts is None:
        return dict.fromkeys(("repeated_text", "natural", "unpredicted", "windows"))

    # Never the training text: fine-tuning has seen its repeats.
    stream, n = texts.held_out_stream, params.n_prompts
    content = stream[stream != subject.bos]

    natural = natural_repeats(
        content,
        vocabulary,
        length=params.text_length,
        n_prompts=n,
        rng=STREAMS.rng("natural", params.seed),
        max_pairs=params.max_pairs,
    )

    bigrams = Bigrams.of(texts.train, subject.vocab_size)
    pairs = natural.pairs
    token = natural.tokens[pairs.batch, pairs.query]
    unpredicted = np.flatnonzero(bigrams.first[token] != pairs.target)

    if len(unpredicted) == 0:
        raise InputError("a bigram model predicts every repeat of the held-out text: use more text")

    return {
        "repeated_text": repeated_text(
            vocabulary,
            content,
            period=params.period,
            n_prompts=n,
            rng=STREAMS.rng("repeated_text", params.seed),
        ),
        "natural": natural,
        "unpredicted": with_pairs(natural, unpredicted),
        "windows": _windows(content, subject.bos, params),
    }


def _windows(content: Row, bos: int, params: MambaInduction) -> Int[np.ndarray, "window position"]:
    """BOS and context - 1 tokens, windows without overlap, at most n_prompts of them drawn at
    random.
    """
    width = params.context - 1
    windows = content[: len(content) // width * width].reshape(-1, width)
    if len(windows) < 8:
        raise InputError(
            f"held-out text has {len(windows)} windows of {params.context} tokens, 8 wanted: "
            "use more text"
        )
    drawn = windows[
        STREAMS.rng("windows", params.seed).permutation(len(windows))[: params.n_prompts]
    ]
    return np.pad(drawn, ((0, 0), (1, 0)), constant_values=bos)


def _encode(tokenizer: Any, texts: list[str], bos: int, max_length: int) -> list[Row]:
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    for number, ids in enumerate(encoded):
        if not ids:
            raise InputError(
                f"text {number} of the data set, {texts[number][:40]!r}, has no token: "
                "nothing to predict"
            )
    return [np.array([bos, *ids[: max_length - 1]]) for ids in encoded]
