"""Runs are read back from the .wandb file."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

from interp_core.training import tracking
from wandb_files import logged, records


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder under git with a dvc.lock, and no W&B account in sight."""
    (tmp_path / "params.yaml").write_text("profile: x\n")
    (tmp_path / "profiles").mkdir()
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n")
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=b@c", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def only_file(project: Path) -> Path:
    # as at the end of a program: wandb's service writes the last records when it stops
    wandb.teardown()
    (file,) = project.glob("wandb/offline-run-*/*.wandb")
    return file


def only_run(project: Path) -> list[Record]:
    return list(records(only_file(project)))


def test_a_run_without_an_account_is_kept_whole(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracking.announce()
    tags = ["gpt_neox", "neox-4l"]
    with tracking.tracked_run(
        "neox-4l", group="models", job_type="train", tags=tags, config={"lr": {"peak": 0.5}}
    ) as run:
        for step in (0, 10):
            run.log({"loss": 3.5 - step, "tokens_per_second": 100.0}, step)
    found = only_run(project)
    about = next(record.run for record in found if record.HasField("run"))
    assert (about.display_name, about.run_group, about.job_type) == ("neox-4l", "models", "train")
    assert (list(about.tags), about.project) == (tags, "induction-lab")
    config = {item.key: json.loads(item.value_json) for item in about.config.update}
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True
    )
    assert config["lr"] == {"peak": 0.5}
    assert config["git_revision"].rstrip("+") == head.stdout.strip()
    assert config["dvc_lock_sha256"] == hashlib.sha256(b"schema: '2.0'\n").hexdigest()
    rows = logged(only_file(project))
    assert [(row["_step"], row["loss"], row["tokens_per_second"]) for row in rows] == [
        (0, 3.5, 100),
        (10, -6.5, 100),
    ]
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert "offline" in line
    assert "wandb sync" in line


def test_a_failed_training_is_marked_failed_and_its_error_comes_through(project: Path) -> None:
    with pytest.raises(ZeroDivisionError), tracking.tracked_run("x", group="g", job_type="train"):
        _ = 1 / 0
    assert (
        next(record.exit.exit_code for record in only_run(project) if record.HasField("exit")) == 1
    )


@pytest.mark.parametrize(("variable", "value"), [("WANDB_MODE", "disabled"), ("RANK", "1")])
def test_disabled_and_other_ranks_write_nothing(
    variable: str, value: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with tracking.tracked_run("x", group="g", job_type="train") as run:
        run.log({"loss": 1.0}, 0)
    assert not (project / "wandb").exists()


def test_online_needs_a_key_or_a_wish(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking.mode() == "offline"
    (project / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert tracking.mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert tracking.mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert tracking.mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert tracking.mode() == "offline"


def test_an_unreachable_account_is_one_warning_and_an_offline_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(tracking, "INIT_TIMEOUT", 3)
    with tracking.tracked_run("x", group="g", job_type="train") as run:
        run.log({"loss": 1.0}, 0)
    assert any(record.HasField("history") for record in only_run(project))
    warnings = [
        line
        for line in capfd.readouterr().err.splitlines()
        if line.startswith("W&B: online failed")
    ]
    assert len(warnings) == 1
