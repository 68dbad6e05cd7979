"""What the reference models read: repeated random segments, repeated text and plain text, in fixed
shares.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt
from pydantic import Field, PositiveInt, model_validator

from interp_core.files.params import Params
from interp_core.training.batches import IGNORED, Batch
from interp_core.training.streams import STREAMS


class Mixture(Params):
    """A batch: rows of one length, of three kinds."""

    rows: PositiveInt  # sequences in the global batch
    length: PositiveInt  # tokens a row
    repeated_random: float = Field(ge=0, le=1)  # share of rows: distinct random ids, tiled
    repeated_text: float = Field(
        ge=0, le=1
    )  # share of rows: a piece of text, tiled; the rest are plain text
    shortest_period: int = Field(ge=2)  # tokens in the tiled segment, drawn evenly
    longest_period: int = Field(ge=2)
    begin: float = Field(ge=0, le=1)  # chance that a row begins with BOS, as every stimulus does

    @model_validator(mode="after")
    def _fits(self) -> "Mixture":
        if self.repeated_random + self.repeated_text > 1:
            raise ValueError("repeated_random and repeated_text together are more than all rows")
        if not self.shortest_period <= self.longest_period < self.length - 1:
            raise ValueError("needs shortest_period <= longest_period < length - 1")
        return self


@dataclass(frozen=True)
class MixtureSource:
    """Batches of the mixture; the batch of a step depends on (seed, step) alone."""

    mixture: Mixture
    stream: UInt[np.ndarray, " position"]  # training text as token ids
    content: Int[np.ndarray, " id"]  # ids that random segments are drawn from
    bos: int
    seed: int

    def __call__(self, step: int) -> Batch:
        """Input ids and labels; a tiled segment counts from its second pass on, BOS never does."""
        mixture = self.mixture
        rng = STREAMS.rng("batch", self.seed, step)
        random_rows = round(mixture.repeated_random * mixture.rows)
        repeated_rows = random_rows + round(mixture.repeated_text * mixture.rows)
        ids = np.full((mixture.rows, mixture.length), self.bos, dtype=np.int64)
        labels = np.full((mixture.rows, mixture.length), IGNORED, dtype=np.int64)
        for row in range(mixture.rows):
            start = int(rng.random() < mixture.begin)
            length = mixture.length - start
            period = length
            if row < repeated_rows:
                period = int(rng.integers(mixture.shortest_period, mixture.longest_period + 1))
            if row < random_rows:
                segment = rng.permutation(self.content)[:period]
            else:
                offset = int(rng.integers(len(self.stream) - period + 1))
                segment = self.stream[offset : offset + period]
            ids[row, start:] = np.resize(segment, length)
            counted = start + period if row < repeated_rows else start
            labels[row, counted:] = ids[row, counted:]
        return torch.from_numpy(ids), torch.from_numpy(labels)
