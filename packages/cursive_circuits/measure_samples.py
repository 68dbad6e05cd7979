"""What the model writes, and whether it can be read: by the nearest of many rendered words.

Curves are compared by dynamic time warping of points at equal distances along the pen's path,
centred and scaled. What true ink of other writers scores on the same candidates is the yardstick.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from cursive_circuits.data import Words, stacked_text
from cursive_circuits.data_bank import Item
from cursive_circuits.data_tokens import Points
from cursive_circuits.model_sampling import sample
from cursive_circuits.params import Sampling
from cursive_circuits.run_directory import Trained
from cursive_circuits.streams import STREAMS
from interp_core.errors import InputError
from interp_core.statistics.interval import Interval, mean_share

Report = dict[str, Any]


def candidates(words: Words, settings: Sampling) -> tuple[list[Item], list[Item]]:
    """Different held-out words, each by two writers: the rendered candidates, and the true ink that
    is read back.

    A bank of one writer has candidates and no true ink.
    """
    rng = STREAMS.rng("samples", settings.seed)
    by_word: dict[str, list[Item]] = {}
    for item in words.items:
        by_word.setdefault(item.text, []).append(item)
    alone = len(words.by_author) == 1
    pairs = [
        items for items in by_word.values() if alone or len({item.author for item in items}) > 1
    ]
    if len(pairs) < settings.words:
        written = "" if alone else " with two writers"
        raise InputError(
            f"{len(pairs)} held-out words{written}; lower sampling.words ({settings.words})"
        )
    chosen = [pairs[int(i)] for i in rng.permutation(len(pairs))[: settings.words]]
    rendered = [items[0] for items in chosen]
    if alone:
        return rendered, []
    true = [next(item for item in items if item.author != items[0].author) for items in chosen]
    return rendered, true


def written(trained: Trained, words: Words, spelt: list[str], settings: Sampling) -> list[Points]:
    """One sampled word for each spelling; no points where the model wrote none."""
    text = torch.from_numpy(stacked_text([words.text([word]) for word in spelt])).to(
        trained.model.device
    )
    generator = torch.Generator().manual_seed(settings.seed)
    longest = min(settings.longest, trained.model.shape.context - 2)
    drawn = sample(
        trained.model,
        trained.tokens,
        text,
        temperature=settings.temperature,
        longest=longest,
        generator=generator,
    )
    return [trained.tokens.first_word(row) for row in drawn]


def curve(points: Points, n: int) -> Float[np.ndarray, "point 2"]:
    """n points at equal distances along the path (pen up or down), centred, without slant (the
    share of x that goes with y), both axes scaled to unit spread: what is left is the letters, not
    the hand.
    """
    plane = points[:, :2]
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(plane, axis=0), axis=1))])
    wanted = np.linspace(0.0, along[-1], n)
    even = np.stack([np.interp(wanted, along, plane[:, axis]) for axis in (0, 1)], axis=1)
    even = even - even.mean(axis=0)
    even[:, 0] -= (
        even[:, 1] * (even[:, 0] @ even[:, 1]) / max(float(even[:, 1] @ even[:, 1]), 1e-12)
    )
    return even / np.maximum(even.std(axis=0), 1e-9)


def warping_distance(
    first: Float[np.ndarray, "pair point 2"], second: Float[np.ndarray, "pair point 2"]
) -> Float[np.ndarray, " pair"]:
    """Dynamic time warping of many pairs of curves at once: least sum of distances over monotone
    matchings (Sakoe and Chiba 1978), by anti-diagonals.
    """
    pairs, n, _ = first.shape
    m = second.shape[1]
    cost = np.linalg.norm(first[:, :, None] - second[:, None], axis=-1)
    total = np.full((pairs, n + 1, m + 1), np.inf)
    total[:, 0, 0] = 0.0
    for diagonal in range(n + m - 1):
        i = np.arange(max(0, diagonal - m + 1), min(n, diagonal + 1))
        j = diagonal - i
        before = np.minimum(np.minimum(total[:, i, j], total[:, i, j + 1]), total[:, i + 1, j])
        total[:, i + 1, j + 1] = cost[:, i, j] + before
    return total[:, n, m]


def read_back(
    inks: list[Points], rendered: list[Points], settings: Sampling
) -> Float[np.ndarray, "ink candidate"]:
    """Distance of each ink from each candidate; infinite for ink of fewer than two points."""
    shapes = np.stack([curve(points, settings.resampled) for points in rendered])
    rows = []
    for points in inks:
        if len(points) < 2:
            rows.append(np.full(len(rendered), np.inf))
            continue
        mine = np.broadcast_to(curve(points, settings.resampled), shapes.shape)
        rows.append(warping_distance(mine, shapes))
    return np.stack(rows)


def sample_report(
    trained: Trained, words: Words, settings: Sampling
) -> tuple[dict[str, np.ndarray], Report]:
    """Accuracy of reading samples and true ink among the candidates, with intervals over words.

    "Read" means that the nearest of the candidates is the word. Inks of one word are easy or hard
    together, so that words are what is resampled.

    Arrays: `shown/<i>` points of the first samples, `true/<i>` of the same words' true ink,
    `distance` and `true_distance` [ink, candidate]. With one writer the true ink is the candidates'
    own, and is not read back: the report has no `true_ink` and no `legible`.
    """
    rendered, true = candidates(words, settings)
    names = [item.text for item in rendered]
    spelt = names * settings.samples
    inks = written(trained, words, spelt, settings)

    shapes = [_as_decoded(trained, item) for item in rendered]
    distance = read_back(inks, shapes, settings)

    right = read_right(distance, spelt, names)
    read = by_word(right, spelt).to_json()
    report = {
        "samples": read,
        "inks": len(inks),
        "chance": 1 / len(rendered),
        "shown": spelt[: settings.shown],
        "shown_right": int(right[: settings.shown].sum()),
    }
    arrays = {f"shown/{i}": inks[i] for i in range(settings.shown)}
    arrays |= {f"true/{i}": (true or rendered)[i].points for i in range(settings.shown)}
    arrays |= {"distance": distance}
    if not true:
        report["verdict"] = (
            f"{read['value']:.2f} of {len(inks)} samples of {read['n']} words are nearest to their "
            f"own word of {len(rendered)}; the bank has one writer, so there is no other's ink to "
            "compare with"
        )
        return arrays, report

    true_distance = read_back([_as_decoded(trained, item) for item in true], shapes, settings)
    spelt_true = [item.text for item in true]
    yardstick = by_word(read_right(true_distance, spelt_true, names), spelt_true).to_json()
    report |= {
        "true_ink": yardstick,
        "legible": read["value"] >= yardstick["value"] - settings.margin,
    }
    word = "legible" if report["legible"] else "not legible"
    report["verdict"] = (
        f"{word}: {read['value']:.2f} of {len(inks)} samples of {read['n']} words are nearest to "
        f"their own word of {len(rendered)}, true ink {yardstick['value']:.2f}"
    )
    return arrays | {"true_distance": true_distance}, report


def _as_decoded(trained: Trained, item: Item) -> Points:
    """True ink as the tokens keep it."""
    return trained.tokens.first_word(trained.tokens.row([trained.tokens.encode(item.points)]))


def read_right(
    distance: Float[np.ndarray, "ink candidate"], spelt: Sequence[str], names: Sequence[str]
) -> Bool[np.ndarray, " ink"]:
    """Whether the nearest candidate of each ink has the spelling that was asked for.

    An ink of no strokes is nearest to none.
    """
    nearest = [names[int(i)] for i in distance.argmin(axis=1)]
    same = np.array([found == asked for found, asked in zip(nearest, spelt, strict=True)])
    return same & np.isfinite(distance).any(axis=1)


def by_word(right: Bool[np.ndarray, " ink"], spelt: Sequence[str]) -> Interval:
    """Share of inks read right; the interval is over words, each with the share of its own inks."""
    shares: dict[str, list[bool]] = {}
    for word, hit in zip(spelt, right, strict=True):
        shares.setdefault(word, []).append(bool(hit))

    return mean_share(np.array([np.mean(hits) for hits in shares.values()]), unit="words")
