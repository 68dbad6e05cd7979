"""What the Mamba and its transformer twin read: segments shown about twice, pairs asked for once,
and text.

A Mamba learns induction from other data than a transformer: tilings of many copies train the third
copy, not the second, and without reshuffled pairs it copies runs and not single pairs. The period
grows with training: long memory is learned from short.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt
from pydantic import Field, PositiveInt, model_validator

from interp_core.files.params import Params
from interp_core.training.batches import IGNORED, Batch
from interp_core.training.streams import STREAMS


class RecallMixture(Params):
    """A batch: rows of one length, of four kinds; its period is drawn for the whole batch."""

    rows: PositiveInt  # sequences in the global batch
    repeated_random: float = Field(
        ge=0, le=1
    )  # share of rows: distinct random ids, tiled or in pairs
    shuffled_pairs: float = Field(
        ge=0, le=1
    )  # share of these: pairs, then the same pairs in another order
    repeated_text: float = Field(
        ge=0, le=1
    )  # share of rows: a piece of text, tiled; the rest are plain text
    shortest_period: int = Field(
        ge=4
    )  # tokens in the tiled segment, drawn evenly up to the curriculum's longest
    longest_period: int = Field(ge=4)
    growth: float = Field(
        gt=0, le=1
    )  # share of the training over which the longest period grows to longest_period
    copies: float = Field(ge=2)  # periods in a row
    begin: float = Field(ge=0, le=1)  # chance that a row begins with BOS, as every stimulus does

    @model_validator(mode="after")
    def _fits(self) -> "RecallMixture":
        if self.repeated_random + self.repeated_text > 1:
            raise ValueError("repeated_random and repeated_text together are more than all rows")
        if self.shortest_period > self.longest_period:
            raise ValueError("needs shortest_period <= longest_period")
        return self

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return self.length_of(self.longest_period)

    def length_of(self, period: int) -> int:
        """Tokens of a row with this period: BOS, the copies, and one more."""
        return round(self.copies * period) + 2


@dataclass(frozen=True)
class RecallSource:
    """Batches of the mixture; the batch of a step depends on (seed, step) alone."""

    mixture: RecallMixture
    steps: int  # of the whole training
    stream: UInt[np.ndarray, " position"]  # training text as token ids
    content: Int[np.ndarray, " id"]  # ids that random segments are drawn from
    bos: int
    seed: int

    def __call__(self, step: int) -> Batch:
        """Input ids and labels: tiled segments count from the second copy's second token on, pairs
        at the B of the second copy.
        """
        mixture = self.mixture
        rng = STREAMS.rng("batch", self.seed, step)
        period = int(rng.integers(mixture.shortest_period, self.longest(step) + 1))
        length = mixture.length_of(period)
        random_rows = round(mixture.repeated_random * mixture.rows)
        pair_rows = round(mixture.shuffled_pairs * random_rows)
        repeated_rows = random_rows + round(mixture.repeated_text * mixture.rows)
        ids = np.full((mixture.rows, length), self.bos, dtype=np.int64)
        labels = np.full((mixture.rows, length), IGNORED, dtype=np.int64)
        for row in range(mixture.rows):
            start = int(rng.random() < mixture.begin)
            if row < pair_rows:
                content, counted = self._pairs(period, length - start, rng)
            elif row < repeated_rows:
                content = np.resize(
                    self._segment(period, rng, text=row >= random_rows), length - start
                )
                counted = np.arange(length - start) > period  # a copy's first token cannot be known
            else:
                content, counted = (
                    self._segment(length - start, rng, text=True),
                    np.ones(length - start, dtype=bool),
                )
            ids[row, start:] = content
            labels[row, start:][counted] = content[counted]
        return torch.from_numpy(ids), torch.from_numpy(labels)

    def longest(self, step: int) -> int:
        """The curriculum's longest period at a step."""
        share = min(1.0, step / (self.mixture.growth * self.steps))
        return round(
            self.mixture.shortest_period
            + share * (self.mixture.longest_period - self.mixture.shortest_period)
        )

    def _segment(self, length: int, rng: np.random.Generator, *, text: bool) -> np.ndarray:
        if not text:
            return rng.permutation(self.content)[:length]
        offset = int(rng.integers(len(self.stream) - length + 1))
        return self.stream[offset : offset + length].astype(np.int64)

    def _pairs(
        self, period: int, length: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pairs, the same in another order, and so on; what counts is every B after its pair was
        shown once.
        """
        n = period // 2
        pairs = rng.permutation(self.content)[: 2 * n].reshape(n, 2)
        copies = -(-length // (2 * n))
        content = np.concatenate(
            [pairs, *(rng.permutation(pairs) for _ in range(copies - 1))]
        ).ravel()[:length]
        position = np.arange(length)
        return content, (position >= 2 * n) & (position % 2 == 1)
