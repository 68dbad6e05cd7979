"""Texts as a page shows them: tokens as words, what is copied in them, and a control without it."""

from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from interp_core.errors import InputError
from interp_core.models.subject import Subject
from interp_core.page.streams import STREAMS
from interp_core.stimuli.opening import NO_BOS, begun
from interp_core.stimuli.prompts import Pairs, Prompts, pairs_of

DEFAULT = (
    "The harbour of Velmora lies below the lighthouse. Doctor Quillfeather came to the harbour of"
    " Velmora in spring. In autumn Doctor Quillfeather left the harbour of Velmora again."
)

LONGEST = 128  # tokens of a user's text: more names do not fit on an axis
WINDOW = 40  # tokens of held-out text: its axes are read without scrolling
WINDOWS = 400  # looked through for one that repeats something
ENOUGH = 8  # copied tokens; the fullest windows are rulers of dashes, not text


@dataclass(frozen=True)
class Shown:
    """One text and its control, which differs only where what is copied stood before."""

    title: str
    ids: Int[np.ndarray, " position"]
    control: Int[np.ndarray, " position"]
    pairs: Pairs


def shown(subject: Subject, text: str, *, longest: int, title: str, seed: int) -> Shown:
    """A user's text. One that repeats nothing is shown twice in a row, and its title says so.

    InputError for a model without tokenizer, and for a text that is empty or longer than `longest`
    tokens.
    """
    if subject.tokenizer is None:
        raise InputError(
            f"{subject.name} has no tokenizer: a page of a text needs one beside its weights"
        )

    ids = np.array(subject.tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)

    if not len(ids):
        raise InputError("--text is empty: give the words to show")

    (row,) = begun(ids[None], subject.bos)
    first = first_of_text(subject)
    pairs = copy_operations(row, first=first)

    if not len(pairs):
        row = np.concatenate([row, ids])
        title = f"{title} (it repeats nothing, so it is shown twice)"
        pairs = copy_operations(row, first=first)

    longest = min(longest, subject.n_ctx)

    if len(row) > longest:
        raise InputError(
            f"--text has {len(row)} tokens with BOS and repeat, at most {longest} are shown: "
            "shorten it"
        )

    if not len(pairs):
        raise InputError(
            "--text is too short to repeat anything: give at least two different words"
        )

    return Shown(title, row, without_antecedents(subject, row, pairs, seed=seed), pairs)


def held_out_text(subject: Subject, stream: Integer[np.ndarray, " token"], *, seed: int) -> Shown:
    """The first window of real text that copies enough from itself, else the fullest one."""
    ids = stream[: WINDOWS * WINDOW].astype(np.int64)
    windows = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
    rows, first = begun(windows, subject.bos), first_of_text(subject)

    copied = np.array([len(copy_operations(row, first=first)) for row in rows])
    chosen = int((copied >= ENOUGH).argmax()) if (copied >= ENOUGH).any() else int(copied.argmax())
    row, pairs = rows[chosen], copy_operations(rows[chosen], first=first)

    return Shown("held-out text", row, without_antecedents(subject, row, pairs, seed=seed), pairs)


def first_prompt(prompts: Prompts, title: str) -> Shown:
    """The first of a family's prompts, with the control that the study has for it."""
    mine = prompts.pairs.batch == 0
    every = prompts.pairs
    pairs = Pairs(*(part[mine] for part in (every.batch, every.query, every.earlier, every.target)))

    return Shown(title, prompts.tokens[0], prompts.control[0], pairs)


def first_of_text(subject: Subject) -> int:
    """The first place of a row that is text, behind what begins it."""
    return 0 if subject.bos == NO_BOS else 1


def copy_operations(row: Int[np.ndarray, " position"], *, first: int = 1) -> Pairs:
    """Every place whose token stood at least two places before, the same token after it.

    `first` is the first place of text.
    """
    query = np.arange(first, len(row) - 1)
    pairs = pairs_of(row[None], batch=np.zeros_like(query), query=query, distance=None)

    known = (pairs.earlier >= first) & (pairs.earlier + 1 < pairs.query)
    copied = known & (row[np.maximum(pairs.earlier, 0) + 1] == pairs.target)
    return Pairs(
        *(part[copied] for part in (pairs.batch, pairs.query, pairs.earlier, pairs.target))
    )


def without_antecedents(
    subject: Subject, row: Int[np.ndarray, " position"], pairs: Pairs, *, seed: int
) -> Int[np.ndarray, " position"]:
    """The row with every token that a query repeats replaced, all but at the queries themselves.

    A text may say a word three times: then its second place is antecedent and query. It is replaced
    too, so that nothing is left to copy.
    """
    tokenizer = subject.tokenizer
    size = subject.vocab_size if tokenizer is None else min(len(tokenizer), subject.vocab_size)
    special = [] if tokenizer is None else tokenizer.all_special_ids

    absent = np.setdiff1d(np.arange(size), [*row, subject.bos, *special])
    places = np.unique(pairs.earlier)
    shuffled = STREAMS.rng("absent_words", seed).permutation(absent)

    # Words rather than halves of characters, which nobody can read on an axis.
    readable = (
        token for token in shuffled if words(subject, np.array([token]))[0].strip(" ").isalnum()
    )
    drawn = list(islice(readable, len(places)))

    if len(drawn) < len(places):
        raise InputError(
            f"{subject.name}: its vocabulary leaves no {len(places)} other words for a control: "
            "shorten the text"
        )

    control = row.copy()
    control[places] = drawn
    return control


def words(subject: Subject, ids: Int[np.ndarray, " position"]) -> list[str]:
    """Tokens as text, a space kept visible by the page; ids where the model has no tokenizer."""
    tokenizer: Any = subject.tokenizer

    if tokenizer is None:
        return [str(int(token)) for token in ids]

    return [tokenizer.decode([int(token)]) for token in ids]
