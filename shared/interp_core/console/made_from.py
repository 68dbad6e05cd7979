"""What an experiment's records were made from.

A stage's are in dvc.lock, so no stage depends on this.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp_core import processor
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
    """Models by name, and hashes of what else was read, of settings and of the study's code.

    Native instructions are marked, for they change digits; the pinned ones are what no mark means.
    """
    chosen = processor.instructions()
    settings = params.model_dump(mode="json", exclude={*unread, *WITHOUT_EFFECT})

    return {
        "models": {name: vars(source) for name, source in sorted(sources.items())},
        "read": sha256_of([_digest(one) for one in read]),
        "settings": sha256_of(settings),
        "code": code_sha256(study),
        **({} if chosen == "avx2" else {"instructions": chosen}),
    }


def models_of(record: Path) -> dict[str, str]:
    """Name and place of each model that a record is of; nothing for a file that is no record.

    A folder of a user's may hold any JSON: only what has a record's shape is one.
    """
    try:
        made = made_in(json.loads(record.read_text(encoding="utf-8")))
    except (ValueError, RecursionError):
        return {}

    named = {name: one.get("place") for name, one in _mappings(made.get("models")).items()}
    return {name: place for name, place in named.items() if isinstance(place, str)}


def made_in(content: Any) -> dict[str, Any]:
    """What the content of a file says that it was made from; nothing where it is no record."""
    made = content.get(MADE_FROM) if isinstance(content, dict) else None
    return made if isinstance(made, dict) else {}


def _mappings(content: Any) -> dict[str, dict[str, Any]]:
    """A mapping's entries that are mappings themselves; none where it is no mapping."""
    entries = content.items() if isinstance(content, dict) else ()
    return {name: one for name, one in entries if isinstance(one, dict)}


def files_sha256(spec: ModelSpec) -> str:
    """A hash of all that a model is loaded from, as it is now."""
    from interp_core import loading

    return loading.files_sha256(spec)


def code_sha256(study: str) -> str:
    """A hash of all code that the study's commands run."""
    from interp_core.pipeline.import_closure import code_of

    return sha256_of([file_sha256(file) for file in code_of(f"{study}.workflow")])


def sha256_of(content: Any) -> str:
    """Hex SHA-256 of what JSON can say."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(one: Path | str) -> str:
    if isinstance(one, str):
        return one
    return file_sha256(one) if one.is_file() else ""
