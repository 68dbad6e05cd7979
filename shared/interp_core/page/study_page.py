"""What a study gives to the page of the committed run: words, views and cards, in
data/page/STUDY.json.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from interp_core.files.artifacts import replacing
from interp_core.files.params import project_root
from interp_core.page.views import View


@dataclass(frozen=True)
class Caption:
    """What a figure shows, and what its control is; for all figures whose names match a pattern."""

    shows: str
    control: str


@dataclass(frozen=True)
class Words:
    """A study in words.

    `{name}` in the verdict is the answer of that name, read when the page is built.
    """

    place: int  # among the questions, from 1
    question: str
    verdict: str  # at most 15 words
    not_found: Sequence[str]
    captions: Mapping[str, Caption]  # by pattern of file names; the first that matches counts


def place(study: str) -> Path:
    """The file of a study, in the project."""
    return project_root() / "data" / "page" / f"{study}.json"


def save(study: str, words: Words, *, views: Sequence[View], cards: Sequence[View]) -> None:
    """Write the study's part of the page."""
    content: dict[str, Any] = {
        "study": study,
        "place": words.place,
        "question": words.question,
        "verdict": words.verdict,
        "not_found": list(words.not_found),
        "captions": [
            {"pattern": pattern, **asdict(caption)} for pattern, caption in words.captions.items()
        ],
        "views": list(views),
        "cards": list(cards),
    }

    path = place(study)
    # Not as metrics are written, a number a line: most of this is arrays, and nobody compares them.
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    with replacing(path) as part:
        part.write_text(text + "\n", encoding="utf-8")

    click.echo(f"{path}: {len(views)} views, {len(cards)} cards")
