"""Nothing that is read is ever run: a pickle and code of a model's own, in every place a file is
read (SECURITY.md).
"""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cursive_circuits.data_bank import read_bank
from cursive_circuits.data_public_tokens import PublicTokens
from cursive_circuits.model_checkpoint import load_public
from cursive_circuits.params import CursiveCircuits
from eigen_phase.run_directory import RunDirectory
from interp_core.errors import InputError
from interp_core.files.artifacts import load_arrays, load_json, load_weights
from interp_core.files.params import read_section, read_yaml
from interp_core.loading import load_model
from interp_core.models.pretrained import save_plain
from interp_core.models.spec import ModelSpec
from interp_core.stimuli.corpus import Corpus, CorpusParams, PathText, read_documents
from interp_core.training.checkpoints import Scratch
from small_project import random_model, save_model, word_tokenizer
from small_strokes import ALPHABET

MARK = "was-run"


class Payload:
    """What a pickle can do to whoever opens it: here it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / MARK


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder."""
    return save_model(
        tmp_path / "model", random_model(layers=1, seed=0, vocab=96), word_tokenizer()
    )


def read_model(folder: Path) -> None:
    load_model(ModelSpec(source="local", path=folder), name="model")


def public(file: Path) -> None:
    params = read_section("cursive_circuits", CursiveCircuits, "smoke")
    shape = next(iter(params.configurations.values()))
    load_public(file, shape, tokens=PublicTokens(), alphabet=ALPHABET)


def text(file: Path) -> None:
    read_documents(CorpusParams(path=PathText(path=file), vocabulary=280, validation_every=2))


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "arrays": ("scores.npz", load_arrays),
    "a report": ("report.json", load_json),
    "weights": ("model.safetensors", load_weights),
    "a state": ("state.safetensors", lambda file: Scratch(file.parent).load()),
    "a corpus": ("tokens.npz", lambda file: Corpus.load(file.parent)),
    "a run": ("config.json", lambda file: RunDirectory.open(file.parent)),
    "a bank": ("bank.zip", read_bank),
    "a public .pt": ("best.pt", public),
    "a public .ckpt": ("best.ckpt", public),
    "a public .safetensors": ("best.safetensors", public),
    "a profile": ("own.yaml", read_yaml),
    "a text": ("text.txt", text),
    "a GGUF": ("model.gguf", lambda file: save_plain(file, file.parent / "plain")),
}


@pytest.mark.parametrize("place", READERS)
@pytest.mark.parametrize("how", ["pickle", "torch", "numpy"])
def test_a_pickle_is_refused_and_never_opened(
    place: str, how: str, mark: Path, tmp_path: Path
) -> None:
    name, read = READERS[place]
    (tmp_path / "here").mkdir()
    file = tmp_path / "here" / name

    with file.open("wb") as opened:
        if how == "pickle":
            opened.write(pickle.dumps(Payload(mark)))
        elif how == "torch":
            torch.save({"model_state_dict": Payload(mark)}, opened)
        else:
            names = ("train", "validation", "counts")
            np.savez(opened, **dict.fromkeys(names, np.array([Payload(mark)], dtype=object)))  # pyright: ignore[reportArgumentType]

    with pytest.raises(InputError):
        read(file)
    assert not mark.exists()


def test_a_models_pickle_is_refused_and_never_opened(model: Path, mark: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save({"gpt_neox.embed_in.weight": Payload(mark)}, model / "pytorch_model.bin")
    with pytest.raises(InputError):
        read_model(model)
    assert not mark.exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_a_model_names_is_never_run(file: str, model: Path, mark: Path) -> None:
    (model / "own_code.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    classes = {"AutoConfig": "C", "AutoModelForCausalLM": "M"}
    named = {key: f"own_code.{value}" for key, value in classes.items()}
    named["AutoTokenizer"] = ["own_code.T", None]  # pyright: ignore[reportArgumentType]
    content = json.loads((model / file).read_text())
    content |= {"auto_map": named, "model_type": "own", "tokenizer_class": "OwnTokenizer"}
    (model / file).write_text(json.dumps(content))

    # A tokenizer that transformers can read without the code is read so.
    if file == "config.json":
        with pytest.raises(InputError, match="code of its own"):
            read_model(model)
    else:
        read_model(model)
    assert not mark.exists()


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir"])
def test_a_profile_that_names_code_is_refused(tag: str, mark: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"models: !!python/{tag} [{str(mark)!r}]\n")
    with pytest.raises(InputError, match="not valid YAML"):
        read_yaml(tmp_path / "own.yaml")
    assert not mark.exists()
