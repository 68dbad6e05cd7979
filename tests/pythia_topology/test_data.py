"""The stimuli of the study: the same for models that share a tokenizer, the same text for all
others.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import small_project
from interp_core.errors import InputError
from interp_core.loading import load_model, subject_of
from interp_core.models.spec import ModelSpec
from interp_core.models.subject import Subject
from interp_core.stimuli.corpus import Corpus, train_tokenizer
from interp_core.stimuli.prompts import oracle
from pythia_topology import data
from pythia_topology.intervene import without_repeats

FAMILIES = ("repeated_tokens", "spaced_pairs", "names", "natural_repeats")


def test_models_that_share_a_tokenizer_see_the_same_prompts(project: Path, toy: Subject) -> None:
    taller = load_model(
        ModelSpec(source="local", path=project / "models" / "taller"), name="taller"
    )
    assert taller.n_layers != toy.n_layers
    hashes = [
        data.prompts_sha256(data.stimuli(subject, small_project.study()))
        for subject in (toy, taller)
    ]
    assert hashes[0] == hashes[1]
    assert data.prompts_sha256(data.stimuli(toy, small_project.study(seed=1))) != hashes[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_induction_rule_is_right_on_every_copy_and_has_no_answer_on_the_control(
    toy: Subject, family: str
) -> None:
    prompts = data.stimuli(toy, small_project.study())[family]
    pairs = prompts.pairs
    assert prompts.family == family
    assert set(pairs.batch) == set(range(small_project.SETTINGS["n_sequences"]))
    assert (oracle(prompts.tokens, pairs) == pairs.target).all()
    assert (oracle(prompts.control, pairs) != pairs.target).all()
    assert (pairs.query + 1 < prompts.lengths[pairs.batch]).all()
    assert (prompts.tokens[:, 0] == toy.bos).all()


def test_leaving_one_family_out_does_not_change_another(toy: Subject) -> None:
    every = data.stimuli(toy, small_project.study())
    alone = data.stimuli(toy, small_project.study(task_types=["natural_repeats"]))
    assert list(alone) == ["repeated_tokens", "natural_repeats"]
    assert all(alone[family].sha256 == every[family].sha256 for family in alone)


def test_random_prompts_leave_out_special_ids_and_the_most_and_least_frequent(toy: Subject) -> None:
    params = small_project.study()
    corpus = data.load_corpus(toy, params)
    assert corpus is not None
    ids = data.vocabulary_of(toy, params, corpus).ids
    left_out = np.setdiff1d(np.arange(toy.vocab_size), ids)
    assert len(left_out) == 1 + 2 * round(0.04 * (toy.vocab_size - 1))
    assert toy.bos in left_out
    assert corpus.counts[1:].argmax() + 1 in left_out
    assert corpus.counts[ids].max() <= np.sort(corpus.counts[left_out])[-2]
    without_counts = data.vocabulary_of(toy, params, None).ids
    assert len(without_counts) == toy.vocab_size - 1


@pytest.fixture
def foreign(project: Path, tmp_path: Path) -> Subject:
    """A model whose tokenizer is another one."""
    tokenizer = train_tokenizer(
        ["the quick brown fox jumps over the lazy dog, the option and the parameter"] * 9, 290
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    shutil.copy(project / "models" / "toy" / "tokenizer_config.json", tmp_path)
    model = small_project.random_model(layers=1, seed=0, vocab=290)
    model.save_pretrained(tmp_path)
    return load_model(ModelSpec(source="local", path=tmp_path), name="foreign")


def test_another_tokenizer_reads_the_same_text(
    project: Path, toy: Subject, foreign: Subject
) -> None:
    own, other = (data.load_corpus(subject, small_project.study()) for subject in (toy, foreign))
    assert own is not None
    assert other is not None
    assert np.array_equal(other.counts, np.bincount(other.validation, minlength=290))
    assert not np.array_equal(own.validation[:500], other.validation[:500])
    assert other.validation.max() < foreign.vocab_size
    text = Tokenizer.from_file(str(project / "data" / "corpus" / "tokenizer.json")).decode(
        own.validation.tolist()
    )
    tokenizer: Any = foreign.tokenizer
    assert text.startswith(tokenizer.decode(other.validation.tolist())[:5000])
    assert len(text) > 5000


def test_another_tokenizer_has_every_family(foreign: Subject) -> None:
    for family, prompts in data.stimuli(foreign, small_project.study(seq_len=48)).items():
        assert (oracle(prompts.tokens, prompts.pairs) == prompts.pairs.target).all(), family


def test_names_are_names_and_natural_repeats_are_the_corpus(project: Path, toy: Subject) -> None:
    prompts = data.stimuli(toy, small_project.study())
    decode = Tokenizer.from_file(str(project / "data" / "corpus" / "tokenizer.json")).decode
    for row, length in zip(prompts["names"].tokens, prompts["names"].lengths, strict=True):
        said = decode(row[1:length].tolist())
        assert said.endswith(".")
        assert said.isascii()
    stream = data.load_corpus(toy, small_project.study())
    assert stream is not None
    text = decode(stream.validation.tolist())
    for row in prompts["natural_repeats"].tokens:
        assert decode(row[1:].tolist()).strip("\ufffd") in text


def test_text_is_held_out_text_and_no_other(project: Path, toy: Subject) -> None:
    corpus = data.load_corpus(toy, small_project.study())
    assert corpus is not None

    built = Corpus.load(project / "data" / "corpus")
    np.testing.assert_array_equal(corpus.validation, built.validation)
    assert not np.array_equal(built.validation, built.train[: len(built.validation)])


def test_text_windows_are_pieces_of_the_corpus_that_do_not_overlap(toy: Subject) -> None:
    params = small_project.study()
    windows = data.text_windows(toy, params, n=8)
    corpus = data.load_corpus(toy, params)
    assert corpus is not None
    assert windows.shape == (8, params.seq_len)
    assert (windows[:, 0] == toy.bos).all()
    pieces = [
        tuple(corpus.validation[i : i + 39]) for i in range(0, len(corpus.validation) - 38, 39)
    ]
    places = [pieces.index(tuple(row)) for row in windows[:, 1:]]
    assert len(set(places)) == 8
    assert (data.text_windows(toy, params, n=8) == windows).all()


def test_text_without_repeats_asks_only_where_nothing_can_be_copied(toy: Subject) -> None:
    windows = data.text_windows(toy, small_project.study(), n=8)
    pairs = without_repeats(windows, toy.bos).pairs
    asked = set(zip(pairs.batch.tolist(), pairs.query.tolist(), strict=True))
    for row, window in enumerate(windows):
        for position in range(len(window)):
            new = window[position] not in window[:position]
            wanted = new and 0 < position < len(window) - 1 and window[position] != toy.bos
            assert ((row, position) in asked) == wanted
    assert (pairs.target == windows[pairs.batch, pairs.query + 1]).all()


# What does not fit


def test_a_prompt_longer_than_the_context_is_refused(toy: Subject) -> None:
    for changes in ({"seq_len": 65}, {"period": 32}):
        with pytest.raises(
            InputError, match=r"prompts of 65 tokens .* longer than its context, 64"
        ):
            data.stimuli(toy, small_project.study(**changes))


def test_more_windows_than_the_text_has_are_refused(toy: Subject) -> None:
    with pytest.raises(
        InputError, match=r"windows of 39 tokens, 100000 wanted: use fewer \(--causal-sequences\)"
    ):
        data.text_windows(toy, small_project.study(), n=100000)


@pytest.mark.usefixtures("project")
def test_a_model_without_a_tokenizer_can_only_see_random_ids() -> None:
    bare = subject_of(small_project.random_model(layers=1, seed=0), name="bare", bos=0)
    assert list(data.stimuli(bare, small_project.study(task_types=["spaced_pairs"])))[1:] == [
        "spaced_pairs"
    ]
    with pytest.raises(
        InputError,
        match="bare has no tokenizer, which names needs; --task-types can leave names out",
    ):
        data.stimuli(bare, small_project.study(task_types=["names"]))
    with pytest.raises(InputError, match="natural_repeats needs real text"):
        data.stimuli(bare, small_project.study(task_types=["natural_repeats"]))
    with pytest.raises(
        InputError, match="bare: what ablation does elsewhere is measured on real text"
    ):
        data.text_windows(bare, small_project.study(), n=8)


@pytest.mark.usefixtures("project")
def test_families_of_text_that_a_model_cannot_read_are_left_out_with_their_reason() -> None:
    bare = subject_of(small_project.random_model(layers=1, seed=0), name="bare", bos=0)
    families = ["names", "spaced_pairs", "natural_repeats"]
    absent: dict[str, str] = {}
    built = data.stimuli(bare, small_project.study(task_types=families), absent=absent)
    alone = data.stimuli(bare, small_project.study(task_types=["spaced_pairs"]))

    assert data.prompts_sha256(built) == data.prompts_sha256(alone)
    assert list(absent) == ["names", "natural_repeats"]
    assert absent["names"] == "bare has no tokenizer, which names needs"


def test_without_a_corpus_the_families_that_need_text_say_so(
    toy: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_project.write_profile(tmp_path, {})
    monkeypatch.chdir(tmp_path)
    assert list(data.stimuli(toy, small_project.study(task_types=["names"])))[1:] == ["names"]
    with pytest.raises(
        InputError, match="natural_repeats needs real text: run `induction-lab corpus`"
    ):
        data.stimuli(toy, small_project.study(task_types=["natural_repeats"]))


def test_a_vocabulary_larger_than_the_tokenizer_is_not_drawn_from(
    project: Path, tmp_path: Path
) -> None:
    """Models pad their embedding: ids that the tokenizer does not have are never prompts."""
    tokenizer = small_project.corpus_tokenizer(project / "data" / "corpus")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    small_project.save_model(
        tmp_path, small_project.random_model(layers=1, seed=0, vocab=640), tokenizer
    )
    padded = load_model(ModelSpec(source="local", path=tmp_path), name="padded")
    params = small_project.study()
    assert data.vocabulary_of(padded, params, None).ids.max() < 512
    prompts = data.stimuli(padded, params)
    assert max(family.tokens.max() for family in prompts.values()) < 512
    assert torch.isfinite(padded.trunk(padded.ids(prompts["names"].tokens))).all()
