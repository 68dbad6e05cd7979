"""Fine-tuning against the stock scan, against itself when interrupted, and against bad numbers."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp_core.errors import InputError
from interp_core.files.artifacts import load_json
from interp_core.loading import load_model, subject_of
from interp_core.mamba.selective_scan import fast_scan
from interp_core.mamba.subject import MambaSubject, as_mamba
from interp_core.models.spec import ModelSpec
from interp_core.stimuli.corpus import read_documents
from interp_core.stimuli.prompts import Vocabulary
from interp_core.training.live_run import Run
from interp_core.training.loop import Diverged, Moment, train
from interp_core.training.recipe import Recipe
from mamba_induction.data import Stimuli, Texts, build_stimuli, texts_of
from mamba_induction.params import MambaInduction
from mamba_induction.train import DocumentSource, Watch, fine_tune, mean_loss, padded, recipe_of
from mamba_induction.train_arms import Arm, arms_of, outcome, tune_arm, with_repeats
from mamba_project import random_mamba, smoke_section


@pytest.fixture
def tuning() -> MambaInduction:
    """Eight updates of two documents."""
    return MambaInduction(**smoke_section(batch_size=1, grad_accum=2, lr=1e-2, evaluate_every=4))


@pytest.fixture
def ready(project: Path, tuning: MambaInduction) -> tuple[MambaSubject, Stimuli, Texts]:
    """The project's Mamba, fresh, with its stimuli and texts."""
    subject = as_mamba(
        load_model(ModelSpec(source="local", path=project / "models" / "mamba"), name="mamba")
    )
    texts = texts_of(read_documents(tuning.dataset), subject.tokenizer, subject.bos, tuning)
    return subject, build_stimuli(subject, tuning, texts), texts


def nothing(_: Moment) -> Mapping[str, float]:
    return {}


def losses_of(model: Any, source: DocumentSource, recipe: Recipe) -> list[float]:
    return [
        float(row["loss"])
        for row in train(model, source, nothing, recipe, scratch=None, run=Run(), label="test")
    ]


def test_twenty_steps_with_our_scan_are_those_of_the_stock_scan(tuning: MambaInduction) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 96, int(rng.integers(5, 24))) for _ in range(40)]
    source = DocumentSource(rows, 2, seed=0)
    recipe = recipe_of(tuning.model_copy(update={"evaluate_every": 1, "lr": 1e-3}), len(rows))
    assert recipe.steps == 20
    ours, stock = random_mamba(seed=3), random_mamba(seed=3)
    with fast_scan(ours):
        found = losses_of(ours, source, recipe)
    assert len(found) == 21
    np.testing.assert_allclose(found, losses_of(stock, source, recipe), atol=1e-5)


def test_padding_and_bos_never_count() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 96, length) for length in (4, 9, 17)]
    subject = as_mamba(subject_of(random_mamba(seed=0), name="random", bos=0))
    alone = [mean_loss(subject, padded([row])) * (len(row) - 1) for row in rows]
    together = mean_loss(subject, padded(rows))
    assert together == pytest.approx(sum(alone) / sum(len(row) - 1 for row in rows), abs=1e-6)


def test_every_document_is_seen_once_an_epoch_in_another_order() -> None:
    rows = [np.array([0, number]) for number in range(1, 8)]
    source = DocumentSource(rows, 3, seed=0)
    epochs = [
        [int(i) for step in range(3) for i in source(first + step)[0][:, 1]] for first in (0, 3)
    ]
    assert [sorted(epoch) for epoch in epochs] == [list(range(1, 8))] * 2
    assert epochs[0] != epochs[1]


def test_a_fine_tuning_that_was_interrupted_ends_with_the_same_bytes(
    ready: tuple[MambaSubject, Stimuli, Texts],
    tuning: MambaInduction,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject, stimuli, texts = ready
    start = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    history = fine_tune(subject, stimuli, texts, tuning, tmp_path / "whole" / "tuned")
    expected = {file.name: file.read_bytes() for file in (tmp_path / "whole" / "tuned").iterdir()}
    assert len(history) > 3
    for step in (1, 5):
        subject.model.load_state_dict(start)
        batch = DocumentSource.__call__

        def pressed(self: DocumentSource, at: int, stop: int = step, batch: Any = batch) -> Any:
            if at == stop:
                os.kill(os.getpid(), signal.SIGINT)
            return batch(self, at)

        place = tmp_path / f"stopped {step}" / "tuned"
        with monkeypatch.context() as patch:
            patch.setattr(DocumentSource, "__call__", pressed)
            with pytest.raises(KeyboardInterrupt):
                fine_tune(subject, stimuli, texts, tuning, place)
        assert not place.exists()
        subject.model.load_state_dict(start)
        assert fine_tune(subject, stimuli, texts, tuning, place) == history
        assert {file.name: file.read_bytes() for file in place.iterdir()} == expected


def test_the_written_model_is_the_tuned_one_and_says_what_it_is(
    ready: tuple[MambaSubject, Stimuli, Texts], tuning: MambaInduction, tmp_path: Path
) -> None:
    subject, stimuli, texts = ready
    history = fine_tune(subject, stimuli, texts, tuning, tmp_path / "tuned")
    again = as_mamba(load_model(ModelSpec(source="local", path=tmp_path / "tuned"), name="tuned"))
    found = Watch.of(stimuli, texts, tuning)(Moment(0, again.model, None, 0.0))
    assert found["held_out_loss"] == pytest.approx(history[-1]["held_out_loss"], abs=1e-6)
    assert history[-1]["held_out_loss"] < history[0]["held_out_loss"]
    assert {"prefix_matching", "repeat_accuracy", "pairs_accuracy", "unpredicted_accuracy"} < set(
        history[0]
    )
    assert load_json(tmp_path / "tuned" / "training.json")["base"] == "mamba"


def test_a_training_of_other_settings_stays_where_it_is_not_the_pipelines(
    ready: tuple[MambaSubject, Stimuli, Texts], tuning: MambaInduction, tmp_path: Path
) -> None:
    subject, stimuli, texts = ready
    start = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    place, other = tmp_path / "tuned", tuning.model_copy(update={"lr": 2 * tuning.lr})
    fine_tune(subject, stimuli, texts, tuning, place)
    before = (place / "model.safetensors").read_bytes()

    subject.model.load_state_dict(start)
    told = r"other settings \(recipe\.learning_rate \S+ there, \S+ asked for\)"
    with pytest.raises(InputError, match=told):
        fine_tune(subject, stimuli, texts, other, place)
    assert (place / "model.safetensors").read_bytes() == before

    fine_tune(subject, stimuli, texts, other, place, replaces=True)
    assert (place / "model.safetensors").read_bytes() != before


def test_a_rate_that_diverges_stops_with_step_and_loss_and_keeps_the_last_good_weights(
    ready: tuple[MambaSubject, Stimuli, Texts], tuning: MambaInduction, tmp_path: Path
) -> None:
    subject, stimuli, texts = ready
    wild = tuning.model_copy(update={"lr": 1e30, "evaluate_every": 1})
    with pytest.raises(Diverged, match=r"the loss is (nan|inf) at step \d+") as problem:
        fine_tune(subject, stimuli, texts, wild, tmp_path / "tuned")
    kept = Path(str(problem.value).rpartition("are in ")[2].rstrip(")"))
    assert [file.name for file in kept.iterdir()] == ["step-000000.safetensors"]
    assert not (tmp_path / "tuned").exists()


def test_mixed_repeats_take_the_place_of_their_share_of_documents(tuning: MambaInduction) -> None:
    vocabulary = Vocabulary.of(96, bos=0, pad=0)
    rows = [np.array([0, 1, 2, number]) for number in range(40)]

    mixed = with_repeats(rows, 0.25, vocabulary, tuning)
    changed = [row for row, before in zip(mixed, rows, strict=True) if row is not before]

    assert len(mixed) == 40
    assert len(changed) == 10
    assert {len(row) for row in changed} == {1 + 2 * period for period in tuning.periods}
    for row in changed:
        first, second = np.split(row[1:], 2)
        assert (first == second).all()

    assert with_repeats(rows, 0.0, vocabulary, tuning) == rows
    with pytest.raises(InputError, match=r"two copies of 8 tokens do not fit max_length 12"):
        with_repeats(rows, 0.25, vocabulary, tuning.model_copy(update={"max_length": 12}))


def test_arms_are_the_other_rates_and_the_own_rate_with_repeats(tuning: MambaInduction) -> None:
    changed = tuning.model_copy(
        update={"lr": 1e-3, "other_rates": (5e-5, 1e-3), "mixed_repeats": 0.1}
    )
    assert arms_of(changed) == [Arm(5e-5, 0.0), Arm(1e-3, 0.1)]
    assert arms_of(changed)[1].name == "lr 0.001, 10 % repeats"
    assert arms_of(changed.model_copy(update={"mixed_repeats": 0.0})) == [Arm(5e-5, 0.0)]


def test_an_arm_at_the_own_rate_is_the_fine_tuning_itself(
    ready: tuple[MambaSubject, Stimuli, Texts], tuning: MambaInduction, tmp_path: Path
) -> None:
    subject, stimuli, texts = ready
    start = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    held_out = padded(texts.held_out[: tuning.watched_documents])

    before = outcome(subject, stimuli, held_out, tuning)
    history = fine_tune(subject, stimuli, texts, tuning, tmp_path / "tuned")
    own = outcome(subject, stimuli, held_out, tuning)

    subject.model.load_state_dict(start)
    tune_arm(subject, texts, tuning, Arm(tuning.lr, 0.0), beside=Path())

    assert outcome(subject, stimuli, held_out, tuning) == own
    assert before["held_out_perplexity"] == pytest.approx(history[0]["held_out_perplexity"])
    assert own["held_out_perplexity"] == pytest.approx(history[-1]["held_out_perplexity"])
    assert own["repeat_accuracy"]["value"] == pytest.approx(history[-1]["repeat_accuracy"])


def test_a_warm_up_as_long_as_the_training_is_refused(tuning: MambaInduction) -> None:
    with pytest.raises(InputError, match="warmup: 8 updates are not less than all 8"):
        recipe_of(tuning.model_copy(update={"warmup": 8}), 16)


def test_gradients_reach_every_weight(tuning: MambaInduction) -> None:
    model = random_mamba(seed=0)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    rows = [np.random.default_rng(1).integers(1, 96, 20) for _ in range(16)]
    with fast_scan(model):
        losses_of(model, DocumentSource(rows, 2, seed=0), recipe_of(tuning, len(rows)))
    assert all(not torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())
