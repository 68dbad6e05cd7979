"""Several trainings at once, each in a process that ends with its parent.

On this machine, or where `--cluster` says, on a cluster's (cluster.py).
"""

import multiprocessing
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import click

from interp_core import processor
from interp_core.errors import InputError, StateSavedError

Task = tuple[
    Callable[..., None], tuple[Any, ...], dict[str, Any]
]  # a module-level function and its arguments


_STATE_SAVED, _INTERRUPTED = 130, 131  # exit codes


@dataclass(frozen=True)
class _Worker:
    process: Any
    problem: Any  # a Connection; carries the text of an InputError
    slot: int


CLUSTER = "interp_core.cluster"  # where a command keeps what its --cluster says
SHARES = 10_000  # more than any sweep has trainings


def cluster() -> str | None:
    """What the running command's --cluster says."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.meta.get(CLUSTER)


def shares(processes: int) -> int:
    """Into how many parts to divide what `processes` would share: on a cluster each is alone."""
    return processes if cluster() is None else SHARES


def check_launch(device: str) -> None:
    """InputError where torchrun started processes that cannot train one model together.

    accelerate lets processes without a GPU train alone, each for itself, unless they are told to be
    on CPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or device == "cpu":
        return

    import torch

    if torch.cuda.is_available():
        return
    if os.environ.get("RANK", "0") != "0":
        sys.exit(2)  # the first process says it for all
    raise InputError(
        f"torchrun started {world} processes, but `device: {device}` finds no CUDA device on "
        f"{platform.node()}: start the command without torchrun, or set `device: cpu` in the "
        "recipe for processes that share one model on CPUs"
    )


def run_in_processes(tasks: Sequence[Task], *, processes: int) -> None:
    """Run the tasks, `processes` at a time, in order; each gets a keyword `position`, its line for
    a progress bar.

    One task, or one process: in this process. On a cluster: as many at once as it has threads. An
    InputError in one ends the others (they save their state) and is raised here; so does Ctrl-C.
    """
    if (address := cluster()) is not None:
        from interp_core.training.cluster import run_on_cluster

        run_on_cluster(tasks, address)
        return

    if processes == 1 or len(tasks) < 2:
        for function, arguments, keywords in tasks:
            function(*arguments, **keywords)
        return
    waiting, running = list(tasks), dict[Any, _Worker]()
    free = list(range(min(processes, len(tasks))))
    try:
        while waiting or running:
            while waiting and free:
                worker = _start(waiting.pop(0), free.pop(0))
                running[worker.process.sentinel] = worker
            for sentinel in wait(list(running)):
                worker = running.pop(sentinel)
                free.insert(0, worker.slot)
                _check(worker)
    except KeyboardInterrupt:
        # A terminal's Ctrl-C comes here too, before a worker's.
        _end(running.values())
        if any(worker.process.exitcode == _STATE_SAVED for worker in running.values()):
            raise StateSavedError from None
        raise
    finally:
        _end(running.values())


def _end(workers: Collection[_Worker]) -> None:
    """Stop those that still run, as a terminal would."""
    for worker in workers:
        if worker.process.pid is not None and worker.process.is_alive():
            os.kill(worker.process.pid, signal.SIGTERM)
    for worker in workers:
        worker.process.join()


def _start(task: Task, slot: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    receives, sends = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(task, slot, sends), daemon=False)
    process.start()
    sends.close()
    return _Worker(process, receives, slot)


def _check(worker: _Worker) -> None:
    worker.process.join()
    if worker.process.exitcode == 0:
        return
    if worker.process.exitcode == _STATE_SAVED:
        raise StateSavedError
    if worker.process.exitcode == _INTERRUPTED:
        raise KeyboardInterrupt
    try:
        message = worker.problem.recv()
    except EOFError:
        raise RuntimeError(
            f"a training process ended with code {worker.process.exitcode}; its error is above"
        ) from None
    raise InputError(message)


def _work(task: Task, slot: int, problem: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    processor.settle()  # the environment is the parent's; what it told MKL is not inherited
    function, arguments, keywords = task
    try:
        function(*arguments, position=slot, **keywords)
    except InputError as error:
        problem.send(str(error))
        sys.exit(2)
    except StateSavedError:
        sys.exit(_STATE_SAVED)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _end_with_parent() -> None:
    """A killed parent cannot stop its workers: they notice and go, as if killed too."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
