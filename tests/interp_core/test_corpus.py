"""Text to tokens: what is read, that nothing is lost on the way, and that bad input says what to
do.
"""

import importlib.metadata
import inspect
import subprocess
import sys
import time
import unicodedata
import zipfile
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from tokenizers import Tokenizer

from interp_core.errors import InputError
from interp_core.files.artifacts import file_sha256, load_json
from interp_core.files.package_index import NotHadError
from interp_core.files.params import check
from interp_core.stimuli import corpus
from interp_core.stimuli.corpus import (
    Corpus,
    CorpusParams,
    HubText,
    PackagedText,
    PathText,
    build,
    docstrings,
    documents_in,
    encode,
    read_documents,
    train_tokenizer,
)

REVISION = "0123456789abcdef0123456789abcdef01234567"
OTHER_REVISION = "f" * 40


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution `docs-of-nothing` whose modules cannot be imported."""
    package = tmp_path / "site" / "nothing"
    package.mkdir(parents=True)
    (package / "b.py").write_text(
        '"""Second file, first line.\n\n    Indented."""\nclass A:\n    """Of a class."""\n'
        '    async def f(self):\n        """Of a method."""\n'
    )
    (package / "a.py").write_text(
        '"""First file."""\nraise RuntimeError\ndef g():\n    r"""Of a class."""\n'
    )
    information = tmp_path / "site" / "docs_of_nothing-1.5.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: docs-of-nothing\nVersion: 1.5\n"
    )
    (information / "RECORD").write_text("nothing/b.py,,\nnothing/a.py,,\nnothing/data.txt,,\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    return tmp_path


def text_params(
    path: Path, vocabulary: int = 300, every: int = 3, most: int | None = None
) -> CorpusParams:
    return CorpusParams(
        path=PathText(path=path), vocabulary=vocabulary, validation_every=every, max_characters=most
    )


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(
        "\n\n".join(
            f"Document {i}: the cat sat on the mat, né à Zürich {i * i}." for i in range(40)
        )
    )
    return file


def test_docstrings_are_read_in_order_without_importing(installed: Path) -> None:
    assert list(docstrings("docs-of-nothing")) == [
        "First file.",
        "Of a class.",
        "Second file, first line.\n\nIndented.",
        "Of a class.",
        "Of a method.",
    ]


def test_identical_docstrings_count_once_and_short_ones_not_at_all(installed: Path) -> None:
    packaged = PackagedText(distributions=("docs-of-nothing",), min_characters=12)
    documents = read_documents(CorpusParams(packaged=packaged, vocabulary=300, validation_every=2))
    assert documents.train == ["Second file, first line.\n\nIndented."]
    assert documents.validation == ["Of a method."]
    assert documents.source == {"kind": "packaged", "versions": {"docs-of-nothing": "1.5"}}


def test_docstrings_are_those_that_python_itself_attaches() -> None:
    import click.utils

    of_functions = {
        value.__doc__
        for value in vars(click.utils).values()
        if isinstance(value, type | FunctionType) and value.__module__ == "click.utils"
    }
    read = set(docstrings("click"))
    assert {inspect.cleandoc(text) for text in of_functions if text} <= read


def test_same_text_same_bytes_whatever_the_hash_seed(text_file: Path, tmp_path: Path) -> None:
    build(text_params(text_file), tmp_path / "here")
    program = (
        "from pathlib import Path; from interp_core.stimuli.corpus import *;"
        f"build(CorpusParams(path=PathText(path=Path({str(text_file)!r})), vocabulary=300, "
        "validation_every=3),"
        f"Path({str(tmp_path / 'there')!r}))"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        env={"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"},
    )
    for name in ("tokenizer.json", "tokens.npz", "corpus.json"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


@pytest.mark.parametrize("name", ["tokens.npz", "corpus.json", "tokenizer.json"])
def test_a_file_of_a_users_in_a_corpuss_place_stays(
    name: str, text_file: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / name).write_text("[1, 2]")
    with pytest.raises(InputError, match=rf"has a {name} that is no corpus's, so it stays"):
        build(text_params(text_file), mine)
    assert {file.name: file.read_text() for file in mine.iterdir()} == {name: "[1, 2]"}


def test_a_corpus_is_replaced_and_one_that_was_stopped_is_begun_again(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "corpus"
    build(text_params(text_file), folder)
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert {*whole} == {"tokenizer.json", "tokens.npz", "corpus.json"}

    (folder / "tokens.npz").write_bytes(b"damaged since: it is listed")
    build(text_params(text_file), folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("interp_core.stimuli.corpus.save_json", killed)
        with pytest.raises(KeyboardInterrupt):
            build(text_params(text_file), tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "corpus.json").exists()
    build(text_params(text_file), tmp_path / "stopped")
    assert {file.name: file.read_bytes() for file in (tmp_path / "stopped").iterdir()} == whole


def test_the_streams_hold_every_document_and_nothing_else(text_file: Path, tmp_path: Path) -> None:
    params = text_params(text_file)
    documents = read_documents(params)
    build(params, tmp_path / "corpus")
    corpus = Corpus.load(tmp_path / "corpus")
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_file))
    assert tokenizer.token_to_id("<|endoftext|>") == 0
    for stream, texts in (
        (corpus.train, documents.train),
        (corpus.validation, documents.validation),
    ):
        starts = np.flatnonzero(stream == 0)
        assert starts[0] == 0
        pieces = np.split(stream, starts[1:])
        assert [tokenizer.decode(piece[1:].tolist()) for piece in pieces] == texts
    np.testing.assert_array_equal(
        corpus.counts, np.bincount(corpus.train, minlength=tokenizer.get_vocab_size())
    )
    assert corpus.train.dtype == np.uint16


def _words(n: int, seed: int) -> str:
    """Text as a language has it, some words often, on lines."""
    rng = np.random.default_rng(seed)
    kinds = np.array(["".join(map(chr, rng.integers(97, 123, size=k % 7 + 2))) for k in range(999)])
    drawn = kinds[rng.zipf(1.3, size=n) % len(kinds)]
    ends = rng.choice([" ", "\n", "  \n", ", ", "\n\t", "' ", " '\n", "\n<|endoftext|>"], size=n)
    return "".join(word + end for word, end in zip(drawn, ends, strict=True))


def test_slices_and_pieces_change_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["", _words(3_000, 1), "one", "", _words(40, 2), "no end of a line " * 400, "né\n" * 99]
    whole = train_tokenizer(texts, 400)
    expected = [id for text in texts for id in [0, *whole.encode(text).ids]]

    monkeypatch.setattr(corpus, "LONGEST_PIECE", 50)
    monkeypatch.setattr(corpus, "ENCODED_AT_ONCE", 300)
    cut = train_tokenizer(texts, 400)
    stream = encode(cut, texts)

    assert len(list(corpus._pieces(texts[1]))) > 50
    assert cut.to_str() == whole.to_str()
    assert stream.tolist() == expected
    np.testing.assert_array_equal(corpus.count(stream, 400), np.bincount(expected, minlength=400))


def test_no_token_goes_across_a_place_where_documents_are_cut() -> None:
    words = train_tokenizer(["any"], 300).pre_tokenizer
    assert words is not None

    # Every kind of character on both sides, and the white space of both libraries.
    kinds: dict[str, str] = {}
    for code in range(sys.maxunicode):
        if not 0xD800 <= code < 0xE000:
            kinds.setdefault(unicodedata.category(chr(code)), chr(code))
    spaces = [chr(code) for code in range(0x3001) if chr(code).isspace() or code == 0x180E]

    for one in [*kinds.values(), *spaces, "\ufeff", "'", "s"]:
        for text in (f"a{one}\nb", f"a\n{one}b", f"{one}\n{one}"):
            for found in corpus._LINE_END.finditer(text):
                halves = (text[: found.end()], text[found.end() :])
                cut = [word for half in halves for word, _ in words.pre_tokenize_str(half)]
                assert cut == [word for word, _ in words.pre_tokenize_str(text)], repr(text)


def test_a_file_that_is_read_in_parts_has_the_documents_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n\none\n\n\ntwo\r\n\r\nthree né\n\n\n\n\nfour\n"
    file = tmp_path / "text.txt"
    file.write_bytes(text.encode())
    expected = file.read_text(encoding="utf-8").split("\n\n")

    for at_once in range(1, len(text)):
        monkeypatch.setattr(corpus, "READ_AT_ONCE", at_once)
        assert list(corpus._documents(file)) == expected

    file.write_text(WIKITEXT)
    for at_once in range(1, len(WIKITEXT)):
        monkeypatch.setattr(corpus, "READ_AT_ONCE", at_once)
        assert [one for one in corpus._documents(file) if one.strip()] == documents_in(WIKITEXT)

    file.write_bytes(b"good, " * 2000 + b"\xff")
    with pytest.raises(InputError, match=r"is not UTF-8 text \(byte 12000\)"):
        list(corpus._documents(file))


@pytest.mark.slow
@pytest.mark.parametrize("one_document", [False, True])
def test_a_text_of_24_megabytes_takes_a_stated_memory(one_document: bool, tmp_path: Path) -> None:
    part = _words(300_000, 3)
    part = part.replace("\n\n", "\n") if one_document else part.replace("  \n", "\n\n")
    text = part * (24_000_000 // len(part))
    held_out = "of the validation"
    (tmp_path / "text").mkdir()
    for name, content in (("a.txt", text), ("b.txt", held_out)):
        (tmp_path / "text" / name).write_text(content)
    path = tmp_path / "text" if one_document else tmp_path / "text" / "a.txt"

    # The system's own peak: that of `resource` begins with the memory of whoever started it.
    program = (
        "from pathlib import Path; from interp_core.stimuli.corpus import *;"
        f"build(CorpusParams(path=PathText(path=Path({str(path)!r})), vocabulary=4096, "
        f"validation_every=2), Path({str(tmp_path / 'out')!r}));"
        "lines = Path('/proc/self/status').read_text().splitlines();"
        "print(next(int(line.split()[1]) // 1024 for line in lines if 'VmHWM' in line))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr[-300:]
    # README: 150 MB, and five bytes for each of the text.
    assert int(done.stdout) < 150 + 5 * 24


WIKITEXT = (
    " \n = Robert Boulter = \n \n Robert Boulter is an actor . \n He had a role . \n \n"
    " = = Career = = \n \n In 2000 he was cast ; x = y = z . \n \n"
    " = Du Fu = \n \n Du Fu was a poet . \n \n"
)


@pytest.mark.parametrize("above", ["", " \n", "A word before .\n\n"])
def test_an_article_of_wikitext_is_one_document(above: str) -> None:
    first, second = documents_in(above + WIKITEXT.removeprefix(" \n"))[-2:]

    assert first.split("\n")[0] == " = Robert Boulter = "
    assert " = = Career = = \n \n In 2000 he was cast" in first
    assert second.strip() == "= Du Fu = \n \n Du Fu was a poet ."
    assert len(documents_in(above + WIKITEXT)) == (3 if above.strip() else 2)


def test_one_article_of_wikitext_is_no_list_of_paragraphs() -> None:
    assert len(documents_in(" = Du Fu = \n \n A poet . \n \n = = Life = = \n \n Long . \n")) == 1


@pytest.mark.parametrize("between", ["\n\n", "\n \n", "\n\t\n", "\n\n \n\n"])
def test_a_line_of_blanks_is_a_blank_line(between: str) -> None:
    texts = ["One = two = three.\n Still one.", "Two.", "= = Three = ="]
    assert [one.strip() for one in documents_in(between.join(texts))] == texts


def test_a_text_of_too_few_documents_is_told_in_prose(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("One document alone.")
    with pytest.raises(InputError) as problem:
        read_documents(text_params(tmp_path / "one.txt"))

    told = str(problem.value)
    assert "one.txt has too few documents (1 for training, 0 for validation)" in told
    assert "{" not in told


def test_every_third_document_is_held_out_and_none_is_in_both(text_file: Path) -> None:
    documents = read_documents(text_params(text_file))
    assert len(documents.train) == 27
    assert [text.split(":")[0] for text in documents.validation[:2]] == ["Document 2", "Document 5"]
    assert not set(documents.train) & set(documents.validation)


def test_max_characters_keeps_whole_documents_from_the_start(text_file: Path) -> None:
    full, cut = (
        read_documents(text_params(text_file)),
        read_documents(text_params(text_file, most=300)),
    )
    assert cut.train == full.train[: len(cut.train)]
    assert 200 < sum(map(len, cut.train)) <= 300


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    for name, text in (("b.txt", "one\n\ntwo"), ("a.md", "three"), ("c.csv", "no")):
        (tmp_path / name).write_text(text)
    documents = read_documents(text_params(tmp_path, every=2))
    assert (documents.train, documents.validation) == (["three"], ["one\n\ntwo"])


def test_corpus_json_names_sources_and_hashes(text_file: Path, tmp_path: Path) -> None:
    build(text_params(text_file), tmp_path / "corpus")
    summary = load_json(tmp_path / "corpus" / "corpus.json")
    assert summary["source"]["sha256"] == {"text.txt": file_sha256(text_file)}
    assert summary["sha256"]["tokens.npz"] == file_sha256(tmp_path / "corpus" / "tokens.npz")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (
            {"packaged": {"distributions": ["no-such-thing"], "min_characters": 1}},
            ["no-such-thing", "not installed"],
        ),
        ({"path": {"path": "/no/such/folder"}}, ["/no/such/folder", "does not exist"]),
        ({}, ["exactly one of", "none"]),
        (
            {"path": {"path": "x"}, "packaged": {"distributions": ["click"], "min_characters": 1}},
            ["exactly one of"],
        ),
        (
            {"packaged": {"distributions": ["click"], "min_characters": 1, "min_charcters": 2}},
            ["did you mean `min_characters`"],
        ),
        (
            {"hub": {"dataset": "a/b", "revision": "main", "train": "x", "validation": "y"}},
            ["hub.revision", "main"],
        ),
        ({"path": {"path": "x"}, "vocabulary": 100}, ["vocabulary", "257"]),
    ],
)
def test_bad_sections_are_named_in_one_line(params: dict, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read_documents(
            check(
                CorpusParams,
                {"vocabulary": 300, "validation_every": 2} | params,
                where="p.yaml: corpus",
            )
        )
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"good \xff")
    with pytest.raises(InputError, match=r"bad\.txt is not UTF-8 text \(byte 5\)"):
        read_documents(text_params(tmp_path / "bad.txt"))


def hub_params(**changes: str) -> CorpusParams:
    values = {
        "dataset": "someone/texts",
        "revision": REVISION,
        "train": "d/train.parquet",
        "validation": "d/val.parquet",
    }
    return CorpusParams(
        hub=HubText.model_validate(values | changes), vocabulary=300, validation_every=2
    )


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with one commit of someone/texts; the hub itself is at an address that refuses
    connections.
    """
    import huggingface_hub.constants as constants

    snapshot = tmp_path / "hub" / "datasets--someone--texts" / "snapshots" / REVISION / "d"
    snapshot.mkdir(parents=True)
    Dataset.from_dict({"text": ["", "a first text", "a second text"]}).to_parquet(
        snapshot / "train.parquet"
    )
    Dataset.from_dict({"text": ["held out"]}).to_parquet(snapshot / "val.parquet")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return snapshot


def test_a_pinned_dataset_is_read_from_the_cache_with_no_hub(hub_cache: Path) -> None:
    sha256 = file_sha256(hub_cache / "train.parquet")
    documents = read_documents(hub_params(train_sha256=sha256))
    assert (documents.train, documents.validation) == (
        ["a first text", "a second text"],
        ["held out"],
    )
    assert documents.source["sha256"]["d/train.parquet"] == sha256


def test_another_revision_in_the_cache_is_no_answer(hub_cache: Path) -> None:
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        read_documents(hub_params(revision=OTHER_REVISION))
    assert time.monotonic() - started < 5
    assert all(
        word in str(caught.value) for word in ("someone/texts", OTHER_REVISION, "HF_HOME", "path")
    )


def test_a_file_with_another_hash_is_refused(hub_cache: Path) -> None:
    with pytest.raises(InputError, match="sha256 is"):
        read_documents(hub_params(validation_sha256="0" * 64))


def test_files_of_another_python_are_read_out_of_its_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumPy has `distutils` for Python 3.11 alone: what is installed would give another corpus."""
    asked = []

    def downloaded(name: str, version: str, folder: Path, *, way_out: str, python: str) -> Path:
        asked.append((name, version, python))
        wheel = folder / "click.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("click/b.py", 'def f():\n    """Of b."""\n')
            archive.writestr("click/a.py", '"""Of a,\n\n    and more."""\n')
            archive.writestr("click/data.txt", "no code")
        return wheel

    monkeypatch.setattr(corpus, "download", downloaded)
    assert list(docstrings("click", "3.99")) == ["Of a,\n\nand more.", "Of b."]
    assert asked == [("click", importlib.metadata.version("click"), "3.99")]

    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert list(docstrings("click", here)) == list(docstrings("click"))
    assert len(asked) == 1


def test_where_no_wheel_can_be_had_a_corpus_on_the_spot_is_of_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any, way_out: str, **__: Any) -> Path:
        raise NotHadError(f"click cannot be had: go online once, or {way_out}")

    monkeypatch.setattr(corpus, "download", refused)
    text = PackagedText(distributions=("click",), min_characters=80, python="3.99")
    params = CorpusParams(packaged=text, vocabulary=400, validation_every=4)

    with pytest.raises(InputError, match=r"go online once, or set corpus\.packaged\.python"):
        build(params, tmp_path / "stage")
    assert not (tmp_path / "stage").exists()

    corpus._build_somehow(params, tmp_path / "spot")
    assert "the installed files are read now" in capsys.readouterr().err
    assert (tmp_path / "spot" / "tokens.npz").is_file()


def broken_wheel(_: str, __: str, folder: Path, **___: Any) -> Path:
    (folder / "click.whl").write_text("a page that asks who you are")
    return folder / "click.whl"


@pytest.mark.parametrize(
    ("distribution", "own_file", "told"),
    [
        ("click", False, "is no wheel"),
        ("no-such-package", False, "is not installed"),
        ("click", True, "that is no corpus's, so it stays"),
    ],
)
def test_no_other_refusal_makes_another_corpus(
    distribution: str,
    own_file: bool,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(corpus, "download", broken_wheel)
    text = PackagedText(distributions=(distribution,), min_characters=80, python="3.99")
    params = CorpusParams(packaged=text, vocabulary=400, validation_every=4)
    if own_file:
        (tmp_path / "tokenizer.json").write_text("mine")

    with pytest.raises(InputError, match=told):
        corpus._build_somehow(params, tmp_path)
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "tokens.npz").exists()
