"""Folders that a command replaces: only its own, and of those only the files their record lists.

A folder written here holds files.json: what it is, its name, and every file of it with its SHA-256.
A folder without one, of another name or kind, or with a file that is not listed, is somebody's: it
stays, and the command says so before it computes anything. Nothing follows a link.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from interp_core.errors import InputError
from interp_core.files.artifacts import as_saved, file_sha256, load_json, save_json
from interp_core.files.locks import alone_in, hand_over
from interp_core.files.params import Params
from interp_core.files.sums import RECORD

# A new folder is made in `.NAME.part` beside its place, where the old one is set aside too.
_MARK, _NEW, _OLD = ".unfinished", "new", "old"
_WAY_OUT = "so it stays: move it away, or name another folder to write to"


class Record(Params):
    """The content of files.json."""

    program: Literal["induction-lab"]
    kind: str  # what wrote it
    name: str
    files: dict[str, str | None]  # path in the folder -> SHA-256; None while it is written


def check_replaceable(place: Path, *, kind: str, name: str) -> None:
    """InputError, naming the folder and the way out, unless `place` may be replaced by this kind
    and name.

    It may where nothing is, where only empty folders are, and where its record says that it is the
    same thing and lists every file in it. What a killed process left beside it is looked at too.
    Call it before hours of training; `replacing_folder` calls it again.
    """
    place = _absolute(place)
    if Path.cwd().is_relative_to(place.resolve()) or os.path.ismount(place):
        what = "the working directory, one above it, or a whole disk"
        raise InputError(f"{place} is {what}: name a folder inside it")

    _check_own(place, kind=kind, name=name)

    # A marked folder beside it is this program's whatever it holds, but for what was set aside.
    beside = _beside(place)
    _check_own(beside / _OLD if _is_marked(beside) else beside, kind=kind, name=name)


def check_same_settings(record: Path, settings: Mapping[str, Any], *, part: str = "") -> None:
    """InputError where a finished training's record, or that part of it, has other settings.

    They would be lost in silence. Nothing where no record is, or a damaged one: what cannot be read
    is trained again.
    """
    try:
        content = load_json(record)
        before = content.get(part, {}) if part else content
    except InputError:
        return

    for name, value in as_saved(settings).items():
        there = before.get(name)
        if there == value:
            continue

        told = _first_other(name, there, value)
        raise InputError(
            f"{record.parent} holds a training with other settings ({told}), so it stays: name "
            "another folder (--out)"
        )


def _first_other(name: str, there: Any, asked: Any) -> str:
    """The first setting of a section that is another, with both values where they are short."""
    if isinstance(there, dict) and isinstance(asked, dict):
        for key, value in asked.items():
            if there.get(key) != value:
                return _first_other(f"{name}.{key}", there.get(key), value)

    # A list or a whole section would fill the line: its name is enough.
    is_short = not isinstance(asked, dict | list) and not isinstance(there, dict | list)
    return f"{name} {there} there, {asked} asked for" if is_short else name


@contextmanager
def replacing_folder(place: Path, *, kind: str, name: str) -> Iterator[Path]:
    """An empty folder that takes the place of `place`, with its record, when the block ends without
    an error.

    The old one is set aside whole, and deleted only when the new one is there: a process that is
    killed at any moment leaves the one or the other, and the next one tidies up after it.
    InputError as for `check_replaceable`, and where another process is at it now.
    """
    place = _absolute(place)
    check_replaceable(place, kind=kind, name=name)
    beside = _beside(place)

    with alone_in(beside, named=place):
        _tidy(place)
        (beside / _MARK).touch()
        (beside / _NEW).mkdir()

        try:
            yield beside / _NEW
            _write_record(beside / _NEW, kind=kind, name=name)

            # Again: it took long enough for somebody to have put something there.
            check_replaceable(place, kind=kind, name=name)
            hand_over(place, beside / _NEW)
            if place.is_dir():
                place.rename(beside / _OLD)
            (beside / _NEW).rename(place)
        finally:
            _tidy(place)
            beside.rmdir()


@contextmanager
def adding_to(folder: Path, files: Iterable[Path]) -> Iterator[None]:
    """Let a later command write these files into a folder with a record, and list them there.

    They are listed before they are written, so that a command that is stopped halfway can be called
    again; those that were not written in the end are struck off. A folder without a record stays
    without. InputError where one of the files is there and not listed: it is somebody's.
    """
    if not (folder / RECORD).is_file():
        yield
        return

    names = [file.relative_to(folder).as_posix() for file in files]
    record = _read(folder)
    foreign = [name for name in names if name not in record.files and (folder / name).exists()]
    if foreign:
        told = f"{folder} holds {foreign[0]}, which its {RECORD} does not list"
        raise InputError(f"{told}, so it stays: move it away")

    _save(folder, record.model_copy(update={"files": dict.fromkeys(names) | record.files}))
    try:
        yield
    finally:
        record = _read(folder)
        written = {name: file_sha256(folder / name) for name in names if (folder / name).is_file()}
        others = {name: digest for name, digest in record.files.items() if name not in names}
        _save(folder, record.model_copy(update={"files": others | written}))


def _absolute(place: Path) -> Path:
    """The same place with a name and a parent; links are left alone."""
    return Path(os.path.abspath(place))


def _beside(place: Path) -> Path:
    return place.with_name(f".{place.name}.part")


def _is_marked(beside: Path) -> bool:
    return not beside.is_symlink() and (beside / _MARK).is_file()


def _check_own(folder: Path, *, kind: str, name: str) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder} is a link or a file and no folder of this program, {_WAY_OUT}")

    if not (found := _files_in(folder)):
        return

    if not (folder / RECORD).is_file():
        raise InputError(f"{folder} holds {found[0]} and no {RECORD} of this program, {_WAY_OUT}")

    record = _read(folder)
    if (record.kind, record.name) != (kind, name):
        there, wanted = f"{record.name} of {record.kind}", f"{name} of {kind}"
        raise InputError(f"{folder} holds {there}, not {wanted}, {_WAY_OUT}")

    if foreign := [file for file in found if file not in record.files and file != RECORD]:
        told = f"{folder} holds {foreign[0]}, which its {RECORD} does not list"
        raise InputError(f"{told}, {_WAY_OUT}")


def _tidy(place: Path) -> None:
    """Put back or delete the folder that was set aside, and delete what is unfinished: nothing is
    left beside it but the emptied folder. Both are checked."""
    beside = _beside(place)
    old = beside / _OLD
    if old.is_dir() and not place.exists():
        old.rename(place)  # stopped between the two renames: the old one is all there is
    elif old.is_dir():
        _remove(old)

    # The mark goes last: whoever is killed here leaves a folder that is still known.
    for child in beside.iterdir():
        if child.name != _MARK:
            shutil.rmtree(child)
    (beside / _MARK).unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """Delete what a folder's record lists, the record last: whoever is killed here leaves a folder
    that can still say what it is. InputError when something else remains."""
    files = sorted(_files_in(folder), key=lambda file: file == RECORD)
    listed = {*_read(folder).files, RECORD} if files else set[str]()
    for file in files:
        if file in listed:
            (folder / file).unlink()

    if left := _files_in(folder):
        raise InputError(f"{folder} still holds {left[0]}, put there meanwhile: move it away")

    for inner, _, _ in os.walk(folder, topdown=False):
        Path(inner).rmdir()


def _files_in(folder: Path) -> list[str]:
    """Paths in the folder of all that is no folder, sorted; a link to a folder counts as a file and
    is not entered."""
    found = []
    for base, inner, files in os.walk(folder):
        links = [name for name in inner if os.path.islink(os.path.join(base, name))]
        found += [Path(base, name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(found)


def _write_record(folder: Path, *, kind: str, name: str) -> None:
    files: dict[str, str | None] = {file: file_sha256(folder / file) for file in _files_in(folder)}
    _save(folder, Record(program="induction-lab", kind=kind, name=name, files=files))


def _save(folder: Path, record: Record) -> None:
    content = record.model_dump(mode="json")
    save_json(folder / RECORD, content | {"files": dict(sorted(record.files.items()))})


def _read(folder: Path) -> Record:
    try:
        return Record.model_validate_json((folder / RECORD).read_bytes())
    except ValidationError:
        told = f"{folder} has a {RECORD} that is none of this program's"
        raise InputError(f"{told}, {_WAY_OUT}") from None
