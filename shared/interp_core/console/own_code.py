"""A stage runs the code of the project that it is a stage of.

An environment is installed from one checkout. A queued experiment, one with `--temp` and a second
checkout lie in other folders: there commands would run the first one's code, and dvc.lock would
name the other's.
"""

import os
import sys
from pathlib import Path

import interp_core
from interp_core.errors import InputError

HOMES = ("packages", "shared")  # where a checkout has its code


def run_own_code() -> None:
    """Start a stage's command again on its own project's code, where it has begun with another's.

    Only DVC's commands: a project's dvc.yaml is run by whoever runs `dvc repro` in it anyway.
    InputError where the environment forbids it.
    """
    stage = os.environ.get("DVC_STAGE")
    # DVC_ROOT names the main checkout in an experiment too; where a stage runs is its own.
    project = None if stage is None else _checkout(Path.cwd())
    if project is None or project == code_root():
        return

    first = [str(project / home) for home in HOMES]
    before = os.environ.get("PYTHONPATH", "")
    if before.split(os.pathsep)[: len(first)] == first:
        raise InputError(
            f"stage {stage} would run the code of {code_root()} and record that of {project}: "
            f"run it in an environment that lets PYTHONPATH name the code"
        )

    searched = os.pathsep.join([*first, before] if before else first)
    again = [sys.executable, *sys.orig_argv[1:]]
    sys.stdout.flush()
    os.execve(sys.executable, again, {**os.environ, "PYTHONPATH": searched})


def code_root() -> Path:
    """The checkout, or the folder of packages, whose code this process runs."""
    return Path(interp_core.__path__[0]).resolve().parents[1]


def _checkout(folder: Path) -> Path | None:
    """The nearest folder, this one or above it, that has the core's code."""
    found = (one for one in (folder, *folder.parents) if (one / "shared" / "interp_core").is_dir())
    return next((one.resolve() for one in found), None)
