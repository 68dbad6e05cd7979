"""A model's directory, looked at before anything is loaded. Imports no torch: what is wrong with a
path, and that a hub does not answer, is said at once.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interp_core.errors import InputError, first_line
from interp_core.files.way_out import way_out
from interp_core.models.spec import ModelSpec

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
MOST_LAYERS = 1000
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "block_count")  # the last is GGUF's
HUB_TIMEOUT = 3.0  # seconds to find out whether the hub answers


def folder_of(spec: ModelSpec) -> Path:
    """The directory that a model is loaded from; a hub's is fetched, unless the cache has it.

    InputError for none, for one in a format that other programs read, and for a hub that refuses
    or cannot be reached.
    """
    if spec.source == "hub":
        return _of_hub(spec)

    folder = spec.path
    assert folder is not None

    if folder.is_dir():
        folder = _snapshot_in(folder)
        _refuse_other_formats(folder)
    elif folder.suffix == ".gguf":
        raise InputError(_how_to_convert(folder))

    if not folder.is_dir():
        # Where dvc.yaml does not say which stage: most are of this one.
        trains = "; `dvc repro reference_models` trains it" if spec.source == "trained" else ""
        made = way_out(folder, "trains" if spec.source == "trained" else "writes")
        raise InputError(f"no model directory {folder}{made or trains}")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json: not a Hugging Face model directory")
    return folder


def _of_hub(spec: ModelSpec) -> Path:
    """The snapshot of a hub model, from the cache if it is there; one quick question tells whether
    the hub answers.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # of whichever client this version of the hub library speaks through  # pyright: ignore[reportPrivateImportUsage]
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    assert spec.repo is not None
    try:
        cached = Path(snapshot_download(spec.repo, revision=spec.revision, local_files_only=True))
        if any(any(cached.glob(pattern)) for pattern in WEIGHTS):
            return cached
    except (LocalEntryNotFoundError, FileNotFoundError):
        pass
    try:
        info = HfApi().model_info(spec.repo, revision=spec.revision, timeout=HUB_TIMEOUT)
        wanted = _worth_fetching([file.rfilename for file in info.siblings or ()])
        return Path(snapshot_download(spec.repo, revision=spec.revision, allow_patterns=wanted))
    except RevisionNotFoundError:
        raise InputError(f"{spec.repo} has no revision {spec.revision} on the hub") from None
    except (RepositoryNotFoundError, HfHubHTTPError) as problem:
        raise InputError(
            f"{spec.repo} at {spec.revision}: the hub refused: {first_line(problem)}"
        ) from None
    except (OSError, HTTPError):
        raise InputError(
            f"{spec.repo} at revision {spec.revision} is not in the local cache and the hub cannot "
            "be reached; "
            "ways out: (1) download it where there is a network and copy the cache (HF_HOME) here, "
            "(2) give a folder "
            "that holds the model instead of its name, (3) use the models trained here (profile "
            "laptop, no hub)"
        ) from None


def _worth_fetching(files: Sequence[str]) -> list[str]:
    """Patterns of the files that a model is loaded from; its weights once, where a repository has
    them in two formats."""
    has_safetensors = any(file.endswith(".safetensors") and "/" not in file for file in files)
    weights = "*.safetensors" if has_safetensors else "pytorch_model*.bin"
    return ["*.json", weights, "*.model", "*.txt"]


def _snapshot_in(folder: Path) -> Path:
    """The folder itself, or the snapshot in a hub cache's folder of one repository, which may be
    named by its `snapshots` too.

    InputError where it holds several, and no branch main says which.
    """
    if (folder / "config.json").is_file():
        return folder

    if folder.name == "snapshots":
        folder = folder.parent
    elif not (folder / "snapshots").is_dir():
        return folder

    main = folder / "refs" / "main"
    if main.is_file() and (found := folder / "snapshots" / main.read_text().strip()).is_dir():
        return found

    snapshots = sorted(one for one in (folder / "snapshots").iterdir() if one.is_dir())
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


def check_layers(settings: Mapping[str, Any], file: Path) -> None:
    """InputError for layers by the thousand: transformers would build them for minutes, and then
    find no weights for them.

    `settings` are what `file` says of a model, in GGUF behind its architecture's name.
    """
    # A model of text and pictures has the settings of its text in a part of their own.
    parts = [settings, *(value for value in settings.values() if isinstance(value, Mapping))]

    for key, value in (entry for part in parts for entry in part.items()):
        counts = key.rpartition(".")[2] in _LAYERS and isinstance(value, int)
        if counts and value > MOST_LAYERS:
            raise InputError(f"{file}: `{key}` is {value:,}, and {MOST_LAYERS:,} at most")


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
