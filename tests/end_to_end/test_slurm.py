"""The scripts of examples/cluster.md on a real Slurm: they train the bytes of one process."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import servers
from small_trainings import lay_out

PAGE = (Path(__file__).parents[2] / "examples" / "cluster.md").read_text()
SCRIPTS = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
ROOT_NEEDED = "slurmd needs root"

pytestmark = [pytest.mark.slow, pytest.mark.servers]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Slurm]:
    reason = servers.missing("slurmctld", "slurmd", "munged", "sbatch", package="dask_jobqueue")
    if reason is None and os.geteuid() != 0:
        reason = ROOT_NEEDED
    if reason is not None:
        pytest.skip(reason)
    with servers.slurm(tmp_path_factory.mktemp("slurm") / "one") as running:
        yield running


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a small text, its corpus, and two models that save after every step."""
    folder = tmp_path_factory.mktemp("project")
    lay_out(folder, models=("neox-8l", "small"), steps=150)
    (folder / ".venv").symlink_to(sys.prefix)

    # What is typed into dask-jobqueue's file, with the only network that there is here.
    (written,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    (folder / "dask").mkdir()
    (folder / "dask" / "jobqueue.yaml").write_text(written.replace("eth0", "lo"))

    command(folder, "corpus")
    return folder


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if "CLUSTER" not in name}
    return kept | {
        "WANDB_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
        "DASK_CONFIG": str(folder / "dask"),
    }


def command(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "interp_core.cli", *arguments],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture(scope="module")
def untouched(project: Path) -> dict[str, bytes]:
    """What one process writes of all models."""
    command(project, "models", "--out", "plain/models", "--history", "plain/training")
    return files(project / "plain")


def script(name: str, project: Path, out: str) -> Path:
    """A script of the page, with a folder of its own for what it writes."""
    (text,) = [one for one in SCRIPTS if f"# {name}\n" in one]
    path = project / name
    path.write_text(text.replace("mine/", f"{out}/").replace("slurm:8", "slurm:2"))
    return path


def submit(slurm: servers.Slurm, project: Path, path: Path, *options: str) -> str:
    """The number of a job."""
    done = subprocess.run(
        ["sbatch", "--parsable", "--output=%j.out", *options, path.name],
        cwd=project,
        env=environment(project) | slurm.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError(f"not in four minutes: {what}")


def wait_for_end(slurm: servers.Slurm, project: Path, job: str) -> str:
    """How a job ended."""
    going = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")
    wait_until(lambda: slurm.state(job) not in going, f"job {job} ends")
    return slurm.state(job)


def said(project: Path, job: str) -> str:
    return (project / f"{job}.out").read_text()[-3000:]


def of_one(untouched: dict[str, bytes], model: str) -> dict[str, bytes]:
    """What is written where one model alone is trained: the record of histories lists its own."""
    record = "training/induction-lab.sha256"
    lines = untouched[record].splitlines(keepends=True)
    own = {name: content for name, content in untouched.items() if model in name}
    return own | {record: b"".join(line for line in lines if model.encode() in line)}


def is_training(project: Path) -> bool:
    """Whether a training in progress has kept the weights of step 16."""
    return any((project / ".scratch").glob("*/*/checkpoints/step-000016.safetensors"))


def test_a_preempted_training_is_requeued_and_ends_with_the_same_bytes(
    slurm: servers.Slurm, project: Path, untouched: dict[str, bytes]
) -> None:
    job = submit(slurm, project, script("train.sh", project, "preempted"))
    wait_until(lambda: is_training(project), "the job trains")

    slurm.call("scontrol", "requeue", job)
    # Slurm lets two minutes pass before it starts a requeued job.
    wait_until(lambda: slurm.state(job) == "PENDING", "the job is back in the queue")
    assert not (project / "preempted" / "models" / "neox-8l").exists()
    slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now")

    assert wait_for_end(slurm, project, job) == "COMPLETED", said(project, job)
    assert files(project / "preempted") == of_one(untouched, "neox-8l")


def test_a_training_whose_time_ends_is_saved_and_the_next_job_goes_on(
    slurm: servers.Slurm, project: Path, untouched: dict[str, bytes]
) -> None:
    path = script("train.sh", project, "ended")
    first = submit(slurm, project, path)
    wait_until(lambda: is_training(project), "the job trains")
    second = submit(slurm, project, path, f"--dependency=afternotok:{first}")

    # As --signal does two minutes before the end.
    slurm.call("scancel", "--batch", "--signal=TERM", first)
    assert wait_for_end(slurm, project, first) == "FAILED"
    assert "continues from the last saved state" in said(project, first)

    assert wait_for_end(slurm, project, second) == "COMPLETED", said(project, second)
    assert files(project / "ended") == of_one(untouched, "neox-8l")


def test_a_sweep_over_jobs_writes_the_bytes_of_one_process(
    slurm: servers.Slurm, project: Path, untouched: dict[str, bytes]
) -> None:
    job = submit(slurm, project, script("sweep.sh", project, "swept"))
    assert wait_for_end(slurm, project, job) == "COMPLETED", said(project, job)
    assert files(project / "swept") == untouched
    wait_until(lambda: not slurm.call("squeue", "--noheader"), "no worker's job is left")


def test_a_job_that_slurm_refuses_is_one_line(slurm: servers.Slurm, project: Path) -> None:
    settings = (project / "dask" / "jobqueue.yaml").read_text()
    (project / "greedy").mkdir()
    (project / "greedy" / "jobqueue.yaml").write_text(settings.replace("4GB", "9000GB"))
    asked = [sys.executable, "-m", "interp_core.cli", "models", "--cluster", "slurm:2"]
    done = subprocess.run(
        [*asked, "--out", "refused/models", "--history", "refused/training"],
        cwd=project,
        env=environment(project) | slurm.environment | {"DASK_CONFIG": str(project / "greedy")},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[:-1] == ["loading ..."], done.stderr
    assert "Memory specification can not be satisfied" in done.stderr
    assert "jobqueue.yaml" in done.stderr
    assert not slurm.call("squeue", "--noheader")


def test_every_script_of_the_page_is_one_that_bash_reads() -> None:
    assert len(SCRIPTS) == 4
    for text in SCRIPTS:
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
