"""What a stage has finished, kept by a mark of all that it was made from: put back, not made again.

DVC deletes what a stage made before it runs the stage again. Without this, a model that is added to
a profile would have all the others trained and measured anew.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import RootModel, ValidationError

from interp_core.files.artifacts import file_sha256, replacing, save_json
from interp_core.files.params import project_root
from interp_core.files.sums import RECORD

# Of each name: what is in place, and what was there before it.
KEPT = 2
_LIST = "kept.json"

# The content of kept.json: path in the kept folder -> SHA-256.
_Files = RootModel[dict[str, str]]


def keep(places: Sequence[Path], *, stage: str, name: str, mark: str) -> None:
    """Keep files, and folders that have a record, as they have just been written.

    Their own names must differ. A folder costs no disk where files can have two names.
    """
    kept = _folder(stage, name, mark)
    shutil.rmtree(kept, ignore_errors=True)

    for place in places:
        if place.is_dir():
            _link_all(place, kept / place.name)
        else:
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place, kept / place.name)

    # The list goes last: without it the copy is unfinished.
    files = {file.relative_to(kept).as_posix(): file_sha256(file) for file in _files_in(kept)}
    save_json(kept / _LIST, files)

    same = sorted(
        kept.parent.glob(f"{name}-{'?' * len(mark)}"), key=lambda one: one.stat().st_mtime
    )
    for older in same[:-KEPT]:
        shutil.rmtree(older)


def put_back(places: Sequence[Path], *, stage: str, name: str, mark: str) -> bool:
    """Whether they were kept whole; then all of them are in place again."""
    kept = _folder(stage, name, mark)
    if not _is_whole(kept) or not all((kept / place.name).exists() for place in places):
        return False

    for place in places:
        if (kept / place.name).is_dir():
            _put_back_folder(kept / place.name, place)
        else:
            with replacing(place) as written:
                shutil.copyfile(kept / place.name, written)

    return True


def _put_back_folder(kept: Path, place: Path) -> None:
    # Late: most stages put back files alone, and do not depend on this.
    from interp_core.files.folders import Record, replacing_folder

    record = Record.model_validate_json((kept / RECORD).read_bytes())

    with replacing_folder(place, kind=record.kind, name=record.name) as part:
        _link_all(kept, part)
        (part / RECORD).unlink()  # the new folder gets a record of its own


def _folder(stage: str, name: str, mark: str) -> Path:
    return project_root() / ".scratch" / "finished" / stage / f"{name}-{mark}"


def _is_whole(kept: Path) -> bool:
    """Whether every file that the list names is there, byte for byte."""
    try:
        listed = _Files.model_validate_json((kept / _LIST).read_bytes()).root
    except (OSError, ValidationError):
        return False

    files = {kept / name: digest for name, digest in listed.items()}
    return all(path.is_file() and file_sha256(path) == digest for path, digest in files.items())


def _files_in(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file()]


def _link_all(source: Path, target: Path) -> None:
    """The same files under a second name; copies where the file system has no second names."""
    for file in _files_in(source):
        new = target / file.relative_to(source)
        new.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, new)
        except OSError:
            shutil.copyfile(file, new)
