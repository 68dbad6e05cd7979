"""The tokens of the public cursive transformer, from the definition of its data set class
(Greydanus and Wimpee 2024).

Every point of the public format is a pair (theta, r): the direction and the length of the step to
it, and its pen.

    theta   bins that begin at linspace(-pi, pi, 220)
    r       bins that begin at 0, at linspace(.0001, .06, 30) and at geomspace(.06001, .9, 120),
            in canvas heights
    ids     0-150 r with the pen down, 151-301 r with the pen up, 302-521 theta, PAD 522, END 523,
            WORD 524

A value belongs to the last bin that begins at or below it, and a decoded one is its bin's
beginning: rounding errors add up along a word. Words are joined by WORD WORD, with none before the
first. The first point of a row is a step of length 0; the first of a later word is the way from the
end of the word before, as if both words' boxes stood side by side. A stroke's end has pen 0, and
the step to the next stroke pen 1.

Inside this program ids stand in the order of `Vocabulary`; `public_ids` leads to theirs.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt

from cursive_circuits.data_bank import from_published, published
from cursive_circuits.data_tokens import Points, Vocabulary
from interp_core.errors import InputError

DIRECTIONS, RADII = 220, 151


class PublicTokens(Vocabulary):
    """The public vocabulary; its format leaves nothing to choose."""

    directions: PositiveInt = Field(default=DIRECTIONS, ge=DIRECTIONS, le=DIRECTIONS)
    radii: PositiveInt = Field(default=RADII, ge=RADII, le=RADII)

    @cached_property
    def angles(self) -> Float[np.ndarray, " direction"]:
        """Where each direction's bin begins, radians."""
        return np.linspace(-np.pi, np.pi, DIRECTIONS)

    @cached_property
    def lengths(self) -> Float[np.ndarray, " radius"]:
        """Where each radius's bin begins, canvas heights."""
        return np.concatenate(
            [[0.0], np.linspace(0.0001, 0.06, 30), np.geomspace(0.06001, 0.9, 120)]
        )

    @cached_property
    def public_ids(self) -> Int[np.ndarray, " token"]:
        """Their id of each of ours."""
        down, up = np.arange(RADII), RADII + np.arange(RADII)
        theta = 2 * RADII + np.arange(DIRECTIONS)
        special = 2 * RADII + DIRECTIONS + np.arange(3)
        return np.concatenate([theta, up, down, special])

    @property
    def opening(self) -> Int[np.ndarray, " token"]:
        """Nothing."""
        return np.array([], dtype=np.int64)

    @property
    def prompt(self) -> Int[np.ndarray, " token"]:
        """The pair that every row begins with: a step of length 0, the pen down."""
        return self._ids(np.zeros((1, 2)), np.ones(1))

    @property
    def travel(self) -> int:
        """The first pair."""
        return 2

    def encode(self, points: Points, after: Points | None = None) -> Int[np.ndarray, " token"]:
        """Tokens of one word, two for each point of the public format.

        InputError for a word without points.
        """
        if len(points) == 0:
            raise InputError("a word without points cannot be encoded")
        drawn, _ = published(points)

        steps = np.diff(drawn[:, :2], axis=0, prepend=drawn[:1, :2])
        if after is not None:
            room = (after[:, 0].max() - after[-1, 0]) + (drawn[0, 0] - drawn[:, 0].min())
            steps[0] = room, drawn[0, 1] - after[-1, 1]
        return self._ids(steps, drawn[:, 2])

    def _ids(
        self, steps: Float[np.ndarray, "step 2"], pen: Float[np.ndarray, " step"]
    ) -> Int[np.ndarray, " token"]:
        theta = np.digitize(np.arctan2(steps[:, 1], steps[:, 0]), self.angles) - 1
        radius = np.digitize(np.hypot(*steps.T), self.lengths) - 1
        return np.column_stack([theta, DIRECTIONS + RADII * (pen == 1) + radius]).reshape(-1)

    def decode(self, ids: Int[np.ndarray, " token"]) -> list[Points]:
        """Points of each word, x from its own first point, y from the first one's of the row."""
        words, height = [], 0.0
        for pairs in self._words(ids):
            drawn = self._drawn(pairs, height)
            height = drawn[-1, 1]
            points, _ = from_published(drawn)
            if len(points):
                words.append(points)
        return words

    def path(self, word: Int[np.ndarray, " token"]) -> Float[np.ndarray, "pair 3"]:
        """Where the pen stands after each pair, and whether it drew to there: not to a stroke's
        first point, and not to its end, which is where it stood.
        """
        drawn = self._drawn(word.reshape(-1, 2), 0.0)
        down = drawn[:, 2] == 1
        return np.column_stack([drawn[:, :2], down & np.append(False, down[:-1])])

    def _drawn(
        self, pairs: Int[np.ndarray, "pair 2"], height: float
    ) -> Float[np.ndarray, "pair 3"]:
        """A word's points with the public pen, from x 0 and, before its first step, this height."""
        down, length = np.divmod(pairs[:, 1] - DIRECTIONS, RADII)
        angle, length = self.angles[pairs[:, 0]], self.lengths[length]
        steps = np.column_stack([length * np.cos(angle), length * np.sin(angle)])

        # The first step of a word leads to it from the one before: of that, its height alone
        # belongs to the word.
        steps[0, 0] = 0.0
        steps[0, 1] += height
        return np.column_stack([np.cumsum(steps, axis=0), down])

    def _words(self, ids: Int[np.ndarray, " token"]) -> Sequence[Int[np.ndarray, "pair 2"]]:
        """The pairs of each word."""
        pairs = ids[: len(ids) // 2 * 2].reshape(-1, 2)
        ends = np.flatnonzero(pairs[:, 0] == self.end)
        pairs = pairs[: ends[0]] if len(ends) else pairs

        stroke = (pairs[:, 0] < DIRECTIONS) & (pairs[:, 1] >= DIRECTIONS) & (pairs[:, 1] < self.pad)
        number = np.cumsum(~stroke)
        return [pairs[stroke & (number == word)] for word in np.unique(number[stroke])]

    def owners(self, points: Points) -> Int[np.ndarray, " pair"]:
        """For each pair the number of its point; a stroke's end belongs to its last point."""
        return published(points)[1]

    def drift(self, points: Points) -> float:
        """Length of the mean displacement of the decoded word's points, canvas heights, from the
        first on.
        """
        (decoded,) = self.decode(self.encode(points))
        away = (decoded[:, :2] - decoded[0, :2]) - (points[:, :2] - points[0, :2])
        return float(np.linalg.norm(away.mean(axis=0)))
