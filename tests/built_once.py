"""What takes a command's whole run to make is made once, by the process that needs it first."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def built_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """The folder that `build` fills, for all processes of this test run; nothing may change it."""
    base = factory.getbasetemp()
    # Workers have folders side by side.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, complete = shared / name, shared / f"{name}.complete"

    with FileLock(shared / f"{name}.lock"):
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process whose build failed
            folder.mkdir()
            build(folder)
            complete.touch()

    return folder
