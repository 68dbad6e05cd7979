"""One small file of every kind that is written or read here, and how it is read.

A reader returns a digest of all that it understood, so that a damage that changed nothing is told
from one that was believed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from tokenizers import Tokenizer

import small_gguf
import small_models as small
from cursive_circuits.data_bank import load_bank, save_bank
from cursive_circuits.data_public_tokens import PublicTokens
from cursive_circuits.data_script import Script, write_bank
from cursive_circuits.model_checkpoint import load_public
from cursive_circuits.model_shape import Shape as CursiveShape
from cursive_circuits.params import CursiveCircuits
from cursive_circuits.run_directory import Trained, open_run, save_run
from eigen_phase.params import EigenPhase
from eigen_phase.run_directory import RunDirectory
from eigen_phase.train import train_run
from interp_core.console import call
from interp_core.errors import InputError
from interp_core.files.artifacts import load_weights, save_arrays, save_json, save_weights
from interp_core.files.finished import keep, put_back
from interp_core.files.params import Params, check, read_section
from interp_core.files.vouching import vouching
from interp_core.loading import load_model
from interp_core.models.pretrained import save_plain
from interp_core.models.spec import ModelSpec
from interp_core.stimuli.corpus import Corpus, CorpusParams, PathText, build, read_documents
from interp_core.training.checkpoints import Scratch
from interp_core.training.reference_models import Places, ReferenceModels, train_all
from mamba_project import random_mamba
from small_project import corpus_tokenizer, save_model
from small_strokes import ALPHABET, public_checkpoint, random_model

# What is kept at its place, in the working directory; each process has its own.
FINISHED = Path(".scratch/finished/torture")


@dataclass(frozen=True)
class Place:
    """A folder with files of one kind."""

    name: str
    folder: Path
    read: Callable[[Path], str]  # of a copy of the folder
    ours: bool  # written here: a file that was changed must never be believed
    share: int = 1  # of the cases, against the others


@dataclass
class Digest:
    """All that a reader saw, in one number."""

    seen: Any = None

    def __post_init__(self) -> None:
        self.seen = hashlib.sha256()

    def add(self, *values: Any) -> "Digest":
        """Arrays and tensors by their bytes, all else by its text."""
        for value in values:
            array = value.detach().float().numpy() if isinstance(value, torch.Tensor) else value
            if isinstance(array, np.ndarray):
                self.seen.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
            else:
                self.seen.update(json.dumps(array, sort_keys=True, default=str).encode())
        return self

    def __str__(self) -> str:
        return self.seen.hexdigest()


class Settings(Params):
    """Of a study of one number."""

    seed: int


def build_all(home: Path) -> list[Place]:
    """Every kind, made in `home`, which is a project and the working directory."""
    corpus = _corpus(home)
    return [
        Place("corpus", corpus.folder, read_corpus, ours=True),
        Place("results", _results(home), read_results, ours=True),
        Place("trained model", _trained(home, corpus), read_trained, ours=True, share=2),
        Place("eigen_phase run", _eigen_run(home), read_eigen, ours=True, share=2),
        Place("cursive run", _cursive_run(home), read_cursive, ours=True),
        Place("unfinished training", _scratch(home), read_scratch, ours=True, share=2),
        Place("kept by a stage", _kept(home), read_kept, ours=True),
        Place("bank written here", _bank(home, vouched=True), read_bank, ours=True),
        Place("a bank", _bank(home, vouched=False), read_bank, ours=False),
        Place("a bank, plain", _plain_bank(home), read_plain_bank, ours=False),
        Place("a model", _model(home, corpus), read_model, ours=False, share=2),
        Place("a model, .bin", _bin_model(home, corpus), read_model, ours=False),
        Place("a model, GGUF", _gguf(home), read_gguf, ours=False),
        Place("a Mamba", _mamba(home, corpus), read_model, ours=False),
        Place("a public checkpoint", _public(home, "c.safetensors"), read_public, ours=False),
        Place("a public .pt", _public(home, "c.pt"), read_public, ours=False),
        Place("a text", _text(home), read_text, ours=False),
    ]


def read_corpus(folder: Path) -> str:
    """The token streams and the tokenizer."""
    found = Corpus.load(folder)
    tokenizer = Tokenizer.from_file(str(found.tokenizer_file))
    ids = tokenizer.encode("The same words, again.").ids
    return str(Digest().add(found.train, found.validation, found.counts, ids))


def read_results(folder: Path) -> str:
    """Scores and a report, as the next command of an experiment reads them."""
    run = call.start("pythia_topology", Settings(seed=0), out=folder)
    if not run.file("metrics", "profile", "profile_a").is_file():
        raise InputError("nothing was measured: it is measured again")
    arrays, report = run.load("profile", "profile_a", scores="scores_a")
    return str(Digest().add(*arrays.values(), sorted(arrays), report))


def read_trained(folder: Path) -> str:
    """A model trained here, its tokenizer, and its checkpoints."""
    files = sorted(file.name for file in (folder / "checkpoints").iterdir())
    weights = [load_weights(folder / "checkpoints" / name) for name in files]
    kept = [tensor for one in weights for tensor in one.values()]
    return str(Digest().add(read_model(folder), files, *kept))


def read_model(folder: Path) -> str:
    """A model, its tokenizer, and its predictions."""
    subject = load_model(ModelSpec(source="local", path=folder), name="model")
    tokenizer: Any = subject.tokenizer
    ids = [1, 2, 3] if tokenizer is None else tokenizer.encode("The same words, again.")
    held = torch.tensor([[subject.bos, *ids]]) % subject.vocab_size
    config = {**subject.config.to_dict(), "_name_or_path": None}  # where the copy lies
    return str(Digest().add(ids, subject.logits(held), config))


def read_gguf(folder: Path) -> str:
    """Weights out of a wheel, made plain."""
    # Not into the folder: what is damaged is one of its files.
    with TemporaryDirectory() as plain:
        save_plain(folder / "tiny.gguf", Path(plain))
        return read_model(Path(plain))


def read_eigen(folder: Path) -> str:
    """A run with all that is ever read of it."""
    run = RunDirectory.open(folder)
    digest = Digest().add(run.config, run.rows, *run.history.values(), sorted(run.history))
    for step in (None, *run.checkpoint_steps):
        digest.add(*run.model(step).state_dict().values())
    for step in run.eigenvector_steps:
        digest.add(step, run.eigenvectors(step), *run.adam(step))
    return str(digest)


def read_cursive(folder: Path) -> str:
    """A run of cursive_circuits."""
    found = open_run(folder)
    weights = found.model.state_dict().values()
    described = [found.name, found.alphabet, found.tokens.model_dump(), repr(found.model.shape)]
    return str(Digest().add(*weights, described))


def read_kept(folder: Path) -> str:
    """What a stage has made before, as it is put back."""
    mark = f"{os.getpid():016d}"
    shutil.rmtree(FINISHED / f"a-{mark}", ignore_errors=True)
    shutil.copytree(folder, FINISHED / f"a-{mark}", symlinks=True)

    with TemporaryDirectory() as name:
        places = [Path(name) / one for one in ("a.json", "a.npz", "tiny")]
        if not put_back(places, stage="torture", name="a", mark=mark):
            raise InputError("what was kept is not whole: it is made anew")

        files = [file for file in sorted(Path(name).rglob("*")) if file.is_file()]
        contents = [file.read_bytes().hex() for file in files]
        return str(Digest().add([str(file.relative_to(name)) for file in files], contents))


def read_scratch(folder: Path) -> str:
    """An unfinished training: what it resumes from, and what it hands on when it ends."""
    held = Scratch(folder)
    if (found := held.load()) is None:
        raise InputError("nothing to resume from: it trains afresh")
    held.check()
    kept = [load_weights(file) for file in sorted(held.checkpoints.iterdir())]
    tensors = [tensor for one in kept for tensor in one.values()]
    return str(
        Digest()
        .add(found.step, found.memory, sorted(found.tensors), *tensors)
        .add(*(found.tensors[name] for name in sorted(found.tensors)))
    )


def read_bank(folder: Path) -> str:
    """A bank of handwriting."""
    items = load_bank(folder / "bank.zip", alphabet=ALPHABET)
    return str(Digest().add(*(item.points for item in items), [item.text for item in items]))


def read_plain_bank(folder: Path) -> str:
    """The same without a zip around it."""
    items = load_bank(folder / "bank.json", alphabet=ALPHABET)
    return str(Digest().add(*(item.points for item in items), [item.text for item in items]))


def read_public(folder: Path) -> str:
    """A public checkpoint, as somebody else saved it."""
    file = folder / folder.name.removeprefix("public-")
    model = load_public(file, _cursive_shape(), tokens=PublicTokens(), alphabet=ALPHABET)
    return str(Digest().add(*model.state_dict().values()))


def read_text(folder: Path) -> str:
    """A text file as a corpus."""
    params = CorpusParams(
        path=PathText(path=folder / "text.txt"), vocabulary=280, validation_every=4
    )
    found = read_documents(params)
    return str(Digest().add(found.train, found.validation))


def _corpus(home: Path) -> Corpus:
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(rng.choice(letters, size=4)) for _ in range(80)]
    text = home / "words.txt"
    text.write_text("\n\n".join(" ".join(rng.choice(words, size=60)) for _ in range(60)))
    folder = home / "data" / "corpus"
    build(CorpusParams(path=PathText(path=text), vocabulary=280, validation_every=4), folder)
    return Corpus.load(folder)


def _text(home: Path) -> Path:
    folder = home / "text"
    folder.mkdir()
    (folder / "text.txt").write_bytes((home / "words.txt").read_bytes())
    return folder


def _results(home: Path) -> Path:
    run = call.start("pythia_topology", Settings(seed=0), out=home / "results")
    rng = np.random.default_rng(0)
    arrays = {"excess": rng.random((2, 4)), "layer": np.arange(2)}
    report = {"name": "a", "best": 0.5, "heads": [[0, 1], [1, 2]], "verdict": "two heads"}
    run.save("profile", "profile_a", report, arrays, made=run.made_from({}), scores="scores_a")
    return run.folder


def _trained(home: Path, corpus: Corpus) -> Path:
    values = read_section("reference_models", ReferenceModels, "smoke").model_dump()
    values["models"] = {"tiny": {"layers": 2, "heads": 2, "width": 16}}
    values["recipe"] |= {"steps": 4, "warmup": 2, "checkpoint_every": 2}
    values["processes"] = 1
    params = check(ReferenceModels, values, where="torture")
    train_all(params, Places(corpus.folder, home / "models", home / "history"))
    return home / "models" / "tiny"


def _eigen_run(home: Path) -> Path:
    section = read_section("eigen_phase", EigenPhase, "smoke")
    changes = {"num_steps": 4, "eval_interval": 2, "eigen_interval": 2, "checkpoint_interval": 2}
    training = section.runs["tiled-s0"].model_copy(update=changes | {"warmup": 1})
    place = home / "runs" / "tiled-s0"
    train_run("tiled-s0", training, place, ceiling_draws=section.ceiling_draws)
    return place


def _cursive_run(home: Path) -> Path:
    params = read_section("cursive_circuits", CursiveCircuits, "smoke")
    model = random_model(params.tokens)
    place = home / "cursive" / "control"
    history = [{"step": 1, "loss": 2.0}]
    save_run(place, Trained("control", model, params.tokens, ALPHABET), history, {"seed": 1})
    return place


def _scratch(home: Path) -> Path:
    held = Scratch(home / ".scratch" / "stage" / "mark")
    model = torch.nn.Linear(8, 8)
    for step in (0, 1, 2):
        held.keep(step, model)
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    held.save(2, tensors, {"history": [{"step": 2, "loss": 0.5}], "losses": [0.25]})
    return held.folder


def _kept(home: Path) -> Path:
    """Two files and a model: `_trained` has been called."""
    places = [home / "a.json", home / "a.npz", home / "models" / "tiny"]
    save_json(places[0], {"best": 0.5})
    save_arrays(places[1], {"excess": np.arange(8.0)})
    keep(places, stage="torture", name="a", mark="0" * 16)
    return (FINISHED / f"a-{'0' * 16}").rename(home / "kept")


def _bank(home: Path, *, vouched: bool) -> Path:
    folder = home / f"bank-{vouched}"
    folder.mkdir()
    if vouched:
        with vouching(folder / "bank.zip"):
            save_bank(folder / "bank.zip", write_bank(_script()))
    else:
        save_bank(folder / "bank.zip", write_bank(_script()))
    return folder


def _plain_bank(home: Path) -> Path:
    folder = home / "plain-bank"
    folder.mkdir()
    (folder / "bank.json").write_text(json.dumps([item.entry for item in write_bank(_script())]))
    return folder


def _script() -> Script:
    params = read_section("cursive_circuits", CursiveCircuits, "smoke")
    few = {"spellings": 6, "hands": 2, "copies": 1, "letters": (2, 3)}
    return params.bank.script.model_copy(update=few | {"alphabet": ALPHABET[1:]})


def _model(home: Path, corpus: Corpus) -> Path:
    model = small.build("gpt_neox", vocab_size=280, num_hidden_layers=2)
    return save_model(home / "a-model", model, corpus_tokenizer(corpus.folder))


def _mamba(home: Path, corpus: Corpus) -> Path:
    return save_model(
        home / "a-mamba", random_mamba(seed=1, vocab=280), corpus_tokenizer(corpus.folder)
    )


def _bin_model(home: Path, corpus: Corpus) -> Path:
    model = small.build("llama", vocab_size=280)
    folder = save_model(home / "a-bin-model", model, corpus_tokenizer(corpus.folder))
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def _gguf(home: Path) -> Path:
    folder = home / "a-gguf"
    folder.mkdir()
    kind = GGMLQuantizationType.Q8_0
    small_gguf.write(folder / "tiny.gguf", small_gguf.model(kind), kind)
    return folder


def _public(home: Path, name: str) -> Path:
    folder = home / f"public-{name}"
    folder.mkdir()
    if name.endswith(".pt"):
        torch.save({"model_state_dict": public_checkpoint()}, folder / name)
    else:
        save_weights(folder / name, public_checkpoint())
    return folder


def _cursive_shape() -> CursiveShape:
    params = read_section("cursive_circuits", CursiveCircuits, "smoke")
    shape = next(iter(params.configurations.values()))
    return shape.model_copy(update={"heads": 2})
