"""Several trainings at once on one machine, each in a process that ends with its parent."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

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


def run_in_processes(tasks: Sequence[Task], *, processes: int) -> None:
    """Run the tasks, `processes` at a time, in order; each gets a keyword `position`, its line for
    a progress bar.

    One task, or one process: in this process. An InputError in one ends the others (they save their
    state) and is raised here; so does Ctrl-C.
    """
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
