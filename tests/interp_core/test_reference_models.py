"""The mixture that the reference models read, what is watched while they learn, and what lies in
their folder after.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp_core.errors import InputError
from interp_core.files.artifacts import file_sha256, load_json, load_weights
from interp_core.files.params import check, read_section
from interp_core.loading import load_model
from interp_core.models.spec import ModelSpec
from interp_core.models.subject import as_transformer
from interp_core.stimuli.corpus import Corpus, CorpusParams, PathText, build
from interp_core.training.batches import IGNORED
from interp_core.training.loop import Moment
from interp_core.training.reference_models import (
    Places,
    ReferenceModels,
    Watch,
    new_model,
    train_all,
)
from interp_core.training.repeat_mixture import Mixture, MixtureSource

MIXTURE = Mixture(
    rows=40,
    length=30,
    repeated_random=0.5,
    repeated_text=0.25,
    shortest_period=3,
    longest_period=9,
    begin=0.5,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    words = [
        "the",
        *("".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=4)) for _ in range(80)),
    ]
    (folder / "text.txt").write_text(
        "\n\n".join(" ".join(rng.choice(words, size=60)) for _ in range(60))
    )
    build(
        CorpusParams(path=PathText(path=folder / "text.txt"), vocabulary=280, validation_every=4),
        folder,
    )
    return Corpus.load(folder)


def section(**recipe: object) -> ReferenceModels:
    """The smoke profile's section, smaller still."""
    values = read_section("reference_models", ReferenceModels, "smoke").model_dump()
    values["models"] = {"tiny": {"layers": 2, "heads": 2, "width": 16}}
    values["recipe"] |= {"steps": 6, "warmup": 2, "checkpoint_every": 3} | recipe
    return check(ReferenceModels, values, where="test")


@pytest.fixture
def source(corpus: Corpus) -> MixtureSource:
    content = np.flatnonzero(corpus.counts > 0)[1:]
    return MixtureSource(MIXTURE, corpus.train, content, bos=0, seed=4)


def test_a_batch_depends_on_seed_and_step_alone(source: MixtureSource) -> None:
    again = MixtureSource(source.mixture, source.stream, source.content, source.bos, source.seed)
    again(8)
    assert all(torch.equal(a, b) for a, b in zip(source(7), again(7), strict=True))
    assert not torch.equal(source(7)[0], source(8)[0])


def test_every_counted_token_of_a_repeated_row_can_be_copied(source: MixtureSource) -> None:
    for step in range(5):
        for ids, labels in zip(*(tensor.numpy()[:30] for tensor in source(step)), strict=True):
            first = int((labels != IGNORED).argmax())
            np.testing.assert_array_equal(labels[first:], ids[first:])
            starts = (
                (0, 1) if ids[0] == 0 else (0,)
            )  # text may begin with the id of BOS without its being one
            periods = [first - start for start in starts if 3 <= first - start <= 9]
            assert any(
                np.array_equal(ids[first:], ids[first - period : -period]) for period in periods
            )


def test_random_segments_repeat_no_id_within_a_period_and_hold_no_bos(
    source: MixtureSource,
) -> None:
    ids, labels = (tensor.numpy() for tensor in source(1))
    for row in range(20):
        first = ids[row, 1 : int((labels[row] != IGNORED).argmax())]
        assert len(set(first.tolist())) == len(first)
        assert 0 not in first
        assert np.isin(first, source.content).all()


def test_plain_rows_are_text_and_all_counted(source: MixtureSource) -> None:
    ids, labels = (tensor.numpy() for tensor in source(2))
    windows = np.lib.stride_tricks.sliding_window_view(source.stream, 29)
    for row in range(30, 40):
        assert (windows == ids[row, 1:]).all(axis=1).any()
        np.testing.assert_array_equal(labels[row, 1:], ids[row, 1:])


def test_about_half_the_rows_begin_with_bos(source: MixtureSource) -> None:
    share = np.mean([source(step)[0][:20, 0].numpy() == 0 for step in range(20)])
    assert 0.4 < share < 0.6


def test_what_is_watched_agrees_with_the_models_own_patterns(corpus: Corpus) -> None:
    params = section()
    watch = Watch.of(params, corpus)
    model = new_model(params.models["tiny"], params.architecture, len(corpus.counts), seed=0)
    numbers = watch(Moment(0, model.eval(), None, 0.0))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(input_ids=torch.from_numpy(watch.random.tokens), output_attentions=True)
    period = params.watched.period
    queries = torch.arange(period + 1, 2 * period)
    best = max(
        float(pattern[:, :, queries, queries - period + 1].mean((0, 2)).max())
        for pattern in found.attentions
    )
    assert numbers["best_prefix_matching"] == pytest.approx(best, abs=1e-6)
    hits = (
        found.logits[:, queries].argmax(-1) == torch.from_numpy(watch.random.tokens)[:, queries + 1]
    )
    assert numbers["repeat_accuracy"] == pytest.approx(float(hits.double().mean()), abs=1e-12)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_held_out_stimuli_come_from_held_out_text(corpus: Corpus) -> None:
    watch = Watch.of(section(), corpus)
    windows = np.lib.stride_tricks.sliding_window_view(corpus.validation, 20)
    for row in watch.text.tokens:
        assert (windows == row[1:21]).all(axis=1).any()
        np.testing.assert_array_equal(row[1:21], row[21:])

    length = watch.validation.ids.shape[1]
    held_out, seen = (
        np.lib.stride_tricks.sliding_window_view(stream, length)
        for stream in (corpus.validation, corpus.train)
    )
    for row in watch.validation.ids.numpy():
        assert (held_out == row).all(axis=1).any()
        assert not (seen == row).all(axis=1).any()


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Places:
    folder = tmp_path_factory.mktemp("trained")
    places = Places(corpus.folder, folder / "models", folder / "training")
    train_all(section(), places)
    return places


@pytest.fixture(autouse=True)
def _untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def test_a_trained_model_is_a_hugging_face_folder_with_its_checkpoints(trained: Places) -> None:
    folder = trained.models / "tiny"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.decode(tokenizer("the cat sat")["input_ids"]) == "the cat sat"
    record = load_json(folder / "training.json")
    assert record["weights_sha256"] == file_sha256(folder / "model.safetensors")
    assert record["checkpoints"] == [0, 1, 2, 3, 4, 6]
    assert sorted(file.name for file in (folder / "checkpoints").iterdir()) == [
        f"step-{step:06d}.safetensors" for step in record["checkpoints"]
    ]
    last = load_weights(folder / "checkpoints" / "step-000006.safetensors")
    assert all(torch.equal(last[name], tensor) for name, tensor in model.state_dict().items())
    assert not (folder / "generation_config.json").exists()


def test_a_trained_model_loads_as_a_subject(trained: Places) -> None:
    subject = as_transformer(
        load_model(ModelSpec(source="trained", path=trained.models / "tiny"), name="tiny")
    )
    assert (subject.n_layers, subject.n_heads, subject.bos) == (2, 2, 0)


def test_the_history_has_one_row_a_checkpoint_and_no_times(trained: Places) -> None:
    lines = (trained.history / "tiny.csv").read_text().splitlines()
    assert lines[0] == (
        "step,loss,validation_loss,repeat_accuracy,repeated_text_accuracy,best_prefix_matching,learning_rate"
    )
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "1", "2", "3", "4", "6"]


def test_twice_gives_the_same_bytes(corpus: Corpus, trained: Places, tmp_path: Path) -> None:
    again = Places(corpus.folder, tmp_path / "models", tmp_path / "training")
    train_all(section(), again)
    files = sorted(
        file.relative_to(again.models) for file in again.models.rglob("*") if file.is_file()
    )
    assert len(files) == 12
    for file in files:
        assert (again.models / file).read_bytes() == (trained.models / file).read_bytes(), file
    assert (again.history / "tiny.csv").read_bytes() == (trained.history / "tiny.csv").read_bytes()


def test_an_unknown_model_is_named_before_anything_runs(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no reference model neox-9l in the profile; it has tiny"):
        train_all(
            section(), Places(corpus.folder, tmp_path / "m", tmp_path / "h"), only=["neox-9l"]
        )
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"models": {"a": {"layers": 2, "heads": 3, "width": 16}}},
            "width 16 is not a multiple of heads 3",
        ),
        (
            {"watched": {"prompts": 4, "period": 200, "validation_rows": 2}},
            "rows are 401 tokens long",
        ),
        ({"mixture": MIXTURE.model_dump() | {"repeated_text": 0.7}}, "more than all rows"),
        ({"mixture": MIXTURE.model_dump() | {"longest_period": 29}}, "longest_period < length - 1"),
        ({"processes": 0}, "`processes`"),
    ],
)
def test_sections_that_cannot_work_say_why(changes: dict, words: str) -> None:
    with pytest.raises(InputError) as caught:
        check(ReferenceModels, section().model_dump() | changes, where="test")
    assert words in str(caught.value)


@pytest.mark.parametrize("profile", ["laptop", "smoke", "long", "paper"])
def test_every_profile_has_both_sections(profile: str) -> None:
    read_section("corpus", CorpusParams, profile)
    read_section("reference_models", ReferenceModels, profile)
