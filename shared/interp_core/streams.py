"""Named random streams: the one place where a generator is made.

Who draws has a table of purposes, `streams.py`: a study one, a room of the core one. The generator
of a purpose is NumPy's, from a seed of the parameters and the key of the purpose. So one draw more
leaves all others as they are, and none takes the numbers of another without saying so.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

# NumPy fills up to so many numbers with zeros: [3], [3, 0] and [3, 0, 0, 0] are one generator.
FILLED = 4
PRINTABLE = 32  # the least byte of a word

Range = tuple[int, int | None]  # least and greatest; None: without an end


@dataclass(frozen=True)
class Stream:
    """What follows the seed: a key, then numbers, and a word, that differ from draw to draw."""

    key: int | bytes | tuple[int, ...] = ()
    then: Mapping[str, int] = field(default_factory=dict)  # the least that each number can be
    word: str = ""  # what the word says, where there is one; its bytes come last
    shares: tuple[str, ...] = ()  # purposes that can have the same numbers, on purpose

    @property
    def numbers(self) -> tuple[int, ...]:
        """The key as numbers: those of a word are its bytes."""
        return (self.key,) if isinstance(self.key, int) else tuple(self.key)

    def after(self, *parts: int | str) -> list[int]:
        """All that follows the seed in one draw.

        ValueError for other parts than were declared.
        """
        counted = [part for part in parts if not isinstance(part, str)]
        words = [part for part in parts if isinstance(part, str)]

        numbered = len(counted) == len(self.then) and all(
            part >= least for part, least in zip(counted, self.then.values(), strict=True)
        )
        spelt = len(words) == bool(self.word) and all(word and word.isprintable() for word in words)

        if not (numbered and spelt and list(parts) == [*counted, *words]):
            wanted = ", ".join([*self.then, *([self.word] if self.word else [])]) or "nothing"
            raise ValueError(f"a draw of this stream is told {wanted}; got {list(parts)}")

        return [*self.numbers, *counted, *(byte for word in words for byte in word.encode())]

    def shapes(self, longest: int) -> Iterator[list[Range]]:
        """What can follow the seed, number by number; a word of each length up to `longest`."""
        begins: list[Range] = [(number, number) for number in self.numbers]
        begins += [(least, None) for least in self.then.values()]
        lengths = range(1, longest + 1) if self.word else range(1)

        for length in lengths:
            shape = [*begins, *[(PRINTABLE, None)] * length]
            # The seed is the first of the numbers that are filled up.
            yield shape + [(0, 0)] * (FILLED - 1 - len(shape))


class Streams:
    """The streams of a study, or of a room of the core, by purpose.

    ValueError where two purposes can have the same numbers and neither says so (`shares`), and
    where one says so without need. Seeds are taken as equal, and as one number each: one beyond
    2^32 is two to NumPy, which leaves less to be filled up and keeps no two streams closer.
    """

    def __init__(self, by_purpose: Mapping[str, Stream]) -> None:
        self.by_purpose = dict(by_purpose)

        for stream in self.by_purpose.values():
            if unknown := set(stream.shares) - set(self.by_purpose):
                raise ValueError(f"no stream has the name {min(unknown)}")

        for (name, one), (other_name, other) in combinations(self.by_purpose.items(), 2):
            said = other_name in one.shares or name in other.shares
            both = f"the streams {name} and {other_name}"

            if meet(one, other) and not said:
                raise ValueError(f"{both} can have the same numbers: take another key for one")
            if said and not meet(one, other):
                raise ValueError(f"{both} never have the same numbers: leave out `shares`")

    def rng(self, purpose: str, seed: int, *parts: int | str) -> np.random.Generator:
        """The generator of a purpose. KeyError for one that is not declared."""
        return np.random.default_rng([seed, *self.by_purpose[purpose].after(*parts)])


def meet(one: Stream, other: Stream) -> bool:
    """Whether two streams can have the same numbers, given the same seed."""
    longest = max(FILLED, *(len(stream.numbers) + len(stream.then) for stream in (one, other))) + 1
    return any(
        len(mine) == len(theirs) and all(map(_overlap, mine, theirs))
        for mine in one.shapes(longest)
        for theirs in other.shapes(longest)
    )


def _overlap(one: Range, other: Range) -> bool:
    """Whether two ranges have a number in common."""
    least = max(one[0], other[0])
    return all(most is None or least <= most for _, most in (one, other))
