"""What drawings over the ink need: strokes written twice, and where every head looks at them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from cursive_circuits.data import Row, Words, random_pairs
from cursive_circuits.data_bank import Item
from cursive_circuits.data_tokens import Points
from cursive_circuits.measure_heads import AFTER
from cursive_circuits.model import KINDS
from cursive_circuits.model_watching import observing
from cursive_circuits.run_directory import Trained
from interp_core.errors import InputError

Arrays = dict[str, np.ndarray]


def item_of(words: list[Words], text: str) -> Item:
    """The first item of that spelling.

    InputError, with the nearest spellings, when the bank has none.
    """
    import difflib

    items = [item for side in words for item in side.items]
    for item in items:
        if item.text == text:
            return item
    close = difflib.get_close_matches(text, sorted({item.text for item in items}), n=3, cutoff=0.3)
    raise InputError(f"the bank holds no word {text!r}; near it: {', '.join(close) or 'none'}")


@dataclass(frozen=True)
class Twice:
    """The same strokes twice, as a row of tokens and on the page."""

    row: Row
    text: Row
    points: Points  # where the pen stands after each (direction, radius) pair, both copies
    position: Int[np.ndarray, " stroke"]  # of each pair's radius token
    between: int  # tokens from one copy to the same place of the other
    letters: str


def word_twice(trained: Trained, words: Words, item: Item) -> Twice:
    """A word with its text twice, the second copy drawn to the right of the first."""
    tokens = trained.tokens
    ink = tokens.encode(item.points)
    row = tokens.row([ink, ink], end=False)

    first, second = tokens.decode(row)
    shift = np.array([np.ptp(first[:, 0]) + 0.35, 0.0, 0.0])
    pairs = 2 + 2 * np.arange(len(ink) // 2) + 1
    between = len(ink) + 2  # two WORD tokens stand between the copies

    return Twice(
        row,
        words.text([item.text, item.text]),
        np.concatenate([first, second + shift]),
        np.concatenate([pairs, pairs + between]),
        between,
        f"{item.text} {item.text}",
    )


def strokes_twice(trained: Trained, *, pairs: int, seed: int) -> Twice:
    """Random strokes twice without a text: what the control was trained on."""
    tokens = trained.tokens
    segment = random_pairs(tokens, pairs, np.random.default_rng([seed, 70]))
    row = tokens.row([np.tile(segment, 2)], end=False)

    (points,) = tokens.decode(row)
    position = 2 + 2 * np.arange(2 * pairs) + 1
    return Twice(row, np.zeros(1, dtype=np.int64), points, position, len(segment), "")


@torch.no_grad()
def attention_over_ink(trained: Trained, twice: Twice) -> Arrays:
    """Where every head looks from every token of the row.

    Arrays: `points` and `position` as in Twice; `self` [layer, head, query, key] and `cross`
    [layer, head, query, character] attention over all tokens of the row; `letters` the text; `best`
    the self-attention head (layer, head) that looks most at one offset after the earlier
    occurrence, `best_cross` the cross-attention head whose mean place in the text goes most with
    the pen.
    """
    model = trained.model
    ids, text = (torch.from_numpy(part[None]).to(model.device) for part in (twice.row, twice.text))
    with observing(model) as seen:
        model(ids, text)

    attended, read = (
        torch.stack([seen[layer, kind].call.pattern()[0] for layer in range(model.n_layers)])
        .float()
        .cpu()
        .numpy()
        for kind in KINDS
    )

    # From the second stroke of the second copy on, there is an earlier occurrence to look past.
    later = np.arange(twice.between + 2, len(twice.row) - 1)
    places = [np.minimum(later - twice.between + offset, later) for offset in AFTER]
    looks = np.stack([attended[:, :, later, place].mean(axis=-1) for place in places])
    matching = looks.max(axis=0)

    return {
        "points": twice.points,
        "position": twice.position,
        "self": attended,
        "cross": read,
        "letters": np.array(list(twice.letters), dtype="<U1"),
        "best": np.array(np.unravel_index(matching.argmax(), matching.shape)),
        "best_cross": _moves_most(read),
    }


def _moves_most(read: Float[np.ndarray, "layer head query character"]) -> Int[np.ndarray, "2"]:
    """The cross-attention head whose mean place goes most with time; the first without a text."""
    if read.shape[-1] == 1:
        return np.zeros(2, dtype=np.int64)

    centre = (read * np.arange(read.shape[-1])).sum(axis=-1)[..., 1:]
    time = np.arange(centre.shape[-1])
    moves = np.apply_along_axis(lambda c: np.corrcoef(c, time)[0, 1], -1, centre)
    return np.array(np.unravel_index(moves.argmax(), moves.shape))


def as_page(arrays: Arrays) -> dict[str, Any]:
    """The same in JSON's own types, attention in hundredths and without what is below one, for the
    page in a browser.

    Rows of `self` and `cross` [layer][head] are two for each stroke: asked at its direction, asked
    at its radius (when the whole stroke is known).
    """
    asked = np.stack([arrays["position"] - 1, arrays["position"]], axis=1).reshape(-1)
    kinds = {
        kind: [
            [[_sparse(head[query]) for query in asked] for head in layer] for layer in arrays[kind]
        ]
        for kind in ("self", "cross")
    }
    return {
        "strokes": arrays["points"].round(4).tolist(),
        "position": arrays["position"].tolist(),
        "letters": arrays["letters"].tolist(),
        "best": arrays["best"].tolist(),
        **kinds,
    }


def _sparse(row: np.ndarray) -> list[list[int]]:
    """[place, hundredths] of everything that is at least one hundredth."""
    hundredths = np.rint(100 * row).astype(int)
    return [[int(place), int(hundredths[place])] for place in np.flatnonzero(hundredths)]
