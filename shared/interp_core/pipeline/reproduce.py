"""The pipeline with several stages at once: DVC runs one after another.

DVC says which stages have changed, and runs each (`dvc repro --single-item`), so that its records
are its own; what is here decides the order. A stage begins when all that it reads is made.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import click
from tqdm import tqdm

from interp_core.errors import InputError
from interp_core.files.params import read_yaml
from interp_core.files.way_out import paths_of, written_by

DVC = (sys.executable, "-P", "-m", "dvc")  # -P: no module out of the project's folder
_LOOK_SECONDS = 1.0  # between two looks at the clock, for the line below what is printed


@dataclass
class _Running:
    """A stage that DVC runs now."""

    stage: str
    process: subprocess.Popen[str]
    began: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        return time.monotonic() - self.began


def reproduce(root: Path, at_once: int) -> None:
    """Run every stage that is out of date, `at_once` of them at a time.

    Prints a stage's lines behind its name, and how long it took. InputError when a stage fails; no
    other is begun then, and those that run come to their end.
    """
    changed = _changed(root)
    if not changed:
        click.echo("Data and pipelines are up to date.")
        return

    reads = stages_read(read_yaml(root / "dvc.yaml")["stages"])
    _run(root, in_order(changed, reads), reads, at_once)


def stages_read(stages: Mapping[str, Any]) -> dict[str, set[str]]:
    """Of every stage of a dvc.yaml, the stages whose outputs it reads."""
    writer = {
        PurePosixPath(path): name for name, stage in stages.items() for path in written_by(stage)
    }

    reads = {}
    for name, stage in stages.items():
        wanted = [PurePosixPath(path) for path in paths_of(stage.get("deps") or ())]
        reads[name] = {
            by
            for out, by in writer.items()
            if any(out == path or out in path.parents or path in out.parents for path in wanted)
        }
    return reads


def in_order(changed: set[str], reads: Mapping[str, set[str]]) -> list[str]:
    """The changed stages and all that read them at any distance; first what most others wait for,
    and else as in `reads`.
    """
    wanted = _with_readers(changed, reads)
    return sorted(wanted, key=lambda stage: -len(_with_readers({stage}, reads)))


def _with_readers(stages: set[str], reads: Mapping[str, set[str]]) -> list[str]:
    """The stages and all that read them at any distance, as in `reads`."""
    wanted = set(stages)
    before = 0
    while len(wanted) != before:
        before = len(wanted)
        wanted |= {stage for stage, read in reads.items() if read & wanted}
    return [stage for stage in reads if stage in wanted]


def _changed(root: Path) -> set[str]:
    """Stages that DVC finds out of date. InputError where it ends in an error, which it prints."""
    asked = [*DVC, "status", "--json"]
    done = subprocess.run(asked, cwd=root, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise InputError("`dvc status` failed: what it printed is above")
    return set(json.loads(done.stdout))


def _run(root: Path, wanted: list[str], reads: Mapping[str, set[str]], at_once: int) -> None:
    waiting = list(wanted)
    running: dict[str, _Running] = {}
    failed: list[str] = []
    lines: queue.Queue[tuple[str, str | None]] = queue.Queue()

    bar = tqdm(total=len(wanted), unit="stage", disable=None, leave=False)
    try:
        while running or waiting:
            unmade = {*waiting, *running}
            ready = [stage for stage in waiting if not reads[stage] & unmade]
            for stage in ready[: at_once - len(running)]:
                waiting.remove(stage)
                running[stage] = _start(stage, root, lines)
                tqdm.write(f"{stage}: begins")

            bar.set_postfix_str(", ".join(f"{r.stage} {_clock(r)}" for r in running.values()))
            try:
                stage, line = lines.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue

            if line is not None:
                tqdm.write(f"{stage} | {line}")
                continue

            ended = running.pop(stage)
            code = ended.process.wait()
            tqdm.write(f"{stage}: {'failed' if code else 'ended'} after {_clock(ended)}")
            bar.update()
            if code:
                failed.append(stage)
                waiting.clear()
    except BaseException:
        _interrupt(running.values())
        raise
    finally:
        bar.close()

    if failed:
        raise InputError(f"stage {failed[0]} failed: its lines are above")


def _start(stage: str, root: Path, lines: "queue.Queue[tuple[str, str | None]]") -> _Running:
    """DVC on one stage; its lines go into the queue, and None when there are no more.

    In a session of its own: a Ctrl-C reaches it and the stage's command by `_interrupt` alone.
    """
    # Threads that wait for one another would take the other stage's processor meanwhile: a training
    # in two threads became ten times slower beside one.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    process = subprocess.Popen(
        [*DVC, "--wait-for-lock", "repro", "--quiet", "--single-item", stage],
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                lines.put((stage, line.rstrip()))
        lines.put((stage, None))

    threading.Thread(target=read, daemon=True).start()
    return _Running(stage, process)


def _interrupt(running: Iterable[_Running]) -> None:
    """End the stages as Ctrl-C does: a training saves its state. Waits until they have ended."""
    ending = [one.process for one in running if one.process.poll() is None]
    # What a shell runs behind a script has Ctrl-C ignored, and so have those that it starts.
    deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    for process in ending:
        os.killpg(process.pid, signal.SIGTERM if deaf else signal.SIGINT)
    for process in ending:
        process.wait()


def _clock(running: _Running) -> str:
    minutes, seconds = divmod(round(running.seconds()), 60)
    return f"{minutes}:{seconds:02d}"
