"""Text to token streams.

Sources: documentation of installed packages, a text file or folder, a pinned hub dataset.
"""

import ast
import importlib.metadata
import inspect
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from jaxtyping import Int, UInt
from pydantic import Field, PositiveInt, model_validator

from interp_core.errors import InputError
from interp_core.files.artifacts import (
    file_sha256,
    load_arrays,
    load_json,
    replacing,
    save_arrays,
    save_json,
)
from interp_core.files.hub_files import fetch_pinned
from interp_core.files.locks import held_folders
from interp_core.files.params import (
    Params,
    profile_path,
    project_root,
    read_section,
    read_yaml,
)
from interp_core.files.unfinished import SCRATCH, scratch_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A line of blanks alone, which some editors leave and WikiText's files have, is a blank line too.
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
# Before WikiText's ` = Title = `, alone between blank lines; its sections are ` = = Section = = `.
_BEFORE_TITLE = re.compile(r"\n[^\S\n]*\n(?= ?= [^=\n][^\n]* = ?(?:\Z|\n[^\S\n]*(?:\Z|\n)))")

END_OF_TEXT = "<|endoftext|>"  # id 0: begins every document, and serves as BOS, EOS and padding


class PackagedText(Params):
    """Docstrings of installed distributions, read with `ast`; nothing is imported."""

    distributions: tuple[str, ...] = Field(
        min_length=1
    )  # names as in constraints.txt, which pins them
    min_characters: PositiveInt  # shorter docstrings are left out


class PathText(Params):
    """A UTF-8 text file of several documents (see documents_in) or a folder of .txt and .md files
    (one each).
    """

    path: Path  # relative paths start at the project's folder


class HubText(Params):
    """Parquet files with a column `text`, one document a row, of one commit of a dataset on the
    hub.
    """

    dataset: str
    revision: str = Field(pattern="^[0-9a-f]{40}$")  # a full commit: branches move
    train: str  # path of the file inside the repository
    validation: str
    train_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    validation_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


class TextParams(Params):
    """Where text comes from. Exactly one source."""

    packaged: PackagedText | None = None
    path: PathText | None = None
    hub: HubText | None = None
    validation_every: int = Field(
        ge=2
    )  # every n-th document is held out (hub data brings its own validation file)
    max_characters: PositiveInt | None = None  # use documents until this many characters; null: all

    @model_validator(mode="after")
    def _one_source(self) -> "TextParams":
        given = [name for name in ("packaged", "path", "hub") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"needs exactly one of packaged, path, hub; has {', '.join(given) or 'none'}"
            )
        return self


class CorpusParams(TextParams):
    """Section `corpus` of a profile."""

    vocabulary: int = Field(
        ge=257, le=65536
    )  # entries of the byte-level BPE, `<|endoftext|>` included


@dataclass(frozen=True)
class Documents:
    """Texts of both splits, and where they came from (goes into corpus.json)."""

    train: list[str]
    validation: list[str]
    source: dict[str, Any]


@dataclass(frozen=True)
class Corpus:
    """What `build` writes: token streams in which every document begins with id 0, and counts in
    `train`.
    """

    train: UInt[np.ndarray, " train_position"]
    validation: UInt[np.ndarray, " validation_position"]
    counts: Int[np.ndarray, " vocab"]
    folder: Path

    @property
    def tokenizer_file(self) -> Path:
        """tokenizer.json beside the streams."""
        return self.folder / "tokenizer.json"

    @staticmethod
    def load(folder: Path) -> "Corpus":
        """Read a built corpus. InputError when it is missing, or other than it was built."""
        _check_sums(folder)
        arrays = load_arrays(folder / "tokens.npz")
        if absent := [name for name in ("train", "validation", "counts") if name not in arrays]:
            raise InputError(f"{folder / 'tokens.npz'} has no array `{absent[0]}`: no corpus")
        return Corpus(arrays["train"], arrays["validation"], arrays["counts"], folder)


def build(params: CorpusParams, folder: Path) -> dict[str, Any]:
    """Write tokenizer.json, tokens.npz and corpus.json; returns the last.

    Same params and text, same bytes.

    InputError, before anything is read, when the folder has another's tokenizer.json, as every
    model's folder has.
    """
    if (folder / "tokenizer.json").exists() and not (folder / "tokens.npz").exists():
        raise InputError(
            f"{folder} has a tokenizer.json that is no corpus's, so it stays: name another --out"
        )

    documents = read_documents(params)
    tokenizer = train_tokenizer(documents.train, params.vocabulary)
    train, validation = (
        encode(tokenizer, texts) for texts in (documents.train, documents.validation)
    )
    counts = np.bincount(train, minlength=tokenizer.get_vocab_size()).astype(np.int64)
    # The streams first: by them an unfinished corpus is told from a model's folder.
    save_arrays(folder / "tokens.npz", {"train": train, "validation": validation, "counts": counts})

    with replacing(folder / "tokenizer.json") as part:
        tokenizer.save(str(part))

    summary = {
        "source": documents.source,
        "documents": {"train": len(documents.train), "validation": len(documents.validation)},
        "characters": {
            "train": _characters(documents.train),
            "validation": _characters(documents.validation),
        },
        "tokens": {"train": train.size, "validation": validation.size},
        "vocabulary": tokenizer.get_vocab_size(),
        "sha256": {name: file_sha256(folder / name) for name in ("tokenizer.json", "tokens.npz")},
    }
    save_json(folder / "corpus.json", summary)

    return summary


def _check_sums(folder: Path) -> None:
    """InputError where corpus.json, in a folder that has one, knows other bytes."""
    if not (folder / "corpus.json").is_file():
        return
    sums = load_json(folder / "corpus.json").get("sha256", {})
    if not isinstance(sums, dict):
        raise InputError(f"{folder / 'corpus.json'} is damaged: run `induction-lab corpus` again")
    for name, expected in sums.items():
        if file_sha256(folder / name) != expected:
            told = f"{folder / name} is damaged: its SHA-256 differs from corpus.json's"
            raise InputError(f"{told}; run `induction-lab corpus` again")


def corpus_folder() -> Path | None:
    """The pipeline's corpus; in a project that has not made one, the same made on the spot.

    A fresh clone and an empty folder have none: their text then comes from `.scratch/corpus`,
    built once from the profile's section (some seconds), said in one line; from that of the folder
    that is written into where the project cannot be written. None for a profile without that
    section.
    """
    pipelines = project_root() / "data" / "corpus"

    if (pipelines / "tokens.npz").is_file():
        return pipelines

    if "corpus" not in read_yaml(profile_path()):
        return None

    # What this command writes into is a user's where the project cannot be written.
    beside = next(iter(held_folders()), Path.cwd())
    homes = [home / SCRATCH / "corpus" for home in (project_root(), beside)]
    made = next((home for home in homes if (home / "corpus.json").is_file()), None)

    if made is None:
        made = scratch_folder("corpus", beside=beside)
        click.echo("no corpus here yet: making one of installed packages' documentation", err=True)
        build(read_section("corpus", CorpusParams), made)

    return made


def read_documents(params: TextParams) -> Documents:
    """Texts of the source that the params name, cut to max_characters.

    InputError when they cannot be had.
    """
    if params.hub is not None:
        documents = _hub_documents(params.hub)
    else:
        texts, source = (
            _packaged_texts(params.packaged) if params.packaged else _path_texts(params.path)
        )
        held_out = texts[params.validation_every - 1 :: params.validation_every]
        kept = [text for i, text in enumerate(texts) if (i + 1) % params.validation_every]
        documents = Documents(kept, held_out, source)

    if params.max_characters is not None:
        share = params.max_characters // params.validation_every
        train, validation = (
            _first(documents.train, params.max_characters),
            _first(documents.validation, share),
        )
        documents = Documents(train, validation, documents.source)

    if not documents.train or not documents.validation:
        counts = f"{len(documents.train)} for training, {len(documents.validation)} for validation"
        raise InputError(
            f"corpus: {_named(params)} has too few documents ({counts}): give more, with blank "
            "lines between them"
        )

    return documents


def train_tokenizer(texts: list[str], vocabulary: int) -> "Tokenizer":
    """Byte-level BPE of at most `vocabulary` entries (fewer if the text is small); any text can be
    encoded.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)

    return tokenizer


def encode(tokenizer: "Tokenizer", texts: list[str]) -> UInt[np.ndarray, " position"]:
    """One stream: id 0, then the document's ids, for each document."""
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32
    parts = [
        np.array([0, *encoding.ids], dtype=dtype) for encoding in tokenizer.encode_batch(texts)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)


def docstrings(distribution: str) -> Iterator[str]:
    """Docstrings of modules, classes and functions of an installed distribution: files by name,
    then as they stand.
    """
    for path in _python_files(distribution):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))

        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node, clean=False)
                if text is not None:
                    yield inspect.cleandoc(text)


def _python_files(distribution: str) -> list[Path]:
    try:
        found = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"corpus: package {distribution} is not installed; name an installed one"
        ) from None

    names = sorted(str(file) for file in found.files or [] if file.suffix == ".py")

    if not names:
        raise InputError(
            f"corpus: package {distribution} lists no Python files; reinstall it with pip"
        )

    paths = [Path(str(found.locate_file(name))) for name in names]

    if missing := [path for path in paths if not path.is_file()]:
        raise InputError(
            f"corpus: package {distribution} is damaged, {missing[0]} is missing; reinstall it "
            "with pip"
        )

    return paths


def _packaged_texts(packaged: PackagedText) -> tuple[list[str], dict[str, Any]]:
    """Docstrings without duplicates, in order of first appearance."""
    every = (text for name in packaged.distributions for text in docstrings(name))
    texts = list(dict.fromkeys(text for text in every if len(text) >= packaged.min_characters))
    versions = {name: importlib.metadata.version(name) for name in packaged.distributions}
    return texts, {"kind": "packaged", "versions": versions}


def place_of_text(path: Path) -> Path:
    """A text file or a folder of them; relative paths start at the project's folder. InputError for
    one that is not there.
    """
    place = path if path.is_absolute() else project_root() / path

    if not place.exists():
        raise InputError(
            f"corpus: {place} does not exist; give a text file or a folder of .txt or .md files"
        )
    return place


def _path_texts(source: PathText | None) -> tuple[list[str], dict[str, Any]]:
    assert source is not None
    path = place_of_text(source.path)

    files = (
        [path]
        if path.is_file()
        else sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".md"))
    )

    if not files:
        raise InputError(f"corpus: {path} holds no .txt or .md file")

    texts = [_utf8(file) for file in files]

    if path.is_file():
        texts = documents_in(texts[0])

    hashes = {
        file.name if path.is_file() else str(file.relative_to(path)): file_sha256(file)
        for file in files
    }

    return [text for text in texts if text.strip()], {"kind": "path", "sha256": hashes}


def documents_in(text: str) -> list[str]:
    """The documents of one text file: articles where it has WikiText's titles, else what stands
    between blank lines.
    """
    # The first title may be the first line.
    before, *articles = _BEFORE_TITLE.split(f"\n\n{text}")

    pieces = [before, *articles] if articles else _BLANK_LINE.split(text)
    return [piece for piece in pieces if piece.strip()]


def _named(params: TextParams) -> str:
    """Where text comes from, as a user says it."""
    if params.path is not None:
        return str(params.path.path)
    if params.hub is not None:
        return params.hub.dataset
    assert params.packaged is not None
    return f"the documentation of {', '.join(params.packaged.distributions)}"


def _utf8(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise InputError(
            f"corpus: {file} is not UTF-8 text (byte {problem.start}); convert it first"
        ) from None


def _hub_documents(hub: HubText) -> Documents:
    from datasets import Dataset

    texts, hashes = {}, {}

    for split, sha256 in (("train", hub.train_sha256), ("validation", hub.validation_sha256)):
        file = fetch_pinned(hub.dataset, getattr(hub, split), revision=hub.revision, sha256=sha256)
        table = Dataset.from_parquet(str(file), keep_in_memory=True)
        if "text" not in table.column_names:  # pyright: ignore[reportAttributeAccessIssue]
            raise InputError(f"corpus: {hub.dataset}/{getattr(hub, split)} has no column `text`")
        texts[split] = [text for text in table["text"] if text.strip()]  # pyright: ignore[reportIndexIssue]
        hashes[getattr(hub, split)] = file_sha256(file)

    source = {"kind": "hub", "dataset": hub.dataset, "revision": hub.revision, "sha256": hashes}

    return Documents(texts["train"], texts["validation"], source)


def _first(texts: list[str], characters: int) -> list[str]:
    """Whole documents from the start, at least one, that together have at most `characters`."""
    ends = np.cumsum([len(text) for text in texts])
    return texts[: max(1, int(np.searchsorted(ends, characters, side="right")))]


def _characters(texts: list[str]) -> int:
    return sum(len(text) for text in texts)
