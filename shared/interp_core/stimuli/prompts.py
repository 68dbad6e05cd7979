"""Prompts whose right answers are known: every copy operation is a pair (query, earlier occurrence,
target).

Logits at position t predict the token at t + 1. An induction head at the query attends to the token
AFTER the earlier occurrence. This arithmetic lives in `Pairs` and nowhere else.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Integer

from interp_core.errors import InputError
from interp_core.files.artifacts import array_sha256
from interp_core.given import shown, whole


def special_ids(tokenizer: Any, size: int) -> list[int]:
    """Ids below `size` that stand for no text: the tokenizer's special tokens, and added ones in a
    tag's form.

    The second are such as <file_sep> or <unused7>, which no text of a training has in this place.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    tag = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")
    marks = [i for i, token in added.items() if token.special or tag.fullmatch(token.content)]

    return sorted(i for i in {*tokenizer.all_special_ids, *marks} if i < size)


@dataclass(frozen=True)
class Vocabulary:
    """The ids that stimuli may use as content; the id that begins each prompt; the id that fills
    its end.
    """

    ids: Int[np.ndarray, " allowed"]
    bos: int
    pad: int

    @classmethod
    def of(
        cls,
        size: int,
        *,
        bos: int,
        pad: int,
        special: Sequence[int] = (),
        counts: Integer[np.ndarray, " vocabulary"] | None = None,
        excluded_share: float = 0.0,
    ) -> "Vocabulary":
        """All ids below `size` but the special ones and, where corpus counts are known, the most
        and the least frequent `excluded_share` of them (ties: the higher id counts as the rarer).
        """
        if not 0 <= excluded_share < 0.5:
            raise InputError(
                f"the excluded share of the vocabulary must lie in [0, 0.5), got {excluded_share}"
            )

        ids = np.setdiff1d(np.arange(size), [bos, pad, *special])

        if counts is not None:
            if len(counts) != size:
                raise InputError(
                    f"token counts are for {len(counts)} ids, the model's vocabulary has {size}"
                )
            excluded = round(excluded_share * len(ids))
            by_frequency = ids[np.argsort(-counts[ids].astype(np.int64), kind="stable")]
            ids = np.sort(by_frequency[excluded : len(ids) - excluded])

        return cls(ids=ids, bos=bos, pad=pad)


@dataclass(frozen=True)
class Pairs:
    """Copy operations: tokens[batch, query] == tokens[batch, earlier], and both are followed by
    `target`.

    `earlier` is the most recent earlier occurrence, at least two positions before `query`.
    """

    batch: Int[np.ndarray, " pair"]
    query: Int[np.ndarray, " pair"]
    earlier: Int[np.ndarray, " pair"]
    target: Int[np.ndarray, " pair"]

    def __len__(self) -> int:
        return len(self.query)

    @property
    def induction_key(self) -> Int[np.ndarray, " pair"]:
        """Where an induction head looks: the token after the earlier occurrence."""
        return self.earlier + 1

    @property
    def duplicate_key(self) -> Int[np.ndarray, " pair"]:
        """Where a duplicate-token head looks: the earlier occurrence itself."""
        return self.earlier

    @property
    def previous_key(self) -> Int[np.ndarray, " pair"]:
        """Where a previous-token head looks."""
        return self.query - 1

    @property
    def lag(self) -> Int[np.ndarray, " pair"]:
        """How far an induction head looks back, query minus induction key, at least 1: `A B A` has
        lag 1.
        """
        return self.query - self.induction_key


@dataclass(frozen=True)
class Prompts:
    """Token ids that begin with BOS, right-padded; `control` is the same with the antecedents
    replaced, so that the queries have no earlier occurrence and nothing can be copied.
    """

    family: str
    tokens: Int[np.ndarray, "prompt position"]
    control: Int[np.ndarray, "prompt position"]
    pairs: Pairs
    lengths: Int[np.ndarray, " prompt"]

    @property
    def sha256(self) -> str:
        """Hex hash of everything a model sees and is scored on."""
        pairs = self.pairs
        arrays = (
            self.tokens,
            self.control,
            self.lengths,
            pairs.batch,
            pairs.query,
            pairs.earlier,
            pairs.target,
        )
        return array_sha256(np.frombuffer(self.family.encode(), dtype=np.uint8), *arrays)


def repeated_tokens(
    vocabulary: Vocabulary,
    *,
    period: int,
    n_prompts: int,
    rng: np.random.Generator,
    copies: int = 2,
) -> Prompts:
    """BOS, then `copies` copies of `period` distinct random ids.

    Every copied token but the first copy's and the last position is a query; all lags are period -
    1. Control: all copies but the last are other distinct ids.

    Source: Olsson et al. 2022, In-context Learning and Induction Heads.
    """
    at_least(1, n_prompts=n_prompts)
    at_least(2, period=period, copies=copies)
    drawn = _distinct_ids(
        vocabulary, copies * period, n_prompts, rng, what=f"{copies} x period {period}"
    )
    segment = drawn[:, -period:]
    tokens = begin(vocabulary, np.tile(segment, (1, copies)))
    query = np.arange(period + 1, copies * period)
    pairs = pairs_of(
        tokens,
        batch=np.repeat(np.arange(n_prompts), len(query)),
        query=np.tile(query, n_prompts),
        distance=period,
    )

    return Prompts("repeated_tokens", tokens, begin(vocabulary, drawn), pairs, full_lengths(tokens))


def spaced_pairs(
    vocabulary: Vocabulary,
    *,
    lags: Sequence[int],
    length: int,
    n_prompts: int,
    rng: np.random.Generator,
) -> Prompts:
    """BOS, then as many disjoint blocks `A B filler A B` of one lag as fit into `length`, at a
    random offset; all other tokens are distinct. Prompt i has lag lags[i % len(lags)]. Control: the
    first A of each block is another id.

    InputError when a block of lag + 3 tokens is longer than the sequence, or there are fewer
    prompts than lags.
    """
    at_least(1, n_prompts=n_prompts, **{f"lag_values[{i}]": lag for i, lag in enumerate(lags)})

    if not lags or n_prompts < len(lags):
        raise InputError(
            f"{n_prompts} prompts cannot cover {len(lags)} lags: give at least one lag and a "
            "prompt for each"
        )

    if max(lags) + 3 > length - 1:
        raise InputError(
            f"lag {max(lags)} is longer than the sequence: BOS and a block of lag + 3 tokens need "
            "length "
            f"{max(lags) + 4}, got {length}"
        )

    tokens, control, batches, queries, distances = [], [], [], [], []

    for prompt in range(n_prompts):
        lag = lags[prompt % len(lags)]
        blocks = (length - 1) // (lag + 3)
        drawn = _distinct_ids(vocabulary, length - 1 - blocks, 1, rng, what=f"length {length}")[0]
        offset = 1 + rng.integers(0, length - blocks * (lag + 3))
        earlier = offset + (lag + 3) * np.arange(blocks)
        query = earlier + lag + 1
        repeats = np.concatenate([query, query + 1])
        row = np.full(length, vocabulary.bos)
        row[np.setdiff1d(np.arange(1, length), repeats)] = drawn[blocks:]
        row[query], row[query + 1] = row[earlier], row[earlier + 1]
        without = row.copy()
        without[earlier] = drawn[:blocks]
        tokens.append(row)
        control.append(without)
        batches.append(np.full(blocks, prompt))
        queries.append(query)
        distances.append(query - earlier)

    stacked = np.stack(tokens)
    pairs = pairs_of(
        stacked,
        batch=np.concatenate(batches),
        query=np.concatenate(queries),
        distance=np.concatenate(distances),
    )

    return Prompts("spaced_pairs", stacked, np.stack(control), pairs, full_lengths(stacked))


def shuffled_pairs(
    vocabulary: Vocabulary, *, n_pairs: int, n_prompts: int, rng: np.random.Generator
) -> Prompts:
    """BOS, then `n_pairs` pairs `A B` of distinct ids, then the same pairs in another order: each A
    is seen once before and asks for its B, at a lag that differs from pair to pair. Nothing but the
    pair itself tells the answer: what came before an A is another token than the first time.
    Control: the first A of each pair is another id.
    """
    at_least(1, n_prompts=n_prompts)
    at_least(2, n_pairs=n_pairs)
    drawn = _distinct_ids(vocabulary, 3 * n_pairs, n_prompts, rng, what=f"{n_pairs} pairs")
    first = drawn[:, : 2 * n_pairs].reshape(n_prompts, n_pairs, 2)
    order = np.stack([_shuffled(n_pairs, rng) for _ in range(n_prompts)])
    second = np.take_along_axis(first, order[:, :, None], axis=1)
    tokens = begin(vocabulary, np.concatenate([first, second], axis=1).reshape(n_prompts, -1))
    control = tokens.copy()
    control[:, 1 : 1 + 2 * n_pairs : 2] = drawn[:, 2 * n_pairs :]
    query = np.broadcast_to(1 + 2 * (n_pairs + np.arange(n_pairs)), (n_prompts, n_pairs))
    pairs = pairs_of(
        tokens,
        batch=np.repeat(np.arange(n_prompts), n_pairs),
        query=query.ravel(),
        distance=(query - (1 + 2 * order)).ravel(),
    )

    return Prompts("shuffled_pairs", tokens, control, pairs, full_lengths(tokens))


def _shuffled(n: int, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """An order in which nothing follows what it followed before."""
    while True:
        order = rng.permutation(n)
        if not (np.diff(order) == 1).any() and order[0] != 0:
            return order


def oracle(tokens: Int[np.ndarray, "prompt position"], pairs: Pairs) -> Int[np.ndarray, " pair"]:
    """What the perfect induction rule predicts at each query: the id that followed the most recent
    earlier occurrence of the query's token; -1 where there is none.
    """
    earlier = _most_recent(tokens, pairs.batch, pairs.query)
    return np.where(earlier >= 0, tokens[pairs.batch, earlier + 1], -1)


def shuffled_antecedents(
    pairs: Pairs, lengths: Int[np.ndarray, " prompt"], rng: np.random.Generator, draws: int
) -> Int[np.ndarray, "draw pair"]:
    """Wrong induction keys: for each pair the induction key of another pair of its prompt, drawn at
    random, never after the query and never the true key. A pair that has no such partner gets any
    other position from 1 (BOS is left out) to its query.
    """
    position = np.arange(int(lengths.max()))
    is_key = np.zeros((len(lengths), len(position)), dtype=bool)
    is_key[pairs.batch, pairs.induction_key] = True
    wrong = (
        (position <= pairs.query[:, None])
        & (position != pairs.induction_key[:, None])
        & (position > 0)
    )
    candidates: Bool[np.ndarray, "pair position"] = is_key[pairs.batch] & wrong
    alone = ~candidates.any(axis=1)
    candidates[alone] = wrong[alone]
    candidates_first = np.argsort(~candidates, axis=1, kind="stable")
    chosen = rng.integers(0, candidates.sum(axis=1), size=(draws, len(pairs)))

    return candidates_first[np.arange(len(pairs)), chosen]


def at_least(least: int, **given: int) -> None:
    """InputError for the first named value that is no whole number, or below `least`."""
    for name, value in given.items():
        whole(value, name, least=least)


def _distinct_ids(
    vocabulary: Vocabulary, n: int, n_prompts: int, rng: np.random.Generator, *, what: str
) -> Int[np.ndarray, "prompt n"]:
    if not isinstance(vocabulary, Vocabulary):
        raise InputError(
            f"vocabulary is a Vocabulary, such as Vocabulary.of(50257, bos=0, pad=0); got "
            f"{shown(vocabulary)}"
        )
    if not isinstance(rng, np.random.Generator):
        raise InputError(f"rng is a generator, np.random.default_rng(seed); got {shown(rng)}")
    if n > len(vocabulary.ids):
        raise InputError(
            f"vocabulary too small: {what} needs {n} distinct ids, {len(vocabulary.ids)} are "
            "allowed"
        )
    return np.stack([rng.choice(vocabulary.ids, size=n, replace=False) for _ in range(n_prompts)])


def begin(
    vocabulary: Vocabulary, content: Int[np.ndarray, "prompt content"]
) -> Int[np.ndarray, "prompt position"]:
    """BOS before each row."""
    return np.pad(content, ((0, 0), (1, 0)), constant_values=vocabulary.bos)


def full_lengths(tokens: Int[np.ndarray, "prompt position"]) -> Int[np.ndarray, " prompt"]:
    """The lengths of rows without padding."""
    return np.full(tokens.shape[0], tokens.shape[1])


def pairs_of(
    tokens: Int[np.ndarray, "prompt position"],
    *,
    batch: Int[np.ndarray, " pair"],
    query: Int[np.ndarray, " pair"],
    distance: int | Int[np.ndarray, " pair"] | None,
) -> Pairs:
    """Pairs at these queries; without a distance the earlier occurrence is looked up."""
    earlier = _most_recent(tokens, batch, query) if distance is None else query - distance
    return Pairs(batch=batch, query=query, earlier=earlier, target=tokens[batch, query + 1])


def _most_recent(
    tokens: Int[np.ndarray, "prompt position"],
    batch: Int[np.ndarray, " pair"],
    query: Int[np.ndarray, " pair"],
) -> Int[np.ndarray, " pair"]:
    """The last position before the query that holds the query's token, -1 where there is none."""
    position = np.arange(tokens.shape[1])
    same = (tokens[batch] == tokens[batch, query][:, None]) & (position < query[:, None])
    return np.where(same, position, -1).max(axis=1, initial=-1)
