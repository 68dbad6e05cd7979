"""What to do about a file of the pipeline that is missing: dvc.yaml knows the stage that writes it,
and DVC's configuration whether there is a remote to fetch it from.

Read only when something is missing. Imports no DVC before that.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp_core.errors import InputError, first_line
from interp_core.files.params import project_root, read_yaml

_WRITTEN = ("outs", "metrics", "plots")
Entry = str | Mapping[str, Any]  # a path in dvc.yaml, or one with settings


@dataclass(frozen=True)
class Origin:
    """Where a file or a folder of the pipeline comes from."""

    stage: str
    is_fetched: bool  # by `make pull`: DVC keeps it, and there is a remote

    @property
    def fetched(self) -> str:
        """The first way out, in words: nothing where it cannot be fetched."""
        return "`make pull` fetches it, or " if self.is_fetched else ""

    def way_out(self, verb: str) -> str:
        """In words; `verb` is what the stage does to it: "writes"."""
        return f"{self.fetched}`dvc repro {self.stage}` {verb} it"


def missing(path: Path) -> InputError:
    """The error for a file that is not there."""
    origin = origin_of(path)
    if origin is None:
        return InputError(
            f"{path} is missing: run the command that writes it first (`dvc repro` runs all)"
        )

    return InputError(
        f"{path} is missing: {origin.fetched}run the command that writes it first "
        f"(`dvc repro {origin.stage}`; `dvc repro` runs all)"
    )


def way_out(path: Path, verb: str) -> str:
    """The end of an error about a path that is not there; nothing where no stage writes it."""
    origin = origin_of(path)
    return f"; {origin.way_out(verb)}" if origin is not None else ""


def origin_of(path: Path) -> Origin | None:
    """The stage of the project that writes a path, or a folder that it is in; None for any other
    path, and where no dvc.yaml can be read."""
    try:
        root = project_root()
        stages = read_yaml(root / "dvc.yaml")["stages"]
    except (InputError, OSError, KeyError):
        return None

    place = Path(os.path.abspath(path))
    for name, stage in stages.items():
        for entry in _entries(stage):
            out = root / _path(entry)
            if out == place or out in place.parents:
                return Origin(name, _is_cached(entry) and _has_remote(root))
    return None


def written_by(stage: Mapping[str, Any]) -> list[str]:
    """Paths that a stage of a dvc.yaml writes."""
    return [_path(entry) for entry in _entries(stage)]


def paths_of(entries: Iterable[Entry]) -> list[str]:
    """Of a list in dvc.yaml, where a path may carry settings."""
    return [_path(entry) for entry in entries]


def _entries(stage: Mapping[str, Any]) -> Iterator[Entry]:
    for kind in _WRITTEN:
        yield from stage.get(kind) or ()


def _path(entry: Entry) -> str:
    return entry if isinstance(entry, str) else next(iter(entry))


def _is_cached(entry: Entry) -> bool:
    """Whether DVC keeps it; what it does not, git has."""
    settings = {} if isinstance(entry, str) else next(iter(entry.values()))
    return (settings or {}).get("cache", True)


def _has_remote(root: Path) -> bool:
    try:
        return (root / ".dvc").is_dir() and default_address(root) is not None
    except InputError:
        return False


def default_address(root: Path) -> str | None:
    """Where the remote is that DVC takes when none is named, a folder with its whole path; None
    where there is none.

    InputError for a configuration that cannot be read.
    """
    configuration = dvc_configuration(root)
    remote = configuration["remote"].get(configuration["core"].get("remote"), {})
    return str(remote["url"]) if "url" in remote else None


def dvc_configuration(root: Path) -> Any:
    """DVC's settings of this clone, of the user and of the machine, by section.

    InputError where they cannot be read.
    """
    from dvc.config import Config, ConfigError

    own = str(root / ".dvc")
    try:
        return Config(dvc_dir=own, local_dvc_dir=own)
    except ConfigError as problem:
        raise InputError(f"{root / '.dvc'}: {first_line(problem)}") from None
