"""What an experiment's records were made from.

A stage's are in dvc.lock, so no stage depends on this.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp_core.files.artifacts import file_sha256
from interp_core.files.params import Params
from interp_core.models.spec import ModelSpec

MADE_FROM = "made_from"  # the key of an experiment's record

# Settings that change no number: how many CPU threads and processes share the work.
WITHOUT_EFFECT = frozenset({"threads", "processes"})


@dataclass(frozen=True)
class Source:
    """A model as a record names it: where it is from, and a hash of its files."""

    place: str  # a directory, owner/name@revision, or what random weights are drawn from
    sha256: str


def mark(
    study: str,
    sources: Mapping[str, Source],
    params: Params,
    *,
    unread: Collection[str],
    read: Iterable[Path | str],
) -> dict[str, Any]:
    """Models by name, and hashes of what else was read, of settings and of the study's code."""
    settings = params.model_dump(mode="json", exclude={*unread, *WITHOUT_EFFECT})

    return {
        "models": {name: vars(source) for name, source in sorted(sources.items())},
        "read": sha256_of([_digest(one) for one in read]),
        "settings": sha256_of(settings),
        "code": _code_sha256(study),
    }


def models_of(record: Path) -> dict[str, str]:
    """Name and place of each model that a record is of; nothing for a file that is no record."""
    try:
        content = json.loads(record.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}

    made = content.get(MADE_FROM) if isinstance(content, dict) else None
    return {name: one["place"] for name, one in (made or {}).get("models", {}).items()}


def files_sha256(spec: ModelSpec) -> str:
    """A hash of all that a model is loaded from, as it is now."""
    from interp_core import loading

    return loading.files_sha256(spec)


def sha256_of(content: Any) -> str:
    """Hex SHA-256 of what JSON can say."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(one: Path | str) -> str:
    if isinstance(one, str):
        return one
    return file_sha256(one) if one.is_file() else ""


def _code_sha256(study: str) -> str:
    """A hash of all code that the study's commands run."""
    from interp_core.pipeline.import_closure import code_of

    return sha256_of([file_sha256(file) for file in code_of(f"{study}.workflow")])
