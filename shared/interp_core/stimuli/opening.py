"""What every prompt begins with: a token of the tokenizer, one that the user names, or nothing.

Families of prompts are built with a place for it. Where a model never saw one (many with ALiBi
positions), the place is taken out again.
"""

from typing import Any

import numpy as np
from jaxtyping import Int

from interp_core.errors import InputError
from interp_core.stimuli.prompts import Pairs, Prompts

OWN, NOTHING = "own", "none"
NO_BOS = -1  # holds the place, and is no id: a model that is given it refuses


def opening(name: str, tokenizer: Any, config: Any, size: int, *, asked: str | int = OWN) -> int:
    """The id that begins a model's prompts; NO_BOS for none.

    `asked` is OWN, NOTHING, an id, or a token. InputError, with the way out, for a model that names
    no token that begins a text: no id is taken for it.
    """
    if asked == NOTHING:
        return NO_BOS
    if asked != OWN:
        return _id_of(name, tokenizer, size, str(asked))

    # A text that has no token for its begin may begin where another ended.
    places = (
        (tokenizer, "bos_token_id"),
        (config, "bos_token_id"),
        (config, "eos_token_id"),
    )
    for place, key in places:
        found = getattr(place, key, None)
        if isinstance(found, list):
            found = found[0] if found else None
        if found is not None:
            return int(found)

    raise InputError(
        f"{name} names no token that begins a text: say what prompts begin with (--bos, or bos= in "
        "Python): an id, a token, or `none`"
    )


def check_begun(asked: str | int) -> None:
    """InputError where a study's prompts need a first token and none is wanted."""
    if asked == NOTHING:
        raise InputError(
            "--bos none: prompts of this study begin with a token, which its intervals leave out; "
            "give a token or its id"
        )


def without_opening(prompts: Prompts) -> Prompts:
    """The prompts without their first place: every position is one less."""
    pairs = prompts.pairs
    if np.any(pairs.earlier < 1):
        raise InputError(f"{prompts.family}: a copy operation reads what prompts begin with")

    moved = Pairs(pairs.batch, pairs.query - 1, pairs.earlier - 1, pairs.target)
    return Prompts(
        prompts.family, prompts.tokens[:, 1:], prompts.control[:, 1:], moved, prompts.lengths - 1
    )


def begun(windows: Int[np.ndarray, "row content"], bos: int) -> Int[np.ndarray, "row position"]:
    """Rows of text behind what begins them, if anything."""
    return windows if bos == NO_BOS else np.pad(windows, ((0, 0), (1, 0)), constant_values=bos)


def padding(bos: int, special: list[int]) -> int:
    """The id that fills the ends of short prompts: nothing looks at it."""
    return bos if bos != NO_BOS else next(iter(special), 0)


def _id_of(name: str, tokenizer: Any, size: int, asked: str) -> int:
    if asked.isdigit():
        found = int(asked)
    else:
        vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
        if asked not in vocabulary:
            raise InputError(
                f"{name}: {asked!r} is no token of its tokenizer: give --bos a token, its id, or "
                "`none`"
            )
        found = vocabulary[asked]

    if found >= size:
        raise InputError(f"{name}: id {found} is outside its vocabulary of {size} (--bos)")
    return found
