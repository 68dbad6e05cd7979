"""Every interval that a README prints is one that a committed report holds.

`0.62 [0.51, 0.71]` is looked for among the values with bounds in the study's JSON files, each
rounded as printed. How seldom three numbers agree by chance is tested too. A decimal alone is not
looked for: among the thousands of numbers of a study 19 wrong ones of 20 would be found.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted(file.parent.name for file in (ROOT / "packages").glob("*/README.md"))
NUMBER = r"[-−+]?(?:\d[\d,]*\.?\d*|\.\d+)"
PRINTED = re.compile(rf"({NUMBER})\s*%?\s*\[({NUMBER}),\s+({NUMBER})\]")
SCALES = (1, 100, -1, -100)  # as it stands, in percent, and what falls told as a loss

Triple = tuple[float, float, float]


def reported(content: Any) -> Iterator[Triple]:
    """Value, low and high wherever one object of a report holds them; element by element."""
    if isinstance(content, list):
        for entry in content:
            yield from reported(entry)

    if not isinstance(content, dict):
        return

    bounds = [numbers(content.get(name)) for name in ("low", "high")]
    for name, entry in content.items():
        values = numbers(entry)
        if name not in ("low", "high", "n") and [len(one) for one in bounds] == [len(values)] * 2:
            for triple in zip(values, *bounds, strict=True):
                if None not in triple:
                    yield triple
        yield from reported(entry)


def numbers(entry: Any) -> list[Any]:
    """The numbers of nested lists, in order; None where one is missing."""
    if isinstance(entry, list):
        return [number for inner in entry for number in numbers(inner)]

    counts = isinstance(entry, int | float) and not isinstance(entry, bool)
    return [entry if counts else None]


@cache
def triples(study: str) -> frozenset[Triple]:
    folders = [ROOT / home / study for home in ("data", "published")]
    files = [file for folder in folders for file in folder.rglob("*.json")]
    return frozenset(
        triple for file in files for triple in reported(json.loads(file.read_text("utf-8")))
    )


def agrees(printed: tuple[str, str, str], study: str) -> bool:
    value, low, high = printed

    for scale in SCALES:
        for held, *bounds in triples(study):
            down, up = sorted(scale * bound for bound in bounds)
            if rounds(scale * held, value) and rounds(down, low) and rounds(up, high):
                return True

    return False


def rounds(held: float, printed: str) -> bool:
    """Whether a number is printed so: within half of the last digit, either way at a half."""
    plain = printed.replace("−", "-").replace(",", "")
    decimals = len(plain.partition(".")[2])
    return abs(held - float(plain)) <= 0.51 * 10**-decimals


def printed_in(text: str) -> list[tuple[str, str, str]]:
    return [(match[1], match[2], match[3]) for match in PRINTED.finditer(text)]


@pytest.mark.parametrize("study", STUDIES)
def test_every_interval_of_a_readme_is_in_a_report(study: str) -> None:
    found = printed_in((ROOT / "packages" / study / "README.md").read_text("utf-8"))
    strangers = [f"{value} [{low}, {high}]" for value, low, high in found]
    strangers = [told for told, one in zip(strangers, found, strict=True) if not agrees(one, study)]
    assert len(found) > 20
    assert not strangers, f"{study}: no report holds {'; '.join(strangers)}"


@pytest.mark.parametrize("study", STUDIES)
def test_a_digit_that_is_wrong_would_be_seen(study: str) -> None:
    """Each bound moved by three of its last digits: at most one in ten still agrees by chance."""
    found = printed_in((ROOT / "packages" / study / "README.md").read_text("utf-8"))
    wrong = [(value, low, moved(high)) for value, low, high in found]
    assert sum(agrees(one, study) for one in wrong) <= len(wrong) / 10


def moved(printed: str) -> str:
    decimals = len(printed.partition(".")[2])
    plain = printed.replace("−", "-").replace(",", "")
    return f"{float(plain) + 3 * 10**-decimals:.{decimals}f}"


def test_the_first_page_prints_what_some_report_holds() -> None:
    found = printed_in((ROOT / "README.md").read_text("utf-8"))
    strangers = [one for one in found if not any(agrees(one, study) for study in STUDIES)]
    assert not strangers


def test_a_studys_row_of_the_first_page_prints_what_a_report_of_that_study_holds() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    rows = {line: line[3:].partition("]")[0] for line in lines if line.startswith("| [")}
    assert sorted(rows.values()) == sorted(2 * STUDIES)

    strangers = [one for row, of in rows.items() for one in printed_in(row) if not agrees(one, of)]
    assert not strangers
