"""The stimuli of the study for one model.

The same token ids for every model that shares a tokenizer.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from interp_core.errors import InputError
from interp_core.files.artifacts import file_sha256
from interp_core.models.subject import Subject
from interp_core.stimuli.corpus import Corpus as StoredCorpus
from interp_core.stimuli.corpus import corpus_folder
from interp_core.stimuli.opening import NO_BOS, begun, padding, without_opening
from interp_core.stimuli.prompts import (
    Pairs,
    Prompts,
    Vocabulary,
    repeated_tokens,
    spaced_pairs,
    special_ids,
)
from interp_core.stimuli.text import names, natural_repeats
from pythia_topology.params import PythiaTopology
from pythia_topology.streams import STREAMS


@dataclass(frozen=True)
class Corpus:
    """Real text as the model's token ids, and how often each id occurs.

    For another tokenizer than the corpus's that is counted in what was encoded again.
    """

    validation: Integer[np.ndarray, " token"]
    counts: Integer[np.ndarray, " vocab"]


def stimuli(
    subject: Subject, params: PythiaTopology, *, absent: dict[str, str] | None = None
) -> dict[str, Prompts]:
    """Prompts by family, `repeated_tokens` first.

    InputError when they do not fit the model or its vocabulary. A family of text that cannot be
    made goes into `absent` with its reason; without such a place it is an InputError too.
    """
    corpus = load_corpus(subject, params)
    vocabulary = vocabulary_of(subject, params, corpus)
    n = params.n_sequences

    longest = max(2 * params.period + 1, params.seq_len)
    if longest > subject.n_ctx:
        settings = f"(seq_len {params.seq_len}, period {params.period})"
        raise InputError(
            f"{subject.name}: prompts of {longest} tokens {settings} are longer than its context, "
            f"{subject.n_ctx}"
        )

    rng = STREAMS.rng("repeated_tokens", params.seed)
    repeated = repeated_tokens(vocabulary, period=params.period, n_prompts=n, rng=rng)
    built = {"repeated_tokens": repeated}

    for family in params.task_types:
        rng = STREAMS.rng(family, params.seed)

        if family == "spaced_pairs":
            built[family] = spaced_pairs(
                vocabulary, lags=params.lag_values, length=params.seq_len, n_prompts=n, rng=rng
            )

            continue

        try:
            built[family] = _of_text(subject, corpus, vocabulary, params, rng, family=family)
        except InputError as problem:
            if absent is None:
                raise InputError(f"{problem}; --task-types can leave {family} out") from None
            absent[family] = str(problem)

    if subject.bos == NO_BOS:
        return {family: without_opening(prompts) for family, prompts in built.items()}
    return built


def _of_text(
    subject: Subject,
    corpus: Corpus | None,
    vocabulary: Vocabulary,
    params: PythiaTopology,
    rng: np.random.Generator,
    *,
    family: str,
) -> Prompts:
    """Prompts of one family of text. InputError for a model or a text that cannot give them."""
    length, n = params.seq_len, params.n_sequences

    if family == "names":
        tokenizer = _tokenizer(subject, family)
        return names(tokenizer, vocabulary, length=length, n_prompts=n, rng=rng)

    return natural_repeats(
        _text(corpus, family).validation,
        vocabulary,
        length=length,
        n_prompts=n,
        rng=rng,
        max_pairs=params.max_pairs,
    )


def first_prompts(prompts: Prompts, n: int) -> Prompts:
    """The first n prompts of a family."""
    pairs = prompts.pairs
    kept = pairs.batch < n

    return Prompts(
        prompts.family,
        prompts.tokens[:n],
        prompts.control[:n],
        Pairs(pairs.batch[kept], pairs.query[kept], pairs.earlier[kept], pairs.target[kept]),
        prompts.lengths[:n],
    )


def prompts_sha256(prompts: dict[str, Prompts]) -> str:
    """One hash of all stimuli."""
    return hashlib.sha256("".join(p.sha256 for p in prompts.values()).encode()).hexdigest()


def vocabulary_of(subject: Subject, params: PythiaTopology, corpus: Corpus | None) -> Vocabulary:
    """Ids that random prompts may use: the tokenizer's without special ones.

    Where the corpus is known, without the most and the least frequent ones too.
    """
    size, special = subject.vocab_size, []

    if (tokenizer := subject.tokenizer) is not None:
        size = min(len(tokenizer), size)
        special = special_ids(tokenizer, size)

    counts = None if corpus is None else corpus.counts[:size]
    return Vocabulary.of(
        size,
        bos=subject.bos,
        pad=padding(subject.bos, special),
        special=special,
        counts=counts,
        excluded_share=params.excluded_share,
    )


def text_windows(
    subject: Subject, params: PythiaTopology, *, n: int
) -> Integer[np.ndarray, "prompt position"]:
    """BOS and seq_len - 1 tokens of real text, for what should not change.

    Windows are drawn without overlap.
    """
    corpus = load_corpus(subject, params)
    if corpus is None:
        raise InputError(
            f"{subject.name}: what ablation does elsewhere is measured on real text: run "
            "`induction-lab corpus` in the project's folder, and give a model with a tokenizer"
        )

    stream = corpus.validation.astype(np.int64)
    width = params.seq_len - 1
    windows = stream[: len(stream) // width * width].reshape(-1, width)
    if len(windows) < n:
        raise InputError(
            f"the text has {len(windows)} windows of {width} tokens, {n} wanted: use fewer "
            "(--causal-sequences) or shorter ones (--seq-len)"
        )

    drawn = windows[STREAMS.rng("text", params.seed).permutation(len(windows))[:n]]
    return begun(drawn, subject.bos)


def load_corpus(subject: Subject, params: PythiaTopology) -> Corpus | None:
    """The corpus, made on the spot where there is none, in the model's ids.

    As stored where the tokenizer is the corpus's, else decoded and encoded again. None when there
    is no corpus or the model has no tokenizer.
    """
    if subject.tokenizer is None or (folder := corpus_folder()) is None:
        return None

    built = StoredCorpus.load(folder)
    stream, own = built.validation, built.tokenizer_file

    if _same_tokenizer(subject.tokenizer, own):
        return Corpus(stream, built.counts)

    again = _encode_again(stream, own, subject.tokenizer, params)
    return Corpus(again, np.bincount(again, minlength=subject.vocab_size))


def _encode_again(
    stream: Integer[np.ndarray, " token"],
    tokenizer_file: Path,
    tokenizer: Any,
    params: PythiaTopology,
) -> Integer[np.ndarray, " encoded"]:
    """The stream in another tokenizer's ids, only as much as the study needs.

    Byte-level tokens decode without loss, so one text serves every model.
    """
    from tokenizers import Tokenizer

    enough = 40 * params.n_sequences * params.seq_len
    text = Tokenizer.from_file(str(tokenizer_file)).decode(stream[:enough].tolist())
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return np.array(ids, dtype=np.int64)  # no float where it knows no word of the text


def _same_tokenizer(tokenizer: Any, file: Path) -> bool:
    folder = Path(str(tokenizer.name_or_path))
    own = folder / "tokenizer.json"
    return own.is_file() and file_sha256(own) == file_sha256(file)


def _tokenizer(subject: Subject, family: str) -> Any:
    if subject.tokenizer is None:
        raise InputError(f"{subject.name} has no tokenizer, which {family} needs")

    return subject.tokenizer


def _text(corpus: Corpus | None, family: str) -> Corpus:
    if corpus is None:
        raise InputError(
            f"{family} needs real text: run `induction-lab corpus` in the project's folder (and a "
            "model with a tokenizer)"
        )

    return corpus
