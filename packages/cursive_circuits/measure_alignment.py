"""Where cross-attention reads: against the letter that is being written.

A place of a row is asked about the letter of the stroke that it predicts. Only banks that know
their letters (metadata.letterIndex) have alignment errors; monotonicity and mass on padding need
none.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from cursive_circuits.data import Words, stacked_text
from cursive_circuits.model import Head
from cursive_circuits.model_watching import observing
from cursive_circuits.params import Statistics
from cursive_circuits.run_directory import Trained
from cursive_circuits.streams import STREAMS
from interp_core.errors import InputError
from interp_core.statistics.interval import Interval
from interp_core.statistics.resampling import mean_interval

Report = dict[str, Any]
Arrays = dict[str, np.ndarray]
WITHOUT_LETTERS = ("monotone", "padding")
NAMES = ("error", "right", "monotone", "padding", "lead", "uniform_error")


@torch.no_grad()
def alignment(
    trained: Trained, words: Words, *, n: int, seed: int, batch_size: int
) -> dict[str, Float[np.ndarray, "word layer head"]]:
    """By word, for every cross-attention head (NAMES): `error` mean distance of attention from the
    true letter, in letters; `right` share of places whose most attended character is it; `monotone`
    rank correlation of the mean attended place with time; `padding` mass beyond the text's end;
    `lead` how many tokens before a letter begins the most attended character moves on to it
    (negative: after), mean over letters that are reached; `uniform_error` what attention spread
    evenly over the text would err. Not-a-number where a word has no such place. A bank that does
    not know its letters has `monotone` and `padding` alone.

    InputError for a bank without words of two letters.
    """
    pool = [item for item in words.items if len(item.text) > 1]

    if not pool:
        raise InputError("alignment needs words of two letters or more")

    names = NAMES if all(item.letters is not None for item in pool) else WITHOUT_LETTERS
    rng = STREAMS.rng("alignment", seed)
    items = [pool[int(i)] for i in rng.integers(len(pool), size=n)]
    found = []

    for start in range(0, n, batch_size):
        part = items[start : start + batch_size]
        inks = [trained.tokens.encode(item.points) for item in part]
        ids = torch.from_numpy(
            trained.tokens.stack([trained.tokens.row([ink], end=False) for ink in inks])
        )
        # One place wider than the longest text, so that there is padding to look at.
        text = np.pad(stacked_text([words.text([item.text]) for item in part]), ((0, 0), (0, 1)))

        with observing(trained.model) as seen:
            trained.model(
                ids.to(trained.model.device), torch.from_numpy(text).to(trained.model.device)
            )

        layers = [seen[layer, "cross"].call.pattern() for layer in range(trained.model.n_layers)]
        patterns = (
            torch.stack(layers, dim=1).double().cpu().numpy()
        )  # word layer head position character

        for item, ink, pattern in zip(part, inks, patterns, strict=True):
            letters = (
                np.zeros(len(ink), int)
                if item.letters is None
                else _letters_of_tokens(trained, item)
            )
            # The token at t + 1 is asked about at t; nothing asks about a row's first one.
            begins = len(trained.tokens.opening) - 1
            skipped = max(0, -begins)
            places = pattern[:, :, begins + skipped : begins + len(ink)]
            found.append(_of_word(places, letters[skipped:], len(item.text)))

    return {name: np.stack([word[name] for word in found]) for name in names}


def _letters_of_tokens(trained: Trained, item: Any) -> np.ndarray:
    """The letter of each token of a word; cut steps belong to their point's letter."""
    return np.repeat(np.array(item.letters)[trained.tokens.owners(item.points)], 2)


def _of_word(
    pattern: Float[np.ndarray, "layer head place character"], letters: np.ndarray, length: int
) -> Arrays:
    """One word's numbers, each [layer, head]; places predict the tokens that `letters` are of."""
    inside = pattern[..., :length]
    distance = np.abs(np.arange(length)[None, :] - letters[:, None])
    most = inside.argmax(axis=-1)
    centre = (inside * np.arange(length)).sum(axis=-1) / np.maximum(inside.sum(axis=-1), 1e-12)

    return {
        "error": np.einsum("lhpc,pc->lh", inside, distance)
        / np.maximum(inside.sum(axis=-1).sum(axis=-1), 1e-12),
        "right": (most == letters).mean(axis=-1),
        "monotone": _rank_correlation(centre),
        "padding": pattern[..., length:].sum(axis=-1).mean(axis=-1),
        "lead": _lead(most, letters),
        "uniform_error": np.full(pattern.shape[:2], distance.mean()),
    }


def _rank_correlation(
    values: Float[np.ndarray, "layer head place"],
) -> Float[np.ndarray, "layer head"]:
    """Spearman's correlation with time."""
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=-1)
    time = np.arange(values.shape[-1], dtype=np.float64)
    ranks, time = ranks - ranks.mean(axis=-1, keepdims=True), time - time.mean()
    spread = np.sqrt((ranks**2).sum(axis=-1) * (time**2).sum())
    return (ranks * time).sum(axis=-1) / np.maximum(spread, 1e-12)


def _lead(most: np.ndarray, letters: np.ndarray) -> Float[np.ndarray, "layer head"]:
    """Tokens between the first place, within the letter before and this one, at which a letter is
    the most attended one, and the place where it begins; mean over letters after the first.
    """
    total, count = np.zeros(most.shape[:2]), np.zeros(most.shape[:2])

    for letter in np.unique(letters)[1:]:
        begins = int(np.flatnonzero(letters == letter)[0])
        window = np.flatnonzero((letters == letter) | (letters == letter - 1))
        looks = most[..., window] == letter
        reached = looks.any(axis=-1)
        first = window[looks.argmax(axis=-1)]
        total += np.where(reached, begins - first, 0)
        count += reached

    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def alignment_report(
    found: dict[str, Float[np.ndarray, "word layer head"]],
    tests: Statistics,
    rng: np.random.Generator,
) -> tuple[Arrays, Report]:
    """Means with 95 % intervals over words, and the head that aligns best: least error, or where
    letters are not known the one that moves on with the pen most.
    """
    arrays: Arrays = {}

    for name, values in found.items():
        means = np.where(
            np.isnan(values), np.nanmean(values, axis=0), values
        )  # a word without a boundary says nothing
        interval = mean_interval(means, rng, resamples=tests.resamples)
        arrays |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}

    rank = -arrays["error"] if "error" in arrays else arrays["monotone"]
    layer, head = np.unravel_index(rank.argmax(), rank.shape)
    n = len(found["monotone"])
    best = {name: _at(arrays, name, int(layer), int(head), n) for name in found}

    return arrays, {
        "n": n,
        "best": str(Head(int(layer), "cross", int(head))),
        **best,
    }


def _at(arrays: Arrays, name: str, layer: int, head: int, n: int) -> Report:
    value, low, high = (float(arrays[f"{name}{end}"][layer, head]) for end in ("", "_low", "_high"))
    return Interval(value, low, high, n, "words").to_json()
