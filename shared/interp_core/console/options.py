"""What every command shares: options in both spellings, lists after one option, one-line errors.

Imports only click.
"""

import errno
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click

from interp_core import processor
from interp_core.errors import InputError

# What is wrong with a disk or a folder, not with the program.
_OF_THE_MACHINE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EACCES,
    errno.EROFS,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Command(click.Command):
    """A command whose repeatable options take several values in a row: `--models a b` is `--models
    a --models b`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        repeatable = {
            name
            for p in self.params
            if isinstance(p, click.Option) and p.multiple
            for name in (*p.opts, *p.secondary_opts)
        }
        spread: list[str] = []
        current: str | None = None
        fresh = False
        for arg in args:
            if arg.startswith("--"):
                name, _, value = arg.partition("=")
                current = name if name in repeatable else None
                fresh = current is not None and not value
                spread.append(arg)
            elif current is not None and not fresh and not arg.startswith("-"):
                spread += [current, arg]
            else:
                fresh = False
                spread.append(arg)
        return super().parse_args(ctx, spread)


class Group(click.Group):
    """A group whose commands compute with the same instructions everywhere (processor.py), and
    report bad input in one line with exit code 2.
    """

    command_class = Command

    def invoke(self, ctx: click.Context) -> Any:
        # Before the command's body imports PyTorch and NumPy: they look at their environment only
        # then.
        if (differs := processor.settle()) is not None:
            click.echo(f"note: {differs}", err=True)

        try:
            with _ended_in_order():
                return super().invoke(ctx)
        except InputError as problem:
            fail(str(problem))
        except click.UsageError as problem:
            see = f" (see {problem.ctx.command_path} --help)" if problem.ctx is not None else ""
            fail(problem.format_message() + see)
        except MemoryError as problem:
            fail(f"not enough memory: {str(problem) or 'ask for fewer or smaller ones'}")
        except OSError as problem:
            if problem.errno not in _OF_THE_MACHINE:
                raise
            fail(f"cannot write {problem.filename or 'the output'}: {problem.strerror}")
        except KeyboardInterrupt:
            click.echo(
                "interrupted: the same command continues from the last saved state", err=True
            )
            sys.exit(130)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Inside the block SIGTERM ends the process as an error does: half-written files are removed.

    A training takes the signal itself, and saves.
    """
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is not signal.SIG_DFL:
        yield
        return

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def fail(message: str) -> None:
    """Print one line and leave with exit code 2."""
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)


def option(name: str, *args: Any, **attributes: Any) -> Decorator:
    """A click option that is also accepted with underscores: option("--seq-len") takes --seq_len
    too.
    """
    spellings = [name]
    if (underscored := "--" + name[2:].replace("-", "_")) != name:
        spellings.append(underscored)
    return click.option(*spellings, *args, **attributes)


def with_call(start: Callable[..., Any], options: Sequence[Decorator]) -> Decorator:
    """A command that gets a call instead of these options. `start` makes it of the command's name
    and of all options; those that the command takes itself it gets too."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def with_options(**given: Any) -> None:
            own = {name: given[name] for name in own_options & given.keys()}
            command(start(command.__name__, **given), **own)

        own_options = set(command.__annotations__) - {"run", "return"}
        decorated: Callable[..., Any] = with_options
        for add in reversed(options):
            decorated = add(decorated)
        return decorated

    return decorate


profile_option = option(
    "--profile", help="Profile: a name in profiles/ or a .yaml file (default: params.yaml's)."
)
out_option = option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help=(
        "Folder to write into (default: outputs/STUDY/PROFILE, and a folder in it for a model "
        "that is named)."
    ),
)
study_option = option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the study, with its metrics (default: data/STUDY).",
)
trainings_option = option(
    "--trainings",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A run's folder of the study; several: the answers over these trainings, into --out.",
)
