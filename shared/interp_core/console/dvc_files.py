"""What DVC's files say that there should be, and what there is.

DVC trusts its cache: an object with a flipped bit is laid out by `dvc checkout` and called up to
date. Nothing here writes.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from interp_core.errors import InputError
from interp_core.files.way_out import dvc_configuration

_DIRECTORY = ".dir"
# What .dvcignore leaves out of a folder's hash.
_IGNORED = {"__pycache__", ".scratch", ".venv", "wandb"}


@dataclass(frozen=True)
class Out:
    """A file or a folder that a stage wrote, as dvc.lock has it."""

    path: str  # from the project
    md5: str  # of a file's bytes; of a folder's listing, ending in .dir


@dataclass
class Sums:
    """MD5 of files, once for each, whatever names it has: an artifact may be a link into the
    cache."""

    _found: dict[tuple[int, int], str] = field(default_factory=dict)

    def md5(self, file: Path) -> str:
        """Of its bytes, hexadecimal."""
        known = (found := file.stat()).st_dev, found.st_ino
        if known not in self._found:
            with file.open("rb") as opened:
                self._found[known] = hashlib.file_digest(opened, _md5).hexdigest()
        return self._found[known]


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


def outs_of(root: Path) -> list[Out]:
    """Every output that dvc.lock names. InputError for one that cannot be read."""
    lock = root / "dvc.lock"
    try:
        return outs_in(lock.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise InputError(f"{lock} cannot be read: `git checkout dvc.lock`") from None


def outs_in(lock: str) -> list[Out]:
    """Every output that the text of a dvc.lock names."""
    stages = yaml.load(lock, yaml.CSafeLoader)["stages"]
    return [
        Out(out["path"], out["md5"]) for stage in stages.values() for out in stage.get("outs", ())
    ]


def cache_folder(root: Path) -> Path:
    """Where DVC's objects are, by its configuration of this clone, of the user and of the machine.

    InputError for one that cannot be read.
    """
    cache = dvc_configuration(root)["cache"].get("dir")
    return Path(cache or root / ".dvc" / "cache") / "files" / "md5"


def object_of(cache: Path, md5: str) -> Path:
    """The object of this hash."""
    return cache / md5[:2] / md5[2:]


def objects_in(cache: Path) -> list[Path]:
    """All objects; what a download left unfinished is none."""
    found = sorted(file for file in cache.glob("??/*") if file.is_file())
    return [file for file in found if len(name_of(file)) == 32]


def name_of(file: Path) -> str:
    """The hash that an object's name says."""
    return f"{file.parent.name}{file.name.removesuffix(_DIRECTORY)}"


def files_of(path: Path) -> list[Path]:
    """The file, or all files of the folder that DVC hashes; none where nothing is."""
    if path.is_file():
        return [path]
    found = []
    for base, inner, names in os.walk(path):
        inner[:] = sorted(set(inner) - _IGNORED)
        found += [Path(base, name) for name in names if not name.endswith(".pyc")]
    return sorted(file for file in found if file.is_file())


def md5_of(path: Path, sums: Sums) -> str:
    """The hash that DVC gives to a file, or to a folder with all that is in it."""
    return sums.md5(path) if path.is_file() else _listing_md5(_sums_in(path, sums))


def artifacts_by_object(cache: Path, outs: list[Out]) -> dict[str, str]:
    """Paths of artifacts by the hashes of their objects, as far as the listings can be read."""
    names = {}
    for out in outs:
        names[out.md5.removesuffix(_DIRECTORY)] = out.path
        for name, md5 in (_listing(cache, out) or {}).items():
            names[md5] = f"{out.path}/{name}"
    return names


def changed_in(root: Path, out: Out, cache: Path, sums: Sums) -> Iterator[str]:
    """Paths of what is here of an output and not as dvc.lock says; the whole folder where its
    listing is not in the cache."""
    path = root / out.path
    if not path.exists():
        return

    if path.is_file():
        if sums.md5(path) != out.md5:
            yield out.path
        return

    there = _sums_in(path, sums)
    if _listing_md5(there) == out.md5:
        return

    listed = _listing(cache, out)
    if listed is None:
        yield out.path
        return
    different = listed.keys() ^ there.keys()
    different |= {name for name in listed.keys() & there.keys() if listed[name] != there[name]}
    yield from (f"{out.path}/{name}" for name in sorted(different))


def _listing(cache: Path, out: Out) -> dict[str, str] | None:
    """Name -> MD5 of a folder's files, by its object in the cache; None where that is not there, or
    is damaged."""
    file = object_of(cache, out.md5)
    if not out.md5.endswith(_DIRECTORY) or not file.is_file():
        return None

    content = file.read_bytes()
    digest = _md5()
    digest.update(content)
    if digest.hexdigest() != name_of(file):
        return None
    return {entry["relpath"]: entry["md5"] for entry in json.loads(content)}


def _sums_in(folder: Path, sums: Sums) -> dict[str, str]:
    """MD5 of a folder's files, by their names in it."""
    return {file.relative_to(folder).as_posix(): sums.md5(file) for file in files_of(folder)}


def _listing_md5(files: dict[str, str]) -> str:
    """The hash that DVC gives a folder with these files."""
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    digest = _md5()
    digest.update(json.dumps(entries, sort_keys=True).encode())
    return f"{digest.hexdigest()}{_DIRECTORY}"
