"""A project's folder as a user has it, small: a profile, a corpus, models that fit it.

Commands are run inside it.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from click.testing import CliRunner
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import known_circuits as known
import small_models as small
from interp_core.files.artifacts import save_arrays
from interp_core.files.folders import replacing_folder
from interp_core.stimuli.corpus import CorpusParams, PackagedText, build
from pythia_topology.cli import main
from pythia_topology.params import PythiaTopology

END = "<|endoftext|>"

# Of the smoke profile, smaller still. Names need 40 tokens with so small a vocabulary.
SETTINGS: dict[str, Any] = {
    "models": ["toy", "taller"],
    "n_sequences": 12,
    "period": 10,
    "bootstrap_resamples": 100,
    "permutation_draws": 1000,
    "causal_draws": 6,
    "causal_sequences": 6,
    "composition_draws": 10,
}


def section(**changes: Any) -> dict[str, Any]:
    """The settings of the study in the test project's profile."""
    smoke = yaml.safe_load((Path(__file__).parents[1] / "profiles" / "smoke.yaml").read_text())
    return smoke["pythia_topology"] | SETTINGS | changes


def write_profile(folder: Path, known_models: dict[str, Any], **changes: Any) -> None:
    """params.yaml and profiles/tests.yaml, the project's only profile."""
    content = {"models": known_models, "pythia_topology": section(**changes)}
    (folder / "profiles").mkdir(parents=True, exist_ok=True)
    (folder / "profiles" / "tests.yaml").write_text(yaml.safe_dump(content))
    (folder / "params.yaml").write_text("profile: tests\n")


def build_corpus(folder: Path) -> None:
    """Docstrings of a small package, 512 byte-level tokens."""
    text = PackagedText(distributions=("click",), min_characters=80)
    build(CorpusParams(packaged=text, vocabulary=512, validation_every=4), folder)


def save_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A Hugging Face directory."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def corpus_tokenizer(corpus: Path) -> PreTrainedTokenizerFast:
    """The corpus's tokenizer as models carry it."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(corpus / "tokenizer.json"), bos_token=END, eos_token=END, pad_token=END
    )


def random_model(*, layers: int, seed: int, vocab: int = 512, **changes: Any) -> PreTrainedModel:
    """A GPT-NeoX with random weights and four heads a layer."""
    return small.build("gpt_neox", seed=seed, vocab_size=vocab, num_hidden_layers=layers, **changes)


def build_project(folder: Path) -> Path:
    """Two random models, toy and taller, that share the tokenizer of the corpus."""
    build_corpus(folder / "data" / "corpus")
    tokenizer = corpus_tokenizer(folder / "data" / "corpus")
    for name, layers in (("toy", 2), ("taller", 3)):
        save_model(folder / "models" / name, random_model(layers=layers, seed=layers), tokenizer)
        # byte for byte the corpus's, as in models trained here: that is how they are known to share
        # it
        (folder / "models" / name / "tokenizer.json").write_bytes(
            (folder / "data" / "corpus" / "tokenizer.json").read_bytes()
        )
    models = {name: {"source": "local", "path": f"models/{name}"} for name in ("toy", "taller")}
    write_profile(folder, models)
    return folder


def word_tokenizer(size: int = known.SIZE) -> PreTrainedTokenizerFast:
    """One id a word, `w0` the special one."""
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="w0", eos_token="w0", pad_token="w0"
    )


def build_planted_project(folder: Path) -> Path:
    """The hand-built circuits, induction and duplicate, with one word for each id and a corpus of
    random words.
    """
    corpus = folder / "data" / "corpus"
    tokenizer = word_tokenizer()
    for name, model in (
        ("induction", known.induction_model()),
        ("duplicate", known.duplicate_token_model()),
    ):
        silence_at_bos(model)
        save_model(folder / "models" / name, model, tokenizer)
    corpus.mkdir(parents=True)
    (corpus / "tokenizer.json").write_bytes(
        (folder / "models" / "induction" / "tokenizer.json").read_bytes()
    )
    stream = np.random.default_rng(0).integers(1, known.SIZE, 40000).astype(np.uint16)
    counts = np.bincount(stream, minlength=known.SIZE).astype(np.int64)
    save_arrays(corpus / "tokens.npz", {"train": stream, "validation": stream, "counts": counts})
    models = {
        name: {"source": "local", "path": f"models/{name}"} for name in ("induction", "duplicate")
    }
    families = ["spaced_pairs", "natural_repeats"]
    write_profile(
        folder, models, models=list(models), task_types=families, period=16, causal_draws=200
    )
    return folder


def silence_at_bos(model: Any) -> None:
    """The second layer's planted head writes nothing where it attends to BOS, instead of predicting
    BOS.
    """
    layer, head = known.INDUCTION_HEAD
    value = 2 * known.D_MODEL + head * known.SIZE
    model.transformer.h[layer].attn.c_attn.weight[
        known.TOKEN.start + known.VOCABULARY.bos, value : value + known.SIZE
    ] = 0


def study(**changes: Any) -> PythiaTopology:
    """Settings of the study for calls without a command."""
    return PythiaTopology(**section(**changes))


def seed_hub(cache: Path, repo: str, revision: str, files: Path) -> None:
    """Put a directory's files into a hub cache, as the hub's own client lays it out, under a commit
    and, where `revision` is no commit, under the branch of that name.
    """
    commit = (
        revision
        if re.fullmatch("[0-9a-f]{40}", revision)
        else hashlib.sha1(revision.encode()).hexdigest()
    )
    root = cache / f"models--{repo.replace('/', '--')}"
    for folder in (root / "blobs", root / "refs", root / "snapshots" / commit):
        folder.mkdir(parents=True, exist_ok=True)
    if commit != revision:
        (root / "refs" / revision).write_text(commit)
    for file in files.iterdir():
        content = file.read_bytes()
        name = (hashlib.sha256 if file.suffix == ".safetensors" else hashlib.sha1)(
            content
        ).hexdigest()
        (root / "blobs" / name).write_bytes(content)
        (root / "snapshots" / commit / file.name).symlink_to(Path("../../blobs") / name)


@dataclass(frozen=True)
class Said:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str


def induct(*arguments: object) -> Said:
    """`induct` with these arguments, in this process and the working directory."""
    result = CliRunner().invoke(
        main, [str(argument) for argument in arguments], catch_exceptions=False
    )
    return Said(result.exit_code, result.stdout, result.stderr)


_PRETRAINED_SIZES = {
    "n_sequences": 16,
    "causal_draws": 20,
    "dose_k": [1],
    "dose_draws": 2,
    "path_pairs": 1,
}


def build_pretrained_project(folder: Path) -> Path:
    """A project whose pretrained model is the hand-built circuit."""
    build_planted_project(folder)
    place = folder / "data" / "pretrained" / "planted"
    place.parent.mkdir()
    with replacing_folder(place, kind="pretrained model", name="planted") as made:
        for file in (folder / "models" / "induction").iterdir():
            (made / file.name).write_bytes(file.read_bytes())

    choose_pretrained(folder)
    return folder


def choose_pretrained(folder: Path, *, included: bool = True, **settings: Any) -> None:
    """Put both sections into the project's profile."""
    path = folder / "profiles" / "tests.yaml"
    wheel = {"distribution": "none", "version": "1", "sha256": "0" * 64, "gguf": "a", "licence": ""}
    own = {"single_sequences": 3, "settings": _PRETRAINED_SIZES | settings}
    content = yaml.safe_load(path.read_text()) | {
        "pretrained": {"included": included, "models": {"planted": wheel}},
        "pythia_pretrained": {"models": {"planted": own}},
    }
    path.write_text(yaml.safe_dump(content))
