"""What every command line shares: spellings, lists in a row, and errors of one line."""

import errno
import os
import signal
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from interp_core.console.options import Group, option
from interp_core.errors import InputError, StateSavedError
from interp_core.files.artifacts import replacing


@click.group(cls=Group)
def program() -> None:
    """A program with one command."""


@program.command()
@option("--seq-len", type=int)
@option("--names", multiple=True)
@option("--lag-values", type=int, multiple=True)
@option("--flag", is_flag=True)
@click.argument("rest", nargs=-1)
def show(**options: object) -> None:
    """Print what was given."""
    click.echo(repr(options))


@program.command()
@click.argument("kind")
def stumble(kind: str) -> None:
    """Fail in some way."""
    if kind == "input":
        raise InputError("no such\n  thing")
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "saved":
        raise StateSavedError
    if kind == "bug":
        raise ValueError("a bug")
    code = getattr(errno, kind)
    raise OSError(code, os.strerror(code), "out/file.npz")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(program, arguments)


def given(*arguments: str) -> dict[str, object]:
    result = call("show", *arguments)
    assert result.exit_code == 0, result.stderr
    return eval(result.stdout)


def nothing(**changes: object) -> dict[str, object]:
    return {"seq_len": None, "names": (), "lag_values": (), "flag": False, "rest": ()} | changes


@pytest.mark.parametrize(
    "arguments", [["--seq-len", "3"], ["--seq_len", "3"], ["--seq_len=3"], ["--seq-len=3"]]
)
def test_both_spellings_are_one_option(arguments: list[str]) -> None:
    assert given(*arguments) == nothing(seq_len=3)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--names", "a", "b", "c"], {"names": ("a", "b", "c")}),
        (["--names", "a", "--names", "b"], {"names": ("a", "b")}),
        (["--names=a", "b"], {"names": ("a", "b")}),
        (
            ["--names", "a", "b", "--seq-len", "3", "--names", "c"],
            {"names": ("a", "b", "c"), "seq_len": 3},
        ),
        (["--lag_values", "1", "2", "--flag"], {"lag_values": (1, 2), "flag": True}),
        (["--lag-values", "1", "--lag_values", "2", "3"], {"lag_values": (1, 2, 3)}),
        (["--lag-values", "-1", "2"], {"lag_values": (-1, 2)}),
        (["--names", "a", "--", "b"], {"names": ("a",), "rest": ("b",)}),
        (["--seq-len", "3", "b"], {"seq_len": 3, "rest": ("b",)}),
        (["--flag", "b"], {"flag": True, "rest": ("b",)}),
    ],
)
def test_a_list_takes_what_follows_up_to_the_next_option(
    arguments: list[str], expected: dict[str, object]
) -> None:
    assert given(*arguments) == nothing(**expected)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["stumble", "input"], "error: no such\\n thing\n"),
        (["stumble", "ENOSPC"], "error: cannot write out/file.npz: No space left on device\n"),
        (["stumble", "EACCES"], "error: cannot write out/file.npz: Permission denied\n"),
        (["stumble", "EDQUOT"], "error: cannot write out/file.npz: Disk quota exceeded\n"),
        (["stumble"], "error: Missing argument 'KIND'. (see program stumble --help)\n"),
        (
            ["show", "--seq-len", "x"],
            "error: Invalid value for '--seq-len' / '--seq_len': 'x' is not a valid integer.",
        ),
        (["show", "--names"], "error: Option '--names' requires an argument."),
        (["shw"], "error: No such command 'shw'."),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(arguments: list[str], says: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(says)
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("interrupt", "interrupted"),
        ("saved", "interrupted: the same command continues from the last saved state"),
    ],
)
def test_an_interrupt_is_one_line_that_promises_only_what_was_saved(kind: str, line: str) -> None:
    result = call("stumble", kind)
    assert result.exit_code == 130
    assert result.stderr == f"{line}\n"


@pytest.mark.parametrize("kind", ["bug", "ENOENT"])
def test_a_bug_keeps_its_traceback(kind: str) -> None:
    result = call("stumble", kind)
    assert result.exit_code == 1
    assert isinstance(result.exception, ValueError | OSError)


def test_help_has_both_spellings(tmp_path: Path) -> None:
    assert "--seq-len, --seq_len INTEGER" in call("show", "--help").stdout
    assert list(tmp_path.iterdir()) == []


def test_sigterm_leaves_no_half_written_file(tmp_path: Path) -> None:
    @click.group(cls=Group)
    def other() -> None:
        """A program that is told to end while it writes."""

    @other.command()
    def write() -> None:
        with replacing(tmp_path / "scores.npz") as part:
            part.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGTERM)

    result = CliRunner().invoke(other, ["write"])
    assert result.exit_code == 143
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_too_little_memory_is_one_line() -> None:
    @click.group(cls=Group)
    def other() -> None:
        """A program that asks for too much."""

    @other.command()
    def ask() -> None:
        np.zeros(2**50)  # eight pebibytes

    result = CliRunner().invoke(other, ["ask"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: not enough memory: ")
