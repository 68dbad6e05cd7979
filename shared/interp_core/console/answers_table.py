"""Your answers beside the committed ones: the same, or how far off and on which side."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from interp_core.console.answers import FILE, Answer, from_json
from interp_core.console.last_commit import at_head
from interp_core.files.artifacts import load_json
from interp_core.pipeline.published import MADE

Answers = Mapping[str, list[Answer]]  # by study
Row = tuple[str, ...]

SAME = "same"  # the verdict on an answer that did not move


def committed(data: Path, studies: Sequence[str]) -> dict[str, list[Answer]]:
    """The answers of the last commit, study by study; none for what it lacks, or without git."""
    texts = {study: at_head(data, f"{study}/{FILE}") for study in studies}
    return {study: from_json(json.loads(text)) for study, text in texts.items() if text is not None}


def published(folder: Path, studies: Sequence[str]) -> dict[str, list[Answer]]:
    """The answers over trainings, of the studies that have some in `folder`/STUDY.

    Where these are no more of the run's own trainings, their kind says what they are.
    """
    places = {study: folder / study for study in studies}
    there = {study: place for study, place in places.items() if (place / FILE).is_file()}
    return {study: _over_trainings(place) for study, place in there.items()}


def _over_trainings(place: Path) -> list[Answer]:
    made = place / MADE
    kind = load_json(made).get("says", "") if made.is_file() else ""
    return [replace(one, kind=kind) for one in from_json(load_json(place / FILE))]


def table(
    yours: Answers, theirs: Answers, over_trainings: Answers | None = None, *, every: bool = False
) -> list[str]:
    """A headline on a line, studies in blocks; the last line counts the verdicts on all answers.

    `every`: all answers have a line. Without it one that is no headline has one where it differs:
    nothing that moved passes in silence. Where nothing is committed it lists yours with their
    intervals, and the last line says so. An answer that is published over trainings has a second
    line with their mean, interval and number: one run is one training, and that line says how much
    trainings differ.
    """
    wider = over_trainings or {}

    if not theirs:
        headings: Row = ("", "yours [interval]", "n")
        listed = {
            study: [_alone(one) for one in answers if every or one.headline]
            for study, answers in yours.items()
        }
        last = f"nothing to compare with: git's last commit has no {FILE}"
        return [*_lines(headings, _with_published(listed, wider)), last]

    headings = ("", "yours", "committed [interval]", "n", "")
    blocks = {study: _beside(answers, theirs.get(study, [])) for study, answers in yours.items()}
    headlines = {
        study: {_words(one) for one in answers if one.headline} for study, answers in yours.items()
    }
    listed = {
        study: [row for row in rows if every or row[0] in headlines[study] or row[-1] != SAME]
        for study, rows in blocks.items()
    }
    verdicts = [row[-1] for rows in blocks.values() for row in rows]
    others = len(verdicts) - sum(map(len, listed.values()))
    told = [f"{others} others are the same: `induction-lab answers --all` lists them"]
    lines = _lines(headings, _with_published(listed, wider))
    return [*lines, *(told if others else []), _counted(verdicts)]


def _with_published(
    blocks: Mapping[str, Sequence[Row]], wider: Answers
) -> Mapping[str, Sequence[Row]]:
    """Below an answer the one over trainings, under the headings of intervals and of n."""
    found = {study: {_words(one): one for one in answers} for study, answers in wider.items()}
    return {
        study: [line for row in rows for line in _and_over(row, found.get(study, {}).get(row[0]))]
        for study, rows in blocks.items()
    }


def _and_over(row: Row, answer: Answer | None) -> list[Row]:
    if answer is None:
        return [row]

    label = f"  published, {answer.kind or 'over trainings'}"
    interval, n = shown(answer, interval=True), _n(answer)
    alone = len(row) == len(("", "yours [interval]", "n"))
    return [row, (label, interval, n) if alone else (label, "", interval, n, "")]


def verdict(mine: Answer, its: Answer) -> str:
    """`same`, or the difference and whether yours lies inside the committed interval."""
    if (mine.value, mine.low, mine.high, mine.n) == (its.value, its.low, its.high, its.n):
        return SAME

    if mine.value is None or its.value is None:
        return "now none" if mine.value is None else "was none"

    if mine.value == its.value:
        return "interval moved"

    difference = f"{mine.value - its.value:+.3g}"

    if its.low is None or its.high is None:
        return difference

    return f"{difference} {'inside' if its.low <= mine.value <= its.high else 'outside'}"


def shown(answer: Answer, *, interval: bool) -> str:
    """`0.52 [0.49, 0.55]`, or the value alone; rounded as the interval allows."""
    decimals = _decimals(answer)
    value = "none" if answer.value is None else f"{answer.value:.{decimals}f}"

    if not interval or answer.low is None or answer.high is None:
        return value

    return f"{value} [{answer.low:.{decimals}f}, {answer.high:.{decimals}f}]"


def _decimals(answer: Answer) -> int:
    """Two digits of the interval's width; three of the value where there is no width."""
    width = 0.0 if answer.low is None or answer.high is None else answer.high - answer.low

    if width > 0:
        return max(0, 1 - math.floor(math.log10(width)))

    if not answer.value:
        return 0

    return max(0, 2 - math.floor(math.log10(abs(answer.value))))


def _beside(yours: Sequence[Answer], theirs: Sequence[Answer]) -> list[Row]:
    """One study: what both have, what only you have, what only the commit has."""
    before = {answer.name: answer for answer in theirs}
    mine = {answer.name for answer in yours}
    rows = []

    for answer in yours:
        its = before.get(answer.name)
        value = shown(answer, interval=False)

        if its is None:
            rows.append((_words(answer), value, "", _n(answer), "new"))
        else:
            word = verdict(answer, its)
            rows.append((_words(answer), value, shown(its, interval=True), _n(its), word))

    gone = [its for its in theirs if its.name not in mine]
    return [*rows, *((_words(its), "", shown(its, interval=True), _n(its), "gone") for its in gone)]


def _alone(answer: Answer) -> Row:
    return _words(answer), shown(answer, interval=True), _n(answer)


def _words(answer: Answer) -> str:
    return answer.name.replace("_", " ")


def _n(answer: Answer) -> str:
    return f"{answer.n} {answer.unit}"


def _lines(headings: Row, blocks: Mapping[str, Sequence[Row]]) -> list[str]:
    """Columns as wide as their longest cell, the studies' names above their blocks."""
    everything = [headings, *(row for rows in blocks.values() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*everything, strict=True)]

    def line(row: Row) -> str:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        return f"  {'  '.join(cells)}".rstrip()

    lines = [line(headings)]
    for study, rows in blocks.items():
        lines += [study, *map(line, rows)]

    return lines


def _counted(verdicts: Sequence[str]) -> str:
    kinds = {
        "the same": [word for word in verdicts if word == SAME],
        "inside the committed interval": [word for word in verdicts if word.endswith(" inside")],
        "outside": [word for word in verdicts if word.endswith(" outside")],
    }
    counts = {kind: len(words) for kind, words in kinds.items()}
    counts["without a verdict"] = len(verdicts) - sum(counts.values())

    told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return f"{len(verdicts)} answers: {told}"
