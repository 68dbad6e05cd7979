"""What the views of a page are made of: plain JSON, each of a kind that a script shows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from interp_core.models.subject import Subject, Transformer
from interp_core.page.packed import lower, numbers, shares
from interp_core.page.streams import STREAMS
from interp_core.page.texts import Shown, words
from interp_core.page.watch import Predicted, all_heads, attention, mean_vectors, predicted
from interp_core.statistics.heads import Head
from interp_core.statistics.random_sets import RandomSets, matched_sets

View = dict[str, Any]

BEST_K = (1, 2, 3, 5, 8, 12)  # heads taken away together
DRAWS = 8  # random sets beside each of them, where there are so many


def score(
    label: str,
    says: str,
    value: Float[np.ndarray, "layer head"],
    low: Float[np.ndarray, "layer head"] | None = None,
    high: Float[np.ndarray, "layer head"] | None = None,
    *,
    colour: str,
) -> View:
    """One score of all heads, with its interval where it has one.

    `colour` is a name of page.css.
    """
    ends = {} if low is None or high is None else {"low": numbers(low), "high": numbers(high)}
    return {"label": label, "says": says, "colour": colour, "value": numbers(value), **ends}


def heads(
    subject: Transformer,
    scores: Sequence[View],
    texts: Sequence[Shown],
    *,
    n: str,
    found: Sequence[str],
    seed: int,
    predicts: bool = True,
) -> View:
    """The head map of a model; behind each head its attention over texts, and what is lost without
    it.

    `scores[0]` ranks the heads. `n` says what the scores' intervals are over, `found` names the
    heads that pass the study's test. `predicts`: whether predictions without heads are made, which
    takes a forward pass a head.
    """
    rank = np.array(scores[0]["value"], dtype=np.float64)

    shown = []

    for text in texts:
        without = _without(subject, text, rank, seed) if predicts else None
        shown.append(_text(subject, text) | {"without": without})

    return head_map(subject.name, scores, n=n, found=found) | {"texts": shown}


def head_map(name: str, scores: Sequence[View], *, n: str, found: Sequence[str]) -> View:
    """The same from scores alone: no model is loaded, and nothing is behind a head."""
    layers, heads = np.shape(scores[0]["value"])

    return {
        "kind": "heads",
        "title": f"Heads of {name}",
        "model": name,
        "layers": layers,
        "heads": heads,
        "n": n,
        "found": list(found),
        "scores": list(scores),
        "texts": [],
    }


def _text(subject: Subject, text: Shown) -> View:
    patterns = attention(subject, np.stack([text.ids, text.control]))
    pairs = text.pairs

    return {
        "title": text.title,
        "tokens": words(subject, text.ids),
        "control": words(subject, text.control),
        "pairs": np.stack([pairs.query, pairs.induction_key], axis=1).tolist(),
        "attention": lower(patterns),  # [clean or control, layer, head, entry]
    }


def _without(
    subject: Subject, text: Shown, rank: Float[np.ndarray, "layer head"], seed: int
) -> View:
    """Predictions without each head and without the best k, beside layer-matched random heads."""
    every = all_heads(subject)
    ranked = sorted(every, key=lambda head: -rank[head])

    single = [[head] for head in every]
    sizes = [k for k in BEST_K if k < len(ranked)]
    rng = STREAMS.rng("best_heads", seed)
    random = [matched_sets(ranked[:k], every, rng, draws=DRAWS, without=ranked[:k]) for k in sizes]

    drawn = [one for control in random for one in control.sets]
    sets = [[], *single, *(ranked[:k] for k in sizes), *drawn]
    means = mean_vectors(subject, np.stack([text.ids, text.control]))
    found = predicted(subject, text.ids, sets, means, label=f"{subject.name} without heads")

    kept = 1 + len(single) + len(sizes)
    # Of the random sets every loss is kept, and the predictions of the first of each size.
    counts = [len(control.sets) for control in random]
    firsts = kept + np.cumsum([0, *counts[:-1]])
    shown = [*range(kept), *(int(at) for at, n in zip(firsts, counts, strict=True) if n)]
    vocabulary, places = np.unique(found.top[shown], return_inverse=True)

    return {
        "sizes": sizes,
        "ranked": [str(head) for head in ranked[: max(sizes, default=0)]],
        "random": [_control(control) for control in random],
        "loss": np.round(found.loss.astype(np.float64), 3).tolist(),
        "words": words(subject, vocabulary),
        "top": places.reshape(found.top[shown].shape).tolist(),
        "probability": shares(found.probability[shown]),
    }


def _control(control: RandomSets[Head]) -> View:
    """How many sets, where their heads are, and the first of them."""
    return {
        "count": len(control.sets),
        "where": "of the same and the nearest layers" if control.moved else "of the same layers",
        "first": [str(head) for head in control.sets[0]] if control.sets else [],
    }


def live(found: Predicted, subject: Subject) -> list[View]:
    """Predictions of each set as the live page asks for them."""
    vocabulary, places = np.unique(found.top, return_inverse=True)
    spelt = words(subject, vocabulary)
    top = places.reshape(found.top.shape)

    return [
        {
            "loss": np.round(loss.astype(np.float64), 3).tolist(),
            "top": [[spelt[place] for place in at] for at in ranks],
            "probability": np.round(probability.astype(np.float64), 4).tolist(),
        }
        for loss, ranks, probability in zip(found.loss, top, found.probability, strict=True)
    ]


def line(label: str, values: Any, *, colour: str, low: Any = None, high: Any = None) -> View:
    """One curve; its band where it has an interval."""
    ends = {} if low is None or high is None else {"low": numbers(low), "high": numbers(high)}
    return {"label": label, "values": numbers(values), "colour": colour, **ends}


def panel(
    title: str,
    unit: str,
    lines: Sequence[View],
    *,
    logarithmic: bool = False,
    dots: View | None = None,
) -> View:
    """Curves that share both axes.

    `dots` is a line with several values a step, which no curve joins.
    """
    return {
        "title": title,
        "unit": unit,
        "lines": list(lines),
        "logarithmic": logarithmic,
        "dots": dots,
    }


def clock(
    title: str,
    steps: Any,
    panels: Sequence[View],
    maps: Mapping[str, tuple[Float[np.ndarray, "step layer head"], str]],
    *,
    says: str,
    events: Mapping[str, float] | None = None,
) -> View:
    """One training on one clock: curves and head maps that a slider moves together.

    `maps` holds scores in [0, 1] by name, each with its colour; `events` steps that have a name,
    shown to the nearest whole one.
    """
    return {
        "kind": "clock",
        "title": title,
        "says": says,
        "steps": numbers(steps),
        "panels": list(panels),
        "maps": [
            {"label": label, "colour": colour, "value": shares(values)}
            for label, (values, colour) in maps.items()
        ],
        "events": [{"label": label, "step": round(step)} for label, step in (events or {}).items()],
    }


def card(
    name: str,
    sizes: Mapping[str, Any],
    *,
    steps: Any,
    panels: Sequence[View],
    formed: Sequence[str],
) -> View:
    """A model at a glance: sizes, its training curve, and when its heads formed, in sentences."""
    return {
        "kind": "curves",
        "name": name,
        "sizes": {label: numbers(value) for label, value in sizes.items()},
        "steps": numbers(steps),
        "panels": list(panels),
        "formed": list(formed),
    }
