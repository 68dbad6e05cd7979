"""Finished trainings, kept by fingerprint: what was trained once is put back, not trained again.

DVC deletes what a stage made before it runs the stage again. Without this, a size that is added to
a profile would train all the others anew.
"""

import os
import shutil
from pathlib import Path

from pydantic import ValidationError

from interp_core.files.artifacts import file_sha256, replacing
from interp_core.files.folders import RECORD, Record, replacing_folder
from interp_core.files.params import project_root

# Of each training: the one that is in place, and the one before it.
KEPT = 2
_MODEL, _HISTORY = "model", "history.csv"


def keep(place: Path, history: Path, *, stage: str, name: str, mark: str) -> None:
    """Keep a training that has just been written to `place`, with its history. Costs no disk where
    files can have two names."""
    kept = _folder(stage, name, mark)
    shutil.rmtree(kept, ignore_errors=True)
    _link_all(place, kept / _MODEL)

    # The history goes last: without it the copy is unfinished.
    shutil.copyfile(history, kept / _HISTORY)

    same = sorted(
        kept.parent.glob(f"{name}-{'?' * len(mark)}"), key=lambda one: one.stat().st_mtime
    )
    for older in same[:-KEPT]:
        shutil.rmtree(older)


def put_back(place: Path, history: Path, *, stage: str, name: str, mark: str) -> bool:
    """Whether the training was kept whole; then it is in `place` again, with its history."""
    kept = _folder(stage, name, mark)
    if not (kept / _HISTORY).is_file() or not _is_whole(kept / _MODEL):
        return False

    with replacing_folder(place, kind=stage, name=name) as part:
        _link_all(kept / _MODEL, part)
        (part / RECORD).unlink()  # the new folder gets a record of its own

    with replacing(history) as written:
        shutil.copyfile(kept / _HISTORY, written)

    return True


def _folder(stage: str, name: str, mark: str) -> Path:
    return project_root() / ".scratch" / "finished" / stage / f"{name}-{mark}"


def _is_whole(folder: Path) -> bool:
    """Whether every file that the record lists is there, byte for byte."""
    try:
        record = Record.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        return False

    files = {folder / name: digest for name, digest in record.files.items()}
    return all(path.is_file() and file_sha256(path) == digest for path, digest in files.items())


def _link_all(source: Path, target: Path) -> None:
    """The same files under a second name; copies where the file system has no second names."""
    for file in sorted(source.rglob("*")):
        if not file.is_file():
            continue

        new = target / file.relative_to(source)
        new.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, new)
        except OSError:
            shutil.copyfile(file, new)
