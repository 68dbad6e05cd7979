"""What is taken of a bank of somebody's own: its words that fit, with as many points as a model
needs.

The public bank has a point every few milliseconds, about 600 tokens a word. Its authors leave out
65 % of each stroke's points and lean every word before they train, so a public checkpoint has seen
no other ink.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int
from pydantic import Field

from cursive_circuits.data_bank import Item, outside
from cursive_circuits.data_tokens import Points, Vocabulary
from interp_core.errors import InputError
from interp_core.files.params import Params


class Published(Params):
    """What is done with every word of a bank of somebody's own."""

    dropped: float = Field(ge=0, lt=1)  # share of each stroke's points; 0.65 in the public training
    # x goes by it with y, canvas heights a canvas height; -0.2 in the middle of the public training
    slant: float


@dataclass(frozen=True)
class Taken:
    """The words that are taken, and why others are not."""

    items: list[Item]
    read: int  # words in the file
    beyond: int  # words whose repetition is longer than the context
    long: int  # words whose repetition has more characters than a text
    unknown: Counter[str]  # characters outside the alphabet, and in how many words each stands
    spelt: int  # words left out for them

    @property
    def report(self) -> dict[str, Any]:
        """What was left out, in numbers."""
        return {
            "read": self.read,
            "beyond_context": self.beyond,
            "beyond_text": self.long,
            "outside_alphabet": self.spelt,
            "unknown": dict(sorted(self.unknown.items())),
        }

    @property
    def told(self) -> list[str]:
        """What was left out, in lines, each with the key that mends it."""
        lines = []
        if self.spelt:
            listed = ", ".join(
                f"{character!r} in {count}" for character, count in sorted(self.unknown.items())
            )
            lines.append(
                f"{self.spelt:,} of {self.read:,} words are left out for characters outside the "
                f"alphabet ({listed}): "
                "`bank.alphabet` takes them in"
            )
        if self.beyond:
            lines.append(
                f"{self.beyond:,} of {self.read:,} words are left out, twice their tokens are "
                "beyond the context: the "
                "configuration's `context` or `bank.published.dropped` takes them in"
            )
        if self.long:
            lines.append(
                f"{self.long:,} of {self.read:,} words are left out, twice their letters are "
                "beyond the longest text: the configuration's `characters` takes them in"
            )
        return lines


def take(
    items: Sequence[Item],
    *,
    alphabet: str,
    tokens: Vocabulary,
    context: int,
    characters: int,
    published: Published,
    name: str,
) -> Taken:
    """The words of a bank that a model of this alphabet, context and longest text can see twice,
    thinned and leaning.

    InputError when none is left.
    """
    known = [item for item in items if set(item.text) <= set(alphabet)]
    unknown = outside(items, alphabet)

    ready = [_leaning(thinned(item, published.dropped), published.slant) for item in known]
    readable = [item for item in ready if _is_read_twice(item, characters)]
    kept = fitting(readable, tokens, context, characters)

    taken = Taken(
        items=kept,
        read=len(items),
        beyond=len(readable) - len(kept),
        long=len(ready) - len(readable),
        unknown=unknown,
        spelt=len(items) - len(known),
    )
    if not kept:
        raise InputError(f"{name}: no word is left: {'; '.join(taken.told)}")
    return taken


def fitting(items: Iterable[Item], tokens: Vocabulary, context: int, characters: int) -> list[Item]:
    """The words that fit twice, with the tokens around them into a context, and with the space
    between them into a text.
    """
    return [
        item
        for item in items
        if 2 * len(tokens.encode(item.points)) + 5 <= context and _is_read_twice(item, characters)
    ]


def _is_read_twice(item: Item, characters: int) -> bool:
    """Whether a text of so many characters holds the word twice, or it and any other such word."""
    return 2 * len(item.text) + 1 <= characters


def thinned(item: Item, dropped: float) -> Item:
    """The word with that share of each stroke's points left out, evenly, its ends kept.

    A stroke of one point becomes one of two equal ones, as in the public training.
    """
    if dropped == 0:
        return item
    kept = np.concatenate([stroke[_even(len(stroke), dropped)] for stroke in _strokes(item.points)])

    # A point that is there twice is drawn the second time.
    points = item.points[kept]
    points[1:, 2][kept[1:] == kept[:-1]] = 1.0
    letters = None if item.letters is None else tuple(item.letters[place] for place in kept)
    return replace(item, points=points, letters=letters)


def _strokes(points: Points) -> list[Int[np.ndarray, "_"]]:
    """Numbers of the points of each stroke."""
    begins = np.flatnonzero(points[1:, 2] == 0) + 1
    return np.split(np.arange(len(points)), begins)


def _even(length: int, dropped: float) -> Int[np.ndarray, "_"]:
    """Places that are kept of a stroke: at least both ends."""
    left = max(2, int(length * (1 - dropped)))
    return np.linspace(0, length - 1, left, dtype=np.int64)


def _leaning(item: Item, slant: float) -> Item:
    points = item.points.copy()
    points[:, 0] += slant * points[:, 1]
    return replace(item, points=points)
