"""What drawings over the ink need: a word written twice, and where every head looks at every step."""

from typing import Any

import numpy as np
import torch

from cursive_circuits.data import Words
from cursive_circuits.data_bank import Item
from cursive_circuits.run_directory import Trained
from interp_core.errors import InputError

Arrays = dict[str, np.ndarray]


def item_of(words: list[Words], text: str) -> Item:
    """The first item of that spelling. InputError, with the nearest spellings, when the bank has none."""
    import difflib

    items = [item for side in words for item in side.items]
    for item in items:
        if item.text == text:
            return item
    close = difflib.get_close_matches(text, sorted({item.text for item in items}), n=3, cutoff=0.3)
    raise InputError(f"the bank holds no word {text!r}; near it: {', '.join(close) or 'none'}")


@torch.no_grad()
def attention_over_ink(trained: Trained, words: Words, item: Item) -> Arrays:
    """The word twice, with its text twice.

    Arrays: `points` [stroke, 3] where the pen stands after each (direction, radius) pair, second copy to the right;
    `position` [stroke] of each pair's radius token; `self` [layer, head, query, key] and `cross` [layer, head, query,
    character] attention over all tokens of the row; `text` [character] ids; `letters`, the text itself.
    """
    tokens, model = trained.tokens, trained.model
    ink = tokens.encode(item.points)
    row = tokens.row([ink, ink], end=False)
    text = words.text([item.text, item.text])
    with model.observing() as seen:
        model(torch.from_numpy(row[None]).to(model.device), torch.from_numpy(text[None]).to(model.device))
    layers = range(model.n_layers)
    copies = tokens.decode(row)
    shift = np.array([np.ptp(copies[0][:, 0]) + 0.35, 0.0, 0.0])
    pairs = 2 + 2 * np.arange(len(ink) // 2) + 1
    return {
        "points": np.concatenate([copies[0], copies[1] + shift]),
        "position": np.concatenate([pairs, pairs + len(ink) + 2]),
        "self": torch.stack([seen[layer, "self"].call.pattern()[0] for layer in layers]).float().cpu().numpy(),
        "cross": torch.stack([seen[layer, "cross"].call.pattern()[0] for layer in layers]).float().cpu().numpy(),
        "text": text,
        "letters": np.array(list(f"{item.text} {item.text}")),
    }


def as_page(arrays: Arrays) -> dict[str, Any]:
    """The same in JSON's own types, attention in hundredths and without what is below one, for the page in a browser."""
    strokes = arrays["points"].round(4).tolist()
    position = arrays["position"]
    attention = []
    for layer in arrays["self"]:
        attention.append([[_sparse(head[query]) for query in position] for head in layer])
    cross = [[[_sparse(head[query]) for query in position] for head in layer] for layer in arrays["cross"]]
    return {
        "strokes": strokes,
        "position": position.tolist(),
        "self": attention,
        "cross": cross,
        "letters": arrays["letters"].tolist(),
    }


def _sparse(row: np.ndarray) -> list[list[int]]:
    """[place, hundredths] of everything that is at least one hundredth."""
    hundredths = np.rint(100 * row).astype(int)
    return [[int(place), int(hundredths[place])] for place in np.flatnonzero(hundredths)]
