"""The READMEs and CONTRIBUTING are read by students: no sentence is longer than one breath."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("packages/*/README.md"))]
PAGES.append(ROOT / "examples" / "cluster.md")
LONGEST = 25  # words

# Where one sentence ends and the next begins; a colon or a semicolon that starts a new one with a
# capital ends it too.
END = re.compile(r"(?<=[.!?:;])[*_\"')]*\s+(?=[A-Z*\"(\[0-9])")
ITEM = re.compile(r"\s*([-*]|\d+\.|#+)\s")  # a list's or a heading's


def sentences(page: str) -> Iterator[str]:
    """Prose alone: no code, no pictures, of links their words; each cell of a table for itself."""
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    prose = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", prose)
    prose = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", prose)
    prose = re.sub(r"`[^`]*`", "Code", prose)

    for paragraph in passages(prose):
        yield from END.split(" ".join(paragraph.split()))


def passages(prose: str) -> Iterator[str]:
    """Paragraphs, items of lists, and cells."""
    for block in re.split(r"\n\s*\n", prose):
        passage = ""

        for line in block.splitlines():
            if line.lstrip().startswith("|"):
                yield from line.strip().strip("|").split("|")
            elif ITEM.match(line):
                yield passage
                passage = ITEM.sub("", line, count=1)
            else:
                passage += f" {line}"

        yield passage


def words(sentence: str) -> int:
    return len([word for word in sentence.split() if re.search(r"\w", word)])


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_no_sentence_is_longer_than_a_breath(page: Path) -> None:
    long = [one for one in sentences(page.read_text()) if words(one) > LONGEST]
    assert not long, "\n".join(f"{words(one)} words: {one}" for one in long)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One two. Three [four](http://five.six).", ["One two.", "Three four."]),
        ("- one two\n- three\n  four: Five", ["one two", "three four:", "Five"]),
        ("| a b | c. D |\n|---|---|", ["a b", "c.", "D"]),
        ("`a b c` d\n```\ncode here\n```", ["Code d"]),
        ("A value .30 [.25, .34] nats.", ["A value .30 [.25, .34] nats."]),
    ],
)
def test_sentences_are_found_in_every_form(text: str, expected: list[str]) -> None:
    found = [one.strip() for one in sentences(text)]
    assert [one for one in found if words(one)] == expected
