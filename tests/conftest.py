"""Fixtures that more than one file needs. Models are small_models.py (random) and known_circuits.py (built by hand)."""

import os
from pathlib import Path

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

import known_circuits as known
from interp_core.loading import subject_of
from interp_core.models import Subject


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests stay together when several processes run them: a file's, and, where a study's conftest builds things
    once for a session, the study's."""
    for item in items:
        shared = item.path.parent / "conftest.py"
        together = shared.parent if shared.is_file() and shared != Path(__file__) else item.path
        item.add_marker(pytest.mark.xdist_group(str(together.relative_to(Path(__file__).parent))))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # small matrices; and the same sums on every machine


@pytest.fixture
def planted() -> Subject:
    """The hand-built induction circuit."""
    return subject_of(known.induction_model(), name="planted")
