"""Ablations on a cluster: `causal` of heads and of channels writes the bytes of one process."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

pytest.importorskip("distributed", reason="Dask is not installed (make test-servers)")

import cluster_commands
import planted_mamba
import servers
import small_project
from cluster_commands import Kept, environment, kept_in, wait_until, wait_until_alone, writings
from servers import tasks

pytestmark = [pytest.mark.slow, pytest.mark.servers]

HEADS = ["--model", "models/toy", "--causal-top-k", "2", "--causal-random-k", "2"]
CHANNELS = ["--model", "models/channels", "--least-agreement", "1"]
STUDIES = {"pythia_topology": HEADS, "mamba_neurons": CHANNELS}

# Two stacks a share: so small a model would be one.
START = """
from interp_core.training import shares
from {study}.cli import main
shares._size = lambda *_: 2
main()
"""


def start(project: Path, study: str, out: str, *more: str) -> subprocess.Popen[str]:
    given = ["causal", *STUDIES[study], "--out", out, *more]
    return cluster_commands.start(project, START.format(study=study), *given)


def finish(running: subprocess.Popen[str]) -> None:
    cluster_commands.finish(running, timeout=600)


def tasks_until_end(project: Path, running: subprocess.Popen[str]) -> set[int]:
    """Processes of all tasks that a command has had, when it has ended without an error."""
    seen = set[int]()
    while running.poll() is None:
        seen |= {task.pid for task in tasks(project)}
        time.sleep(0.05)

    finish(running)
    return seen


def files(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def kept(project: Path) -> Kept:
    """Shares that are kept."""
    return kept_in(project / ".scratch", "*_causal/*/*", "found.npz")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project with a transformer and a Mamba."""
    folder = small_project.build_project(tmp_path_factory.mktemp("project"))
    tokenizer = small_project.corpus_tokenizer(folder / "data" / "corpus")
    mamba = planted_mamba.random_mamba(vocab=len(tokenizer))
    small_project.save_model(folder / "models" / "channels", mamba, tokenizer)

    smoke = yaml.safe_load((Path(__file__).parents[2] / "profiles" / "smoke.yaml").read_text())
    profile = folder / "profiles" / "tests.yaml"
    sections = yaml.safe_load(profile.read_text())
    sections["mamba_neurons"] = smoke["mamba_neurons"] | {"top_k": 3}
    profile.write_text(yaml.safe_dump(sections))
    return folder


@pytest.fixture(scope="module", params=list(STUDIES))
def study(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def untouched(project: Path, study: str) -> dict[str, bytes]:
    """What one process writes."""
    finish(start(project, study, f"{study}-untouched"))
    assert not kept(project)
    return files(project / f"{study}-untouched")


def test_two_workers_write_the_bytes_of_one_process(
    project: Path, study: str, untouched: dict[str, bytes]
) -> None:
    running = start(project, study, f"{study}-two", "--cluster", "local:2")
    assert len(tasks_until_end(project, running)) > 2
    assert files(project / f"{study}-two") == untouched
    assert not kept(project)


def test_a_worker_that_is_killed_takes_no_share_with_it(
    project: Path, study: str, untouched: dict[str, bytes], tmp_path: Path
) -> None:
    with servers.dask(tmp_path, environment()) as (file, workers):
        running = start(project, study, f"{study}-killed", "--cluster", str(file))
        wait_until(
            lambda: kept(project) and tasks(project, of=workers[0].pid), running, timeout=300
        )
        workers[0].kill()
        workers[0].wait()
        finish(running)

    assert files(project / f"{study}-killed") == untouched
    assert not kept(project)
    assert not tasks(project)


def test_after_a_kill_the_same_command_measures_no_share_twice(
    project: Path, study: str, untouched: dict[str, bytes]
) -> None:
    out = f"{study}-again"
    first = start(project, study, out, "--cluster", "local:2")
    wait_until(lambda: len(kept(project)) > 2, first, timeout=300)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)

    # Tasks of a killed command end within seconds, perhaps with one share more.
    wait_until_alone(project)
    before = kept(project)

    again = start(project, study, out, "--cluster", "local:2")
    seen = writings(before, again, lambda: kept(project))
    finish(again)

    assert len(before) < len(seen)
    assert all(len(identities) == 1 for identities in seen.values())
    assert files(project / out) == untouched


def test_heads_of_a_pretrained_model_are_dealt_too(tmp_path: Path) -> None:
    project = small_project.build_pretrained_project(tmp_path)
    code = START.format(study="pythia_topology").replace("_: 2", "_: 1")
    written = project / "data" / "pythia_topology" / "pretrained"

    finish(cluster_commands.start(project, code, "pretrained"))
    alone = files(written)

    # What DVC deletes, and what would be put back.
    shutil.rmtree(written)
    shutil.rmtree(project / ".scratch" / "finished")
    running = cluster_commands.start(project, code, "pretrained", "--cluster", "local:2")
    assert len(tasks_until_end(project, running)) > 2
    assert files(written) == alone
