"""A training that is killed, interrupted or spread out ends where an untouched one does."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from interp_core.cli import main
from small_trainings import lay_out

MODELS = ["models", "--corpus", "corpus"]
COMMAND = [sys.executable, "-m", "interp_core.cli", *MODELS]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project's folder with a small text, its corpus, and a profile whose two models save after
    every step.
    """
    folder = tmp_path_factory.mktemp("project")
    lay_out(folder, models=("one", "two"), steps=60)
    assert finish(folder, "corpus", "--out", "corpus").exit_code == 0
    return folder


@pytest.fixture(scope="module")
def untouched(project: Path) -> Path:
    """Models of a run that nothing happened to."""
    assert finish(project, *MODELS, *to("untouched")).exit_code == 0
    return project / "untouched"


def finish(project: Path, *arguments: str) -> Result:
    """A command that nobody stops, in this process.

    What is killed or interrupted gets a process of its own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        for name, value in {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def environment() -> dict[str, str]:
    return os.environ | {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}


def to(name: str, processes: int = 1) -> list[str]:
    return [
        "--out",
        f"{name}/models",
        "--history",
        f"{name}/training",
        "--processes",
        str(processes),
    ]


def start(project: Path, arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=project,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_step(project: Path, running: subprocess.Popen[str], step: int) -> None:
    """Until every training in progress has kept the weights of `step` and saved its state."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert running.poll() is None, running.stderr and running.stderr.read()
        kept = list((project / ".scratch").glob(f"*/*/checkpoints/step-{step:06d}.safetensors"))
        if kept and all((file.parents[1] / "state.safetensors").exists() for file in kept):
            return
        time.sleep(0.01)  # the training has the processor, not who waits for it
    raise AssertionError(f"no step {step} in two minutes")


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize(("processes", "step"), [(1, 32), (2, 16)])
def test_after_kill_9_the_same_command_ends_with_the_same_bytes(
    processes: int, step: int, project: Path, untouched: Path
) -> None:
    name = f"killed-{processes}"
    running = start(project, to(name, processes))
    wait_for_step(project, running, step)
    os.kill(running.pid, signal.SIGKILL)  # its workers get no signal: they must notice
    running.wait()
    assert files(project / name / "models").keys() < files(untouched / "models").keys()
    assert finish(project, *MODELS, *to(name, processes)).exit_code == 0
    assert files(project / name) == files(untouched)
    assert list((project / ".scratch" / "reference_models").iterdir()) == []


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_says_one_line_and_the_next_run_goes_on(
    processes: int, project: Path, untouched: Path
) -> None:
    name = f"interrupted-{processes}"
    running = start(project, to(name, processes))
    wait_for_step(project, running, 16)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to the whole group
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said.strip().splitlines() == [
        "loading ...",
        "interrupted: the same command continues from the last saved state",
    ]
    assert finish(project, *MODELS, *to(name, processes)).exit_code == 0
    assert files(project / name) == files(untouched)


def test_a_second_command_into_one_folder_is_refused_and_the_first_one_ends_the_same(
    project: Path, untouched: Path
) -> None:
    running = start(project, to("shared"))
    wait_for_step(project, running, 1)
    os.kill(running.pid, signal.SIGSTOP)
    try:
        other = finish(project, *MODELS, *to("shared"), "--seed", "5")
        histories = finish(project, *MODELS, "--out", "own", "--history", "shared/training")
    finally:
        os.kill(running.pid, signal.SIGCONT)
        running.communicate(timeout=120)

    for second, folder in ((other, "models"), (histories, "training")):
        assert second.exit_code == 2
        told = f"process {running.pid} is writing into shared/{folder}: wait until it ends"
        assert told in second.stderr
    assert running.returncode == 0
    assert files(project / "shared") == files(untouched)
    assert not (project / "own").exists()


def test_after_kill_9_a_training_goes_on_where_the_project_cannot_be_written(
    project: Path, untouched: Path, tmp_path: Path
) -> None:
    home = tmp_path / "project"
    shutil.copytree(project, home, ignore=shutil.ignore_patterns(".scratch"))
    (home / ".scratch").touch()  # no folder can be below a file, whoever asks
    running = start(home, to("mine"))
    wait_for_step(home / "mine" / "models", running, 16)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()

    done = finish(home, *MODELS, *to("mine"))
    assert done.exit_code == 0
    assert "what is unfinished is kept" not in done.stderr  # was said when it began
    shutil.rmtree(home / "mine" / "models" / ".scratch")
    assert files(home / "mine") == files(untouched)


def test_a_second_trainer_of_the_same_model_is_told_so(project: Path) -> None:
    running = start(project, to("first"))
    wait_for_step(project, running, 1)
    os.kill(running.pid, signal.SIGSTOP)
    try:
        second = finish(project, *MODELS, *to("second"))
    finally:
        os.kill(running.pid, signal.SIGCONT)
        running.communicate(timeout=120)
    assert second.exit_code == 2
    assert f"process {running.pid} is already working on this" in second.stderr
    assert running.returncode == 0


def test_two_ranks_under_torchrun_train_the_model_of_one_process(
    project: Path, untouched: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        f"--master-port={port}",
    ]
    done = subprocess.run(
        [*launched, "-m", *COMMAND[2:], *to("ranks")],
        cwd=project,
        env=environment() | {"TORCH_DISTRIBUTED_DEBUG": "INFO"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "world of 2" in done.stderr
    # Not weight by weight: the loss does not depend on the keys' bias, so its gradient is rounding,
    # and Adam's step along it, full size, has the sign of that rounding.
    for name in ("one", "two"):
        together, alone = history(project / "ranks", name), history(untouched, name)
        np.testing.assert_array_equal(together["step"], alone["step"])
        for column in ("loss", "validation_loss"):
            np.testing.assert_allclose(together[column], alone[column], rtol=1e-4)


def history(folder: Path, name: str) -> np.ndarray:
    """The committed history of one model, a column a name."""
    return np.genfromtxt(folder / "training" / f"{name}.csv", delimiter=",", names=True)


def test_help_needs_no_torch() -> None:
    started = time.perf_counter()
    program = (
        "import sys; from interp_core import cli;"
        " assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert time.perf_counter() - started < 3
