"""Every file vouches for itself: a record near it lists its SHA-256, and who reads the file checks.

A folder that a command replaces whole has files.json (`folders.py`). Any other folder that is
written here, one of results or of an unfinished training, has `induction-lab.sha256`, in the format
of `sha256sum -c` (`vouching.py` writes it). What no record lists is somebody else's, and nothing is
asked of it.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from interp_core.errors import InputError
from interp_core.files.way_out import way_out

SUMS, RECORD = "induction-lab.sha256", "files.json"
# A record vouches for files in its folder and this many below: run/checkpoints/step-0.safetensors.
_DEEP = 1
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
_AGAIN = "delete it and run the command that writes it"


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes. InputError for a file that cannot be read."""
    try:
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except FileNotFoundError:
        raise InputError(f"{path} is missing{way_out(path, 'writes')}") from None
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem.strerror}") from None


def check_sum(path: Path, *, again: str = _AGAIN) -> None:
    """InputError where the nearest record that knows the file says that it is another.

    `again` is the way out. A file that is missing is for its reader to name.
    """
    if not path.is_file():
        return

    for record, name in _records(path):
        listed = listed_in(record).get(name)
        if listed is not None and listed != file_sha256(path):
            told = f"{path} is damaged: its SHA-256 is not the one in {record.name}"
            raise InputError(f"{told}; {again}")
        if listed is not None:
            return


def is_listed(path: Path) -> bool:
    """Whether a record near the file lists it, as it is or as another: then it is of this program.

    InputError for a record that is damaged itself.
    """
    return any(name in listed_in(record) for record, name in _records(path))


def is_part_of_a_folder(path: Path) -> bool:
    """Whether the record of a folder that a command replaces whole lists it."""
    return any(
        record.name == RECORD and name in listed_in(record) for record, name in _records(path)
    )


def _records(path: Path) -> Iterator[tuple[Path, str]]:
    """Every record that may list a file, the nearest first, and the file's name in it."""
    for folder in list(path.parents)[: _DEEP + 1]:
        for record in (folder / SUMS, folder / RECORD):
            if record.is_file() and (record.name != RECORD or _is_ours(record)):
                yield record, path.relative_to(folder).as_posix()


def check_all(record: Path, *, again: str) -> None:
    """InputError for the first file that the record lists and that is missing, or another."""
    for name in sorted(listed_in(record)):
        if not (record.parent / name).is_file():
            raise InputError(f"{record.parent / name} is missing, one of {record.name}; {again}")
        check_sum(record.parent / name, again=again)


def listed_in(record: Path) -> dict[str, str | None]:
    """Path below the record's folder -> SHA-256, None while it is written.

    InputError for a record that is damaged itself.
    """
    try:
        text = record.read_text(encoding="utf-8")
        if record.name == RECORD:
            return dict(json.loads(text)["files"].items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged(record) from None

    found = {}
    for line in text.splitlines():
        if (parts := _LINE.fullmatch(line)) is None:
            raise _damaged(record)
        found[parts[2]] = parts[1]
    return found


def _damaged(record: Path) -> InputError:
    return InputError(f"{record} is damaged: move its folder away and run what wrote it again")


def _is_ours(record: Path) -> bool:
    """A files.json may be anybody's; one of this program says so at its beginning."""
    with record.open("rb") as opened:
        return b'"induction-lab"' in opened.read(200)
