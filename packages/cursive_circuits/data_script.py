"""The default bank: words in a single-line script face, written by several hands.

The face is Hershey's script (A. V. Hershey 1967, Calligraphy for Computers; package hershey-fonts).
A hand has a slant, a width, a height, a rotation, a speed (fast hands leave points out), its own
deformation of every letter, and a habit of lifting the pen between letters; every word adds jitter.
Same settings, same bank, on every machine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Annotated

import numpy as np
from jaxtyping import Float
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from cursive_circuits.data_bank import Item
from cursive_circuits.data_tokens import Points
from cursive_circuits.streams import STREAMS
from interp_core.errors import InputError
from interp_core.files.params import Params

CAP, CANVAS = (
    -12,
    33,
)  # the face's cap line, and its height from there to the descender, in its own units
VOWELS = "aeiou"
Range = tuple[float, float]
Factors = tuple[PositiveFloat, PositiveFloat]
Lengths = tuple[NonNegativeFloat, NonNegativeFloat]
Probability = Annotated[float, Field(ge=0, le=1)]
Stroke = Float[np.ndarray, "_ 2"]


class Script(Params):
    """How the default bank is written."""

    seed: NonNegativeInt
    alphabet: str = Field(min_length=1)  # characters that words are made of
    spellings: PositiveInt = Field(ge=2)  # different words
    hands: PositiveInt = Field(ge=2)  # writers
    copies: PositiveInt  # writers of each word
    letters: tuple[PositiveInt, PositiveInt]  # shortest and longest word
    slant: Range  # shear, canvas heights a canvas height
    width: Factors  # factor
    height: Factors  # factor
    rotation: Range  # radians
    simplify: Lengths  # speed: Douglas-Peucker tolerance of the letters, units of the face
    # a hand's own shift of each point of a letter, standard deviation, units of the face
    deformation: NonNegativeFloat
    jitter: NonNegativeFloat  # of every point of every word, standard deviation, units of the face
    lift: tuple[Probability, Probability]  # probability of lifting the pen after a letter

    @model_validator(mode="after")
    def _ordered(self) -> "Script":
        for name in ("letters", "slant", "width", "height", "rotation", "simplify", "lift"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be two numbers in order, got {low} and {high}")

        if self.copies > self.hands:
            raise ValueError(
                f"copies: {self.copies} writers of a word are more than the {self.hands} hands"
            )

        if missing := sorted(character for character in set(self.alphabet) if not glyph(character)):
            raise ValueError(f"alphabet: the face has no strokes for {' '.join(missing)}")

        return self


@dataclass(frozen=True, eq=False)
class Hand:
    """One writer."""

    name: str
    shape: Float[
        np.ndarray, "2 2"
    ]  # units of the face -> canvas heights: width, height, slant, rotation
    simplify: float
    lift: float
    seed: int

    @classmethod
    def drawn(cls, number: int, script: Script) -> "Hand":
        """The writer of this number."""
        rng = STREAMS.rng("hand", script.seed, number)
        slant, width, height, turn, simplify, lift = (
            rng.uniform(*bounds)
            for bounds in (
                script.slant,
                script.width,
                script.height,
                script.rotation,
                script.simplify,
                script.lift,
            )
        )
        shear = np.array([[width, -slant * height], [0.0, height]])
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])

        return cls(
            f"hand-{number}", rotation @ shear / CANVAS, float(simplify), float(lift), number
        )

    @lru_cache(maxsize=4096)  # noqa: B019  hands live as long as the program
    def letter(self, character: str, script: Script) -> list[Stroke]:
        """This hand's form of a letter, units of the face."""
        rng = STREAMS.rng("letter", script.seed, self.seed, ord(character))
        strokes = [simplified(stroke, self.simplify) for stroke in glyph(character)]
        return [stroke + rng.normal(0, script.deformation, stroke.shape) for stroke in strokes]

    def write(
        self, word: str, script: Script, rng: np.random.Generator
    ) -> tuple[Points, list[int]]:
        """Points of a word, and the number of the letter that each belongs to."""
        pen, letters = [], []
        at = 0.0

        for number, character in enumerate(word):
            lifts = rng.random() < self.lift

            for index, stroke in enumerate(self.letter(character, script)):  # pyright: ignore[reportArgumentType]  frozen, so hashable
                # Where a stroke goes on from the last one, the pen stays down and the shared point
                # is written once.
                joined = (
                    bool(pen)
                    and np.hypot(*(stroke[0] + [at, 0] - pen[-1][:2])) < 2.5
                    and not (lifts and not index)
                )

                for order, (x, y) in enumerate(stroke[1:] if joined else stroke):
                    pen.append((x + at, y, float(joined or order > 0)))
                    letters.append(number)

            at += advance(character)

        plane = np.array(pen)
        plane[:, :2] = (plane[:, :2] + rng.normal(0, script.jitter, (len(plane), 2))) @ self.shape.T
        plane[:, 1] -= self.shape[1, 1] * CAP

        return np.round(plane, 5), letters


def write_bank(script: Script) -> Iterator[Item]:
    """Items in order: every spelling by `copies` hands."""
    hands = [Hand.drawn(number, script) for number in range(script.hands)]
    for number, word in enumerate(spellings(script)):
        rng = STREAMS.rng("writers", script.seed, number)
        for writer in rng.choice(script.hands, size=script.copies, replace=False):
            points, letters = hands[writer].write(word, script, rng)
            yield Item(hands[writer].name, word, points, tuple(letters))


def spellings(script: Script) -> list[str]:
    """Different pseudo-words: letters and vowels in turn where the alphabet has both, sometimes a
    capital first, a number, or a mark at the end, where the alphabet has them.
    """
    rng = STREAMS.rng("spellings", script.seed)
    kinds = {
        "vowels": [c for c in script.alphabet if c in VOWELS],
        "consonants": [c for c in script.alphabet if c.islower() and c not in VOWELS],
        "capitals": [c for c in script.alphabet if c.isupper()],
        "digits": [c for c in script.alphabet if c.isdigit()],
        "marks": [c for c in script.alphabet if not c.isalnum()],
    }
    found: dict[str, None] = {}

    for _ in range(100 * script.spellings):
        found.setdefault(
            _spell(kinds, int(rng.integers(script.letters[0], script.letters[1] + 1)), rng)
        )
        if len(found) == script.spellings:
            return list(found)

    raise InputError(
        f"the alphabet gives only {len(found)} words of {script.letters[0]} to {script.letters[1]} "
        "letters, fewer than "
        f"{script.spellings} spellings: lower spellings or raise letters"
    )


def _spell(kinds: dict[str, list[str]], length: int, rng: np.random.Generator) -> str:
    if kinds["digits"] and rng.random() < 0.1:
        return "".join(rng.choice(kinds["digits"], size=length))

    first = int(rng.random() < 0.5)
    word = []

    for place in range(length):
        of_turn = kinds["vowels" if (place + first) % 2 else "consonants"]
        either = (
            kinds["vowels"] + kinds["consonants"]
            or kinds["capitals"]
            or kinds["digits"]
            or kinds["marks"]
        )
        word.append(str(rng.choice(of_turn if of_turn and rng.random() < 0.7 else either)))

    if kinds["capitals"] and rng.random() < 0.25:
        word[0] = str(rng.choice(kinds["capitals"]))
    if kinds["marks"] and rng.random() < 0.15:
        word[-1] = str(rng.choice(kinds["marks"]))

    return "".join(word)


@cache
def _face() -> "object":
    from HersheyFonts import HersheyFonts

    face = HersheyFonts()
    face.load_default_font("scripts")
    return face


@cache
def glyph(character: str) -> tuple[Stroke, ...]:
    """Strokes of a character in units of the face, y down, from its left edge; empty where the face
    has none.
    """
    strokes = _face().strokes_for_text(character)  # pyright: ignore[reportAttributeAccessIssue]
    return tuple(np.array(stroke, dtype=np.float64) for stroke in strokes if len(stroke) > 1)


@cache
def advance(character: str) -> float:
    """How far the next letter begins to the right, units of the face."""
    (found,) = _face().glyphs_for_text(character)  # pyright: ignore[reportAttributeAccessIssue]
    return float(found.char_width)


def simplified(stroke: Stroke, tolerance: float) -> Stroke:
    """Points that are left when none lies further than `tolerance` from the line (Douglas and
    Peucker 1973).
    """
    if len(stroke) < 3:
        return stroke

    along = stroke[-1] - stroke[0]
    away = stroke[1:-1] - stroke[0]
    length = float(np.hypot(*along))
    distance = (
        np.abs(along[0] * away[:, 1] - along[1] * away[:, 0]) / length
        if length
        else np.hypot(*away.T)
    )
    worst = int(distance.argmax())

    if distance[worst] <= tolerance:
        return stroke[[0, -1]]

    head, tail = (
        simplified(stroke[: worst + 2], tolerance),
        simplified(stroke[worst + 1 :], tolerance),
    )

    return np.concatenate([head[:-1], tail])


def by_spelling(words: Sequence[str], held_out: float, seed: int) -> set[str]:
    """The spellings that are held out: whole words, never single items, so no test word was seen in
    training.
    """
    distinct = sorted(set(words))
    order = STREAMS.rng("held_out", seed).permutation(len(distinct))
    n = max(1, round(held_out * len(distinct)))
    return {distinct[index] for index in order[:n]}
