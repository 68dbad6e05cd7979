"""What drawings over the ink need: a row of words, and where heads look at every step of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from cursive_circuits.data import Row, Words, random_pairs, stacked_text
from cursive_circuits.data_bank import Item
from cursive_circuits.data_stimuli import recurrences
from cursive_circuits.data_tokens import Tokens, Vocabulary
from cursive_circuits.measure_heads import AFTER
from cursive_circuits.measure_samples import written
from cursive_circuits.model_watching import observing
from cursive_circuits.params import Sampling
from cursive_circuits.run_directory import Trained
from cursive_circuits.streams import STREAMS
from interp_core.errors import InputError

Arrays = dict[str, np.ndarray]
APART = 0.35  # between drawn words, canvas heights


@dataclass(frozen=True)
class Chosen:
    """A row that is looked at, and the text that is read beside it."""

    row: Row
    text: str


def of_words(
    trained: Trained, sides: Sequence[Words], spelt: Sequence[str], sampling: Sampling
) -> Chosen:
    """Words in a row, one of them alone twice the same: each in the ink of the bank, or, where the
    bank has no such word, as the model writes it.

    InputError for a word that the model writes without a stroke, or a row longer than its context.
    """
    items = [item_of(trained, sides, word, sampling) for word in spelt]
    items = items * 2 if len(items) == 1 else items
    row = trained.tokens.row(sides[1].inks(items), end=False)
    return _fits(trained, Chosen(row, " ".join(item.text for item in items)))


def of_strokes(trained: Trained, *, pairs: int, seed: int) -> Chosen:
    """Random strokes twice without a text: what the control was trained on."""
    tokens = trained.tokens
    assert isinstance(tokens, Tokens)
    segment = random_pairs(tokens, pairs, STREAMS.rng("drawings", seed))
    return Chosen(tokens.row([np.tile(segment, 2)], end=False), "")


def item_of(trained: Trained, sides: Sequence[Words], text: str, sampling: Sampling) -> Item:
    """The bank's first item of that spelling, else the model's own writing of it."""
    for item in (item for side in sides for item in side.items):
        if item.text == text:
            return item

    (points,) = written(trained, sides[1], [text], sampling)
    if len(points) == 0:
        raise InputError(
            f"the bank holds no word {text!r}, and the model writes none: try another, or --tokens"
        )
    return Item("model", text, points, None)


def of_tokens(trained: Trained, ids: Sequence[int], text: str) -> Chosen:
    """A row of the user's own tokens. InputError, naming the place, where it is none."""
    tokens, row = trained.tokens, np.array(ids, dtype=np.int64)
    if len(row) < 4 or len(row) % 2:
        raise InputError(f"--tokens: {len(row)} ids; a row is pairs, two at least")

    for place, (first, second) in enumerate(row.reshape(-1, 2).tolist()):
        stroke = 0 <= first < tokens.directions <= second < tokens.pad
        if not stroke and not first == second == tokens.word:
            raise InputError(
                f"--tokens: ids {first} and {second} at {2 * place} are no direction "
                f"(0-{tokens.directions - 1}) and "
                f"radius ({tokens.directions}-{tokens.pad - 1}), and not {tokens.word} twice"
            )
    if not _spans(row, tokens):
        raise InputError("--tokens: the row holds no stroke")
    return _fits(trained, Chosen(row, text))


def _fits(trained: Trained, chosen: Chosen) -> Chosen:
    context = trained.model.shape.context
    if len(chosen.row) > context:
        raise InputError(
            f"a row of {len(chosen.row)} tokens is longer than the model's context of {context}"
        )
    return chosen


@torch.no_grad()
def attention_over_ink(trained: Trained, words: Words | None, chosen: Chosen) -> Arrays:
    """A row of words and where every head looks.

    Arrays: `points` [stroke, 3] where the pen stands after each (direction, radius) pair, later
    words to the right; `position` [stroke] of each pair's radius token; `self` [layer, head, query,
    key] and `cross` [layer, head, query, character] attention over all tokens of the row; `letters`
    the text; `recurs` whether a part of the row comes again; `matching` [layer, head] attention to
    the one offset after the earlier occurrence that a head looks at most (where nothing recurs, to
    any one place), `best` the head (layer, head) with the largest, `best_cross` the cross-attention
    head whose mean place in the text goes most with the pen.
    """
    model, row = trained.model, chosen.row
    # The control has no alphabet: it reads one character of padding.
    read_text = np.zeros(1, dtype=np.int64) if words is None else words.text([chosen.text])
    text = stacked_text([read_text])
    with observing(model) as seen:
        model(torch.from_numpy(row[None]).to(model.device), torch.from_numpy(text).to(model.device))
    layers = range(model.n_layers)
    attended = (
        torch.stack([seen[layer, "self"].call.pattern()[0] for layer in layers])
        .float()
        .cpu()
        .numpy()
    )
    read = (
        torch.stack([seen[layer, "cross"].call.pattern()[0] for layer in layers])
        .float()
        .cpu()
        .numpy()
    )

    spans = _spans(row, trained.tokens)
    copies = _copies(row, spans, trained.tokens)
    matching = _matching(attended, copies)
    centre = (read * np.arange(read.shape[-1])).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):  # without a text no head moves in it
        moves = np.apply_along_axis(
            lambda c: np.corrcoef(c, np.arange(len(c)))[0, 1], -1, centre[..., 1:]
        )
    moves = np.nan_to_num(moves, nan=0.0)
    return {
        "points": _side_by_side([trained.tokens.path(row[begin:end]) for begin, end in spans]),
        "position": np.concatenate([np.arange(begin + 1, end, 2) for begin, end in spans]),
        "self": attended,
        "cross": read,
        "letters": np.array(list(chosen.text), dtype="<U1"),
        "recurs": np.array(len(copies) > 0),
        "matching": matching,
        "best": np.array(np.unravel_index(matching.argmax(), matching.shape)),
        "best_cross": np.array(np.unravel_index(moves.argmax(), moves.shape)),
    }


def _spans(row: Row, tokens: Vocabulary) -> list[tuple[int, int]]:
    """Where each word of a row begins and ends."""
    stroke = np.concatenate([[False], (row < tokens.pad).reshape(-1, 2).all(axis=1), [False]])
    changes = 2 * np.flatnonzero(stroke[1:] != stroke[:-1])
    return list(zip(changes[::2].tolist(), changes[1::2].tolist(), strict=True))


def _copies(
    row: Row, spans: list[tuple[int, int]], tokens: Vocabulary
) -> Int[np.ndarray, "place 2"]:
    """(query, earlier): all of a word that is there twice, or strokes of other rows that recur."""
    if len(spans) == 2:
        (first, _), (second, end) = spans
        skipped = tokens.travel
        if np.array_equal(row[first + skipped : spans[0][1]], row[second + skipped : end]):
            query = np.arange(second + skipped, end - 1)
            return np.column_stack([query, query - second + first])
    return recurrences(row, tokens)


def _matching(
    attended: Float[np.ndarray, "layer head query key"], copies: Int[np.ndarray, "place 2"]
) -> Float[np.ndarray, "layer head"]:
    """Mean attention to the offset after the earlier occurrence that a head looks at most."""
    if len(copies) == 0:
        return attended.max(axis=-1).mean(axis=-1)
    query, earlier = copies.T
    places = [np.minimum(earlier + offset, query) for offset in AFTER]
    return np.stack([attended[:, :, query, place].mean(axis=-1) for place in places]).max(axis=0)


def _side_by_side(words: list[Float[np.ndarray, "_ 3"]]) -> Float[np.ndarray, "stroke 3"]:
    """The words' points, each to the right of the one before."""
    shifts = [0.0]
    for word, _ in pairwise(words):
        shifts.append(shifts[-1] + np.ptp(word[:, 0]) + APART)
    return np.concatenate(
        [word + np.array([shift, 0.0, 0.0]) for word, shift in zip(words, shifts, strict=True)]
    )


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
        "recurs": bool(arrays["recurs"]),
        "matching": arrays["matching"].round(4).tolist(),
        "best": arrays["best"].tolist(),
        **kinds,
    }


def _sparse(row: np.ndarray) -> list[list[int]]:
    """[place, hundredths] of everything that is at least one hundredth."""
    hundredths = np.rint(100 * row).astype(int)
    return [[int(place), int(hundredths[place])] for place in np.flatnonzero(hundredths)]
