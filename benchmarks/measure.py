"""Times as medians of interleaved repetitions, memory as growth of the peak in a process of its
own, and the table.
"""

import gc
import importlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One comparison.

    `target` bounds the ratio: at most, at least, or None where it is only reported.
    """

    what: str
    ours: str
    theirs: str
    ratio: float
    target: str = ""

    @property
    def met(self) -> str:
        """yes, NO, or nothing where there is no target."""
        if not self.target:
            return ""
        bound = float(self.target[2:])
        return (
            "yes"
            if (self.ratio <= bound if self.target.startswith("<=") else self.ratio >= bound)
            else "NO"
        )


def table(title: str, rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        f"### {title}",
        "",
        "| what | ours | the other | ratio | target | met |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r.what} | {r.ours} | {r.theirs} | {r.ratio:.2f} | {r.target} | {r.met} |" for r in rows
    ]
    return "\n".join([*lines, ""])


@dataclass(frozen=True)
class Times:
    """Seconds of one side's repetitions."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)  # of all threads

    @property
    def least_processor(self) -> float:
        """Other work on the machine only ever adds to it."""
        return min(self.processor)

    @property
    def median_wall(self) -> float:
        """What a user waits."""
        return float(np.median(self.wall))


def alternated(works: Mapping[str, Work], *, repetitions: int = 3) -> dict[str, Times]:
    """Both clocks of each side, run in turn; warm up before."""
    times = {name: Times() for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            gc.collect()
            wall, processor = time.perf_counter(), time.process_time()
            work()
            times[name].wall.append(time.perf_counter() - wall)
            times[name].processor.append(time.process_time() - processor)
    return times


def interleaved(works: Mapping[str, Work], *, repetitions: int = 3) -> dict[str, float]:
    """Median seconds of each, run in turn so that a busy minute hits all of them; warm up before.

    A machine that others use as well is better judged by the processor's time, which
    BENCH_CLOCK=cpu asks for (with one thread it is the time the work takes on an idle machine).
    """
    clock = time.process_time if os.environ.get("BENCH_CLOCK") == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            gc.collect()
            start = clock()
            work()
            seconds[name].append(clock() - start)
    return {name: float(np.median(found)) for name, found in seconds.items()}


def peak_growth(module: str, case: str) -> float:
    """MiB by which the peak of resident memory grows while `module.case()` (which prepares and
    warms up) () runs.
    """
    command = [sys.executable, "-m", "benchmarks.measure", module, case]
    # Every tensor on pages of its own, given back when freed: nothing hides in memory that the heap
    # already holds.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    environment = kept | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return float(done.stdout.strip().splitlines()[-1])


def _resident(key: str) -> float:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def _grow(module: str, case: str) -> None:
    work: Work = getattr(importlib.import_module(module), case)()
    gc.collect()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    work()
    print(_resident("VmHWM") - before)


if __name__ == "__main__":
    _grow(*sys.argv[1:])
