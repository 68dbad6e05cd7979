"""Tasks on a cluster: the same functions in the same kind of process, on other machines.

Dask says which machine runs what, and runs again what was on a machine that died. The work itself
is done in a process of its own, begun as a local one is: instructions are chosen before PyTorch is
loaded, a training saves its state, and ends with whoever started it. So the bytes are those of one
process. Machines must see one file system, and have the same packages: both are checked.
"""

import asyncio
import json
import os
import pickle
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

import interp_core
from interp_core import processor
from interp_core.errors import InputError, first_line
from interp_core.files.params import MOST_AT_ONCE, project_root

PATIENCE = 15  # seconds that a scheduler may take to answer
DEATHS = 10  # workers that may die with a task before it is given up: each goes on from the last

# Whose versions decide the last digits.
PACKAGES = ("numpy", "numba", "scipy", "torch", "transformers")

# What a task's process takes over from the caller's environment; no key and no token.
PASSED = ("GLIBC_", "HF_", "INDUCTION_LAB_", "MALLOC_", "MKL_", "NUMBA_", "OMP_", "WANDB_")
KEPT_BACK = ("KEY", "TOKEN", "INDUCTION_LAB_CLUSTER")

GOING = 60  # seconds that a worker may take to end after its processes were

CLIENT = "interp_core.client"  # where a command keeps its cluster's client

# Of this process, where it is a worker's: running tasks by their call, and calls that have ended.
_running: dict[str, list[subprocess.Popen[bytes]]] = {}
_ended: set[str] = set()


@dataclass(frozen=True)
class Place:
    """What a task's process needs to be like one of the caller's."""

    call: str  # a name that no other call has
    folder: str  # the working directory
    token: str  # a file that a machine sees only if it sees the caller's file system
    code: str  # PYTHONPATH
    environment: dict[str, str]
    ground: dict[str, str]  # versions, instructions


def run_on_cluster(tasks: Sequence[Any], address: str) -> None:
    """Run tasks, as many at once as the cluster has threads; what they print is printed here.

    An InputError in one ends the others, which save their state, and is raised here.
    """
    if "WORLD_SIZE" in os.environ:
        raise InputError("--cluster trains one model a worker, torchrun one on all: choose one")

    with _client_of_command(address) as client, _token() as token:
        from distributed import as_completed  # pyright: ignore[reportMissingImports]
        from distributed.client import FutureCancelledError  # pyright: ignore[reportMissingImports]
        from distributed.scheduler import KilledWorker  # pyright: ignore[reportMissingImports]

        place = _place(token)
        futures = {
            client.submit(
                _on_worker, pickle.dumps(task), place, key=f"{place.call}-{i}", pure=False
            ): task[0].__name__
            for i, task in enumerate(tasks)
        }
        try:
            for future in as_completed(futures):
                click.echo(future.result(), nl=False)
        except KilledWorker as problem:
            raise InputError(
                f"cluster {address}: {DEATHS} workers died at one task, the last of them "
                f"{problem.last_worker.address}: their log says why; too little memory is usual"
            ) from None
        except (FutureCancelledError, OSError) as problem:
            raise InputError(
                f"cluster {address}: its scheduler went away ({first_line(problem)}): the same "
                "command goes on"
            ) from None
        finally:
            client.cancel(list(futures))
            _end_all(client, place.call)


@contextmanager
def _client_of_command(address: str) -> Iterator[Any]:
    """A cluster's client; all that one command runs has the same one, until the command ends.

    Its workers then start once: a job of Slurm may wait for an hour before it does.
    """
    context = click.get_current_context(silent=True)
    if context is None:
        with _client(address) as client:
            yield client
        return

    if CLIENT not in context.meta:
        context.meta[CLIENT] = context.with_resource(_client(address))
    client = context.meta[CLIENT]
    if client.status != "running":
        raise InputError(f"cluster {address}: its scheduler went away: the same command goes on")
    yield client


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """A cluster's client: `local:N` and `slurm:N` start N workers, anything else is a scheduler.

    A scheduler is named by its address or by the file that it writes.
    """
    # Read when Dask is loaded, here and in the workers: what a user can mend is said once, by us.
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")
    try:
        import dask  # pyright: ignore[reportMissingImports]
        from distributed import Client  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise InputError(
            '--cluster needs Dask: pip install -c constraints.txt -e ".[cluster]"'
        ) from None

    with ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": DEATHS}))
        kind, _, count = address.partition(":")
        place: dict[str, Any] = {"address": address}
        if kind in _STARTS:
            place = {"address": stack.enter_context(_STARTS[kind](_count(count, address)))}
        elif Path(address).is_file():
            place = {"scheduler_file": address}

        try:
            client = stack.enter_context(Client(**place, timeout=PATIENCE))
        except (OSError, ValueError) as problem:
            raise InputError(
                f"cluster {address} cannot be used: {first_line(problem)}; --cluster takes "
                "local:N, slurm:N, a scheduler's tcp://HOST:PORT, or the file that it wrote"
            ) from None

        if not client.scheduler_info()["workers"]:
            click.echo(f"cluster {address}: no worker yet, waiting for the first", err=True)
        yield client


def _count(text: str, address: str) -> int:
    is_number = text.isdecimal() and len(text) <= len(str(MOST_AT_ONCE))
    if not is_number or not 1 <= int(text) <= MOST_AT_ONCE:
        raise InputError(
            f"--cluster {address}: how many workers? local:2, slurm:20; at most {MOST_AT_ONCE}"
        )
    return int(text)


def _local(workers: int) -> Any:
    from distributed import LocalCluster  # pyright: ignore[reportMissingImports]

    return LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)


@contextmanager
def _slurm(workers: int) -> Iterator[Any]:
    """A scheduler in this process, and so many jobs of a worker each, cancelled at the end.

    What a job is stands in dask-jobqueue's own file, ~/.config/dask/jobqueue.yaml. It is submitted
    here: dask-jobqueue would wait for ever for a job that Slurm has refused.
    """
    try:
        from dask_jobqueue.slurm import SLURMCluster  # pyright: ignore[reportMissingImports]

        cluster = SLURMCluster(scheduler_options={"dashboard": False})
    except ModuleNotFoundError:
        raise InputError(
            '--cluster slurm needs dask-jobqueue: pip install -c constraints.txt -e ".[cluster]"'
        ) from None
    except ValueError:
        raise InputError(
            "--cluster slurm: cores and memory of a job are missing in "
            "~/.config/dask/jobqueue.yaml; examples/cluster.md has one"
        ) from None

    # A worker that Slurm put back into the queue comes again under its job's number.
    script = cluster.job_script().replace("dummy-name", "$SLURM_JOB_ID")
    jobs: list[str] = []
    with cluster:
        try:
            for _ in range(workers):
                jobs.append(_submitted(script))
            yield cluster
        finally:
            if jobs:
                subprocess.run(["scancel", "--quiet", *jobs], check=False)


def _submitted(script: str) -> str:
    """The number of a job. InputError where Slurm refuses it."""
    try:
        done = subprocess.run(
            ["sbatch", "--parsable"], input=script, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise InputError("--cluster slurm: there is no sbatch on this machine") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it says nothing"]
        raise InputError(
            f"--cluster slurm: sbatch refuses a worker's job ({said[0]}): mend "
            "~/.config/dask/jobqueue.yaml"
        )
    return done.stdout.strip().partition(";")[0]


_STARTS = {"local": _local, "slurm": _slurm}


@contextmanager
def _token() -> Iterator[Path]:
    """A file that is there as long as the call."""
    folder = project_root() / ".scratch"
    folder.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="cluster-") as token:
        yield Path(token.name)


def _place(token: Path) -> Place:
    core = Path(interp_core.__path__[0]).resolve().parent
    homes = [core.parent / "packages", core] if (core.parent / "packages").is_dir() else [core]
    searched = [*map(str, homes), os.environ.get("PYTHONPATH", "")]
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(PASSED) and not any(word in name for word in KEPT_BACK)
    }
    return Place(
        call=f"induction-lab-{uuid.uuid4().hex[:12]}",
        folder=str(Path.cwd()),
        token=str(token),
        code=os.pathsep.join(filter(None, searched)),
        environment=environment,
        ground=_ground(),
    )


def _ground() -> dict[str, str]:
    """What must be the same on all machines for the same bytes."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for package in PACKAGES:
        try:
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            found[package] = "none"
    return found | {"instructions": processor.instructions()}


def _end_all(client: Any, call: str) -> None:
    """Ask all tasks of a call to save and to end, and wait until they have."""
    # Where the scheduler went away, workers end theirs themselves.
    with suppress(OSError, RuntimeError):
        client.run(_end_children, call, on_error="ignore")


async def _end_children(call: str) -> None:
    """On a worker: end the processes of a call as Ctrl-C ends local ones, and start no other."""
    _ended.add(call)
    for child in (children := list(_running.get(call, ()))):
        child.terminate()
    while any(child.poll() is None for child in children):
        await asyncio.sleep(0.05)


def _on_worker(task: bytes, place: Place) -> str:
    """On a worker: run a task in a process of its own; returns what it printed."""
    from distributed import get_worker  # pyright: ignore[reportMissingImports]

    worker = get_worker()
    if not Path(place.token).is_file():
        raise InputError(
            f"worker {worker.address} does not see {Path(place.token).parent}: all machines of a "
            "cluster must see the same files at the same place"
        )

    while True:
        code, printed, problem = _in_a_process(task, place, worker)
        if code == 0:
            return printed
        if problem:
            raise InputError(json.loads(problem))
        if code not in _STOPPED:
            break
        # Slurm stops all processes of a job, the worker too, or somebody this one alone.
        _wait_for_worker(place, worker)

    where = f"on {worker.address}: its error is in that worker's log"
    if code == -signal.SIGKILL:
        raise InputError(f"a task was killed {where}; too little memory is usual")
    raise RuntimeError(f"a task ended with code {code} {where}")


# How a process ends that was asked to: as Ctrl-C, or at once.
_STOPPED = (130, -signal.SIGINT, -signal.SIGTERM)


def _in_a_process(task: bytes, place: Place, worker: Any) -> tuple[int, str, str]:
    """Run a task; returns its exit code, what it printed, and what is wrong with its input."""
    key = worker.get_current_task()
    # Workers that a call started here have numbers, and share its terminal.
    line = worker.name if isinstance(worker.name, int) else 0

    reads, writes = os.pipe()
    with tempfile.TemporaryFile() as printed, os.fdopen(reads) as told:
        child = subprocess.Popen(
            [sys.executable, "-m", "interp_core.training.cluster", str(writes)],
            cwd=place.folder,
            env={**os.environ, **place.environment, "PYTHONPATH": place.code},
            stdin=subprocess.PIPE,
            stdout=printed,
            pass_fds=[writes],
            start_new_session=True,  # Ctrl-C in a terminal goes to the caller, who asks in order
        )
        os.close(writes)
        _running.setdefault(place.call, []).append(child)

        try:
            _hand_over(child, pickle.dumps((task, place.ground, line)))
            _wait_for(child, worker, key)
        finally:
            _running[place.call].remove(child)

        problem = told.read()
        printed.seek(0)
        return child.returncode, printed.read().decode(errors="replace"), problem


def _wait_for_worker(place: Place, worker: Any) -> None:
    """Give a worker that is being stopped the time to go; then its task goes on elsewhere.

    InterruptedError where the call is ending: nobody waits for the task.
    """
    key = worker.get_current_task()
    for _ in range(int(GOING / 0.5)):
        if place.call in _ended or _is_dropped(worker, key):
            raise InterruptedError("the call has ended")
        time.sleep(0.5)


def _hand_over(child: subprocess.Popen[bytes], work: bytes) -> None:
    """The work goes through standard input, which stays open: its end tells of the worker's."""
    assert child.stdin is not None
    # A process that has ended already has said why.
    with suppress(BrokenPipeError):
        child.stdin.write(len(work).to_bytes(8, "big") + work)
        child.stdin.flush()


def _wait_for(child: subprocess.Popen[bytes], worker: Any, key: str) -> None:
    """Until the process ends; one that nobody waits for any more, its caller gone, is ended."""
    while True:
        try:
            child.wait(0.5)
            return
        except subprocess.TimeoutExpired:
            if _is_dropped(worker, key):
                child.terminate()
                child.wait()
                return


def _is_dropped(worker: Any, key: str) -> bool:
    """Whether nobody waits for a task any more."""
    task = worker.state.tasks.get(key)
    return task is None or task.state in ("cancelled", "released", "forgotten")


def _child(told: int) -> None:
    """The process of a task: read what it is, do it, and say what is wrong with its input."""
    length = int.from_bytes(_read(8), "big")
    task, ground, position = pickle.loads(_read(length))
    threading.Thread(target=_end_with_worker, daemon=True).start()

    differs = processor.settle()
    try:
        if differs is not None and ground["instructions"] == "avx2":
            raise InputError(f"worker {platform.node()}: {differs}")
        for name, here in _ground().items():
            if here != ground[name]:
                raise InputError(
                    f"worker {platform.node()} has {name} {here}, and the caller {ground[name]}: "
                    "start workers in the same environment"
                )
        function, arguments, keywords = pickle.loads(task)
        function(*arguments, position=position, **keywords)
    except InputError as problem:
        with os.fdopen(told, "w") as saying:
            json.dump(str(problem), saying)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _read(length: int) -> bytes:
    """So much of standard input, past Python's own reader, whose lock a thread would keep."""
    found = b""
    while len(found) < length and (piece := os.read(0, length - len(found))):
        found += piece
    return found


def _end_with_worker() -> None:
    """A killed worker cannot stop its processes: they notice and go, as if killed too."""
    _read(1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _child(int(sys.argv[1]))
