"""The mixture that the Mamba and its twin read, and what lies in their folders after training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from interp_core.errors import InputError
from interp_core.files.artifacts import file_sha256, load_json
from interp_core.files.params import check, read_section
from interp_core.loading import load_model
from interp_core.mamba.subject import MambaSubject
from interp_core.models.native import NativeSubject
from interp_core.models.spec import ModelSpec
from interp_core.stimuli.corpus import Corpus, CorpusParams, PathText, build
from interp_core.training.batches import IGNORED
from interp_core.training.mamba_models import MambaModels, RecallWatch, train_all
from interp_core.training.recall_mixture import RecallMixture, RecallSource
from interp_core.training.reference_models import Places

MIXTURE = RecallMixture(
    rows=40,
    repeated_random=0.6,
    shuffled_pairs=0.5,
    repeated_text=0.2,
    shortest_period=4,
    longest_period=11,
    growth=0.5,
    copies=2.2,
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


@pytest.fixture
def source(corpus: Corpus) -> RecallSource:
    return RecallSource(
        MIXTURE, 100, corpus.train, np.flatnonzero(corpus.counts > 0)[1:], bos=0, seed=4
    )


def section(**recipe: object) -> MambaModels:
    """The smoke profile's section, smaller still."""
    values = read_section("mamba_models", MambaModels, "smoke").model_dump()
    values["processes"] = 2
    values["models"]["mamba-2l"] |= {"width": 16}
    values["models"]["twin-2l"] |= {"width": 16}
    values["recipe"] |= {"steps": 6, "warmup": 2, "checkpoint_every": 3} | recipe
    return check(MambaModels, values, where="test")


def test_a_batch_depends_on_seed_and_step_alone(source: RecallSource) -> None:
    source(8)
    again = RecallSource(MIXTURE, 100, source.stream, source.content, bos=0, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(source(7), again(7), strict=True))


def test_the_longest_period_grows_over_the_first_share_of_the_steps(source: RecallSource) -> None:
    assert [source.longest(step) for step in (0, 25, 50, 99)] == [4, 8, 11, 11]
    lengths = {step: source(step)[0].shape[1] for step in range(100)}
    assert lengths[0] == MIXTURE.length_of(4)
    assert max(lengths.values()) == MIXTURE.length


def test_every_counted_token_of_a_repeated_row_can_be_copied_from_what_came_before(
    source: RecallSource,
) -> None:
    for step in (0, 30, 60, 90):
        ids, labels = (tensor.numpy()[:32] for tensor in source(step))
        for row, counted in zip(ids, labels, strict=True):
            targets = np.flatnonzero(counted != IGNORED)
            assert len(targets) > 0
            np.testing.assert_array_equal(counted[targets], row[targets])
            for t in targets:
                earlier = np.flatnonzero(row[: t - 1] == row[t - 1])
                assert row[t] in row[earlier + 1]


def test_of_shuffled_pairs_only_what_a_pair_tells_counts(source: RecallSource) -> None:
    ids, labels = (tensor.numpy()[:12] for tensor in source(90))
    for row, counted in zip(ids, labels, strict=True):
        targets = np.flatnonzero(counted != IGNORED)
        start = int(row[0] == 0)
        assert ((targets - start) % 2 == 1).all()
        followers = {
            int(a): int(b) for a, b in zip(row[start::2], row[start + 1 :: 2], strict=False)
        }
        assert all(followers[int(row[t - 1])] == row[t] for t in targets)


def test_what_is_watched_is_held_out_text(corpus: Corpus) -> None:
    settings = section()
    watch = RecallWatch.of(settings, corpus)
    period = settings.watched.text_period

    texts = watch.stimuli["repeated_text_accuracy"].tokens[:, 1 : 1 + period]
    for rows in (texts, watch.validation.ids.numpy()):
        held_out, seen = (
            np.lib.stride_tricks.sliding_window_view(text, rows.shape[1])
            for text in (corpus.validation, corpus.train)
        )
        for row in rows:
            assert (held_out == row).all(axis=1).any()
            assert not (seen == row).all(axis=1).any()


def test_plain_rows_are_text_and_all_counted(source: RecallSource) -> None:
    ids, labels = (tensor.numpy()[32:] for tensor in source(90))
    windows = {tuple(source.stream[i : i + 8]) for i in range(len(source.stream) - 7)}
    for row, counted in zip(ids, labels, strict=True):
        start = int(counted[0] == IGNORED)  # BOS
        assert tuple(row[start : start + 8]) in windows
        assert (counted[start:] != IGNORED).all()


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Places:
    place = tmp_path_factory.mktemp("trained")
    places = Places(corpus.folder, place / "models", place / "history")
    train_all(section(), places)
    return places


def test_both_models_load_as_what_they_are(trained: Places) -> None:
    kinds = {"mamba-2l": MambaSubject, "twin-2l": NativeSubject}
    for name, kind in kinds.items():
        subject = load_model(ModelSpec(source="trained", path=trained.models / name), name=name)
        assert type(subject) is kind
        assert subject.logits(subject.ids([[0, 5, 9]])).shape == (1, 3, subject.vocab_size)
        assert load_json(trained.models / name / "training.json")["final"]["step"] == 6


def test_a_mambas_unembedding_is_its_embedding_after_loading(trained: Places) -> None:
    subject = load_model(
        ModelSpec(source="trained", path=trained.models / "mamba-2l"), name="mamba"
    )
    torch.testing.assert_close(subject.model.get_output_embeddings().weight, subject.embedding())  # pyright: ignore[reportOptionalMemberAccess]


def test_twin_and_mamba_read_the_same_batches_and_differ_in_rate(trained: Places) -> None:
    records = [
        load_json(trained.models / name / "training.json") for name in ("mamba-2l", "twin-2l")
    ]
    for key in ("mixture", "seed", "corpus_sha256", "checkpoints"):
        assert records[0][key] == records[1][key]
    assert records[0]["recipe"]["learning_rate"] != records[1]["recipe"]["learning_rate"]


def test_twice_gives_the_same_bytes_in_processes_of_their_own_or_in_this_one(
    corpus: Corpus, trained: Places, tmp_path: Path
) -> None:
    assert section().processes == 2
    again = Places(corpus.folder, tmp_path / "models", tmp_path / "history")
    train_all(section().model_copy(update={"processes": 1}), again)

    for file in (*trained.models.rglob("*.safetensors"), *trained.history.glob("*.csv")):
        home, other = (
            (trained.models, again.models)
            if file.suffix != ".csv"
            else (trained.history, again.history)
        )
        assert file_sha256(file) == file_sha256(other / file.relative_to(home)), file.name


def test_an_unknown_model_is_named_before_anything_runs(corpus: Corpus, tmp_path: Path) -> None:
    places = Places(corpus.folder, tmp_path / "models", tmp_path / "history")
    with pytest.raises(InputError, match="no model mamba-9l in `mamba_models`"):
        train_all(section(), places, only=["mamba-9l"])
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"repeated_random": 0.9, "repeated_text": 0.3}, "more than all rows"),
        ({"shortest_period": 30}, "shortest_period <= longest_period"),
        ({"copies": 1.0}, "greater than or equal to 2"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(changes: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check(RecallMixture, MIXTURE.model_dump() | changes, where="test")


@pytest.mark.parametrize("profile", ["laptop", "long", "paper", "smoke"])
def test_every_profile_has_the_section(profile: str) -> None:
    assert {"mamba-2l", "twin-2l"} <= set(read_section("mamba_models", MambaModels, profile).models)
