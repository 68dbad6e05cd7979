"""What a repeat is worth: loss on the second occurrence minus the first, under three texts, against
three controls.

A falling loss alone is no induction. The same strokes after another word of the writer (style), and
after their own pairs in shuffled order (bag of strokes), say how much of the fall needs the order
of the first copy.
"""

from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float

from cursive_circuits.data import Row, Words, stacked_text
from cursive_circuits.data_stimuli import Text, same_length
from cursive_circuits.measure_losses import losses
from cursive_circuits.params import Statistics
from cursive_circuits.run_directory import Trained
from interp_core.statistics.resampling import mean_interval

Report = dict[str, Any]
KINDS = ("loss", "direction", "radius", "pen")


def gains(
    trained: Trained, words: Words, *, n: int, seed: int, batch_size: int
) -> dict[str, Float[np.ndarray, "word kind"]]:
    """Mean loss of a word's tokens, nats, by word and kind (KINDS), for each text: `<text>/first`
    its first occurrence, `<text>/second` its second, `<text>/after_other` in second place after
    another word of the writer, of as many pairs, `<text>/after_shuffled` after its own pairs in
    random order. Plus `bound` [word, 1]: ln of its distinct pairs.
    """
    rng = np.random.default_rng([seed, 20])
    kinds = ("repeat", "after_other", "after_shuffled")
    rows: dict[str, list[Row]] = {kind: [] for kind in kinds}
    texts: dict[tuple[Text, str], list[Row]] = {}
    spans, bound = [], []
    for _ in range(n):
        item = words.draw(rng)
        ink = words.tokens.encode(item.points)
        other, instead = same_length(words, item, len(ink), rng)
        shuffled = rng.permutation(ink.reshape(-1, 2)).reshape(-1)
        wrong = [words.draw(rng, other_than=item.text).text for _ in range(2)]
        for kind, first in zip(kinds, (ink, instead, shuffled), strict=True):
            rows[kind].append(words.tokens.row([first, ink], end=False))
            right = [other.text if kind == "after_other" else item.text, item.text]
            said: dict[Text, list[str]] = {"matching": right, "mismatched": wrong, "empty": []}
            for text, spelt in said.items():
                texts.setdefault((text, kind), []).append(words.text(spelt))
        spans.append(len(ink))
        bound.append([np.log(len(np.unique(ink.reshape(-1, 2), axis=0)))])
    found = {"bound": np.array(bound)}
    for text in get_args(Text):
        for kind in kinds:
            values = _losses(trained, rows[kind], texts[text, kind], batch_size)
            second = "second" if kind == "repeat" else kind
            found[f"{text}/{second}"] = _means(values, [(span + 3, 2 * span + 3) for span in spans])
            if kind == "repeat":
                found[f"{text}/first"] = _means(values, [(1, span + 1) for span in spans])
    return found


def _losses(
    trained: Trained, rows: list[Row], texts: list[Row], batch_size: int
) -> list[np.ndarray]:
    """Each row's losses [target, kind], the padding still on."""
    found: list[np.ndarray] = []
    for start in range(0, len(rows), batch_size):
        ids = torch.from_numpy(trained.tokens.stack(rows[start : start + batch_size]))
        text = torch.from_numpy(stacked_text(texts[start : start + batch_size]))
        by_kind = losses(trained.model, trained.tokens, ids, text)
        found += list(np.stack([by_kind[kind] for kind in KINDS], axis=-1))
    return found


def _means(
    values: list[np.ndarray], spans: list[tuple[int, int]]
) -> Float[np.ndarray, "word kind"]:
    """Means over each word's targets."""
    return np.stack(
        [np.nanmean(row[low:high], axis=0) for row, (low, high) in zip(values, spans, strict=True)]
    )


def gain_report(
    found: dict[str, Float[np.ndarray, "word kind"]], tests: Statistics, rng: np.random.Generator
) -> Report:
    """For each text: `gain` of the second occurrence over the first; `control` the same word's gain
    after another word; `excess`, their difference; `order`, what the order of the pairs adds over
    their bag. Nats a token, all and by kind, 95 % intervals over words. `mean_bound` is the mean of
    ln(distinct pairs), what a bag of pairs could reach.
    """
    report: Report = {"n": len(found["bound"]), "mean_bound": float(found["bound"].mean())}
    for text in get_args(Text):
        first, second = found[f"{text}/first"], found[f"{text}/second"]
        other, shuffled = found[f"{text}/after_other"], found[f"{text}/after_shuffled"]
        wanted = {
            "first": first,
            "second": second,
            "gain": first - second,
            "control": first - other,
            "excess": other - second,
            "order": shuffled - second,
        }
        report[text] = {name: _by_kind(values, tests, rng) for name, values in wanted.items()}
    clear = [
        text for text in ("mismatched", "empty") if report[text]["excess"]["loss"]["ci"][0] > 0
    ]
    ordered = [
        text for text in ("mismatched", "empty") if report[text]["order"]["loss"]["ci"][0] > 0
    ]
    report["verdict"] = (
        f"a repeat helps beyond the control under {_listed(clear)} text; the order of the strokes "
        "adds to "
        f"their bag under {_listed(ordered)} text"
    )
    return report


def _by_kind(
    values: Float[np.ndarray, "word kind"], tests: Statistics, rng: np.random.Generator
) -> Report:
    known = values[~np.isnan(values).any(axis=1)]
    interval = mean_interval(known, rng, resamples=tests.resamples)
    return {
        kind: {
            "value": float(interval.value[i]),
            "ci": [float(interval.low[i]), float(interval.high[i])],
        }
        for i, kind in enumerate(KINDS)
    }


def _listed(names: list[str]) -> str:
    return " and ".join(names) or "no"
