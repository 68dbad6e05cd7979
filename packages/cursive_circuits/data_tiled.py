"""Rows of random strokes that repeat: all the positive control learns from, and a part of what a
writer may learn from.

Row i of step n is a function of the seed, n and i alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from jaxtyping import Bool
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from cursive_circuits.data import Row, WrittenRows
from cursive_circuits.data_tokens import Vocabulary
from cursive_circuits.streams import STREAMS
from interp_core.files.params import Params
from interp_core.training.batches import IGNORED, Batch


class Tiled(Params):
    """The positive control's rows: random pairs, tiled with gaps of random length, so that no fixed
    distance leads from a copy to the one before it (without gaps the model learns the periods'
    distances, and no induction). No direction and no radius recurs but in a copy, so that one token
    finds it.

    A share of the rows has an order instead of copies: as in writing, a stroke mostly follows from
    the one before it. They teach heads to look one token back, without which copying is learned by
    relays over longer distances.
    """

    pairs: PositiveInt  # (direction, radius) pairs in a row
    period: tuple[PositiveInt, PositiveInt]  # shortest and longest segment, pairs
    gap: tuple[NonNegativeInt, NonNegativeInt]  # fewest and most random pairs before a further copy
    ordered: float = Field(ge=0, lt=1)  # share of the rows that have an order
    order: float = Field(
        ge=0, le=1
    )  # how often a direction, or a radius, is the one that follows the last; else random

    @model_validator(mode="after")
    def _repeats(self) -> "Tiled":
        if not 2 <= self.period[0] <= self.period[1] < self.pairs:
            raise ValueError(
                f"period must be two numbers in order, at least 2 and below {self.pairs} pairs"
            )
        if self.gap[0] > self.gap[1] or self.period[1] + self.gap[1] >= self.pairs:
            raise ValueError(
                f"gap must be two numbers in order that leave room for a second copy in "
                f"{self.pairs} pairs"
            )
        return self


@dataclass(frozen=True)
class TiledRows:
    """The control's training rows: a batch source without texts.

    Predicted are copies after the first, from their second token on, and rows that have an order,
    from their second pair on: all else is chance.
    """

    tokens: Vocabulary
    tiled: Tiled
    rows: int
    seed: int

    def __call__(self, step: int) -> Batch:
        """Ids and labels of a step."""
        rng = STREAMS.rng("tiled", self.seed, step)
        drawn = [
            (self._ordered if rng.random() < self.tiled.ordered else self._copies)(rng)
            for _ in range(self.rows)
        ]
        rows, known = (np.stack(part) for part in zip(*drawn, strict=True))
        return torch.from_numpy(rows), torch.from_numpy(np.where(known, rows, IGNORED))

    def inputs(self, _step: int) -> dict[str, Tensor]:
        """None."""
        return {}

    def _copies(self, rng: np.random.Generator) -> tuple[Row, Bool[np.ndarray, "_"]]:
        tiled, tokens = self.tiled, self.tokens
        strokes = self._strokes(rng)

        def take(pairs: tuple[int, int]) -> Row:
            return np.array(
                list(islice(strokes, int(rng.integers(pairs[0], pairs[1] + 1)))), np.int64
            ).reshape(-1)

        segment = take(tiled.period)
        parts, copied = [segment], [np.zeros(len(segment) + 2, dtype=bool)]
        while sum(map(len, parts)) < 2 * tiled.pairs:
            gap = take(tiled.gap)
            parts += [gap, segment]
            copied += [np.zeros(len(gap), dtype=bool), np.arange(len(segment)) > 0]
        length = 2 * tiled.pairs
        return tokens.row([np.concatenate(parts)[:length]], end=False), np.concatenate(copied)[
            : length + 2
        ]

    def _strokes(self, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
        """Random pairs; a direction and a radius recurs only when all have been there."""
        kinds = self.tokens.directions, 2 * self.tokens.radii
        while True:
            for direction, radius in zip(
                *(rng.permutation(count) for count in kinds), strict=False
            ):
                yield int(direction), self.tokens.directions + int(radius)

    def _ordered(self, rng: np.random.Generator) -> tuple[Row, Bool[np.ndarray, "_"]]:
        row = np.empty((self.tiled.pairs, 2), dtype=np.int64)
        for slot, follows in enumerate(self._following):
            row[:, slot] = rng.integers(len(follows), size=len(row))
            kept = rng.random(len(row)) < self.tiled.order
            for place in np.flatnonzero(kept[1:]):
                row[place + 1, slot] = follows[row[place, slot]]
        row[:, 1] += self.tokens.directions
        return self.tokens.row([row.reshape(-1)], end=False), np.arange(2 * len(row) + 2) > 3

    @cached_property
    def _following(self) -> tuple[Row, Row]:
        """Which direction, and which radius, follows each: the same in all rows."""
        rng = STREAMS.rng("tiled_order", self.seed)
        return rng.permutation(self.tokens.directions), rng.permutation(2 * self.tokens.radii)


class Drill(Params):
    """When a writer learns from tiled rows instead of handwriting: language models too learn
    induction sooner when random sequences that repeat are in their mixture.
    """

    first: NonNegativeInt  # steps before the first handwriting
    share: float = Field(ge=0, lt=1)  # of the steps after them, spread evenly


@dataclass(frozen=True)
class DrilledRows:
    """Handwriting, and tiled rows in some steps instead."""

    written: WrittenRows
    tiled: TiledRows
    drill: Drill

    def __call__(self, step: int) -> Batch:
        """Ids and labels of a step."""
        return self._of(step)(step)

    def inputs(self, step: int) -> dict[str, Tensor]:
        """The texts of a step's rows; none for tiled ones."""
        return self._of(step).inputs(step)

    def _of(self, step: int) -> WrittenRows | TiledRows:
        first, share = self.drill.first, self.drill.share
        due = step < first or int((step + 1) * share) > int(step * share)
        return self.tiled if due else self.written
