"""Live curves in Weights & Biases: online with an account, else offline until `wandb sync`.

One training is one run, whatever stops it on the way; an evaluation is a run too. Tracking never
stops a training: what goes wrong is one line, and the training goes on without.
"""

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp_core import processor
from interp_core.files.artifacts import file_sha256
from interp_core.files.params import project_root
from interp_core.training import account
from interp_core.training.curves import AXIS, SECTIONS
from interp_core.training.journal import Journal
from interp_core.training.live_run import Run, failures, line, say

PROJECT = "induction-lab"
INIT_TIMEOUT, FINISH_TIMEOUT = 8, 8  # seconds that wandb may take
_LONGEST_TAG = 64  # characters that W&B takes


@dataclass(frozen=True)
class About:
    """What a run is of, in one shape for all studies: its group, tags and config."""

    study: str  # or the stage that trains for several
    model: str
    job: str  # train, fine-tune, arm, control or evaluate
    seed: int | None = None
    architecture: str | None = None
    condition: str | None = None  # what it is trained on, where a study has several
    settings: Mapping[str, Any] = field(default_factory=dict)

    def tags(self, profile: str) -> list[str]:
        """Study, profile, model, architecture, seed and condition, as far as there are some."""
        seed = None if self.seed is None else f"seed-{self.seed}"
        found = [self.study, profile, self.model, self.architecture, seed, self.condition]
        return [tag[:_LONGEST_TAG] for tag in dict.fromkeys(found) if tag]

    def config(self, profile: str) -> dict[str, Any]:
        """The same with all settings, and what the numbers hang on beside them."""
        return {
            "study": self.study,
            "profile": profile,
            "model": self.model,
            "seed": self.seed,
            "architecture": self.architecture,
            "condition": self.condition,
            "settings": dict(self.settings),
            **provenance(),
        }


def announce() -> None:
    """Find out for a call where its runs go, and say so in one line when that is not W&B although
    nobody asked for it."""
    if os.environ.get("RANK", "0") != "0":
        return

    call = account.begin()
    if call.trouble is not None:
        say(f"{call.server} cannot be used ({call.trouble}); runs are kept offline")
    elif call.mode == "offline" and "WANDB_MODE" not in os.environ:
        say("no account configured, runs are kept offline; `wandb sync` sends them later")


@contextmanager
def tracked_run(about: About, memory: Path | None = None) -> Iterator[Run]:
    """A run for the length of the block, on the main process only (RANK 0).

    With `memory`, the folder of an unfinished training, the block may be the next part of a run
    that was stopped: it has the same id, and all points of its earlier parts.
    """
    call = account.this_call() if os.environ.get("RANK", "0") == "0" else None
    if call is None or call.mode == "disabled":
        yield Run()
        return

    journal = None if memory is None else Journal.open(memory)
    opened = _start(about, journal, call.profile, call.mode)
    if opened is None:
        yield Run()
        return

    run = Run(opened, journal, _sent_before=opened.starting_step)
    run.send_again()
    failed = True
    try:
        yield run
        run.send_tables()
        failed = False
    finally:
        _finish(opened, about.model, failed=failed)


def track_evaluation(study: str, answers: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """A run that is an evaluation: a study's answers as its summary."""
    about = About(study, model="answers", job="evaluate", settings=settings)
    with tracked_run(about) as run:
        run.summarize(answers)


def provenance() -> dict[str, str | None]:
    """What ties a run to its code, data and processor.

    git revision (`+` when files differ from it), hash of dvc.lock, and the instructions computed
    with ("avx2" as everywhere, or "native": numbers are this processor's own).
    """
    root = project_root()
    lock = root / "dvc.lock"

    return {
        "git_revision": _git_revision(root),
        "dvc_lock_sha256": file_sha256(lock) if lock.is_file() else None,
        "instructions": processor.instructions(),
    }


def _git_revision(root: Path) -> str | None:
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def _start(about: About, journal: Journal | None, profile: str, mode: str) -> Any:
    """wandb's run; an offline one when online fails; None when that fails too."""
    # wandb reports on its own use until the server has answered, ten seconds after the run's end.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    settings = wandb.Settings(
        init_timeout=INIT_TIMEOUT, finish_timeout=FINISH_TIMEOUT, silent=True, console="off"
    )  # pyright: ignore[reportCallIssue]
    goes_on = journal is not None and bool(journal.earlier)

    while True:
        try:
            opened = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=about.model,
                id=None if journal is None else journal.run,
                # What is sent later is the whole run, from its first point.
                resume="allow" if goes_on and mode == "online" else None,
                group=about.study,
                job_type=about.job,
                tags=about.tags(profile),
                config=about.config(profile),
                dir=str(project_root()),
                mode=mode,  # pyright: ignore[reportArgumentType]
                settings=settings,
                reinit="create_new",
            )
            break
        except failures() as problem:
            if mode == "offline":
                say(f"no run was opened ({line(problem)}); the training goes on without")
                return None
            say(f"online failed ({line(problem)}); runs are kept offline")
            account.give_up(line(problem))
            mode = "offline"

    for section in SECTIONS:
        opened.define_metric(f"{section}/*", step_metric=AXIS)
    if mode == "online":
        say(f"{about.model}: {opened.url}")
    if goes_on:
        _remove_earlier_parts(opened)
    return opened


def _remove_earlier_parts(run: Any) -> None:
    """Offline parts of the same run: this one has all that they have."""
    this = _folder(run)
    for folder in this.parent.glob(f"offline-run-*-{run.id}"):
        if folder != this:
            shutil.rmtree(folder)


def _finish(run: Any, name: str, *, failed: bool) -> None:
    """Close a run in at most FINISH_TIMEOUT; what could not be sent is told with its command."""
    started = time.monotonic()
    try:
        run.finish(exit_code=int(failed))
    except failures() as problem:
        say(f"{name} was not closed properly ({line(problem)}); {_later(run)}")
        return

    # wandb gives up without an error.
    if not run.offline and time.monotonic() - started >= FINISH_TIMEOUT:
        account.give_up("it went away")
        say(f"{name} could not be sent in {FINISH_TIMEOUT} seconds; {_later(run)}")
    elif run.offline and account.this_call().trouble is not None:
        say(f"{name} is kept offline; {_later(run)}")


def _later(run: Any) -> str:
    """How to send exactly this run."""
    option = "" if run.offline else "--include-online "
    return f"send it later with `wandb sync {option}{shlex.quote(str(_folder(run)))}`"


def _folder(run: Any) -> Path:
    return Path(run.dir).parent
