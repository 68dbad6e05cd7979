"""Where a call keeps what it has measured until it has all, and who measures it."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interp_core.console.call import Call
from interp_core.console.made_from import mark
from interp_core.models.spec import short_name, spec_of
from interp_core.models.subject import Subject
from interp_core.training.checkpoints import fingerprint, scratch
from interp_core.training.shares import Elsewhere, dealing
from interp_core.training.workers import cluster


@contextmanager
def unfinished(
    run: Call[Any],
    what: str,
    model: str,
    *,
    unread: Collection[str] = (),
    read: Iterable[str] = (),
) -> Iterator[Path]:
    """A folder for what is measured of a model: for its files, these settings and this code.

    .scratch/WHAT/MODEL-..., deleted when the block ends without an error.
    """
    name = short_name(model)
    made = mark(run.study, {name: run.source(model)}, run.params, unread=unread, read=read)
    # The number of threads moves the last digits.
    code = fingerprint(made, run.params.threads, code=())

    with scratch(what, f"{name}-{code}", beside=run.folder) as held:
        yield held.folder


@contextmanager
def dealt_out(
    run: Call[Any], what: str, model: str, subject: Subject, *, unread: Collection[str] = ()
) -> Iterator[None]:
    """Inside the block measurements of the model are dealt to the command's cluster, if it has one.

    Whoever saves the result does it inside: what was kept goes when the block ends.
    """
    if cluster() is None:
        yield
        return

    params = run.params
    with unfinished(run, what, model, unread=unread) as kept:
        elsewhere = Elsewhere(
            spec=spec_of(model, run.known),
            name=subject.name,
            sha256=subject.hash,
            device=params.device,
            dtype=params.dtype,
            bos=params.bos,
            threads=params.threads,
            kept=kept,
        )
        with dealing(elsewhere):
            yield
