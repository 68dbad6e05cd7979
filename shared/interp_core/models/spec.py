"""Where a model comes from, and what a name that a user types means. Imports no torch."""

import os.path
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

from interp_core.errors import InputError
from interp_core.files.params import (
    Params,
    check,
    file_name,
    odd_value,
    profile_path,
    project_root,
    read_yaml,
)

# As the hub has it: a name neither begins nor ends with a dot or a dash, nor holds two in a row.
_HUB_ID = re.compile(r"(\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?)(?:@([\w.-]+))?", re.ASCII)

# Names without an owner, as papers and tutorials write them.
_OWNERS = {
    r"gpt2(-medium|-large|-xl)?(@.+)?": "openai-community",
    r"pythia-[\d.]+[mb](-deduped)?(@.+)?": "EleutherAI",
    r"gpt-neo-[\d.]+[MB](@.+)?": "EleutherAI",
    r"opt-[\d.]+[mb](@.+)?": "facebook",
    r"mamba-[\d.]+[mb]-hf(@.+)?": "state-spaces",
    r"SmolLM2-[\d.]+[MB](-Instruct)?(@.+)?": "HuggingFaceTB",
}

Dtype = Literal["float32", "bfloat16", "float64"]


class ModelSpec(Params):
    """Where a model comes from. float16 is not offered: the biases of Pythia's keys and queries
    overflow in it.
    """

    source: Literal["hub", "local", "trained", "random"]
    repo: str | None = None  # hub: owner/name
    revision: str | None = None  # hub: 40-hex commit, or a branch such as step3000
    path: Path | None = None  # local, trained: a Hugging Face directory
    config: Mapping[str, Any] | None = None  # random: a transformers config, model_type included
    seed: int = 0  # random: of the weights

    @field_validator("config")
    @classmethod
    def _plain_config(cls, config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        if (odd := _odd_inside(config)) is not None:
            raise ValueError(odd)
        return config

    @model_validator(mode="after")
    def _complete(self) -> "ModelSpec":
        needs = {
            "hub": ("repo", "revision"),
            "local": ("path",),
            "trained": ("path",),
            "random": ("config",),
        }
        for key in needs[self.source]:
            if getattr(self, key) is None:
                raise ValueError(f"a model from source {self.source} needs `{key}`")
        return self


def _odd_inside(value: Any) -> str | None:
    """What is wrong anywhere in a mapping that is no section of ours."""
    if (odd := odd_value(value)) is not None or not isinstance(value, Mapping | list | tuple):
        return odd
    inner = value.values() if isinstance(value, Mapping) else value
    return next((odd for one in inner if (odd := _odd_inside(one)) is not None), None)


def spec_of(name: str, known: Mapping[str, ModelSpec]) -> ModelSpec:
    """What a user's model name means: a name of the profile, a directory, or a hub id
    (owner/name[@revision]).

    InputError names the known models when it is none of them.
    """
    if name in known:
        return known[name]
    if Path(name).is_dir() or name.endswith(".gguf"):
        return ModelSpec(source="local", path=Path(name))
    if (found := _hub_id(with_owner(name))) is not None:
        return ModelSpec(source="hub", repo=found[0], revision=found[1] or "main")
    others = f", not one of {', '.join(known)}" if known else ""
    raise InputError(f"unknown model {name}: not a directory, not a hub id owner/name{others}")


def with_owner(name: str) -> str:
    """A hub id for a model that people call by its bare name; any other name as it is."""
    owner = next((owner for bare, owner in _OWNERS.items() if re.fullmatch(bare, name)), None)
    return name if owner is None else f"{owner}/{name}"


def short_name(name: str) -> str:
    """A model's name in file names: the last part of a directory's path or of a hub id.

    Only a hub id has a revision, which is left out; a directory keeps every `@` of its path. As for
    `spec_of`, what is a directory is no hub id.
    """
    if not Path(name).is_dir() and (found := _hub_id(with_owner(name))) is not None:
        return Path(found[0]).name

    # So that `.` and `folder/..` have names too; links are not followed, their own name is the
    # user's.
    return Path(os.path.abspath(name)).name


def _hub_id(name: str) -> tuple[str, str | None] | None:
    """Repository and revision of a hub id; None for what is none."""
    match = _HUB_ID.fullmatch(name)
    if match is None or re.search(r"--|\.\.", match[1]):
        return None
    return match[1], match[2]


def catalogue(profile: str | None) -> dict[str, ModelSpec]:
    """Models by name, from the section `models` of a profile; relative paths start at the project's
    folder.
    """
    path = profile_path(profile)
    section = read_yaml(path).get("models", {})
    if not isinstance(section, dict):
        raise InputError(f"{path}: `models` must map names to where a model comes from")

    specs = {
        file_name(name, where=f"{path}: models"): check(
            ModelSpec, entry, where=f"{path}: models.{name}"
        )
        for name, entry in section.items()
    }
    return {name: _from_project(spec) for name, spec in specs.items()}


def _from_project(spec: ModelSpec) -> ModelSpec:
    if spec.path is None or spec.path.is_absolute():
        return spec
    return spec.model_copy(update={"path": project_root() / spec.path})
