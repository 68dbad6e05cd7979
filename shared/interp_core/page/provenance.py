"""How a file of the run was made, read from dvc.yaml and dvc.lock: stage, command, parameters,
hashes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from interp_core.errors import InputError
from interp_core.files.artifacts import load_json
from interp_core.pipeline.published import MADE

SHORT = 8  # characters of a hash, enough to find it in dvc.lock


@dataclass(frozen=True)
class Made:
    """The stage that wrote a file, as dvc.lock recorded it."""

    stage: str
    says: str
    command: str
    params: Mapping[str, Any]  # by key, of the profile that ran
    profile: str
    inputs: Mapping[str, str]  # data that it read, and their hashes
    output: str  # the path that DVC tracks, the file or a folder around it
    digest: str


@dataclass(frozen=True)
class Provenance:
    """Both files of DVC. InputError when one is missing or damaged."""

    root: Path

    def of(self, path: Path) -> Made | None:
        """How it was made; None for a file that no recorded stage writes."""
        wanted = PurePosixPath(path.relative_to(self.root).as_posix())

        for output in (wanted, *wanted.parents):
            if str(output) in self._writers:
                return self._writers[str(output)]

        return None

    def of_published(self, path: Path) -> Made | None:
        """How what lies in published/STUDY was made; None without its record."""
        record = path.with_name(MADE)
        if not record.is_file():
            return None

        made = load_json(record)
        return Made(
            stage="none",
            says="the study once a seed, at the commit below",
            command=f"make published STUDY={path.parent.name}",
            params={"seeds": made["seeds"], "replaced": made["replaced"]},
            profile=made["profile"],
            inputs={},
            output=str(path.parent.relative_to(self.root)),
            digest=made["revision"][:SHORT],
        )

    @cached_property
    def _writers(self) -> dict[str, Made]:
        described, locked = self._read("dvc.yaml"), self._read("dvc.lock")
        writers = {}

        for stage, record in locked["stages"].items():
            says = described["stages"].get(stage, {}).get("desc", "")

            for out in record.get("outs", []):
                writers[out["path"]] = _made(stage, says, record, out)

        return writers

    def _read(self, name: str) -> dict[str, Any]:
        path = self.root / name

        try:
            return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except FileNotFoundError:
            raise InputError(f"{path} is missing: run inside the project's folder") from None
        except yaml.YAMLError:
            raise InputError(f"{path} is damaged: `git checkout {name}` brings it back") from None


def _made(stage: str, says: str, record: Mapping[str, Any], out: Mapping[str, Any]) -> Made:
    (profile, params), *_ = [*record.get("params", {}).items(), ("", {})]
    data = [one for one in record.get("deps", []) if one["path"].startswith("data/")]

    return Made(
        stage=stage,
        says=says,
        command=record["cmd"],
        params=params,
        profile=PurePosixPath(profile).stem,
        inputs={one["path"]: one["md5"][:SHORT] for one in data},
        output=out["path"],
        digest=out["md5"][:SHORT],
    )
