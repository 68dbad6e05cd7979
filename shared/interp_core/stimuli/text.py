"""Copy operations in text: people mentioned twice, and the repeats that real text holds."""

from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from interp_core.errors import InputError
from interp_core.stimuli.names import FIRST_NAMES, LAST_NAMES, TEMPLATES
from interp_core.stimuli.prompts import Prompts, Vocabulary, at_least, begin, full_lengths, pairs_of

_REDRAWS = 500  # names and templates tried for one prompt


def names(
    tokenizer: Any,
    vocabulary: Vocabulary,
    *,
    length: int,
    n_prompts: int,
    rng: np.random.Generator,
) -> Prompts:
    """BOS and one or two sentences that mention a person twice by first and last name, at most
    `length` tokens.

    Queries lie inside the second mention, at tokens that occurred exactly once before, in the first
    mention. Control: another name of as many tokens, none of them a query, in the first mention.
    `tokenizer` maps a text to ids (a Hugging Face tokenizer, a `tokenizers.Tokenizer` or a
    function). InputError when no mention fits or none has a copy operation.
    """
    at_least(1, n_prompts=n_prompts)
    words = {name: _encode(tokenizer, f" {name}") for name in (*FIRST_NAMES, *LAST_NAMES)}
    fillers = [[_encode(tokenizer, text) for text in template] for template in TEMPLATES]
    drawn = [_one_mention(words, fillers, vocabulary, length, rng) for _ in range(n_prompts)]
    lengths = np.array([len(tokens) for tokens, _, _ in drawn])
    padded = [np.full((n_prompts, lengths.max()), vocabulary.pad) for _ in range(2)]

    for prompt, (tokens, control, _) in enumerate(drawn):
        padded[0][prompt, : len(tokens)] = tokens
        padded[1][prompt, : len(tokens)] = control

    query = [positions for _, _, positions in drawn]
    batch = np.repeat(np.arange(n_prompts), [len(positions) for positions in query])
    pairs = pairs_of(padded[0], batch=batch, query=np.concatenate(query), distance=None)

    return Prompts("names", padded[0], padded[1], pairs, lengths)


def natural_repeats(
    stream: Integer[np.ndarray, " token"],
    vocabulary: Vocabulary,
    *,
    length: int,
    n_prompts: int,
    rng: np.random.Generator,
    max_pairs: int,
) -> Prompts:
    """BOS and length - 1 tokens of real text, windows that do not overlap, in random order, those
    with a repeat.

    A query's token occurred exactly once before, at least two positions earlier, and was followed
    by the same token as now; at most `max_pairs` a prompt, drawn at random. Control: each earlier
    occurrence is an id that the window does not hold. InputError when the stream has too few
    windows with a repeat.
    """
    at_least(1, n_prompts=n_prompts, max_pairs=max_pairs)
    at_least(5, length=length)
    windows = (
        stream[: len(stream) // (length - 1) * (length - 1)]
        .astype(np.int64)
        .reshape(-1, length - 1)
    )
    tokens, control, queries = [], [], []

    for window in rng.permutation(len(windows)):
        row = begin(vocabulary, windows[None, window])[0]
        query, earlier = _natural_queries(row, vocabulary)

        if len(query) == 0:
            continue

        kept = np.sort(rng.permutation(len(query))[:max_pairs])
        absent = np.setdiff1d(vocabulary.ids, row)

        if len(absent) < len(kept):
            raise InputError(
                f"vocabulary too small: a window of {length} tokens leaves {len(absent)} ids for "
                "its control"
            )

        without = row.copy()
        without[earlier[kept]] = rng.choice(absent, size=len(kept), replace=False)
        tokens.append(row)
        control.append(without)
        queries.append(query[kept])

        if len(tokens) == n_prompts:
            break

    if len(tokens) < n_prompts:
        raise InputError(
            f"the text has only {len(tokens)} windows of {length} tokens with a natural repeat, "
            f"{n_prompts} wanted: use fewer prompts, shorter ones, or more text"
        )

    stacked = np.stack(tokens)
    batch = np.repeat(np.arange(n_prompts), [len(query) for query in queries])
    pairs = pairs_of(stacked, batch=batch, query=np.concatenate(queries), distance=None)

    return Prompts("natural_repeats", stacked, np.stack(control), pairs, full_lengths(stacked))


def _natural_queries(
    row: Int[np.ndarray, " position"], vocabulary: Vocabulary
) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]]:
    """Queries of one window and their only earlier occurrences."""
    before = np.tril(row[:, None] == row[None, :], k=-1)  # [query, earlier]
    query = np.flatnonzero(before[:-1].sum(axis=1) == 1)
    earlier = before[query].argmax(axis=1)
    special = np.isin(row, [vocabulary.bos, vocabulary.pad])
    wanted = (
        (row[query + 1] == row[earlier + 1])
        & (query > earlier + 1)
        & ~special[query]
        & ~special[query + 1]
    )

    return query[wanted], earlier[wanted]


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text without special tokens, whatever kind of tokenizer it is."""
    encode = getattr(tokenizer, "encode", None)
    encoded = encode(text, add_special_tokens=False) if encode is not None else tokenizer(text)
    return list(getattr(encoded, "ids", encoded))


def _one_mention(
    words: dict[str, list[int]],
    fillers: list[list[list[int]]],
    vocabulary: Vocabulary,
    length: int,
    rng: np.random.Generator,
) -> tuple[Int[np.ndarray, " position"], Int[np.ndarray, " position"], Int[np.ndarray, " pair"]]:
    """Tokens, control and queries of one prompt; names and templates are drawn until the prompt has
    a query.
    """
    for _ in range(_REDRAWS):
        name, other = (_draw_name(words, rng) for _ in range(2))
        before, between, after = fillers[rng.integers(len(fillers))]
        first = 1 + len(before)
        second = first + len(name) + len(between)
        tokens = np.array([vocabulary.bos, *before, *name, *between, *name, *after])

        if len(tokens) > length or len(other) != len(name):
            continue

        inside = np.arange(second, second + len(name) - 1)
        once = np.array(
            [np.count_nonzero(tokens[:query] == tokens[query]) == 1 for query in inside], dtype=bool
        )
        queries = inside[once & ~np.isin(tokens[inside], other)]

        if len(queries):
            control = tokens.copy()
            control[first : first + len(name)] = other
            return tokens, control, queries

    raise InputError(
        "no repeated name of at least two tokens, with another of as many tokens as its control, "
        "fits into "
        f"{length} tokens: use longer prompts or a tokenizer with longer tokens"
    )


def _draw_name(words: dict[str, list[int]], rng: np.random.Generator) -> list[int]:
    first, last = (
        FIRST_NAMES[rng.integers(len(FIRST_NAMES))],
        LAST_NAMES[rng.integers(len(LAST_NAMES))],
    )
    return [*words[first], *words[last]]


def repeated_text(
    vocabulary: Vocabulary,
    stream: Integer[np.ndarray, " position"],
    *,
    period: int,
    n_prompts: int,
    rng: np.random.Generator,
) -> Prompts:
    """BOS, then a piece of `period` tokens of real text, twice.

    Queries are the tokens of the second copy whose most recent earlier occurrence is the one in the
    first copy, so that what followed it is the answer; pieces without any are drawn anew. Control:
    the first copy is distinct ids that the piece does not hold.

    InputError when the text is too short, or too monotonous to give such pieces.
    """
    at_least(1, n_prompts=n_prompts)
    at_least(2, period=period)

    if len(stream) < period + 1:
        raise InputError(
            f"repeated text of period {period} needs more than {len(stream)} tokens of text"
        )

    rows: list[np.ndarray] = []
    queries: list[np.ndarray] = []

    for _ in range(100 * n_prompts):
        start = int(rng.integers(len(stream) - period + 1))
        row = np.tile(stream[start : start + period].astype(np.int64), 2)
        query = np.array(
            [t for t in range(period, 2 * period - 1) if row[t] not in row[t - period + 1 : t]],
            dtype=int,
        )

        if len(query):
            rows.append(row)
            queries.append(query + 1)  # BOS comes before

        if len(rows) == n_prompts:
            break
    else:
        raise InputError(
            f"the text has too few pieces of {period} tokens with a unique continuation"
        )

    tokens = begin(vocabulary, np.stack(rows))
    control = tokens.copy()

    for row in control:
        others = np.setdiff1d(vocabulary.ids, row)
        if len(others) < period:
            raise InputError(
                f"vocabulary too small: a control of {period} tokens needs as many ids that the "
                "text lacks"
            )
        row[1 : period + 1] = rng.choice(others, size=period, replace=False)

    batch = np.repeat(np.arange(n_prompts), [len(query) for query in queries])
    pairs = pairs_of(tokens, batch=batch, query=np.concatenate(queries), distance=period)

    return Prompts("repeated_text", tokens, control, pairs, full_lengths(tokens))
