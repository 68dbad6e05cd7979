"""Pen strokes as tokens: each pen point is a direction, then a radius with the state of the pen.

A row is WORD WORD, the pairs of a word, WORD WORD, the pairs of the next, END: directions stand at
even positions and radii at odd ones. Steps are quantised from where the decoder's pen stands, not
from where the hand's did, so rounding errors do not add up.
"""

import math
from bisect import bisect
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from pydantic import PositiveFloat, PositiveInt, model_validator

from interp_core.errors import InputError
from interp_core.files.params import Params

Points = Float[
    np.ndarray, "_ 3"
]  # x, y in canvas heights, y down; pen: 1 draws to this point, 0 moves there


class Vocabulary(Params):
    """Ids of directions, of radii with the pen up, of radii with the pen down, then PAD, END, WORD:
    what tokens are, whatever the lengths and angles of their bins.
    """

    directions: PositiveInt  # bins of the full circle
    radii: PositiveInt  # bins of the length of a step, for each state of the pen

    @property
    def pad(self) -> int:
        """Fills rows; never predicted."""
        return self.directions + 2 * self.radii

    @property
    def end(self) -> int:
        """After the last word."""
        return self.pad + 1

    @property
    def word(self) -> int:
        """Twice between words."""
        return self.pad + 2

    @property
    def size(self) -> int:
        """Ids in the vocabulary."""
        return self.pad + 3

    @property
    def opening(self) -> Int[np.ndarray, " token"]:
        """What stands before the first word of a row."""
        raise NotImplementedError

    @property
    def prompt(self) -> Int[np.ndarray, " token"]:
        """What a row begins with whose first word is still to be written."""
        raise NotImplementedError

    @property
    def travel(self) -> int:
        """Tokens at a word's beginning that hold the way to it from the word before, so that two
        copies of the same strokes differ in them.
        """
        raise NotImplementedError

    def encode(self, points: Points, after: Points | None = None) -> Int[np.ndarray, " token"]:
        """Tokens of one word, written first or after another."""
        raise NotImplementedError

    def decode(self, ids: Int[np.ndarray, " token"]) -> list[Points]:
        """Points of each word of a row.

        A pair that is no direction and radius ends its word, END the row.
        """
        raise NotImplementedError

    def path(self, word: Int[np.ndarray, " token"]) -> Float[np.ndarray, "pair 3"]:
        """Where the pen stands after each pair of a word's tokens, and whether it drew to there."""
        raise NotImplementedError

    def owners(self, points: Points) -> Int[np.ndarray, " pair"]:
        """For each pair of a word's tokens the number of the point that it leads to."""
        raise NotImplementedError

    def drift(self, points: Points) -> float:
        """How far the decoded word as a whole lies from the hand's, canvas heights: length of the
        mean displacement of its points. It grows with the length of the word where rounding errors
        add up, and stays where they do not.
        """
        raise NotImplementedError

    def first_word(self, ids: Int[np.ndarray, " token"]) -> Points:
        """Points of a row's first word; none where it has none."""
        words = self.decode(ids)
        return words[0] if words else np.empty((0, 3))

    def row(
        self, words: Sequence[Int[np.ndarray, "_"]], *, end: bool = True
    ) -> Int[np.ndarray, " token"]:
        """A row of encoded words."""
        between = np.array([self.word, self.word])
        parts = [self.opening, words[0]]
        for word in words[1:]:
            parts += [between, word]
        return np.concatenate([*parts, [self.end]] if end else parts).astype(np.int64)

    def stack(self, rows: Sequence[Int[np.ndarray, "_"]]) -> Int[np.ndarray, "row position"]:
        """Rows padded at their ends to the longest."""
        longest = max(len(row) for row in rows)
        return np.stack(
            [np.pad(row, (0, longest - len(row)), constant_values=self.pad) for row in rows]
        )


class Tokens(Vocabulary):
    """The study's own bins: a geometric ladder of radii, and steps from where the decoder's pen
    stands.
    """

    smallest_radius: PositiveFloat  # of the first bin, canvas heights
    largest_radius: PositiveFloat  # of the last bin, canvas heights; longer steps become several
    origin: tuple[float, float]  # where the pen stands before a word, canvas heights

    @model_validator(mode="after")
    def _increasing(self) -> "Tokens":
        if self.smallest_radius >= self.largest_radius:
            raise ValueError("smallest_radius must be below largest_radius")
        return self

    @property
    def opening(self) -> Int[np.ndarray, " token"]:
        """WORD WORD."""
        return np.array([self.word, self.word])

    @property
    def prompt(self) -> Int[np.ndarray, " token"]:
        """WORD WORD."""
        return self.opening

    @property
    def travel(self) -> int:
        """None: every word begins at the origin."""
        return 0

    @cached_property
    def lengths(self) -> Float[np.ndarray, " radius"]:
        """Radius of each bin: a geometric ladder, so that relative errors are equal."""
        return np.geomspace(self.smallest_radius, self.largest_radius, self.radii)

    @cached_property
    def middles(self) -> list[float]:
        """Where one bin's lengths end and the next one's begin."""
        return np.sqrt(self.lengths[1:] * self.lengths[:-1]).tolist()

    def encode(self, points: Points, after: Points | None = None) -> Int[np.ndarray, " token"]:
        """Tokens of one word, two a step; the same after any other word.

        A step longer than largest_radius is cut into equal ones.

        InputError for a word without points.
        """
        pairs = [(direction, radius) for direction, radius, _, _ in self.steps(points)]
        return np.array(pairs, dtype=np.int64).reshape(-1)

    def drift(self, points: Points) -> float:
        """How far the decoded word as a whole lies from the hand's, canvas heights: length of the
        mean displacement of its points. It grows with the length of the word where rounding errors
        add up, and stays where they do not.
        """
        reached = np.array([at for _, _, at, last in self.steps(points) if last])
        return float(np.linalg.norm((reached - points[:, :2]).mean(axis=0)))

    def path(self, word: Int[np.ndarray, " token"]) -> Float[np.ndarray, "pair 3"]:
        """The word's points: each pair is one."""
        return self.first_word(word)

    def owners(self, points: Points) -> Int[np.ndarray, " pair"]:
        """For each pair the number of its point; those of a step that was cut belong to the point
        where it ends.
        """
        ends = [last for _, _, _, last in self.steps(points)]
        return np.concatenate([[0], np.cumsum(ends)[:-1]])

    def steps(self, points: Points) -> Iterator[tuple[int, int, tuple[float, float], bool]]:
        """Direction id, radius id, where the decoder's pen then stands, and whether that ends a
        point's (cut) step.
        """
        if len(points) == 0:
            raise InputError("a word without points cannot be encoded")
        x, y = self.origin
        turn, lengths = 2 * math.pi / self.directions, self.lengths.tolist()
        for to_x, to_y, pen in points.tolist():
            steps = max(1, math.ceil(math.hypot(to_x - x, to_y - y) / self.largest_radius - 1e-9))
            for left in range(steps, 0, -1):
                dx, dy = (to_x - x) / left, (to_y - y) / left
                direction = round(math.atan2(dy, dx) / turn) % self.directions
                radius = bisect(self.middles, math.hypot(dx, dy))
                x += lengths[radius] * math.cos(direction * turn)
                y += lengths[radius] * math.sin(direction * turn)
                yield (
                    direction,
                    self.directions + (self.radii if pen else 0) + radius,
                    (x, y),
                    left == 1,
                )

    def decode(self, ids: Int[np.ndarray, " token"]) -> list[Points]:
        """Points of each word of a row.

        A pair that is no direction and radius ends its word, END the row.
        """
        words: list[list[tuple[float, float, float]]] = []
        x, y = self.origin
        for direction, radius in zip(ids[::2].tolist(), ids[1::2].tolist(), strict=False):
            if direction == self.end:
                break
            if direction >= self.directions or not self.directions <= radius < self.pad:
                words.append([])
                x, y = self.origin
                continue
            pen, length = divmod(radius - self.directions, self.radii)
            x += float(self.lengths[length]) * math.cos(direction * 2 * math.pi / self.directions)
            y += float(self.lengths[length]) * math.sin(direction * 2 * math.pi / self.directions)
            if not words:
                words.append([])
            words[-1].append((x, y, pen))
        return [np.array(word, dtype=np.float64).reshape(-1, 3) for word in words if word]
