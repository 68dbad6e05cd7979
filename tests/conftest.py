"""Fixtures that more than one file needs.

Models are small_models.py (random) and known_circuits.py (built by hand).
"""

import builtins
import gc
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from interp_core import processor

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["WANDB_MODE"] = "disabled"  # a test that tracks says so
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# `make test` chooses the instructions before pytest's plugins load NumPy. Without it all commands
# of the tests compute natively, in this process and in others, so that they agree.
if processor.settle() is not None:
    os.environ[processor.SWITCH] = "native"

import pytest
import torch
from hypothesis import settings

import known_circuits as known
from interp_core.loading import subject_of
from interp_core.models.subject import Subject

# A shell that starts the tests in the background has SIGINT ignored, here and in the commands that
# the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
OURS = {
    file.parent.name for home in ("shared", "packages") for file in ROOT.glob(f"{home}/*/cli.py")
}

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="session")
def _integers_alone_are_summed_by_python() -> Iterator[None]:
    """Python 3.12 adds floats in another way than 3.11: the last digits of a result would depend on
    the version. `math.fsum` gives the nearest float on all of them.
    """
    added = builtins.sum

    def guarded(values: Iterable[Any], /, start: Any = 0) -> Any:
        found = added(values, start)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if type(found) is float and caller.split(".")[0] in OURS:
            raise AssertionError(f"{caller} adds floats with sum: math.fsum is the same everywhere")
        return found

    builtins.sum = guarded  # pyright: ignore[reportAttributeAccessIssue]
    yield
    builtins.sum = added


# Files that take longest, and what many processes wait for, from the first on: a worker that comes
# to one of them last would leave the others idle.
FIRST = (
    "end_to_end/test_pipeline_runs.py",
    "end_to_end/test_resume.py",
    "test_sixth_study.py",
    "mamba_induction/",
    "mamba_neurons/",
    "pythia_topology/",
    "eigen_phase/",
    "cursive_circuits/",
    "end_to_end/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first; inside a file, and among the others, as they stand."""
    items.sort(key=lambda item: _place(item.path.relative_to(ROOT / "tests").as_posix()))


def _place(file: str) -> int:
    return next((at for at, start in enumerate(FIRST) if file.startswith(start)), len(FIRST))


def pytest_collection() -> None:
    """What is loaded from here on stays."""
    gc.disable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """A million objects of libraries are no garbage: to look through them at every collection is a
    fifth of the tests' time.
    """
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # small matrices; and the same sums on every machine


@pytest.fixture
def planted() -> Subject:
    """The hand-built induction circuit."""
    return subject_of(known.induction_model(), name="planted")
