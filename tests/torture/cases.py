"""Run cases in children that are forked from a process with everything imported.

A child that hangs or dies costs one case; the next child goes on after it.
"""

import json
import os
import select
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from interp_core.console.options import _OF_THE_MACHINE
from interp_core.errors import InputError

SECONDS = 15.0  # of a processor's time, of which more is a hang
ASLEEP = 40 * SECONDS  # by the clock: it waits for what never comes
BATCH = 100  # cases of one child


@dataclass(frozen=True)
class Outcome:
    """How a case ended."""

    kind: str  # refused, same, other; or bad: accepted, traceback, hang, died, lines
    told: str  # the error's line, or the traceback's end


BAD = ("accepted", "traceback", "hang", "died", "lines")


def outcome_of(case: Callable[[], str]) -> Outcome:
    """What a case says, or how it fails: as commands report it."""
    try:
        return Outcome(case(), "")
    except InputError as problem:
        is_one_line = len(str(problem)) < 2000 and str(problem).isprintable()
        return Outcome("refused" if is_one_line else "lines", ascii(str(problem)))
    except OSError as problem:
        if problem.errno in _OF_THE_MACHINE:
            return Outcome("refused", str(problem))
        return Outcome("traceback", _end(problem))
    except (Exception, SystemExit) as problem:  # noqa: BLE001  a traceback is what we look for
        return Outcome("traceback", _end(problem))


def run(cases: Sequence[Callable[[], str]], *, processes: int) -> list[Outcome]:
    """The outcome of each case, in order."""
    found: dict[int, Outcome] = {}
    todo = [range(at, min(at + BATCH, len(cases))) for at in range(0, len(cases), BATCH)]
    children: dict[int, _Child] = {}
    while todo or children:
        while todo and len(children) < processes:
            child = _Child.start(cases, todo.pop(0))
            children[child.pipe] = child
        ready, _, _ = select.select(list(children), [], [], 0.5)
        for pipe in list(children):
            child = children[pipe]
            if pipe in ready and child.read(found):
                continue
            late = child.is_late()
            if pipe in ready or late:
                found_kind = "hang" if late else "died"
                if (rest := child.end(found, found_kind)) is not None:
                    todo.insert(0, rest)
                del children[pipe]
    return [found[at] for at in range(len(cases))]


@dataclass
class _Child:
    """A forked process that works through some cases and writes each outcome into a pipe."""

    pid: int
    pipe: int
    cases: range
    done: int
    since: float  # by the clock
    used: float = 0.0  # a processor's seconds, before this case
    rest: bytes = b""

    def is_late(self) -> bool:
        """Whether its case hangs. On a busy machine the clock alone says little."""
        if time.monotonic() - self.since < SECONDS:
            return False
        asleep = time.monotonic() - self.since > ASLEEP
        return asleep or _used(self.pid) - self.used > SECONDS

    @classmethod
    def start(cls, cases: Sequence[Callable[[], str]], which: range) -> "_Child":
        """Fork it."""
        reading, writing = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(reading)
            for at in which:
                outcome = outcome_of(cases[at])
                packed = json.dumps([outcome.kind, outcome.told[:2000]]).encode()
                os.write(writing, len(packed).to_bytes(4, "little") + packed)
            os._exit(0)
        os.close(writing)
        return cls(pid, reading, which, 0, time.monotonic())

    def read(self, found: dict[int, Outcome]) -> bool:
        """Take what it has written. False when it has ended."""
        new = os.read(self.pipe, 1 << 16)
        self.rest += new
        while len(self.rest) >= 4 and len(self.rest) >= 4 + int.from_bytes(self.rest[:4], "little"):
            length = 4 + int.from_bytes(self.rest[:4], "little")
            found[self.cases[self.done]] = Outcome(*json.loads(self.rest[4:length]))
            self.rest, self.done = self.rest[length:], self.done + 1
            self.since, self.used = time.monotonic(), _used(self.pid)
        return bool(new)

    def end(self, found: dict[int, Outcome], kind: str) -> range | None:
        """Wait for it, killed where it hangs; what is left of its cases after one that failed."""
        if kind == "hang":
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.pipe)
        if self.done == len(self.cases):
            return None
        found[self.cases[self.done]] = Outcome(kind, "")
        rest = self.cases[self.done + 1 :]
        return rest if len(rest) else None


def _used(pid: int) -> float:
    """A processor's seconds that a child has had."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _end(problem: BaseException) -> str:
    """Where and what, short enough to count equal ones."""
    frames = traceback.extract_tb(problem.__traceback__)
    ours = [
        frame for frame in frames if "/shared/" in frame.filename or "/packages/" in frame.filename
    ]
    at = (ours or frames)[-1]
    first = str(problem).strip().splitlines() or [""]
    return f"{at.filename.split('/')[-1]}:{at.lineno} {type(problem).__name__}: {first[0][:150]}"


def summary(outcomes: Sequence[Outcome]) -> Counter[str]:
    """How many ended how."""
    return Counter(outcome.kind for outcome in outcomes)
