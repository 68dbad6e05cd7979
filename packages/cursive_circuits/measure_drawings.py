"""What drawings over the ink need: a word written twice, and where every head looks at every step."""

from typing import Any

import numpy as np
import torch

from cursive_circuits.data import Words
from cursive_circuits.data_bank import Item
from cursive_circuits.measure_heads import AFTER
from cursive_circuits.model_watching import observing
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
    character] attention over all tokens of the row; `letters` the text; `best` the self-attention head (layer,
    head) that looks most at one offset after the earlier occurrence, `best_cross` the cross-attention head whose mean
    place in the text goes most with the pen.
    """
    tokens, model = trained.tokens, trained.model
    ink, again = words.inks([item, item])
    row = tokens.row([ink, again], end=False)
    text = words.text([item.text, item.text])
    with observing(model) as seen:
        model(torch.from_numpy(row[None]).to(model.device), torch.from_numpy(text[None]).to(model.device))
    layers = range(model.n_layers)
    copies = [tokens.path(ink), tokens.path(again)]
    shift = np.array([np.ptp(copies[0][:, 0]) + 0.35, 0.0, 0.0])
    begins = len(tokens.opening)
    pairs = begins + 2 * np.arange(len(ink) // 2) + 1
    attended = torch.stack([seen[layer, "self"].call.pattern()[0] for layer in layers]).float().cpu().numpy()
    read = torch.stack([seen[layer, "cross"].call.pattern()[0] for layer in layers]).float().cpu().numpy()
    later = np.arange(begins + len(ink) + 2 + tokens.travel, len(row) - 1)
    places = [np.minimum(later - len(ink) - 2 + offset, later) for offset in AFTER]
    matching = np.stack([attended[:, :, later, place].mean(axis=-1) for place in places]).max(axis=0)
    centre = (read * np.arange(read.shape[-1])).sum(axis=-1)
    moves = np.apply_along_axis(lambda c: np.corrcoef(c, np.arange(len(c)))[0, 1], -1, centre[..., 1:])
    return {
        "points": np.concatenate([copies[0], copies[1] + shift]),
        "position": np.concatenate([pairs, pairs + len(ink) + 2]),
        "self": attended,
        "cross": read,
        "letters": np.array(list(f"{item.text} {item.text}")),
        "best": np.array(np.unravel_index(matching.argmax(), matching.shape)),
        "best_cross": np.array(np.unravel_index(moves.argmax(), moves.shape)),
    }


def as_page(arrays: Arrays) -> dict[str, Any]:
    """The same in JSON's own types, attention in hundredths and without what is below one, for the page in a browser.

    Rows of `self` and `cross` [layer][head] are two for each stroke: asked at its direction, asked at its radius (when
    the whole stroke is known)."""
    asked = np.stack([arrays["position"] - 1, arrays["position"]], axis=1).reshape(-1)
    kinds = {
        kind: [[[_sparse(head[query]) for query in asked] for head in layer] for layer in arrays[kind]]
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
