"""The training loop against a loop written out by hand, against itself when interrupted, and
against bad numbers.
"""

import fcntl
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import pytest
import torch
import wandb
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, MambaConfig, MambaForCausalLM

from interp_core.errors import InputError
from interp_core.files.artifacts import load_weights
from interp_core.files.sums import SUMS
from interp_core.training.batches import IGNORED, Batch, BatchSource
from interp_core.training.checkpoints import (
    Scratch,
    checkpoint_name,
    checkpoint_steps,
    clear_scratch,
    fingerprint,
    scratch,
)
from interp_core.training.history import History
from interp_core.training.live_run import Run
from interp_core.training.loop import Diverged, Moment, parameter_groups, train
from interp_core.training.recipe import Recipe
from interp_core.training.tracking import About, tracked_run
from wandb_files import logged, records

VOCABULARY = 40


def recipe(**changes: object) -> Recipe:
    values = {
        "steps": 12,
        "learning_rate": 1e-2,
        "final_share": 0.1,
        "warmup": 3,
        "betas": (0.9, 0.98),
        "weight_decay": 0.1,
        "clip": 0.5,
        "precision": "fp32",
        "device": "cpu",
        "threads": 1,
        "checkpoint_every": 5,
        "checkpoint_also": [],
        "save_seconds": 1000,
    }
    return Recipe.model_validate(values | changes)


def small_model() -> GPTNeoXForCausalLM:
    torch.manual_seed(3)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    return GPTNeoXForCausalLM(config)


def small_batch(step: int) -> Batch:
    rng = np.random.default_rng([5, step])
    ids = torch.from_numpy(rng.integers(VOCABULARY, size=(4, 10)))
    labels = ids.clone()
    labels[:2, :5] = IGNORED
    return ids, labels


def nothing(_moment: Moment) -> Mapping[str, float]:
    return {}


def run_training(model: nn.Module, where: Scratch | None = None, **changes: object) -> History:
    return train(
        model, small_batch, nothing, recipe(**changes), scratch=where, run=Run(), label="test"
    )


class Interrupted:
    """A batch source during which Ctrl-C is pressed at one step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __call__(self, step: int) -> Batch:
        if step == self.at:
            import signal

            signal.raise_signal(signal.SIGINT)
        return small_batch(step)


@pytest.fixture
def folder(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path / "scratch")


def test_training_is_adamw_on_the_models_own_loss() -> None:
    ours, plain = small_model(), small_model()
    settings = recipe()
    history = run_training(ours)
    optimizer = torch.optim.AdamW(
        parameter_groups(plain, settings.weight_decay), betas=settings.betas
    )
    losses = []
    for step in range(settings.steps + 1):
        ids, labels = small_batch(step)
        loss = plain(input_ids=ids, labels=labels).loss  # transformers' own shift and mean
        losses.append(loss.item())
        if step == settings.steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), settings.clip)
        optimizer.step()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(
            mine, theirs, rtol=2e-4, atol=2e-5
        )  # keys' biases have gradients of pure noise
    assert [row["step"] for row in history] == [0, 1, 2, 4, 5, 8, 10, 12]
    assert history[-1]["loss"] == pytest.approx(np.mean(losses[11:13]), rel=1e-4)
    assert history[5]["loss"] == pytest.approx(np.mean(losses[6:9]), rel=1e-4)


def test_the_rate_rises_evenly_then_follows_a_cosine() -> None:
    settings = recipe(steps=100, warmup=10, final_share=0.2, learning_rate=1.0)
    assert settings.rate(0) == pytest.approx(0.1, rel=1e-3)
    assert settings.rate(50) == pytest.approx(0.6)
    assert settings.rate(100) == pytest.approx(0.2)
    assert all(settings.rate(step) > settings.rate(step + 1) for step in range(10, 100))


def test_only_matrices_decay_and_nothing_that_asks_not_to() -> None:
    mamba = MambaForCausalLM(
        MambaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, state_size=4)
    )
    decayed = {id(p) for p in parameter_groups(mamba, 0.1)[0]["params"]}
    names = {name for name, parameter in mamba.named_parameters() if id(parameter) in decayed}
    short = {name.rsplit(".", 2)[-2] for name in names}
    assert short == {"embeddings", "in_proj", "x_proj", "dt_proj", "out_proj"}


@pytest.mark.parametrize("at", [0, 4, 5, 7])
def test_a_training_stopped_by_ctrl_c_ends_with_the_bytes_of_one_that_was_not(
    at: int, folder: Scratch
) -> None:
    straight, stopped, resumed = small_model(), small_model(), small_model()
    expected = run_training(straight)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, Interrupted(at), nothing, recipe(), scratch=folder, run=Run(), label="test")
    history = run_training(resumed, folder)
    assert history == expected
    for name, tensor in resumed.state_dict().items():
        assert torch.equal(tensor, straight.state_dict()[name]), name
    saved = load_weights(folder.checkpoints / checkpoint_name(12))
    assert all(torch.equal(saved[name], tensor) for name, tensor in straight.state_dict().items())
    steps = [int(file.stem.removeprefix("step-")) for file in sorted(folder.checkpoints.iterdir())]
    assert steps == checkpoint_steps(12, every=5)


def test_a_stopped_training_is_one_run_with_the_curves_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text("profile: x\n")
    (tmp_path / "profiles").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")

    def part(name: str, batch: BatchSource) -> None:
        where = Scratch(tmp_path / name)
        where.folder.mkdir(exist_ok=True)
        about = About("test", name, job="train")
        with tracked_run(about, where.folder) as run:
            train(small_model(), batch, heads, recipe(), scratch=where, run=run, label=name)

    def heads(moment: Moment) -> Mapping[str, float]:
        moment.run.log({"score/L0H0": moment.step}, moment.step)
        return {"validation_loss": float(moment.step)}

    part("straight", small_batch)
    with pytest.raises(KeyboardInterrupt):
        part("stopped", Interrupted(7))
    part("stopped", small_batch)
    wandb.teardown()

    curves: dict[str, list[tuple]] = {}
    for file in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")):
        name = next(one.run.display_name for one in records(file) if one.HasField("run"))
        rows = [row for row in logged(file) if "heldout/loss" in row]
        assert name not in curves
        curves[name] = [(row["step"], row["train/loss"], row["heldout/loss"]) for row in rows]

    assert curves["stopped"] == curves["straight"]
    assert [step for step, *_ in curves["straight"]] == checkpoint_steps(12, every=5)


def test_a_resumed_training_does_not_repeat_the_steps_it_has_done(folder: Scratch) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(
            small_model(),
            Interrupted(7),
            nothing,
            recipe(),
            scratch=folder,
            run=Run(),
            label="test",
        )
    asked: list[int] = []

    def source(step: int) -> Batch:
        asked.append(step)
        return small_batch(step)

    train(small_model(), source, nothing, recipe(), scratch=folder, run=Run(), label="test")
    assert asked == [8, 9, 10, 11, 12]


def test_a_diverging_loss_stops_with_its_step_and_keeps_the_last_good_weights(
    folder: Scratch,
) -> None:
    model = small_model()

    def source(step: int) -> Batch:
        if step == 6:
            with torch.no_grad():
                next(model.parameters()).fill_(float("inf"))
        return small_batch(step)

    with pytest.raises(Diverged, match=r"the loss is nan at step 6.*learning_rate") as caught:
        train(model, source, nothing, recipe(), scratch=folder, run=Run(), label="test")
    assert [row["step"] for row in caught.value.history] == [0, 1, 2, 4, 5]
    kept = load_weights(folder.checkpoints / checkpoint_name(5))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.values())


def test_evaluation_changes_nothing() -> None:
    quiet, watched = small_model(), small_model()
    run_training(quiet)

    def look(moment: Moment) -> Mapping[str, float]:
        assert not moment.model.training
        return {"first": next(moment.model.parameters()).flatten()[0].item()}

    history = train(watched, small_batch, look, recipe(), scratch=None, run=Run(), label="test")
    assert torch.equal(next(quiet.parameters()), next(watched.parameters()))
    assert (
        history[0]["first"]
        != history[-1]["first"]
        == next(watched.parameters()).flatten()[0].item()
    )
    assert watched.training


def test_weights_are_kept_where_the_history_says_so(folder: Scratch) -> None:
    def late(history: History) -> bool:
        return history[-1]["step"] > 4

    train(
        small_model(),
        small_batch,
        nothing,
        recipe(),
        scratch=folder,
        run=Run(),
        label="test",
        keep=late,
    )
    assert [file.name for file in sorted(folder.checkpoints.iterdir())] == [
        checkpoint_name(s) for s in (5, 8, 10, 12)
    ]


def test_an_evaluation_sees_the_optimiser_and_the_next_rate() -> None:
    def look(moment: Moment) -> Mapping[str, float]:
        memory = [float(state["step"]) for state in moment.optimizer.state.values()]
        assert memory == [moment.step] * len(memory)
        return {"next_rate": moment.rate}

    history = train(
        small_model(), small_batch, look, recipe(), scratch=None, run=Run(), label="test"
    )
    assert [row["next_rate"] for row in history] == [row["learning_rate"] for row in history]


def test_kept_steps_are_log_spaced_with_even_ones_between() -> None:
    assert checkpoint_steps(40, every=20) == [0, 1, 2, 4, 8, 16, 20, 32, 40]
    assert checkpoint_steps(8, every=100) == [0, 1, 2, 4, 8]
    assert checkpoint_steps(7, every=7) == [0, 1, 2, 4, 7]
    assert checkpoint_steps(8, every=100, also=[3, 9]) == [0, 1, 2, 3, 4, 8]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project's folder, and the working directory."""
    (tmp_path / "params.yaml").write_text("profile: x\n")
    (tmp_path / "profiles").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_second_trainer_is_refused_by_name_and_a_finished_one_leaves_nothing(
    project: Path,
) -> None:
    with scratch("stage", "mark", beside=Path()) as first:
        assert first.folder == project / ".scratch" / "stage" / "mark"
        with (
            pytest.raises(InputError, match=r"already working on this.*mark\.lock"),
            scratch("stage", "mark", beside=Path(), patience=0.0),
        ):
            pass
        with scratch("stage", "other", beside=Path(), patience=0.0):
            pass
    assert list((project / ".scratch" / "stage").iterdir()) == []


@pytest.mark.usefixtures("project")
def test_trainings_whose_names_differ_after_a_dot_go_on_together() -> None:
    with (
        scratch("stage", "tiny-1.4b", beside=Path(), patience=0.0) as one,
        scratch("stage", "tiny-1.7b", beside=Path(), patience=0.0) as other,
    ):
        assert one.folder != other.folder


def test_a_lock_that_its_trainer_removed_meanwhile_is_taken_anew(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending, flock = ExitStack(), fcntl.flock

    def end_first(file: TextIO, how: int) -> None:
        ending.close()
        flock(file, how)

    ending.enter_context(scratch("stage", "mark", beside=Path()))
    monkeypatch.setattr("interp_core.files.locks.fcntl.flock", end_first)
    with (
        scratch("stage", "mark", beside=Path()),
        pytest.raises(InputError, match="already working on this"),
        scratch("stage", "mark", beside=Path(), patience=0.0),
    ):
        pass
    assert list((project / ".scratch" / "stage").iterdir()) == []


def test_where_the_project_cannot_be_written_it_goes_on_beside_the_results(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / ".scratch").touch()  # no folder can be below a file, whoever asks
    beside = project / "mine"
    for at in (1, 2):
        with suppress(InputError), scratch("stage", "mark", beside=beside) as held:
            assert held.folder == beside / ".scratch" / "stage" / "mark"
            assert held.load() is None if at == 1 else held.load() is not None
            held.save(at, {"a": torch.ones(2)}, {})
            raise InputError("x")

    told = capsys.readouterr().err.splitlines()
    kept = beside / ".scratch" / "stage"
    assert len(told) == 1
    assert told[0].endswith(f"Not a directory: what is unfinished is kept in {kept}")

    (beside / ".scratch" / "other").touch()
    with (
        pytest.raises(InputError, match=r"cannot write into .*mine/\.scratch/other"),
        scratch("other", "mark", beside=beside),
    ):
        pass


@pytest.mark.usefixtures("project")
def test_who_is_killed_while_a_finished_trainings_folder_goes_leaves_none_that_is_refused() -> None:
    def ending(folder: Path) -> None:
        (folder / SUMS).unlink()  # any of its files may be the first to go
        raise KeyboardInterrupt

    tensors = {"a": torch.ones(2)}

    def trained() -> None:
        with scratch("stage", "mark", beside=Path()) as held:
            held.save(7, tensors, {})
            held.save_weights(held.checkpoints / "step-7.safetensors", tensors)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shutil, "rmtree", ending)
        with pytest.raises(KeyboardInterrupt):
            trained()

    with scratch("stage", "mark", beside=Path(), patience=0.0) as again:
        assert again.load() is None
        again.save_weights(again.checkpoints / "step-7.safetensors", tensors)
        again.check()


def test_what_a_trainer_left_at_its_very_end_is_cleared(project: Path) -> None:
    place = project / ".scratch" / "stage"
    (place / "mark").mkdir(parents=True)
    for name in ("mark.lock", "other.lock"):
        (place / name).write_text("1")

    clear_scratch("stage", "mark", beside=Path())
    clear_scratch("stage", "none", beside=Path())
    assert [file.name for file in place.iterdir()] == ["other.lock"]


@pytest.mark.usefixtures("project")
def test_a_failed_training_keeps_its_folder() -> None:
    with pytest.raises(InputError), scratch("stage", "mark", beside=Path()) as held:
        raise InputError("x")
    assert held.folder.is_dir()
    with scratch("stage", "mark", beside=Path(), patience=0.0):
        pass


def test_what_a_killed_trainer_was_writing_is_gone_when_the_next_one_starts(project: Path) -> None:
    killed = """
import os, signal
from pathlib import Path
from interp_core.files.artifacts import replacing
from interp_core.training.checkpoints import checkpoint_name, scratch
with scratch("stage", "mark", beside=Path()) as held:
    with replacing(held.checkpoints / checkpoint_name(8)) as part:
        part.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -signal.SIGKILL
    checkpoints = project / ".scratch" / "stage" / "mark" / "checkpoints"
    assert len(list(checkpoints.iterdir())) == 1
    with scratch("stage", "mark", beside=Path()) as held:
        assert list(held.checkpoints.iterdir()) == []


def test_a_damaged_state_is_named(folder: Scratch) -> None:
    folder.save(3, {"a": torch.ones(2)}, {"history": []})
    state = folder.folder / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"state\.safetensors is damaged"):
        folder.load()


def test_the_fingerprint_knows_params_and_code(tmp_path: Path) -> None:
    code = tmp_path / "a.py"
    code.write_text("x = 1")
    first = fingerprint({"steps": 3}, "data", code=[code])
    assert first == fingerprint({"steps": 3}, "data", code=[code])
    assert first != fingerprint({"steps": 4}, "data", code=[code])
    code.write_text("x = 2")
    assert first != fingerprint({"steps": 3}, "data", code=[code])


def test_a_rising_warm_up_longer_than_the_training_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup"):
        recipe(warmup=12)


def test_saving_costs_little(folder: Scratch) -> None:
    import time

    model = small_model()
    started = time.perf_counter()
    folder.save(
        1, {f"model/{name}": tensor for name, tensor in model.named_parameters()}, {"history": []}
    )
    assert time.perf_counter() - started < 0.5
    assert math.isfinite(started)


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_a_batch_in_parts_trains_like_the_whole_batch(parts: int) -> None:
    whole, parted = small_model(), small_model()
    expected = run_training(whole)
    found = train(
        parted,
        small_batch,
        nothing,
        recipe(),
        scratch=None,
        run=Run(),
        label="test",
        accumulation=parts,
    )
    assert [row["loss"] for row in found] == pytest.approx(
        [row["loss"] for row in expected], abs=1e-5
    )
    for ours, theirs in zip(parted.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)


class Shifted(NamedTuple):
    logits: torch.Tensor


class TakesMore(nn.Module):
    """A model of two inputs: the second one shifts every logit of token 0."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, VOCABULARY)
        self.seen: list[torch.Tensor] = []

    def forward(
        self, input_ids: torch.Tensor, shift: torch.Tensor, use_cache: bool = False
    ) -> Shifted:
        self.seen.append(shift)
        return Shifted(self.table(input_ids) + shift[:, None, None])


def test_other_inputs_of_a_model_arrive_with_their_step() -> None:
    model = TakesMore()
    more = lambda step: {"shift": torch.full((4,), float(step))}  # noqa: E731
    train(
        model,
        small_batch,
        nothing,
        recipe(steps=4),
        scratch=None,
        run=Run(),
        label="test",
        inputs=more,
    )
    assert [int(shift[0]) for shift in model.seen] == [0, 1, 2, 3, 4]
    assert all(shift.shape == (4,) for shift in model.seen)
