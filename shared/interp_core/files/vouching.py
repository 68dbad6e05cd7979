"""Writing the record by which files vouch for themselves (`sums.py` reads it)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interp_core.files.artifacts import replacing
from interp_core.files.locks import locked_file
from interp_core.files.sums import SUMS, file_sha256, listed_in


@contextmanager
def vouching(*files: Path, folder: Path | None = None) -> Iterator[None]:
    """Write these files in the block; then the record of `folder` lists them as they are.

    The folder is their own where none is named. They are struck off first: whoever is killed in the
    block leaves files that nothing vouches for, and no record that calls them damaged. Several
    processes may write into one folder.
    """
    names = {file: file.relative_to(folder or file.parent).as_posix() for file in files}
    folders = {file: folder or file.parent for file in files}

    for place in dict.fromkeys(folders.values()):
        _list(place, {names[file]: None for file in files if folders[file] == place})
    yield
    for place in dict.fromkeys(folders.values()):
        there = [file for file in files if folders[file] == place and file.is_file()]
        _list(place, {names[file]: file_sha256(file) for file in there})


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
