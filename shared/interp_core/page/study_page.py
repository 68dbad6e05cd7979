"""What a study gives to the page of the committed run: words, views and cards."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from interp_core.page.views import View


@dataclass(frozen=True)
class Caption:
    """What a figure shows, and what its control is; for all figures whose names match a pattern."""

    shows: str
    control: str


@dataclass(frozen=True)
class Words:
    """A study in words.

    `{name}` in the verdict is the answer of that name, read when the page is built (report.py).
    """

    place: int  # among the questions, from 1
    question: str
    verdict: str  # at most 15 words
    not_found: Sequence[str]
    captions: Mapping[str, Caption]  # by pattern of file names; the first that matches counts


@dataclass(frozen=True)
class Part:
    """A study's part of the page."""

    words: Words
    views: Sequence[View] = ()
    cards: Sequence[View] = ()


def there(files: Iterable[Path]) -> bool:
    """Whether a view can be made: a clone has the metrics, arrays and models come by a run."""
    return all(file.exists() for file in files)
