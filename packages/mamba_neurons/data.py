"""What the models read: texts of people, then rows of repeated random tokens, as one padded array
with its masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from interp_core.errors import InputError
from interp_core.files.artifacts import array_sha256
from interp_core.models.subject import Subject
from interp_core.stimuli.corpus import Corpus, corpus_folder, documents_in
from interp_core.stimuli.prompts import Vocabulary, repeated_tokens, special_ids
from mamba_neurons.params import MambaNeurons
from mamba_neurons.streams import STREAMS


@dataclass(frozen=True)
class Texts:
    """Right-padded token ids.

    `counted` are the positions whose prediction of the next token is scored: all of a text but its
    last, and of repeated tokens the copy operations alone, because nothing else there can be
    predicted.
    """

    tokens: Int[np.ndarray, "text position"]
    lengths: Int[np.ndarray, " text"]
    counted: Bool[np.ndarray, "text position"]
    repeated: Bool[np.ndarray, " text"]  # rows of repeated random tokens; they come last
    truncated: int  # texts that were longer and were cut

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def real(self) -> Bool[np.ndarray, "text position"]:
        """Positions that hold a token and no padding."""
        return np.arange(self.tokens.shape[1]) < self.lengths[:, None]

    @property
    def after_bos(self) -> Bool[np.ndarray, "text position"]:
        """Positions that hold a token other than the BOS that every text begins with."""
        return self.real & (np.arange(self.tokens.shape[1]) > 0)

    @property
    def sha256(self) -> str:
        """Hex hash of what is read and what is scored."""
        return array_sha256(self.tokens, self.lengths, self.counted)

    def rows(self, chosen: slice | np.ndarray) -> "Texts":
        """Some of the texts, padded as before."""
        return Texts(
            self.tokens[chosen],
            self.lengths[chosen],
            self.counted[chosen],
            self.repeated[chosen],
            self.truncated,
        )

    def batches(self, size: int) -> list["Texts"]:
        """The texts in order, `size` at a time; no batch of a single text, which would have no
        other to resample.
        """
        n = len(self)
        starts = list(range(0, n, size))

        if len(starts) > 1 and n - starts[-1] == 1:
            starts[-1] -= 1
        return [self.rows(slice(a, b)) for a, b in zip(starts, [*starts[1:], n], strict=True)]

    def described(self) -> dict[str, Any]:
        """For reports."""
        return {
            "texts": int((~self.repeated).sum()),
            "texts_truncated": self.truncated,
            "repeated_rows": int(self.repeated.sum()),
            "tokens": int(self.lengths.sum()),
            "scored_positions": int(self.counted.sum()),
            "sha256": self.sha256,
        }


def halves(texts: Texts) -> tuple[Int[np.ndarray, " ranking"], Int[np.ndarray, " judging"]]:
    """Rows that rank units and rows that judge rankings: every second one."""
    rows = np.arange(len(texts))
    return rows[::2], rows[1::2]


def load_texts(subject: Subject, params: MambaNeurons) -> Texts:
    """The study's texts in the model's tokens.

    InputError when there are none, or too few for a statistic.
    """
    documents = read_documents(params)[: params.text_limit]
    whole = encoded(subject, documents)
    truncated = sum(len(row) > params.text_length for row in whole)

    length = min(params.text_length, subject.n_ctx)
    rows = [row[:length] for row in whole]
    counted = [np.arange(length) < len(row) - 1 for row in rows]
    repeated = np.zeros(len(rows) + params.repeats, dtype=bool)

    if params.repeats:
        prompts = repeated_tokens(
            _vocabulary(subject),
            period=params.period,
            n_prompts=params.repeats,
            rng=STREAMS.rng("repeats", params.seed),
        )
        queries = np.zeros((params.repeats, length), dtype=bool)
        queries[prompts.pairs.batch, prompts.pairs.query] = True

        rows += list(prompts.tokens)
        counted += list(queries)
        repeated[-params.repeats :] = True

    # As sign_flip_threshold has it; said before anything is measured.
    needed = ceil(log2(4 / params.alpha))
    n_texts = len(rows) - params.repeats
    if len(rows) < needed or n_texts < 2:
        raise InputError(
            f"{n_texts} texts and {params.repeats} rows of repeats are too few for tests at "
            f"{params.alpha}: give at least 2 texts and {needed} rows in all "
            "(--text-limit, --texts, --repeats)"
        )

    tokens = np.full((len(rows), length), subject.bos, dtype=np.int64)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row

    lengths = np.array([len(row) for row in rows])
    return Texts(tokens, lengths, np.stack(counted), repeated, truncated)


def read_documents(params: MambaNeurons) -> list[str]:
    """The user's texts, or the held-out documents of data/corpus.

    InputError when there is not one.
    """
    found = _corpus_documents() if params.texts is None else _user_documents(params.texts)
    if not found:
        raise InputError(f"{params.texts or 'data/corpus'} holds no texts")
    return found


def encoded(subject: Subject, documents: Sequence[str]) -> list[Int[np.ndarray, " position"]]:
    """BOS and each document's tokens.

    InputError for a model without a tokenizer and for a text without tokens.
    """
    if subject.tokenizer is None:
        raise InputError(f"{subject.name} has no tokenizer to read texts with")

    tokenizer: Any = subject.tokenizer
    rows = [
        tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in documents
    ]

    if empty := [index for index, row in enumerate(rows) if not row]:
        raise InputError(f"text {empty[0]} has no tokens: {documents[empty[0]][:40]!r}")
    return [np.array([subject.bos, *row]) for row in rows]


def same_tokens(first: Subject, second: Subject, documents: Sequence[str]) -> str | None:
    """None when both models read every document as the same ids; otherwise what differs first."""
    both = zip(encoded(first, documents), encoded(second, documents), strict=True)

    for index, (ours, theirs) in enumerate(both):
        if not np.array_equal(ours, theirs):
            n = min(len(ours), len(theirs))
            differing = np.flatnonzero(ours[:n] != theirs[:n])
            place = int(differing[0]) if len(differing) else n
            return f"text {index} differs from token {place} on"

    return None


def token_classes(
    subject: Subject, ids: Int[np.ndarray, "*text"]
) -> tuple[list[str], Int[np.ndarray, "*text"]]:
    """What kind of string each token is: names of the classes, and each token's index into them."""
    names = ["begin", "space", "word start", "word part", "digits", "punctuation", "other"]
    tokenizer: Any = subject.tokenizer
    kinds = np.zeros(int(ids.max()) + 1, dtype=np.int64)

    for token in np.unique(ids):
        kind = "begin" if token == subject.bos else _kind(tokenizer.decode([int(token)]))
        kinds[token] = names.index(kind)

    return names, kinds[ids]


def _kind(text: str) -> str:
    core = text.strip()

    if not core:
        return "space"
    if core.isalpha():
        return "word start" if text[0].isspace() else "word part"
    if core.isdigit():
        return "digits"

    is_punctuation = core.isprintable() and not any(char.isalnum() for char in core)
    return "punctuation" if is_punctuation else "other"


def _corpus_documents() -> list[str]:
    from tokenizers import Tokenizer

    folder = corpus_folder()
    if folder is None:
        raise InputError("no corpus here, and the profile has no section `corpus` to make one of")
    corpus = Corpus.load(folder)
    stream, tokenizer = corpus.validation, Tokenizer.from_file(str(corpus.tokenizer_file))
    pieces = np.split(stream, np.flatnonzero(stream == 0))
    return [tokenizer.decode(piece[1:].tolist()) for piece in pieces if len(piece) > 1]


def _user_documents(path: Path) -> list[str]:
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".txt", ".md"))

    try:
        contents = [file.read_text(encoding="utf-8") for file in files]
    except FileNotFoundError:
        raise InputError(f"--texts: {path} is not there") from None
    except UnicodeDecodeError:
        raise InputError(f"--texts: {path} holds something that is not UTF-8 text") from None

    pieces = contents if path.is_dir() else documents_in(contents[0])
    return [piece.strip() for piece in pieces if piece.strip()]


def _vocabulary(subject: Subject) -> Vocabulary:
    tokenizer: Any = subject.tokenizer
    size = min(len(tokenizer), subject.vocab_size)
    return Vocabulary.of(
        size, bos=subject.bos, pad=subject.bos, special=special_ids(tokenizer, size)
    )
