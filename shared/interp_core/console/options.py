"""What every command shares: options in both spellings, lists after one option, one-line errors.

A study's commands take its settings as options: `make stages` writes which, and of what type. This
module imports only click; the profile is read where help shows its values.
"""

import errno
import json
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from interp_core import processor
from interp_core.console.first_line import say_before_loading
from interp_core.console.own_code import run_own_code
from interp_core.errors import InputError, StateSavedError
from interp_core.files import OPTIONS_FILE

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

_TYPED = "interp_core.typed"  # what the running command was given, word by word

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Command(click.Command):
    """A command whose repeatable options take several values in a row: `--models a b` is `--models
    a --models b`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_TYPED] = tuple(args)
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
        try:
            run_own_code()
        except InputError as problem:
            fail(str(problem))

        # Before the command's body imports PyTorch and NumPy: they look at their environment only
        # then.
        if (differs := processor.settle()) is not None:
            click.echo(f"note: {differs}", err=True)
        say_before_loading()

        try:
            with _ended_in_order():
                returned = super().invoke(ctx)
                _note_stage()
                return returned
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
        except KeyboardInterrupt as stopped:
            goes_on = ": the same command continues from the last saved state"
            saved = isinstance(stopped, StateSavedError)
            click.echo(f"interrupted{goes_on if saved else ''}", err=True)
            sys.exit(130)


def _note_stage() -> None:
    """A stage of DVC's has ended: whether it ran natively is asked later."""
    if (stage := os.environ.get("DVC_STAGE")) is None:
        return

    from interp_core.console.natively import note_stage

    note_stage(stage)


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


def typed(program: str) -> str:
    """The running command as it was typed, for a shell: run again from the same folder, it does the
    same."""
    context = click.get_current_context()
    return shlex.join([program, str(context.info_name), *context.meta[_TYPED]])


def fail(message: str) -> None:
    """Print one line and leave with exit code 2."""
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)


def option(name: str, *args: Any, **attributes: Any) -> Decorator:
    """A click option that is also accepted with underscores: option("--seq-len") takes --seq_len
    too.
    """
    return click.option(*_spellings(name), *args, **attributes)


def own_folder(place: str, *, out: Path | None, profile: str | None, given: bool) -> Path:
    """Where a command of the core writes: a stage into data/, an experiment into `out` or outputs/.

    `given`: whether any option was that changes what is made, or where.
    """
    from interp_core.files.params import project_root

    if not given:
        return project_root() / "data" / place

    # Only here: a stage does not depend on it.
    from interp_core.console.call import profile_folder

    return out or project_root() / "outputs" / place / profile_folder(profile)


def _spellings(name: str) -> list[str]:
    """An option as it is, and with underscores."""
    return list(dict.fromkeys([name, re.sub(r"(?<=\w)-", "_", name)]))


class Setting(click.Option):
    """An option that stands for a setting: help says its value in the profile."""

    def __init__(self, *args: Any, place: Sequence[str], fallback: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.place = place  # section, parts, name
        self.fallback = fallback  # of the schema, for a profile that leaves it out

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Spellings and what it is."""
        record = super().get_help_record(ctx)
        if record is None:
            return None

        name, value = _profile(ctx)
        for key in self.place[:-1]:
            value = value.get(key, {})
        value = value.get(self.place[-1], self.fallback)

        return record if value is None else (record[0], f"{record[1]} [{name}: {_said(value)}]")


def _profile(ctx: click.Context) -> tuple[str, dict[str, Any]]:
    """Name and content of the profile; nothing where there is none: help answers everywhere."""
    from interp_core.files.params import profile_path, read_yaml

    if OPTIONS_FILE not in ctx.meta:
        try:
            path = profile_path(ctx.params.get("profile"))
            ctx.meta[OPTIONS_FILE] = path.stem, read_yaml(path)
        except InputError:
            ctx.meta[OPTIONS_FILE] = "", {}
    return ctx.meta[OPTIONS_FILE]


def _said(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


_TYPES = {"integer": int, "float": float, "text": str, "path": click.Path(path_type=Path)}


def settings(
    cli: str,
    start: Callable[..., Any],
    *,
    more: Sequence[Decorator] = (),
    spellings: Mapping[str, str] | None = None,
) -> Callable[..., Decorator]:
    """`@_settings()` for the commands of a study: they take the settings that they read, and get
    the call that `start` makes of their name, of `settings` and of all other options.

    `more`: options that stand for no setting. `spellings`: of a setting, beside its name.
    `@_settings("", "training")` takes those of the section and of a part of it, which `start` gets
    by the part's name. A setting that a command does not read is taken too, and a line says that it
    changes nothing: one command line serves them all. What has no option, `--set` changes.
    """
    declared = json.loads((Path(cli).parent / OPTIONS_FILE).read_text())

    def of_command(*parts: str) -> Decorator:
        def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
            reads = declared["commands"].get(command.__name__, {})
            if set(reads) != set(parts or ("",)):
                raise InputError(
                    f"{OPTIONS_FILE} has no options of {command.__name__}: run `make stages`"
                )

            def begin(name: str, **given: Any) -> Any:
                taken = {}
                for part, names in reads.items():
                    fields = declared["settings"][part]
                    values = {one: given.pop(one) for one in fields}
                    said = {one: value for one, value in values.items() if value not in (None, ())}
                    say_unread(said.keys() - names)
                    taken[part or "settings"] = said

                if changes := given.pop("changed"):
                    spelt = {f"{part}.{one}" for part in reads if part for one in taken[part]}
                    own = changed_settings(
                        cli, changes, profile=given["profile"], spelt=spelt, whole="" in reads
                    )
                    taken["settings"] = taken.get("settings", {}) | own

                return start(name, **taken, **given)

            chosen = list(_options(declared, reads, spellings or {}))
            return with_call(begin, (*more, set_option, *chosen))(command)

        return decorate

    return of_command


def changed_settings(
    cli: str,
    said: Sequence[str],
    *,
    profile: str | None,
    spelt: Collection[str] = (),
    whole: bool = False,
) -> dict[str, Any]:
    """What `--set` changes, for the reader of the study's section.

    InputError for a key that an option changes too (`spelt`), and for one of the section's own
    where the command has options for these (`whole`).
    """
    from interp_core.console.changed import changed

    declared = json.loads((Path(cli).parent / OPTIONS_FILE).read_text())
    options = declared["settings"][""] if whole else ()

    for key in [word.partition("=")[0] for word in said]:
        option_of = "--" + key.rpartition(".")[2].replace("_", "-")
        if key in options:
            raise InputError(f"--set {key}: it has an option, {option_of}")
        if key in spelt:
            raise InputError(f"--set {key}: {option_of} says it too; leave out one of the two")

    section, schema = declared["section"], declared["schema"]
    package = Path(cli).parent.name
    return changed(said, package=package, section=section, schema=schema, profile=profile)


def _options(
    declared: Mapping[str, Any], reads: Mapping[str, list[str]], spellings: Mapping[str, str]
) -> Iterator[Decorator]:
    """One option a setting, those that the command does not read hidden."""
    for part, names in reads.items():
        for name, kind in declared["settings"][part].items():
            yield _setting(
                name,
                kind,
                place=[declared["section"], *([part] if part else []), name],
                also=spellings.get(name),
                hidden=name not in names,
            )


def _setting(
    name: str, kind: Mapping[str, Any], *, place: Sequence[str], also: str | None, hidden: bool
) -> Decorator:
    """The option of one field. What is wrong with a value, its schema says."""
    spelt = "--" + name.replace("_", "-")
    attributes: dict[str, Any] = {"help": kind["help"], "hidden": hidden, "default": None}

    if kind["type"] == "flag":
        spelt = f"{spelt}/--no-{spelt[2:]}"
    else:
        attributes |= {"type": _TYPES[kind["type"]], "nargs": kind.get("values", 1)}

    words = "[" + "|".join(kind["choices"]) + "]" if "choices" in kind else None
    if kind.get("several"):
        metavar = f"{words or kind['type'].upper()}..."
        attributes |= {"multiple": True, "default": (), "metavar": metavar}
    else:
        attributes["metavar"] = words

    names = [*_spellings(spelt), *([] if also is None else _spellings(also))]
    return click.option(
        *names, name, cls=Setting, place=place, fallback=kind.get("default"), **attributes
    )


def say_unread(names: Iterable[str]) -> None:
    """Say of those of these options that were typed that the command does not read them here."""
    context = click.get_current_context()
    spelt = {option.name: option.opts[0] for option in context.command.params}
    for name in sorted(names):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            click.echo(f"note: {spelt[name]} changes nothing in `{context.command_path}`", err=True)


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
    "--profile",
    is_eager=True,  # before --help, which shows its values
    help="Profile: a name in profiles/ or a .yaml file (default: params.yaml's).",
)


def _keep_cluster(context: click.Context, _: click.Parameter, value: str | None) -> None:
    """Where tasks run changes no result: the call is not told, and a stage stays one."""
    if value is not None:
        from interp_core.training.workers import CLUSTER

        context.meta[CLUSTER] = value


cluster_option = option(
    "--cluster",
    metavar="ADDRESS",
    envvar="INDUCTION_LAB_CLUSTER",
    expose_value=False,
    callback=_keep_cluster,
    help=(
        "Run its tasks on a Dask cluster, with the same bytes: local:N, slurm:N, tcp://HOST:PORT "
        "or a scheduler's file (also INDUCTION_LAB_CLUSTER)."
    ),
)
set_option = option(
    "--set",
    "changed",
    multiple=True,
    metavar="KEY=VALUE...",
    help=(
        "Any setting of the study that has no option, as the profile says it: part.key=3, or "
        "part.key='[1, 2]'."
    ),
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
