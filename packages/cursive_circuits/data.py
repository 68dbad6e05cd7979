"""From a bank to training rows: words by writer, texts as ids, and the mixture that a model is
trained on.

Row i of step n is a function of the seed, n and i alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field, NonNegativeFloat, NonNegativeInt, model_validator
from torch import Tensor

from cursive_circuits.data_bank import Item
from cursive_circuits.data_script import by_spelling
from cursive_circuits.data_tokens import Points, Vocabulary
from cursive_circuits.model_shape import NO_CHARACTER
from cursive_circuits.streams import STREAMS
from interp_core.errors import InputError
from interp_core.files.params import Params
from interp_core.training.batches import IGNORED, Batch

Row = Int[np.ndarray, "_"]


class Mixture(Params):
    """Shares of the kinds of training rows (they sum to 1), and the augmentation of training rows
    only.
    """

    single: NonNegativeFloat  # one word with its text
    repeated: NonNegativeFloat  # a word twice, the same strokes, with its text twice
    repeated_blank: NonNegativeFloat  # the same without a text
    repeated_wrong: NonNegativeFloat  # the same with the text of other words
    two: NonNegativeFloat  # two words of one writer
    jitter: NonNegativeFloat  # of every point, standard deviation, canvas heights
    slant: NonNegativeFloat  # of a word, standard deviation of the shear
    stretch: NonNegativeFloat  # of a word's width and height, standard deviation of the factor

    @model_validator(mode="after")
    def _sums_to_one(self) -> "Mixture":
        if abs(math.fsum(self.shares) - 1) > 1e-9:
            raise ValueError(f"the shares of rows must sum to 1, not {math.fsum(self.shares):g}")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """In the order of the fields."""
        return (self.single, self.repeated, self.repeated_blank, self.repeated_wrong, self.two)


class Split(Params):
    """How a bank is divided."""

    held_out: float = Field(gt=0, lt=1)  # share of the spellings that no training row holds
    seed: NonNegativeInt


@dataclass(frozen=True)
class Words:
    """Items of one side of the split, by writer."""

    items: list[Item]
    tokens: Vocabulary
    alphabet: str
    by_author: dict[str, list[Item]] = field(init=False)

    def __post_init__(self) -> None:
        found: dict[str, list[Item]] = {}
        for item in self.items:
            found.setdefault(item.author, []).append(item)
        object.__setattr__(self, "by_author", {author: found[author] for author in sorted(found)})
        if not self.items or min(len(items) for items in found.values()) < 3:
            raise InputError(
                "the bank is too small: every writer needs at least three words on both sides of "
                "the split"
            )

    @classmethod
    def split(
        cls, items: Sequence[Item], tokens: Vocabulary, alphabet: str, split: Split
    ) -> tuple["Words", "Words"]:
        """Training and held-out words, divided by spelling."""
        kept = by_spelling([item.text for item in items], split.held_out, split.seed)
        sides = ([item for item in items if (item.text in kept) is out] for out in (False, True))
        training, held_out = (cls(side, tokens, alphabet) for side in sides)
        return training, held_out

    @cached_property
    def character_ids(self) -> dict[str, int]:
        """Ids of the alphabet's characters, from 1."""
        return {character: number + 1 for number, character in enumerate(self.alphabet)}

    def text(self, words: Sequence[str]) -> Row:
        """Ids of words joined by spaces. InputError lists characters outside the alphabet."""
        joined = " ".join(words)
        if unknown := sorted(set(joined) - set(self.alphabet)):
            raise InputError(
                f"{joined!r}: no {', '.join(map(repr, unknown))} in the alphabet {self.alphabet!r}"
            )
        return np.array([self.character_ids[character] for character in joined], dtype=np.int64)

    def inks(self, items: Sequence[Item]) -> list[Row]:
        """Tokens of words that are written one after another."""
        before = [None, *(item.points for item in items)]
        return [
            self.tokens.encode(item.points, after)
            for item, after in zip(items, before, strict=False)
        ]

    def draw(
        self, rng: np.random.Generator, author: str | None = None, *, other_than: str | None = None
    ) -> Item:
        """A word, of one author where named, spelt otherwise than `other_than`."""
        pool = self.items if author is None else self.by_author[author]
        while True:
            item = pool[int(rng.integers(len(pool)))]
            if item.text != other_than:
                return item


def stacked_text(texts: Sequence[Row]) -> Int[np.ndarray, "row character"]:
    """Texts padded to the longest, at least one place wide."""
    longest = max(1, *(len(text) for text in texts))
    return np.stack(
        [np.pad(text, (0, longest - len(text)), constant_values=NO_CHARACTER) for text in texts]
    )


def labels_of(
    ids: Int[np.ndarray, "row position"], tokens: Vocabulary
) -> Int[np.ndarray, "row position"]:
    """What is predicted: every token but PAD and the second WORD of a pair, which is no news."""
    second = (ids == tokens.word) & (np.arange(ids.shape[1]) % 2 == 1)
    return np.where((ids == tokens.pad) | second, IGNORED, ids)


@dataclass
class WrittenRows:
    """Training rows of handwriting: a batch source and its texts.

    The rows of `dealt` steps are drawn together and dealt by length, so that little of a batch is
    padding.
    """

    words: Words
    mixture: Mixture
    rows: int
    dealt: int
    seed: int
    context: int
    _drawn: tuple[int, list[tuple[Batch, Tensor]]] | None = None

    def __call__(self, step: int) -> Batch:
        """Ids and labels of a step."""
        return self._of(step)[0]

    def inputs(self, step: int) -> dict[str, Tensor]:
        """The texts of a step's rows."""
        return {"text": self._of(step)[1]}

    def _of(self, step: int) -> tuple[Batch, Tensor]:
        group, place = divmod(step, self.dealt)
        if self._drawn is None or self._drawn[0] != group:
            self._drawn = (group, self._group(STREAMS.rng("batches", self.seed, group)))
        return self._drawn[1][place]

    def _group(self, rng: np.random.Generator) -> list[tuple[Batch, Tensor]]:
        kinds = rng.choice(5, size=self.rows * self.dealt, p=self.mixture.shares)
        drawn = sorted((self._row(int(kind), rng) for kind in kinds), key=lambda row: len(row[0]))
        return [
            self._batch(drawn[self.rows * place : self.rows * (place + 1)])
            for place in rng.permutation(self.dealt)
        ]

    def _batch(self, drawn: Sequence[tuple[Row, Row]]) -> tuple[Batch, Tensor]:
        ids = self.words.tokens.stack([row[: self.context] for row, _ in drawn])
        batch = (torch.from_numpy(ids), torch.from_numpy(labels_of(ids, self.words.tokens)))
        return batch, torch.from_numpy(stacked_text([text for _, text in drawn]))

    def _row(self, kind: int, rng: np.random.Generator) -> tuple[Row, Row]:
        words, tokens = self.words, self.words.tokens
        item = words.draw(rng)
        ink = tokens.encode(augmented(item.points, self.mixture, rng))
        if kind == 0:
            return tokens.row([ink]), words.text([item.text])
        if kind == 4:
            other = words.draw(rng, item.author, other_than=item.text)
            second = tokens.encode(augmented(other.points, self.mixture, rng))
            return tokens.row([ink, second]), words.text([item.text, other.text])
        said = {
            1: lambda: [item.text] * 2,
            2: list,
            3: lambda: [words.draw(rng, other_than=item.text).text for _ in range(2)],
        }
        return tokens.row([ink, ink]), words.text(said[kind]())


def augmented(points: Points, mixture: Mixture, rng: np.random.Generator) -> Points:
    """A word as the same writer might have written it another time."""
    width, height = 1 + mixture.stretch * rng.standard_normal(2)
    shape = np.array([[width, -mixture.slant * rng.standard_normal()], [0.0, height]])
    base = np.array([0.0, points[0, 1]])
    plane = (
        (points[:, :2] - base) @ shape.T + base + rng.normal(0, mixture.jitter, (len(points), 2))
    )
    return np.column_stack([plane, points[:, 2]])


def random_pairs(tokens: Vocabulary, pairs: int, rng: np.random.Generator) -> Row:
    """Tokens of pairs whose direction and radius are uniform."""
    drawn = [
        rng.integers(tokens.directions, size=pairs),
        tokens.directions + rng.integers(2 * tokens.radii, size=pairs),
    ]
    return np.stack(drawn, axis=1).reshape(-1)
