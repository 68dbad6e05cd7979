"""Trainings that are killed, and what reaches W&B."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import wandb
from torch.nn.functional import cross_entropy

from cursive_circuits.data import Words, WrittenRows
from cursive_circuits.data_bank import Item, load_bank, save_bank
from cursive_circuits.params import CursiveCircuits
from cursive_circuits.run_directory import open_run
from cursive_circuits.train import HELD_OUT
from interp_core.files.artifacts import load_json
from interp_core.files.params import read_section
from small_study import call, write_profile

STEPS = 40
SOURCES = os.pathsep.join(
    str(Path(__file__).parents[2] / folder) for folder in ("packages", "shared")
)


@pytest.fixture
def project(items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with a bank, and a profile whose trainings save after every step."""
    (tmp_path / "params.yaml").write_text("profile: small\n")
    (tmp_path / "profiles").mkdir()
    write_profile(
        tmp_path / "profiles" / "small.yaml",
        None,
        steps=STEPS,
        warmup=2,
        checkpoint_every=20,
        save_seconds=0,
    )
    for name in ("killed", "untouched"):
        save_bank(tmp_path / name / "bank" / "bank.zip", items)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained(folder: Path, model: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "runs" / model).iterdir())}


@pytest.mark.parametrize("model", ["handwriting", "control"])
def test_after_kill_9_the_same_command_ends_with_the_same_bytes(model: str, project: Path) -> None:
    arguments = ("train", "--profile", "small", "--only", model, "--out")
    running = subprocess.Popen(
        [sys.executable, "-m", "cursive_circuits.cli", *arguments, "killed"],
        env=os.environ | {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1", "PYTHONPATH": SOURCES},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list((project / ".scratch").glob(f"cursive_circuits/{model}-*/state.safetensors")):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)  # the training has the processor, not who waits for it
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (project / "killed" / "runs").exists()
    assert list((project / ".scratch" / "cursive_circuits").iterdir())
    assert call(*arguments, "killed").exit_code == 0
    assert call(*arguments, "untouched").exit_code == 0
    assert trained(project / "killed", model) == trained(project / "untouched", model)
    assert (
        load_json(project / "killed" / "runs" / model / "history.json")["rows"][-1]["step"] == STEPS
    )
    assert list((project / ".scratch" / "cursive_circuits").iterdir()) == []


def test_samples_reach_the_run_as_pictures(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    profile = write_profile(
        project / "profiles" / "short.yaml", None, steps=4, warmup=1, checkpoint_every=4
    )
    done = call("train", "--profile", str(profile), "--only", "handwriting", "--out", "untouched")
    # as at the end of a program: wandb's service writes the last files when it stops
    wandb.teardown()
    assert done.exit_code == 0, done.output
    pictures = list(project.glob("wandb/offline-run-*/files/media/images/ink/sample_0_*.png"))
    assert len(pictures) == 1
    assert pictures[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_training_is_watched_on_words_that_it_never_sees_as_they_were_written(
    project: Path,
) -> None:
    """The last row of its history, from the written model by another way."""
    profile = write_profile(
        project / "profiles" / "short.yaml", None, steps=4, warmup=1, checkpoint_every=4
    )
    done = call("train", "--profile", str(profile), "--only", "handwriting", "--out", "untouched")
    assert done.exit_code == 0, done.output

    params = read_section("cursive_circuits", CursiveCircuits, str(profile))
    settings, bank = params.handwriting, params.bank
    run = project / "untouched" / "runs" / "handwriting"
    model = open_run(run).model
    items = load_bank(project / "untouched" / "bank" / "bank.zip", alphabet=bank.alphabet)
    seen, unseen = Words.split(items, params.tokens, bank.alphabet, bank.split)
    assert not {item.text for item in seen.items} & {item.text for item in unseen.items}

    plain = settings.mixture.model_copy(update={"jitter": 0.0, "slant": 0.0, "stretch": 0.0})
    found = {}
    for name, words, mixture in (
        ("watched", unseen, plain),
        ("seen", seen, plain),
        ("augmented", unseen, settings.mixture),
    ):
        rows = WrittenRows(
            words, mixture, params.watched.rows, settings.dealt, settings.seed, model.shape.context
        )
        ids, labels = rows(HELD_OUT)
        with torch.no_grad():
            logits = model(ids, rows.inputs(HELD_OUT)["text"]).logits
        found[name] = float(cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()))

    last = load_json(run / "history.json")["rows"][-1]
    assert last["held_out_loss"] == pytest.approx(found["watched"], rel=1e-5)
    for other in ("seen", "augmented"):
        assert found[other] != pytest.approx(found["watched"], rel=1e-4)
