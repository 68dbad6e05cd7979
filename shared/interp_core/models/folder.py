"""A model's directory, looked at before anything is loaded. Imports no torch: what is wrong with a
path is said at once.
"""

import json
from pathlib import Path

from interp_core.errors import InputError
from interp_core.models.spec import ModelSpec

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def folder_of(spec: ModelSpec) -> Path:
    """The directory that a local model is loaded from.

    InputError for none, and for one in a format that other programs read.
    """
    folder = spec.path
    assert folder is not None

    if folder.is_dir():
        folder = _snapshot_in(folder)
        _refuse_other_formats(folder)
    elif folder.suffix == ".gguf":
        raise InputError(_how_to_convert(folder))

    if not folder.is_dir():
        made = "; `dvc repro reference_models` trains it" if spec.source == "trained" else ""
        raise InputError(f"no model directory {folder}{made}")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json: not a Hugging Face model directory")
    return folder


def _snapshot_in(folder: Path) -> Path:
    """The folder itself, or the snapshot in a hub cache's folder of one repository.

    InputError where it holds several, and no branch main says which.
    """
    if (folder / "config.json").is_file() or not (folder / "snapshots").is_dir():
        return folder

    main = folder / "refs" / "main"
    if main.is_file() and (found := folder / "snapshots" / main.read_text().strip()).is_dir():
        return found

    snapshots = sorted((folder / "snapshots").iterdir())
    if len(snapshots) == 1:
        return snapshots[0]

    raise InputError(
        f"{folder} holds {len(snapshots)} snapshots and no branch main: name one of the folders "
        "in its `snapshots`"
    )


def _refuse_other_formats(folder: Path) -> None:
    """InputError, with what to do, for a model in a format that is read by other programs."""
    if any(any(folder.glob(pattern)) for pattern in WEIGHTS) and _is_of_mamba_ssm(folder):
        raise InputError(
            f"{folder} is in the format of the package mamba_ssm: give its twin for transformers "
            "(on the hub its name ends in -hf, such as state-spaces/mamba-130m-hf)"
        )

    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs and not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        raise InputError(_how_to_convert(ggufs[0]))


def _is_of_mamba_ssm(folder: Path) -> bool:
    """Whether the configuration is that of the Mamba authors' own code."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and "model_type" not in config and "ssm_cfg" in config


def _how_to_convert(file: Path) -> str:
    """A GGUF's weights are quantised: what is measured of them has to be plain first."""
    folder, name = str(file.parent), file.name
    arguments = f"({folder!r}, gguf_file={name!r})"
    return (
        f"{file} is GGUF; convert it (pip install gguf), then give the folder PLAIN: "
        "`from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"M.from_pretrained{arguments}.save_pretrained('PLAIN'); "
        f"T.from_pretrained{arguments}.save_pretrained('PLAIN')`"
    )


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights. InputError for none, and for a shard that is missing."""
    files = sorted(path for pattern in WEIGHTS for path in folder.glob(pattern))
    if not files:
        raise InputError(f"{folder} has no weights (model.safetensors or pytorch_model.bin)")

    for index in (*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")):
        _check_shards(index)
    return files


def _check_shards(index: Path) -> None:
    """InputError naming the first file that an index of shards lists and the folder lacks."""
    try:
        listed = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{index} is no index of weight files: fetch it again") from None

    if absent := [name for name in listed if not (index.parent / str(name)).is_file()]:
        raise InputError(
            f"{index.parent / str(absent[0])} is missing, one of the {len(listed)} files that "
            f"{index.name} lists: fetch it"
        )
