"""Fixtures that more than one file needs.

Models are small_models.py (random) and known_circuits.py (built by hand).
"""

import os

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

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # small matrices; and the same sums on every machine


@pytest.fixture
def planted() -> Subject:
    """The hand-built induction circuit."""
    return subject_of(known.induction_model(), name="planted")
