"""What a call of one of this study's commands is."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from interp_core.console import call
from interp_core.console.call import Call
from interp_core.errors import InputError
from interp_core.files.params import read_section
from interp_core.models.spec import catalogue, short_name
from pythia_topology.params import PythiaTopology
from pythia_topology.streams import STREAMS

Induct = Call[PythiaTopology]


def prepare(profile: str | None, out: Path | None, *, draws: bool = False, **given: Any) -> Induct:
    """Settings from the profile and the options given; any option makes it an experiment.

    `draws`: whether it only draws, of an experiment all models that its folder has scores of, or
    those of them that are named.
    """
    params = read_section("pythia_topology", PythiaTopology, profile, **given)

    prepared = call.start(
        "pythia_topology",
        params,
        known=catalogue(profile),
        profile=profile,
        out=out,
        given=bool(given),
        subjects=given.get("models", ()),
        streams=STREAMS,
    )
    prepared = replace(prepared, asked=frozenset(given))

    if draws and not prepared.is_stage:
        models = _drawn(prepared.folder, [short_name(model) for model in given.get("models", ())])
        return replace(prepared, params=params.model_copy(update={"models": models}))
    prepared.check_models(params.models)
    return prepared


def _drawn(folder: Path, named: Sequence[str]) -> tuple[str, ...]:
    """Names of the models that a folder has scores of; where some are named, these."""
    found = tuple(
        file.stem.removeprefix("profile_") for file in sorted(folder.glob("profile_*.json"))
    )
    if not found:
        raise InputError(
            f"{folder} holds no profile_M.json: run `induct profile --out {folder}` first"
        )
    if missing := [name for name in named if name not in found]:
        raise InputError(
            f"{folder} has no scores of {missing[0]}, only of {', '.join(found)}: run "
            f"`induct profile --model {missing[0]} --out {folder}` first"
        )
    return tuple(dict.fromkeys(named)) or found


def names(run: Induct) -> list[str]:
    """Short names of the models, as in file names."""
    return [short_name(model) for model in run.params.models]
