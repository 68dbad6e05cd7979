"""Rows of tokens with repeated patterns, and for every target whether induction can predict it,
exactly.

A target is token t, predicted from the tokens before it. It is predictable when it lies in a second
or later copy of a pattern with the copy's token before it in sight: then it equals the token after
the earlier occurrence of token t - 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from pydantic import Field, PositiveInt, model_validator

from eigen_phase.streams import STREAMS
from interp_core.files.params import Params
from interp_core.stimuli.prompts import Pairs
from interp_core.training.batches import IGNORED, Batch, BatchSource

Kind = Literal["tiled", "placed", "unrepeated", "fixed_distance"]


class Data(Params):
    """What rows are drawn from."""

    data: Kind
    vocab_size: PositiveInt = Field(ge=2)
    seq_length: PositiveInt = Field(ge=4)
    patterns: PositiveInt  # placed: different patterns in a row, or as many as fit
    pattern_length: tuple[PositiveInt, PositiveInt]  # placed: shortest and longest pattern
    placements: tuple[PositiveInt, PositiveInt]  # placed: fewest and most copies of a pattern
    period: tuple[PositiveInt, PositiveInt]  # tiled: shortest and longest segment
    fixed_distance: PositiveInt
    leave_out_predictable: bool

    @model_validator(mode="after")
    def _fits(self) -> "Data":
        length = self.seq_length
        for name, (low, high), least in (
            ("pattern_length", self.pattern_length, 2),
            ("placements", self.placements, 2),
            ("period", self.period, 2),
        ):
            if not least <= low <= high:
                raise ValueError(
                    f"{name} must be two numbers in order, the first at least {least},"
                    f" got {low} and {high}"
                )
        if self.data == "tiled" and self.period[1] > length - 2:
            raise ValueError(
                f"a period of {self.period[1]} tokens leaves nothing to repeat in a row of {length}"
            )
        if self.data == "fixed_distance" and not 2 <= self.fixed_distance <= length - 2:
            raise ValueError(
                f"fixed_distance must be from 2 to {length - 2} in a row of {length} tokens"
            )
        if self.data == "placed":
            longest, fewest = self.pattern_length[1], self.placements[0]
            if longest > length:
                raise ValueError(
                    f"a pattern of {longest} tokens is longer than the sequence of {length}"
                )
            if longest * fewest > length:
                raise ValueError(
                    f"{fewest} copies of a pattern of {longest} tokens"
                    f" do not fit into a sequence of {length}"
                )
        return self


@dataclass(frozen=True)
class Sequences:
    """Rows, and what is known of each target."""

    ids: Int[np.ndarray, "row position"]
    source: Int[
        np.ndarray, "row position"
    ]  # where the token was last copied from; -1 for a fresh one
    predictable: Bool[np.ndarray, "row position"]  # its copy's token before it is in sight
    copy: Int[
        np.ndarray, "row position"
    ]  # 1 for the first copy of a pattern, 2, 3, ...; 0 outside patterns

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def pairs(self) -> Pairs:
        """The predictable targets as copies: query t - 1, earlier occurrence source - 1."""
        row, target = np.nonzero(self.predictable)
        return Pairs(
            batch=row,
            query=target - 1,
            earlier=self.source[row, target] - 1,
            target=self.ids[row, target],
        )


def draw(rng: np.random.Generator, rows: int, settings: Data) -> Sequences:
    """`rows` rows of the settings' kind."""
    kinds: dict[str, Callable[[np.random.Generator, int, Data], Sequences]] = {
        "tiled": _tiled,
        "placed": _placed,
        "unrepeated": _unrepeated,
        "fixed_distance": _fixed_distance,
    }
    return kinds[settings.data](rng, rows, settings)


def batch_source(settings: Data, *, rows: int, seed: int) -> BatchSource:
    """The batch of a step: input ids and labels, from (seed, step) alone."""

    def batch(step: int) -> Batch:
        sequences = draw(STREAMS.rng("batch", seed, step), rows, settings)
        labels = masked_labels(sequences, leave_out_predictable=settings.leave_out_predictable)
        return torch.from_numpy(sequences.ids), torch.from_numpy(labels)

    return batch


def masked_labels(
    sequences: Sequences, *, leave_out_predictable: bool
) -> Int[np.ndarray, "row position"]:
    """Labels for the loss: the ids, the predictable ones left out if asked (Singh et al. 2024's way
    of asking whether the loss itself drives induction; arXiv 2511.05743).
    """
    return np.where(sequences.predictable & leave_out_predictable, IGNORED, sequences.ids)


def _repeating(
    segment: Int[np.ndarray, "row position"],
    period: Int[np.ndarray, "row 1"],
    offset: Int[np.ndarray, "row 1"],
) -> Sequences:
    """Each row its segment's first `period` tokens over and over, begun at `offset`."""
    position = np.arange(segment.shape[1])[None]
    ids = np.take_along_axis(segment, (position + offset) % period, axis=1)
    source = np.where(position >= period, position - period, -1)
    return Sequences(ids=ids, source=source, predictable=source >= 1, copy=position // period + 1)


def _tiled(rng: np.random.Generator, rows: int, settings: Data) -> Sequences:
    low, high = settings.period
    period = rng.integers(low, high + 1, size=(rows, 1))
    offset = rng.integers(high, size=(rows, 1))
    return _repeating(
        rng.integers(settings.vocab_size, size=(rows, settings.seq_length)), period, offset
    )


def _fixed_distance(rng: np.random.Generator, rows: int, settings: Data) -> Sequences:
    period = np.full((rows, 1), settings.fixed_distance)
    segment = rng.integers(settings.vocab_size, size=(rows, settings.seq_length))
    return _repeating(segment, period, np.zeros_like(period))


def _unrepeated(rng: np.random.Generator, rows: int, settings: Data) -> Sequences:
    """Independent uniform tokens: what repeats does so by chance and predicts nothing."""
    shape = (rows, settings.seq_length)
    ids = rng.integers(settings.vocab_size, size=shape)
    return Sequences(
        ids, np.full(shape, -1), np.zeros(shape, dtype=bool), np.zeros(shape, dtype=np.int64)
    )


def _placed(rng: np.random.Generator, rows: int, settings: Data) -> Sequences:
    """Patterns in random tokens, every arrangement of the copies without overlap equally likely."""
    length = settings.seq_length
    ids = rng.integers(settings.vocab_size, size=(rows, length))
    source, copy = np.full((rows, length), -1), np.zeros((rows, length), dtype=np.int64)
    predictable = np.zeros((rows, length), dtype=bool)

    for row in range(rows):
        sizes, owner = _blocks(rng, settings)

        # Places of the copies among the free tokens, without repetition: equally likely layouts.
        gaps = np.diff(
            np.sort(rng.choice(length - sizes.sum() + len(sizes), size=len(sizes), replace=False)),
            prepend=-1,
        )
        starts = np.cumsum(gaps - 1) + np.cumsum(sizes) - sizes
        last: dict[int, int] = {}  # where each pattern's copy before begins

        for start, size, pattern in zip(starts, sizes, owner, strict=True):
            block = slice(start, start + size)
            copy[row, block] = 1

            if pattern in last:
                before = last[pattern]
                ids[row, block] = ids[row, before : before + size]
                source[row, block] = np.arange(before, before + size)
                copy[row, block] = copy[row, before] + 1

                # Not the first token: nothing before it says that a copy begins.
                predictable[row, start + 1 : start + size] = True

            last[pattern] = start

    return Sequences(ids, source, predictable, copy)


def _blocks(
    rng: np.random.Generator, settings: Data
) -> tuple[Int[np.ndarray, " block"], Int[np.ndarray, " block"]]:
    """Sizes of all copies in a row in their order, and which pattern each one is."""
    (shortest, longest), (fewest, most) = settings.pattern_length, settings.placements
    room = settings.seq_length
    sizes, owner = [], []

    for pattern in range(settings.patterns):
        if room < shortest * fewest:
            break

        size = int(rng.integers(shortest, min(longest, room // fewest) + 1))
        copies = int(rng.integers(fewest, min(most, room // size) + 1))

        room -= copies * size
        sizes += [size] * copies
        owner += [pattern] * copies

    order = rng.permutation(len(sizes))
    return np.array(sizes)[order], np.array(owner)[order]
