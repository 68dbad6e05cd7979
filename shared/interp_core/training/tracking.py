"""Live curves in Weights & Biases: online with an account, else an offline run that `wandb sync`
takes later.

Tracking never stops a training: what goes wrong is one warning, and the run goes on without.
"""

import netrc
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from interp_core import processor
from interp_core.files.artifacts import file_sha256
from interp_core.files.params import project_root

PROJECT = "induction-lab"
INIT_TIMEOUT, FINISH_TIMEOUT = 20, 30  # seconds that wandb may take


@dataclass
class Run:
    """A tracked run, or nothing at all (`Run()`), with the same face."""

    _run: Any = None
    _warned: bool = field(default=False, repr=False)

    def log(self, values: Mapping[str, int | float], step: int) -> None:
        """Send one point of each curve at a training step."""
        if self._run is not None and not self._warned:
            try:
                self._run.log(dict(values), step=step)
            except _failures() as problem:
                self._warned = True
                _say(f"W&B: logging stopped ({_line(problem)}); the training goes on")

    def image(self, name: str, path: Path, step: int) -> None:
        """Send a picture at a training step."""
        if self._run is not None and not self._warned:
            import wandb

            try:
                self._run.log({name: wandb.Image(str(path))}, step=step)
            except _failures() as problem:
                self._warned = True
                _say(f"W&B: logging stopped ({_line(problem)}); the training goes on")


def mode() -> str:
    """online, offline or disabled: WANDB_MODE if set, else online where a key is configured, else
    offline.
    """
    chosen = os.environ.get("WANDB_MODE")
    if chosen == "dryrun" or (chosen is None and not _key_configured()):
        return "offline"
    return chosen if chosen in ("offline", "disabled", "shared") else "online"


def announce() -> None:
    """One line when runs stay on this machine although nobody asked for that."""
    if (
        os.environ.get("RANK", "0") == "0"
        and mode() == "offline"
        and "WANDB_MODE" not in os.environ
    ):
        _say(
            "W&B: no account configured, runs are kept offline; send them later with `wandb sync "
            "wandb/offline-run-*`"
        )


@contextmanager
def tracked_run(
    name: str,
    *,
    group: str,
    job_type: str,
    tags: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> Iterator[Run]:
    """A run for the length of the block, on the main process only (RANK 0).

    Its config is the given one with git_revision and dvc_lock_sha256 (None where there is none) and
    the processor's instructions. Failed online: one warning, then offline.
    """
    chosen = mode() if os.environ.get("RANK", "0") == "0" else "disabled"
    if chosen == "disabled":
        yield Run()
        return
    complete = dict(config or {}) | provenance()
    settings = {"project": os.environ.get("WANDB_PROJECT", PROJECT), "name": name, "group": group}
    run = _start({**settings, "job_type": job_type, "tags": list(tags), "config": complete}, chosen)
    failed = True
    try:
        yield Run(run)
        failed = False
    finally:
        if run is not None:
            try:
                run.finish(exit_code=int(failed))
            except _failures() as problem:
                _say(
                    f"W&B: the run was not closed properly ({_line(problem)}); its file is in "
                    f"{run.dir}"
                )


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


def _start(arguments: dict[str, Any], chosen: str) -> Any:
    """wandb.init; offline when online fails; None when that fails too."""
    import wandb

    settings = wandb.Settings(
        init_timeout=INIT_TIMEOUT, finish_timeout=FINISH_TIMEOUT, silent=True, console="off"
    )  # pyright: ignore[reportCallIssue]
    while True:
        try:
            return wandb.init(
                dir=str(project_root()),
                mode=chosen,  # pyright: ignore[reportArgumentType]
                settings=settings,
                reinit="create_new",
                **arguments,
            )
        except _failures() as problem:
            if chosen == "offline":
                _say(f"W&B: no run was opened ({_line(problem)}); the training goes on without")
                return None
            _say(
                f"W&B: online failed ({_line(problem)}); this run is kept offline for `wandb sync`"
            )
            chosen = "offline"


def _failures() -> tuple[type[Exception], ...]:
    """What wandb raises when its account, its network, its service or its disk fail."""
    import wandb

    return (wandb.Error, OSError, TimeoutError, RuntimeError, ValueError)


def _key_configured() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    names = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for path in (Path(name).expanduser() for name in names):
        try:
            if path.is_file() and netrc.netrc(path).authenticators(host):
                return True
        except (netrc.NetrcParseError, OSError):
            continue
    return False


def _line(problem: Exception) -> str:
    return " ".join(str(problem).split())[:200] or type(problem).__name__


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
