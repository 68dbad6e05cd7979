"""Runs are read back from the .wandb file, or from the stand-in for a server."""

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

from interp_core.training import account, tracking
from interp_core.training.curves import by_head
from interp_core.training.tracking import About, announce, track_evaluation, tracked_run
from wandb_files import logged, records
from wandb_server import KEY, KeptRun, Server, wandb_server

ABOUT = About(
    "models",
    "neox-4l",
    job="train",
    seed=3,
    architecture="gpt_neox",
    settings={"lr": {"peak": 0.5}},
)
STEPS = (0, 10, 20, 30)
# A training that kills itself in the middle of its third point.
KILLED = """
import os, sys, time
from pathlib import Path
from interp_core.training.tracking import About, tracked_run

with tracked_run(About("models", "neox-4l", job="train"), Path("scratch")) as run:
    for step in (0, 10, 20):
        run.log({"step": step, "loss": 5.0 - step}, step)
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project's folder under git with a dvc.lock, and no W&B account in sight."""
    (tmp_path / "params.yaml").write_text("profile: x\n")
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "x.yaml").write_text("a: {}\n")
    (tmp_path / "scratch").mkdir()
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n")
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=b@c", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "RANK", account.FOUND):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    wandb.teardown()  # it has read this environment, and keeps it


@pytest.fixture
def server(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that the project has an account at."""
    with wandb_server() as kept:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", kept.address)
        yield kept
        wandb.teardown()


def only_file(project: Path) -> Path:
    # as at the end of a program: wandb's service writes the last records when it stops
    wandb.teardown()
    (file,) = project.glob("wandb/offline-run-*/*.wandb")
    return file


def only_run(project: Path) -> list[Record]:
    return list(records(only_file(project)))


def only_kept(server: Server) -> KeptRun:
    (run,) = server.runs.values()
    return run


def train(project: Path, steps: tuple[int, ...] = STEPS, *, interrupted: bool = False) -> None:
    """A training of some points; an interrupted one can go on in the same folder."""
    with tracked_run(ABOUT, project / "scratch") as run:
        for step in steps:
            run.log({"step": step, "loss": 5.0 - step}, step)
        if interrupted:
            raise KeyboardInterrupt


def killed(project: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=project, check=False)
    assert done.returncode == -signal.SIGKILL


def told(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Our lines on standard error since the last look."""
    lines = capfd.readouterr().err.splitlines()
    return [line.removeprefix("W&B: ") for line in lines if line.startswith("W&B: ")]


def send(line: str) -> None:
    """Do what a line says between its backticks."""
    _, command, _ = line.split("`")
    program, *arguments = shlex.split(command)
    assert program == "wandb"
    subprocess.run(
        [sys.executable, "-m", "wandb", *arguments], check=True, capture_output=True, timeout=60
    )


def losses(run: KeptRun) -> list[tuple[int, float]]:
    return [(row["step"], row["train/loss"]) for row in run.rows]


def test_a_run_without_an_account_is_kept_whole(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    announce()
    with tracked_run(ABOUT) as run:
        for step in (0, 10):
            run.log({"step": step, "loss": 3.5 - step, "tokens_per_second": 100.0}, step)

    found = only_run(project)
    about = next(record.run for record in found if record.HasField("run"))
    assert (about.display_name, about.run_group, about.job_type) == ("neox-4l", "models", "train")
    assert list(about.tags) == ["models", "x", "neox-4l", "gpt_neox", "seed-3"]
    assert about.project == "induction-lab"

    config: dict[str, Any] = {}
    for record in found:
        updates = record.run.config.update if record.HasField("run") else record.config.update
        config |= {item.key: json.loads(item.value_json) for item in updates}
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True
    )
    assert {name: config[name] for name in ("study", "profile", "model", "seed")} == {
        "study": "models",
        "profile": "x",
        "model": "neox-4l",
        "seed": 3,
    }
    assert config["architecture"] == "gpt_neox"
    assert config["settings"] == {"lr": {"peak": 0.5}}
    assert config["git_revision"].rstrip("+") == head.stdout.strip()
    assert config["dvc_lock_sha256"] == hashlib.sha256(b"schema: '2.0'\n").hexdigest()
    assert config["curves"]["train/loss"].endswith("nats a token")

    names = ("_step", "step", "train/loss", "speed/tokens_per_second")
    rows = [tuple(row[name] for name in names) for row in logged(only_file(project))]
    assert rows == [(0, 0, 3.5, 100), (10, 10, -6.5, 100)]
    (line,) = told(capfd)
    assert "offline" in line
    assert "wandb sync" in line


def test_every_curve_has_the_one_axis_and_its_best_value(project: Path, server: Server) -> None:
    with tracked_run(ABOUT) as run:
        for step, loss in ((0, 3.0), (10, 1.0), (20, 2.0)):
            run.log({"loss": loss, "repeat_accuracy": loss / 4, "learning_rate": loss}, step)

    kept = only_kept(server)
    assert [row["step"] for row in kept.rows] == [0, 10, 20]
    assert kept.summary["train/loss"] == {"min": 1.0, "last": 2.0}
    assert kept.summary["copying/accuracy"] == {"max": 0.75, "last": 0.5}
    assert kept.summary["train/learning_rate"] == {"last": 2.0}
    metrics = json.loads(kept.about["config"])["_wandb"]["value"]["m"]
    # wandb's codes: 1 the name, 2 a glob, 4 or 5 the axis, as a name or as the number of one
    (axis,) = [place for place, one in enumerate(metrics, start=1) if one.get("1") == "step"]
    others = [one for one in metrics if one.get("1") != "step"]
    assert {one.get("5", one.get("4")) for one in others} == {axis}


def test_heads_are_one_table_and_not_a_panel_each(project: Path, server: Server) -> None:
    with tracked_run(ABOUT) as run:
        for step in STEPS:
            run.log(by_head("prefix_matching", [[0.1, 0.2], [0.3, step / 100]]), step)
            run.log({"loss": 1.0, "copying/L1H1": 0.5, "eigenvalues/0": 2.0}, step)

    kept = only_kept(server)
    assert {name for row in kept.rows for name in row if not name.startswith("_")} == {
        *("step", "train/loss", "heads/scores", "curvature/eigenpairs")
    }
    table = json.loads(kept.files[kept.summary["heads/scores"]["path"]])
    assert table["columns"] == ["step", "of", "prefix_matching", "copying"]
    assert len(table["data"]) == 4 * len(STEPS)
    assert [30, "L1H1", 0.3, 0.5] in table["data"]
    assert [30, "L0H1", 0.2, None] in table["data"]


def test_an_evaluation_is_a_run_with_its_answers_as_summary(project: Path, server: Server) -> None:
    answers = {"gain": {"value": 0.062, "low": None, "n": 128, "unit": "words"}}
    track_evaluation("cursive_circuits", answers, {"trainings": 1})

    kept = only_kept(server)
    assert (kept.about["jobType"], kept.about["groupName"]) == ("evaluate", "cursive_circuits")
    assert kept.summary["gain"] == answers["gain"]


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_a_training_that_was_stopped_goes_on_as_the_same_run(
    how: str, project: Path, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    if how == "killed":
        killed(project)
    else:
        with pytest.raises(KeyboardInterrupt):
            train(project, STEPS[:3], interrupted=True)
    # As after a kill, from a state that was saved before the last points.
    train(project, STEPS[1:])

    kept = only_kept(server)
    assert losses(kept) == [(step, 5.0 - step) for step in STEPS]
    assert kept.complete
    assert kept.exit_code == 0
    first, second = [line for line in told(capfd) if "/runs/" in line]
    assert first == second == f"neox-4l: {server.address}/team/induction-lab/runs/{kept.name}"


def test_a_killed_training_without_an_account_leaves_one_whole_run(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(project)
    train(project, STEPS[2:])
    file = only_file(project)
    assert [row["train/loss"] for row in logged(file)] == [5.0, -5.0, -15.0, -25.0]

    with wandb_server() as later:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", later.address)
        send(f"`wandb sync {file.parent}`")
        assert losses(only_kept(later)) == [(step, 5.0 - step) for step in STEPS]


def test_training_again_is_another_run(project: Path, server: Server) -> None:
    for name in ("scratch", "again"):
        (project / name).mkdir(exist_ok=True)
        with tracked_run(ABOUT, project / name) as run:
            run.log({"loss": 1.0}, 0)
    assert len(server.runs) == 2


def test_what_a_machine_that_stopped_has_half_written_is_left_out(project: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(project, STEPS[:2], interrupted=True)
    with (project / "scratch" / "curves.jsonl").open("a") as journal:
        journal.write('{"step": 20, "val')
    train(project, STEPS[1:])
    assert [row["step"] for row in logged(only_file(project))] == list(STEPS)


@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_an_unreachable_server_is_found_out_once_for_all_trainings_of_a_call(
    how: str,
    project: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert account.PATIENCE + 2 <= 10
    server.hangs = how == "hangs"
    if how == "refuses":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(account, "PATIENCE", 0.5)

    announce()
    for name in ("one", "two"):
        (project / name).mkdir()
        with tracked_run(About("models", name, job="train"), project / name) as run:
            run.log({"loss": 1.0}, 0)

    warning, one, two = told(capfd)
    assert "cannot be used" in warning
    assert server.requests == (1 if how == "hangs" else 0)
    # Workers are processes of their own, and inherit it.
    assert json.loads(os.environ[account.FOUND])["trouble"] is not None

    server.hangs = False
    wandb.teardown()
    monkeypatch.setenv("WANDB_BASE_URL", server.address)
    send(two)
    assert only_kept(server).about["displayName"] == "two"
    assert one != two


def test_a_server_that_dies_under_a_run_costs_little_and_the_run_can_be_sent_later(
    project: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert tracking.FINISH_TIMEOUT <= 9
    monkeypatch.setattr(tracking, "FINISH_TIMEOUT", 1)
    announce()

    with tracked_run(ABOUT, project / "scratch") as run:
        run.log({"loss": 5.0}, 0)
        server.hangs = True
        for step in STEPS[1:]:
            run.log({"loss": 5.0 - step}, step)

    asked = server.requests
    with tracked_run(About("models", "after", job="train")) as run:
        run.log({"loss": 1.0}, 0)
    assert server.requests == asked  # the next training of the call does not wait again

    _, lost, _ = told(capfd)
    server.hangs = False
    server.released.set()
    wandb.teardown()
    send(lost)
    kept = only_kept(server)
    assert losses(kept) == [(step, 5.0 - step) for step in STEPS]
    assert kept.complete


def test_a_failed_training_is_marked_failed_and_its_error_comes_through(project: Path) -> None:
    with pytest.raises(ZeroDivisionError), tracked_run(ABOUT):
        _ = 1 / 0
    assert (
        next(record.exit.exit_code for record in only_run(project) if record.HasField("exit")) == 1
    )


@pytest.mark.parametrize(("variable", "value"), [("WANDB_MODE", "disabled"), ("RANK", "1")])
def test_disabled_and_other_ranks_write_nothing(
    variable: str, value: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    train(project)
    assert not (project / "wandb").exists()
    assert not list((project / "scratch").iterdir())


def test_online_needs_a_key_or_a_wish(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert account.mode() == "offline"
    (project / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert account.mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert account.mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert account.mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert account.mode() == "offline"


def test_a_refused_key_is_said_before_any_training(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "b" * 40)
    announce()
    (line,) = told(capfd)
    assert "refuses the API key" in line
    assert account.this_call().mode == "offline"
