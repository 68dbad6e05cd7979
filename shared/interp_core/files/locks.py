"""One writer at a time. The system gives a lock back with its process, `kill -9` included.

A file's lock is on the file itself, and a folder's on the folder: nothing is left in a user's
results that says "locked".
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from interp_core.errors import InputError

# What a file system says that cannot lock a folder: NFS wants it opened for writing.
_CANNOT = (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@dataclass
class _Held:
    """A folder that this process holds."""

    descriptor: int
    shared: bool


_held: dict[Path, _Held] = {}


@contextmanager
def locked_file(path: Path, *, patience: float | None = None) -> Iterator[TextIO | None]:
    """The file, made where it is not there, while no other process has it.

    It may be removed or replaced while it is held. `patience` in seconds, for ever unless given;
    None is handed out when another process still has it then.
    """
    deadline = None if patience is None else time.monotonic() + patience

    while True:
        with path.open("a+") as opened:
            if _is_taken(opened, path, wait=deadline is None):
                yield opened
                return
        if deadline is not None and time.monotonic() > deadline:
            yield None
            return
        if deadline is not None:
            time.sleep(0.1)


def _is_taken(opened: TextIO, path: Path, *, wait: bool) -> bool:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who opened it before its holder removed or replaced it has locked what nobody else sees.
        return os.path.samestat(os.fstat(opened.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


@contextmanager
def alone_in(folder: Path, *, shared: bool = False, named: Path | None = None) -> Iterator[bool]:
    """Keep every other process out of a folder, which is made where it is not there.

    InputError where another one is in it, about `named` where that says more. `shared` ones keep
    out only those that are not: stages of one study write different files side by side. Whoever has
    the folder may ask again. False, and no lock, on a file system that has none for folders.
    """
    place = folder.resolve()
    if place in _held:
        yield True
        return

    is_new = not place.exists()
    descriptor = _lock(place, named or folder, shared=shared)
    if descriptor is None:
        yield False
        return

    _held[place] = _Held(descriptor, shared)
    try:
        yield True
    finally:
        # What was made here and got no file is nobody's.
        if is_new:
            with suppress(OSError):
                place.rmdir()
        os.close(_held.pop(place).descriptor)


def held_folders() -> list[Path]:
    """What this process holds, the first one first."""
    return list(_held)


def hand_over(folder: Path, successor: Path) -> None:
    """Before `successor` takes the place of a folder that this process holds: hold it too.

    Nobody then finds the new folder without its holder. Nothing for a folder that is not held.
    """
    held = _held.get(folder.resolve())
    if held is None:
        return

    descriptor = _lock(successor, successor, shared=held.shared)
    assert descriptor is not None, "the same file system as the folder's, which has locks"
    os.close(held.descriptor)
    held.descriptor = descriptor


def _lock(place: Path, named: Path, *, shared: bool) -> int | None:
    """A descriptor of the folder, locked; None where the file system cannot."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX

    while True:
        place.mkdir(parents=True, exist_ok=True)

        # Removed or replaced since it was opened: then what is locked is not in its place.
        with suppress(FileNotFoundError), ExitStack() as undo:
            descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            undo.callback(os.close, descriptor)

            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                told = f"{_holder(descriptor)} is writing into {named}"
                way_out = "wait until it ends, or name another folder"
                raise InputError(f"{told}: {way_out}") from None
            except OSError as problem:
                if problem.errno in _CANNOT:
                    return None
                raise

            if os.path.samestat(os.fstat(descriptor), place.stat()):
                undo.pop_all()
                return descriptor


def _holder(descriptor: int) -> str:
    """Who has a lock on what is open there, where the system says it (Linux)."""
    found = os.fstat(descriptor)
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"

    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            # 1: FLOCK  ADVISORY  WRITE 4711 08:01:131072 0 EOF
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == f"{device}:{found.st_ino}":
                return f"process {fields[4]}"
    return "another process"
