"""A sweep on a cluster ends with the bytes of one process, whoever dies on the way."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="Dask is not installed (make test-servers)")

import servers
from cluster_commands import environment
from interp_core.training import cluster
from servers import tasks
from small_trainings import lay_out

pytestmark = [pytest.mark.slow, pytest.mark.servers]

COMMAND = [sys.executable, "-m", "interp_core.cli"]
MODELS = ["models", "--corpus", "corpus"]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code, and what was said on standard error."""
    running = start(folder, *arguments)
    _, said = running.communicate(timeout=300)
    return running.returncode, said


def to(name: str) -> list[str]:
    return ["--out", f"{name}/models", "--history", f"{name}/training"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a small text, its corpus, and three models that save after every step."""
    folder = tmp_path_factory.mktemp("project")
    lay_out(folder, models=("one", "two", "three"), steps=150)

    assert finish(folder, "corpus", "--out", "corpus")[0] == 0
    return folder


@pytest.fixture(scope="module")
def untouched(project: Path) -> dict[str, bytes]:
    """What one process writes."""
    code, said = finish(project, *MODELS, *to("untouched"))
    assert code == 0, said
    return files(project / "untouched")


@pytest.fixture
def running_cluster(tmp_path: Path) -> Iterator[tuple[Path, list[subprocess.Popen[bytes]]]]:
    """A scheduler's file, and two workers of it, each a process that nobody starts again."""
    with servers.dask(tmp_path, environment()) as running:
        yield running


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def _wait_until(is_so: object, what: str, running: subprocess.Popen[str] | None = None) -> None:
    assert callable(is_so)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if is_so():
            return
        assert running is None or running.poll() is None, running.stderr and running.stderr.read()
        time.sleep(0.05)
    raise AssertionError(f"not in two minutes: {what}")


def trainings_at(project: Path, step: int) -> int:
    """Trainings in progress that have kept the weights of this step, and saved."""
    kept = (project / ".scratch").glob(f"*/*/checkpoints/step-{step:06d}.safetensors")
    return sum((file.parents[1] / "state.safetensors").exists() for file in kept)


def test_two_workers_write_the_bytes_of_one_process(
    project: Path, untouched: dict[str, bytes]
) -> None:
    code, said = finish(project, *MODELS, *to("two-workers"), "--cluster", "local:2")
    assert code == 0, said
    assert files(project / "two-workers") == untouched


def test_a_worker_that_is_killed_in_the_middle_changes_no_byte(
    project: Path,
    untouched: dict[str, bytes],
    running_cluster: tuple[Path, list[subprocess.Popen[bytes]]],
) -> None:
    file, workers = running_cluster
    running = start(project, *MODELS, *to("killed"), "--cluster", str(file))
    _wait_until(lambda: trainings_at(project, 16) == 2, "both train", running)

    workers[0].kill()
    workers[0].wait()
    _, said = running.communicate(timeout=300)

    assert running.returncode == 0, said
    assert files(project / "killed") == untouched
    assert not tasks(project)
    assert not list((project / ".scratch").glob("cluster-*"))


def test_what_is_wrong_with_one_task_is_one_line_and_ends_the_others(project: Path) -> None:
    broken = project / "broken"
    (broken / "models" / "two").mkdir(parents=True)
    (broken / "training").mkdir()
    running = start(project, *MODELS, *to("broken"), "--cluster", "local:2")
    # A folder that appears while its model is trained is nobody's to replace.
    _wait_until(lambda: trainings_at(project, 4) == 2, "two train", running)
    for name in ("one", "two", "three"):
        (broken / "models" / name).mkdir(exist_ok=True)
        (broken / "models" / name / "mine").write_text("of the user's")

    _, said = running.communicate(timeout=300)
    assert running.returncode == 2
    sign_of_life, told = said.splitlines()
    assert sign_of_life == "loading ..."
    assert told.startswith("error: ")
    assert not tasks(project)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_who_stops_the_command_stops_its_tasks(
    number: int, project: Path, untouched: dict[str, bytes], tmp_path: Path
) -> None:
    # What earlier tests left unfinished must not be taken for these trainings.
    shutil.rmtree(project / ".scratch", ignore_errors=True)
    name = f"stopped-{number}"
    running = start(project, *MODELS, *to(name), "--cluster", "local:2")
    _wait_until(lambda: trainings_at(project, 16) == 2, "two train", running)

    # A terminal sends its signal to the whole group; kill -9 goes to one.
    (os.killpg if number == signal.SIGINT else os.kill)(running.pid, number)
    _, said = running.communicate(timeout=120)
    _wait_until(lambda: not tasks(project), "no task is left")
    if number == signal.SIGINT:
        assert running.returncode == 130, said
        # Tasks have saved, but only their workers know: no more is said here.
        assert said.splitlines()[-1] == "interrupted"

    code, said = finish(project, *MODELS, *to(name), "--cluster", "local:2")
    assert code == 0, said
    assert files(project / name) == untouched


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("tcp://127.0.0.1:9", "Timed out trying to connect"),
        ("nobody", "missing port number"),
        ("local:many", "how many workers?"),
        ("local:0", "how many workers?"),
        ("local:5000000000", "at most 4096"),
        ("local:" + "9" * 5000, "at most 4096"),
        ("slurm:2", "jobqueue.yaml"),
    ],
)
def test_an_address_where_no_cluster_is_is_one_line(
    address: str, expected: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    monkeypatch.chdir(project)
    with pytest.raises(cluster.InputError, match=expected):
        cluster.run_on_cluster([], address)


def test_a_worker_with_other_packages_is_refused(project: Path) -> None:
    ground = cluster._ground() | {"torch": "0.1"}
    work = pickle.dumps((pickle.dumps((print, (), {})), ground, 0))
    reads, writes = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-m", "interp_core.training.cluster", str(writes)],
        cwd=project,
        env=environment(),
        stdin=subprocess.PIPE,
        pass_fds=[writes],
    )
    os.close(writes)
    assert child.stdin is not None
    child.stdin.write(len(work).to_bytes(8, "big") + work)
    child.stdin.flush()
    with os.fdopen(reads) as told:
        said = told.read()
    assert child.wait() == 2
    assert "has torch" in said
    assert "start workers in the same environment" in said


def test_no_key_leaves_the_machine(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    for name in ("WANDB_API_KEY", "HF_TOKEN", "WANDB_MODE", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "disabled")
    monkeypatch.setenv("INDUCTION_LAB_CLUSTER", "local:2")
    passed = cluster._place(project / "token").environment
    assert passed["WANDB_MODE"] == "disabled"
    assert not {"WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"} & passed.keys()
    assert "INDUCTION_LAB_CLUSTER" not in passed
