"""Commands on a cluster, each a process of its own, and what they keep until they have all."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

Kept = dict[str, tuple[int, int]]  # by a part's folder, which writing of its file it is


def environment() -> dict[str, str]:
    """Without a cluster of the user's, and without an account."""
    kept = {name: value for name, value in os.environ.items() if "CLUSTER" not in name}
    return kept | {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}


def start(project: Path, code: str, *arguments: str) -> subprocess.Popen[str]:
    """Python code that calls a command, with its arguments."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=project,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(running: subprocess.Popen[str], *, timeout: float) -> None:
    _, said = running.communicate(timeout=timeout)
    assert running.returncode == 0, said


def wait_until(
    is_so: Callable[[], object], running: subprocess.Popen[str], *, timeout: float
) -> None:
    deadline = time.monotonic() + timeout
    while not is_so():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_until_alone(project: Path, *, timeout: float = 120) -> None:
    """Until no process works in the project: the tasks of a killed command end a while after it."""

    def works_there(process: Path) -> bool:
        with suppress(OSError):
            return (process / "cwd").resolve() == project.resolve()
        return False

    deadline = time.monotonic() + timeout
    while any(map(works_there, Path("/proc").glob("[0-9]*"))):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def kept_in(scratch: Path, folders: str, file: str) -> Kept:
    """Parts that are kept, in folders of this pattern: those whose record is written."""
    found = {}
    for record in scratch.glob(f"{folders}/induction-lab.sha256"):
        # The command removes them when it has all.
        try:
            told, listed = record.with_name(file).stat(), record.read_text()
        except FileNotFoundError:
            continue
        if listed:
            found[record.parent.name] = (told.st_ino, told.st_mtime_ns)
    return found


def writings(
    before: Kept, running: subprocess.Popen[str], kept: Callable[[], Kept]
) -> dict[str, set[tuple[int, int]]]:
    """Every writing of every part that is seen until the command ends, those of before too."""
    seen = {name: {identity} for name, identity in before.items()}
    while running.poll() is None:
        for name, identity in kept().items():
            seen.setdefault(name, set()).add(identity)
        time.sleep(0.01)
    return seen
