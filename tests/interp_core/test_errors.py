"""A refusal is one printable line of bounded length, whatever it quotes."""

import ast
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from interp_core.errors import InputError, all_lines, first_line

ROOT = Path(__file__).parents[2]
SOURCES = [file for folder in ("shared", "packages") for file in (ROOT / folder).rglob("*.py")]
# What these say is ours.
OURS = {"InputError", "Diverged", "NotAProfile", "NotUnderstood"}


@pytest.mark.parametrize(
    "quoted",
    ["two\nlines", "\x1b[2Ja bell \a", "half \ud800", "\x00" * 10**6, "x" * 10**7, "\x85\u2028 "],
)
def test_whatever_is_quoted_a_refusal_is_one_printable_line(quoted: str) -> None:
    said = [
        first_line(ValueError(quoted)),
        all_lines(ValueError(quoted)),
        str(InputError(f"f: {quoted}; m")),
    ]
    assert all(one.isprintable() for one in said)
    assert [len(one) < 2000 for one in said[:2]] == [True, True]
    assert said[2].startswith("f: ")
    assert said[2].endswith("; m")


def test_a_library_s_first_line_counts_or_its_name() -> None:
    assert first_line(ValueError("\n what it says \nand more\n")) == "what it says"
    assert first_line(zipfile.BadZipFile()) == "BadZipFile"
    assert first_line(ValueError("\n\t\n")) == "ValueError"
    assert all_lines(ValueError("line 3,\n  column 5")) == "line 3, column 5"


def test_what_a_user_wrote_is_left_as_it_is() -> None:
    told = "two  spaces/in a/päth.json: `x` … is wrong; mend it"
    assert str(InputError(told)) == told


def test_a_long_refusal_keeps_its_beginning_and_its_mend() -> None:
    told = str(InputError(f"file: {'x' * 10**5}: fetch it again"))
    assert len(told) < 2000
    assert told.startswith("file: ")
    assert told.endswith(": fetch it again")


def quotes_whole(source: str) -> Iterator[int]:
    """Lines of a module where a refusal holds a library's whole text."""
    for handler in ast.walk(ast.parse(source)):
        if not isinstance(handler, ast.ExceptHandler) or handler.name is None:
            continue
        caught = {one.id for one in ast.walk(handler.type) if isinstance(one, ast.Name)}  # pyright: ignore[reportArgumentType]
        if caught <= OURS:
            continue
        for raised in ast.walk(handler):
            if isinstance(raised, ast.Raise) and raised.exc is not None:
                yield from _whole(raised.exc, handler.name)


def _whole(raised: ast.AST, name: str) -> Iterator[int]:
    for node in ast.walk(raised):
        values = [node.value] if isinstance(node, ast.FormattedValue) else []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str":
            values = node.args
        yield from (one.lineno for one in values if isinstance(one, ast.Name) and one.id == name)


def test_no_refusal_quotes_a_library_s_whole_text() -> None:
    found = {
        str(file.relative_to(ROOT)): lines
        for file in SOURCES
        if (lines := list(quotes_whole(file.read_text())))
    }
    assert not found, "say interp_core.errors.first_line(problem) there"


def test_the_search_sees_both_ways_of_quoting() -> None:
    whole = "try:\n  a()\nexcept OSError as e:\n  raise InputError(f'{{x}}: {}')\n"
    assert list(quotes_whole(whole.format("{e}"))) == [4]
    assert list(quotes_whole(whole.format("{str(e)[:9]}"))) == [4]
    assert list(quotes_whole(whole.format("{first_line(e)}"))) == []
    assert list(quotes_whole(whole.format("{e}").replace("OSError", "InputError"))) == []
