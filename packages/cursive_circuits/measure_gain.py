"""What a repeat is worth: loss on the second occurrence minus the first, under three texts, against
three controls.

A falling loss alone is no induction. The same strokes after another word of the writer (style), and
after their own pairs in shuffled order (bag of strokes), say how much of the fall needs the order
of the first copy.
"""

from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float

from cursive_circuits.data import Row, Words, stacked_text
from cursive_circuits.data_stimuli import Text, same_length
from cursive_circuits.data_tokens import Vocabulary
from cursive_circuits.measure_losses import losses
from cursive_circuits.params import Statistics
from cursive_circuits.run_directory import Trained
from cursive_circuits.streams import STREAMS
from interp_core.statistics.interval import bootstrap

Report = dict[str, Any]
KINDS = ("loss", "direction", "radius", "pen")
FIRSTS = ("repeat", "after_other", "after_shuffled")  # what stands before the word


@dataclass
class GainRows:
    """Rows of two words by what the first is, their texts, and how long the second word is."""

    rows: dict[str, list[Row]] = field(default_factory=lambda: {first: [] for first in FIRSTS})
    texts: dict[tuple[Text, str], list[Row]] = field(
        default_factory=lambda: {(text, first): [] for text in get_args(Text) for first in FIRSTS}
    )
    inks: list[Row] = field(default_factory=list)  # the first word of each row of repeats

    def first_targets(self, tokens: Vocabulary) -> list[tuple[int, int]]:
        """Targets of the first word of each row: after what opens a row."""
        return [_targets(tokens, 0, len(ink)) for ink in self.inks]

    def second_targets(self, tokens: Vocabulary) -> list[tuple[int, int]]:
        """Targets of the second word: after the first one and two WORD more."""
        return [_targets(tokens, len(ink) + 2, len(ink)) for ink in self.inks]


def _targets(tokens: Vocabulary, before: int, span: int) -> tuple[int, int]:
    """From where to where the losses of a word's tokens stand that comes after `before` tokens;
    without the way to it.

    The loss of the token at t + 1 stands at t.
    """
    begins = len(tokens.opening) + before - 1
    return begins + tokens.travel, begins + span


def gain_rows(words: Words, *, n: int, seed: int) -> GainRows:
    """Held-out words, each after itself, after another word of its writer, after its own pairs in
    random order; with the right text, the text of two other words, and none.
    """
    rng = STREAMS.rng("gain_rows", seed)
    made = GainRows()

    for _ in range(n):
        item = words.draw(rng)
        ink, again = words.inks([item, item])
        other, instead = same_length(words, item, len(ink), rng)
        shuffled = rng.permutation(ink.reshape(-1, 2)).reshape(-1)
        wrong = [words.draw(rng, other_than=item.text).text for _ in range(2)]

        for kind, first in zip(FIRSTS, (ink, instead, shuffled), strict=True):
            made.rows[kind].append(words.tokens.row([first, again], end=False))

            right = [other.text if kind == "after_other" else item.text, item.text]
            said: dict[Text, list[str]] = {"matching": right, "mismatched": wrong, "empty": []}
            for text, spelt in said.items():
                made.texts[text, kind].append(words.text(spelt))

        made.inks.append(ink)

    return made


def gains(
    trained: Trained, words: Words, *, n: int, seed: int, batch_size: int
) -> dict[str, Float[np.ndarray, "word kind"]]:
    """Mean loss of a word's tokens, nats, by word and kind (KINDS), for each text: `<text>/first`
    its first occurrence, `<text>/second` its second, `<text>/after_other` in second place after
    another word of the writer, of as many pairs, `<text>/after_shuffled` after its own pairs in
    random order. Plus `bound` [word, 1]: half of ln of its distinct pairs, because a pair is two
    tokens: what a bag of its pairs, all as likely, would leave.
    """
    made = gain_rows(words, n=n, seed=seed)
    found = {"bound": np.array([[bag_bound(ink)] for ink in made.inks])}

    for text in get_args(Text):
        for kind in FIRSTS:
            values = _losses(trained, made.rows[kind], made.texts[text, kind], batch_size)
            second = "second" if kind == "repeat" else kind
            found[f"{text}/{second}"] = _means(values, made.second_targets(trained.tokens))
            if kind == "repeat":
                found[f"{text}/first"] = _means(values, made.first_targets(trained.tokens))

    return found


def bag_bound(ink: Row) -> float:
    """Nats a TOKEN that a bag of the word's pairs leaves, when all distinct ones are as likely."""
    return float(np.log(len(np.unique(ink.reshape(-1, 2), axis=0))) / 2)


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
    their bag. Nats a token, all and by kind, 95 % intervals over words. `bag_bound` is what a bag
    of the word's pairs could reach, nats a token too.
    """
    bound = bootstrap(found["bound"][:, 0], rng, resamples=tests.resamples, unit="words")
    report: Report = {"n": len(found["bound"]), "bag_bound": bound.to_json()}

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

    wrong = ("mismatched", "empty")
    clear = [text for text in wrong if report[text]["excess"]["loss"]["low"] > 0]
    ordered = [text for text in wrong if report[text]["order"]["loss"]["low"] > 0]
    report["verdict"] = (
        f"a repeat helps beyond the control under {_listed(clear)} text; the order of the strokes "
        f"adds to their bag under {_listed(ordered)} text"
    )
    return report


def _by_kind(
    values: Float[np.ndarray, "word kind"], tests: Statistics, rng: np.random.Generator
) -> Report:
    known = values[~np.isnan(values).any(axis=1)]
    report: Report = {}

    for column, kind in enumerate(KINDS):
        interval = bootstrap(known[:, column], rng, resamples=tests.resamples, unit="words")
        report[kind] = interval.to_json()

    return report


def _listed(names: list[str]) -> str:
    return " and ".join(names) or "no"
