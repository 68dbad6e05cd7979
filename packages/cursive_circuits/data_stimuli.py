"""Prompts whose right answers are known: five families of repeats, each with a control in which
nothing can be copied.

Copy operations are the core's Pairs: at the query t the model predicts token t + 1, which stands at
earlier + 1 in the first copy. Pairs are aligned by stroke: (direction, radius) by (direction,
radius). In `other_writer` the strokes correspond without being equal, so there the earlier token
may differ from the query's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Int

from cursive_circuits.data import Row, Words, random_pairs, stacked_text
from cursive_circuits.data_bank import Item
from cursive_circuits.data_tokens import Points, Vocabulary
from cursive_circuits.streams import STREAMS
from interp_core.errors import InputError
from interp_core.stimuli.prompts import Pairs, Prompts

Text = Literal["matching", "mismatched", "empty"]
FAMILIES = ("same_text", "mismatched_text", "other_writer", "synthetic", "natural")


@dataclass(frozen=True)
class Stimuli:
    """Prompts and what cross-attention reads beside them."""

    prompts: Prompts
    text: Int[np.ndarray, "prompt character"]
    control_text: Int[np.ndarray, "prompt control_character"]

    def __len__(self) -> int:
        return len(self.prompts.tokens)

    def part(self, rows: slice) -> "Stimuli":
        """Some of the prompts, pairs renumbered."""
        prompts, pairs = self.prompts, self.prompts.pairs
        first, last, _ = rows.indices(len(self))
        kept = (pairs.batch >= first) & (pairs.batch < last)
        inside = Pairs(
            pairs.batch[kept] - first, pairs.query[kept], pairs.earlier[kept], pairs.target[kept]
        )
        cut = Prompts(
            prompts.family,
            prompts.tokens[rows],
            prompts.control[rows],
            inside,
            prompts.lengths[rows],
        )

        return Stimuli(cut, self.text[rows], self.control_text[rows])


def repeated(words: Words, *, text: Text, n: int, rng: np.random.Generator, family: str) -> Stimuli:
    """A word twice, the same strokes.

    Control: the first is another word of the same writer, of exactly as many pairs (cut, or
    continued with a further word), so positions match.

    Text: the words that are written, two other words, or none.
    """
    rows, controls, texts, control_texts = [], [], [], []

    for _ in range(n):
        item = words.draw(rng)
        ink, again = words.inks([item, item])
        other, instead = same_length(words, item, len(ink), rng)
        wrong = [words.draw(rng, other_than=item.text).text for _ in range(2)]
        rows.append(words.tokens.row([ink, again], end=False))
        controls.append(words.tokens.row([instead, again], end=False))
        texts.append(_text(words, text, [item.text] * 2, wrong))
        control_texts.append(_text(words, text, [other.text, item.text], wrong))

    return _stimuli(family, words.tokens, rows, controls, texts, control_texts)


def _text(words: Words, text: Text, right: list[str], wrong: list[str]) -> Row:
    return words.text({"matching": right, "mismatched": wrong, "empty": []}[text])


def same_length(
    words: Words, item: Item, length: int, rng: np.random.Generator
) -> tuple[Item, Row]:
    """Strokes of another word (and, where it is too short, of more) of the item's writer, `length`
    tokens.
    """
    first = last = words.draw(rng, item.author, other_than=item.text)
    ink = words.tokens.encode(first.points)

    # Words of the same hand, one after the other, until there is ink enough to cut.
    while len(ink) < length:
        more = words.draw(rng, item.author, other_than=item.text)
        ink = np.concatenate([ink, words.tokens.encode(more.points, after=last.points)])
        last = more

    return first, ink[:length]


def other_writer(words: Words, *, n: int, rng: np.random.Generator) -> Stimuli:
    """A word by one writer, then by another, with its text.

    Points correspond by dynamic time warping of the curves. Control: the first word is another one,
    of as many pairs. InputError when no word is written by two writers.
    """
    shared: dict[str, list[Item]] = {}

    for item in words.items:
        shared.setdefault(item.text, []).append(item)

    choices = [items for items in shared.values() if len({item.author for item in items}) > 1]

    if not choices:
        raise InputError(
            "no held-out word is written by two writers: the family other_writer needs one"
        )

    tokens, rows, controls, texts, control_texts, pairs = words.tokens, [], [], [], [], []

    for prompt in range(n):
        items = choices[int(rng.integers(len(choices)))]
        first = items[int(rng.integers(len(items)))]
        second = next(item for item in items if item.author != first.author)
        ink, again = words.inks([first, second])
        other, instead = same_length(words, first, len(ink), rng)
        rows.append(tokens.row([ink, again], end=False))
        controls.append(tokens.row([instead, again], end=False))
        texts.append(words.text([first.text] * 2))
        control_texts.append(words.text([other.text, first.text]))
        partner = warped(tokens.path(again), tokens.path(ink))
        within = np.arange(tokens.travel, len(again) - 1)
        begins = len(tokens.opening)
        query = begins + len(ink) + 2 + within
        earlier = begins + 2 * partner[within // 2] + within % 2
        pairs.append((np.full(len(query), prompt), query, earlier))

    stimuli = _stimuli("other_writer", tokens, rows, controls, texts, control_texts)
    batch, query, earlier = (np.concatenate(part) for part in zip(*pairs, strict=True))
    target = stimuli.prompts.tokens[batch, query + 1]

    return replace(
        stimuli, prompts=replace(stimuli.prompts, pairs=Pairs(batch, query, earlier, target))
    )


def synthetic(tokens: Vocabulary, *, pairs: int, n: int, rng: np.random.Generator) -> Stimuli:
    """Random pairs twice, without a text. Control: another first copy."""
    drawn = [(random_pairs(tokens, pairs, rng), random_pairs(tokens, pairs, rng)) for _ in range(n)]
    rows = [tokens.row([np.tile(segment, 2)], end=False) for segment, _ in drawn]
    controls = [
        tokens.row([np.concatenate([other, segment])], end=False) for segment, other in drawn
    ]
    none = [np.array([], int)] * n
    return _stimuli("synthetic", tokens, rows, controls, none, none, between=0)


def natural(
    words: Words,
    *,
    in_row: int,
    most: int,
    context: int,
    characters: int,
    n: int,
    rng: np.random.Generator,
) -> Stimuli:
    """Different words of one writer with their text, and the places where two tokens in a row (a
    pair, or a radius and the next direction) occurred before and are followed by the same token.
    Control: the two antecedents are replaced.

    Rows without such a place, longer than the context, or with a longer text than the model reads,
    are drawn again; InputError when a hundred in a row are so.
    """
    tokens, rows, controls, texts, found = words.tokens, [], [], [], []
    tries = 0

    while len(rows) < n:
        items = [words.draw(rng)]

        while len(items) < in_row:
            items.append(words.draw(rng, items[0].author, other_than=items[-1].text))

        row = tokens.row(words.inks(items), end=False)
        text = words.text([item.text for item in items])
        places = recurrences(row, tokens)
        places = _undisturbed(places[np.sort(rng.permutation(len(places))[:most])])
        tries += 1

        # Such a row is drawn again. Words too long for the context would be drawn for ever.
        if len(places) == 0 or len(row) > context or len(text) > characters:
            if tries > 100 * (1 + len(rows)):
                raise InputError(
                    f"natural repeats: hardly any {in_row} words of the bank hold recurring "
                    "strokes within a context "
                    f"of {context} tokens and a text of {characters} characters; lower "
                    "stimuli.natural_words"
                )
            continue

        control = row.copy()

        for place in _antecedents(places):
            control[place] = _another(int(row[place]), tokens, rng)

        found.append(np.column_stack([np.full(len(places), len(rows)), places]))
        rows.append(row)
        controls.append(control)
        texts.append(text)

    stimuli = _stimuli("natural", tokens, rows, controls, texts, texts, between=None)
    batch, query, earlier = np.concatenate(found).T
    pairs = Pairs(batch, query, earlier, stimuli.prompts.tokens[batch, query + 1])

    return replace(stimuli, prompts=replace(stimuli.prompts, pairs=pairs))


def recurrences(row: Row, tokens: Vocabulary) -> Int[np.ndarray, "place 2"]:
    """(query, earlier) where tokens query - 1, query and query + 1 occurred before, most recent
    first, as strokes.
    """
    length = len(row)
    stroke = row < tokens.pad
    same = row[:, None] == row[None, :]
    matched = (
        same[:-2, :-2]
        & same[1:-1, 1:-1]
        & same[2:, 2:]
        & (stroke[:-2] & stroke[1:-1] & stroke[2:])[:, None]
    )
    place = np.arange(length - 2)
    earlier = np.where(matched & (place[None, :] < place[:, None] - 1), place[None, :], -1).max(
        axis=1
    )
    query = np.flatnonzero(earlier >= 0)

    return np.column_stack([query + 1, earlier[query] + 1])


def _antecedents(places: Int[np.ndarray, "place 2"]) -> Int[np.ndarray, " antecedent"]:
    """The two earlier tokens of each place, once."""
    return np.unique(np.concatenate([places[:, 1], places[:, 1] - 1]))


def _undisturbed(places: Int[np.ndarray, "_ 2"]) -> Int[np.ndarray, "_ 2"]:
    """Those whose own three tokens are no antecedent of another: the control must leave them as
    they are.
    """
    own = places[:, :1] + np.arange(-1, 2)
    return places[~np.isin(own, _antecedents(places)).any(axis=1)]


def _another(token: int, tokens: Vocabulary, rng: np.random.Generator) -> int:
    """Another token of the same slot."""
    low, high = (
        (0, tokens.directions) if token < tokens.directions else (tokens.directions, tokens.pad)
    )
    drawn = int(rng.integers(low, high - 1))
    return drawn + (drawn >= token)


def _stimuli(
    family: str,
    tokens: Vocabulary,
    rows: Sequence[Row],
    controls: Sequence[Row],
    texts: Sequence[Row],
    control_texts: Sequence[Row],
    *,
    between: int | None = 2,
) -> Stimuli:
    """Rows of two equal copies with `between` WORD tokens before the second; None: the caller sets
    the pairs.
    """
    ids, control = tokens.stack(rows), tokens.stack(controls)
    lengths = np.array([len(row) for row in rows])
    none = np.array([], dtype=np.int64)
    pairs = Pairs(none, none, none, none)

    if between is not None:
        begins = len(tokens.opening)
        # Where words are apart, the way to each is not the other's: copying begins after it.
        skipped = tokens.travel if between else 0
        copies = (lengths - begins - between) // 2
        batch = np.repeat(np.arange(len(rows)), copies - 1 - skipped)
        within = np.concatenate([np.arange(skipped, copy - 1) for copy in copies])
        earlier = begins + within
        query = earlier + copies[batch] + between
        pairs = Pairs(batch, query, earlier, ids[batch, query + 1])

    return Stimuli(
        Prompts(family, ids, control, pairs, lengths),
        stacked_text(texts),
        stacked_text(control_texts),
    )


def warped(second: Points, first: Points) -> Int[np.ndarray, " second"]:
    """For each point of `second` the point of `first` that dynamic time warping matches it with
    (the nearest, of several): Euclidean distance of positions, both centred and scaled to unit
    height (Sakoe and Chiba 1978).
    """
    a, b = (_standard(points) for points in (second, first))
    cost = np.linalg.norm(a[:, None] - b[None], axis=-1)
    total = np.full((len(a) + 1, len(b) + 1), np.inf)
    total[0, 0] = 0.0

    for i in range(len(a)):
        for j in range(len(b)):
            total[i + 1, j + 1] = cost[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])

    i, j, partner = len(a) - 1, len(b) - 1, np.full(len(a), -1)

    # Back along the cheapest way: of all points of `first` that it passes, the nearest is kept.
    while i >= 0 and j >= 0:
        if partner[i] < 0 or cost[i, j] < cost[i, partner[i]]:
            partner[i] = j
        back = int(np.argmin([total[i, j], total[i, j + 1], total[i + 1, j]]))
        i, j = i - (back != 2), j - (back != 1)

    return partner


def _standard(points: Points) -> np.ndarray:
    plane = points[:, :2] - points[:, :2].mean(axis=0)
    return plane / max(np.ptp(plane[:, 1]), 1e-9)


def family(name: str, words: Words, *, n: int, seed: int, settings: "FamilySettings") -> Stimuli:
    """The prompts of a family, of held-out words; a function of name, settings and seed alone."""
    rng = STREAMS.rng(name, seed)
    made: dict[str, Callable[[], Stimuli]] = {
        "same_text": lambda: repeated(words, text="matching", n=n, rng=rng, family=name),
        "mismatched_text": lambda: repeated(words, text="mismatched", n=n, rng=rng, family=name),
        "other_writer": lambda: other_writer(words, n=n, rng=rng),
        "synthetic": lambda: synthetic(words.tokens, pairs=settings.synthetic_pairs, n=n, rng=rng),
        "natural": lambda: natural(
            words,
            in_row=settings.natural_words,
            most=settings.natural_pairs,
            context=settings.context,
            characters=settings.characters,
            n=n,
            rng=rng,
        ),
    }
    return made[name]()


def written_families(words: Words) -> tuple[str, ...]:
    """The families that a bank has: one writer's has no word by another."""
    return tuple(name for name in FAMILIES if name != "other_writer" or len(words.by_author) > 1)


@dataclass(frozen=True)
class FamilySettings:
    """Sizes of the families that have some."""

    synthetic_pairs: int
    natural_words: int
    natural_pairs: int
    context: int  # tokens of the longest row
    characters: int  # of the longest text
