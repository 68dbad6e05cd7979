"""Writing the record by which files vouch for themselves (`sums.py` reads it), and replacing only
what such a record lists.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interp_core.errors import InputError
from interp_core.files.artifacts import replacing
from interp_core.files.locks import locked_file
from interp_core.files.sums import (
    RECORD,
    SUMS,
    file_sha256,
    is_listed,
    is_part_of_a_folder,
    listed_in,
)

_guarded: list[Path] = []


@contextmanager
def guarding(folder: Path) -> Iterator[None]:
    """Inside the block this process replaces, in the folder and below it, only what a record lists;
    and the record lists whatever is written there.

    For a folder that somebody named: what else is in it is theirs.
    """
    _guarded.append(folder.resolve())
    try:
        yield
    finally:
        _guarded.remove(folder.resolve())


def before_replacing(file: Path, *, by: Path | None = None) -> None:
    """In a guarded folder, InputError as for `check_ours`; `by`, which takes the file's place next,
    is listed. Elsewhere nothing.
    """
    if _is_guarded(file):
        _claim(file, by=by)


def _is_guarded(file: Path) -> bool:
    """Whether it is in a guarded folder, and neither a record nor in a hidden folder: what is
    unfinished is in those."""
    if not _guarded or file.name in (SUMS, RECORD):
        return False

    # Its folder's links are followed; one in its own place is a user's.
    place = file.parent.resolve() / file.name
    inside = [place.relative_to(one) for one in _guarded if place.is_relative_to(one)]
    return any(all(not part.startswith(".") for part in one.parts) for one in inside)


@contextmanager
def vouching(*files: Path, folder: Path | None = None) -> Iterator[None]:
    """Write these files in the block; then the record of `folder` lists them as they are.

    The folder is their own where none is named. They are struck off first: whoever is killed in the
    block leaves files that nothing vouches for, and no record that calls them damaged. Several
    processes may write into one folder.
    """
    names = {file: file.relative_to(folder or file.parent).as_posix() for file in files}
    folders = {file: folder or file.parent for file in files}

    for file in files:
        before_replacing(file)
    # In a guarded folder each file is listed anew when it is written, and stays ours until then.
    struck = [file for file in files if not _is_guarded(file)]
    for place in dict.fromkeys(folders[file] for file in struck):
        _list(place, {names[file]: None for file in struck if folders[file] == place})
    yield
    for place in dict.fromkeys(folders.values()):
        there = [file for file in files if folders[file] == place and file.is_file()]
        _list(place, {names[file]: file_sha256(file) for file in there})


def check_ours(file: Path) -> None:
    """InputError for a file that is there and that no record lists: it is somebody else's."""
    if file.exists() and not is_listed(file):
        told = f"{file} is there, and no record of this program lists it, so it stays"
        raise InputError(f"{told}: move it away, or name another folder to write to (--out)")


def _claim(file: Path, *, by: Path | None = None) -> None:
    """InputError as for `check_ours`; `by`, which takes the file's place next, is listed."""
    check_ours(file)

    # Before it is there: whoever is killed in between finds a file of ours. What `adding_to` has
    # put into the record of a folder stays there.
    if by is not None and not is_part_of_a_folder(file):
        _list(file.parent, {file.name: file_sha256(by)})


@contextmanager
def replacing_ours(file: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `file` when the block ends without an error.

    The record of its folder then lists it.
    InputError, before and after the block, as for `check_ours`.
    """
    _claim(file)
    with replacing(file) as part:
        yield part

        # Again: it took long enough for somebody to have put something there.
        _claim(file, by=part)


def _list(folder: Path, changes: dict[str, str | None]) -> None:
    """Put these sums into the folder's record, and strike off files without one."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / SUMS

    if not any(changes.values()) and not record.is_file():
        return

    # The record is its own lock, so that no file of a lock stays behind. It is replaced and never
    # removed: somebody may be about to read it.
    with locked_file(record):
        before = listed_in(record)
        after = {name: digest for name, digest in (before | changes).items() if digest is not None}
        if after != before:
            with replacing(record) as part:
                part.write_text("".join(f"{after[name]}  {name}\n" for name in sorted(after)))
