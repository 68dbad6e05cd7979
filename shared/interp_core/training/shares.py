"""One measurement of a model dealt into shares, which processes of a cluster measure and keep.

A study names what is measured of how many things, and puts the shares together. Where the call has
no cluster there is one share, measured here. Where it has one, each share is a task: its process
loads the model by its spec, and keeps what it found. A call that was stopped goes on from these.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from interp_core.errors import InputError
from interp_core.files.artifacts import load_arrays, save_arrays
from interp_core.files.sums import is_listed
from interp_core.files.vouching import vouching
from interp_core.loading import load_model
from interp_core.models.spec import Dtype, ModelSpec
from interp_core.models.subject import Subject
from interp_core.training.threads import use_threads
from interp_core.training.workers import Task, run_in_processes

Found = dict[str, np.ndarray]

# A share's own work is at least this many times what is done before it: the process, and two passes
# over all prompts, of which means and clean predictions come.
WORTH = 3.0
START = 3e11  # operations of one thread in the five seconds in which a process starts


@dataclass(frozen=True)
class Elsewhere:
    """How other processes load the model of this call, and where they keep what they find."""

    spec: ModelSpec
    name: str
    sha256: str  # of the weights that this call has in memory
    device: str
    dtype: Dtype
    bos: str | int
    threads: int
    kept: Path

    def load(self) -> Subject:
        """The model. InputError where it is not the one of the call."""
        use_threads(self.threads)
        subject = load_model(
            self.spec, name=self.name, device=self.device, dtype=self.dtype, bos=self.bos
        )
        if subject.hash != self.sha256:
            raise InputError(f"{self.name}: its weights are no longer those that the call loaded")
        return subject


_elsewhere: ContextVar[Elsewhere | None] = ContextVar("elsewhere", default=None)


@contextmanager
def dealing(elsewhere: Elsewhere) -> Iterator[None]:
    """Inside the block measurements of this model are dealt out, of others they are not."""
    before = _elsewhere.set(elsewhere)
    try:
        yield
    finally:
        _elsewhere.reset(before)


def in_shares(
    measure: Callable[..., Found],
    items: Sequence[Any],
    subject: Subject,
    *arguments: Any,
    about: Sequence[Any],
    tokens: int,
    passes: float,
) -> list[Found]:
    """What `measure(subject, share, *arguments)` finds of each share of the items, in order.

    `measure` is a module's function. What it finds of an item must not depend on which others are
    in the share. `about` says in JSON what the arguments are, beside what the folder of a call
    stands for already: model, settings and code. An item costs so many `passes` of the model over
    so many `tokens`.
    """
    elsewhere = _elsewhere.get()
    if elsewhere is None or elsewhere.sha256 != subject.hash:
        return [measure(subject, items, *arguments)]

    shares = _dealt(items, _size(subject, tokens, passes))
    files = [_file(elsewhere.kept, measure.__name__, about, share) for share in shares]
    waiting = [
        (share, file) for share, file in zip(shares, files, strict=True) if not _is_kept(file)
    ]

    # One share is not worth a process: the model is here.
    if len(shares) == 1:
        for share, file in waiting:
            _keep(measure(subject, share, *arguments), file)
    else:
        tasks: list[Task] = [
            (measure_share, (elsewhere, measure, share, arguments), {"file": file})
            for share, file in waiting
        ]
        run_in_processes(tasks, processes=1)

    return [load_arrays(file) for file in files]


def measure_share(
    elsewhere: Elsewhere,
    measure: Callable[..., Found],
    share: Sequence[Any],
    arguments: Sequence[Any],
    *,
    file: Path,
    position: int = 0,
) -> None:
    """The task of a share: load the model, measure, and keep what was found."""
    del position  # these bars are short
    _keep(measure(elsewhere.load(), share, *arguments), file)


def _dealt(items: Sequence[Any], least: int) -> list[Sequence[Any]]:
    """The items in order, as evenly as they go, at least so many in a share."""
    n = max(1, len(items) // least)
    ends = [len(items) * share // n for share in range(n + 1)]
    return [items[first:end] for first, end in pairwise(ends)]


def _size(subject: Subject, tokens: int, passes: float) -> int:
    """The fewest items of a share, the same on every machine and for any number of workers.

    So a call that goes on deals as the one before did.
    """
    weights = sum(parameter.numel() for parameter in subject.model.parameters())
    one_pass = 2.0 * weights * tokens
    return max(1, math.ceil(WORTH * (START + 2 * one_pass) / (passes * one_pass)))


def _file(kept: Path, what: str, about: Sequence[Any], share: Sequence[Any]) -> Path:
    """Where a share is kept: a folder of its own, so that no two machines write into one record."""
    # Of a cluster's calls alone: a stage that measures here does not depend on it.
    from interp_core.training.checkpoints import fingerprint

    return kept / f"{what}-{fingerprint(about, share, code=())}" / "found.npz"


def _is_kept(file: Path) -> bool:
    return file.is_file() and is_listed(file)


def _keep(found: Found, file: Path) -> None:
    with vouching(file):
        save_arrays(file, found)
