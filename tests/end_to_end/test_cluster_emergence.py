"""Checkpoints on a cluster: emergence writes the bytes of one process, and measures none twice."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="Dask is not installed (make test-servers)")

import cluster_commands
import small_project
from cluster_commands import Kept, kept_in, wait_until, wait_until_alone, writings
from interp_core.files.artifacts import save_weights

pytestmark = [pytest.mark.slow, pytest.mark.servers]

STEPS = [0, 1, 2, 4, 8, 16, 32, 64]
START = "from pythia_topology.cli import main; main()"


def start(project: Path, out: str, *more: str) -> subprocess.Popen[str]:
    given = ["emergence", "--model", "models/toy", "--out", out, *more]
    return cluster_commands.start(project, START, *given)


def finish(running: subprocess.Popen[str]) -> None:
    cluster_commands.finish(running, timeout=300)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def kept(project: Path) -> Kept:
    """Checkpoints that are kept."""
    return kept_in(project / ".scratch", "pythia_emergence/*/step-*", "scores.npz")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project whose first model has checkpoints."""
    folder = small_project.build_project(tmp_path_factory.mktemp("project"))
    for step in STEPS:
        weights = small_project.random_model(layers=2, seed=100 + step).state_dict()
        place = folder / "models" / "toy" / "checkpoints" / f"step-{step:06d}.safetensors"
        save_weights(place, weights)
    return folder


@pytest.fixture(scope="module")
def untouched(project: Path) -> dict[str, bytes]:
    """What one process writes."""
    finish(start(project, "untouched"))
    return files(project / "untouched")


def test_two_workers_write_the_bytes_of_one_process(
    project: Path, untouched: dict[str, bytes]
) -> None:
    finish(start(project, "two-workers", "--cluster", "local:2"))
    assert files(project / "two-workers") == untouched
    assert not list((project / ".scratch" / "pythia_emergence").iterdir())


@pytest.mark.parametrize("where", [[], ["--cluster", "local:2"]], ids=["here", "cluster"])
def test_after_a_kill_the_same_command_measures_no_checkpoint_twice(
    where: list[str], project: Path, untouched: dict[str, bytes]
) -> None:
    out = f"killed-{len(where)}"
    first = start(project, out, *where)
    wait_until(lambda: len(kept(project)) >= 3, first, timeout=200)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)

    # Tasks of a killed command end within seconds, perhaps with one checkpoint more.
    wait_until_alone(project)
    before = kept(project)
    assert 3 <= len(before) < len(STEPS)

    again = start(project, out, *where)
    seen = writings(before, again, lambda: kept(project))
    finish(again)

    assert all(len(identities) == 1 for identities in seen.values())
    assert files(project / out) == untouched
