"""Small words, small models, and a model whose circuit we built by hand."""

from pathlib import Path

import numpy as np
import pytest

from cursive_circuits.data import Split, Words
from cursive_circuits.data_bank import Item, save_bank
from cursive_circuits.data_script import Script, write_bank
from cursive_circuits.data_tokens import Tokens
from cursive_circuits.params import CursiveCircuits, Statistics
from cursive_circuits.run_directory import Trained
from interp_core.files.artifacts import file_sha256
from interp_core.files.params import read_section
from small_strokes import ALPHABET, random_model
from small_study import call, write_profile


@pytest.fixture(autouse=True)
def no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture(scope="session")
def section() -> CursiveCircuits:
    """The smoke profile's section."""
    return read_section("cursive_circuits", CursiveCircuits, "smoke")


@pytest.fixture(scope="session")
def script(section: CursiveCircuits) -> Script:
    return section.bank.script


@pytest.fixture(scope="session")
def items(script: Script) -> list[Item]:
    return list(write_bank(script))


@pytest.fixture(scope="session")
def tokens(section: CursiveCircuits) -> Tokens:
    return section.tokens


@pytest.fixture(scope="session")
def words(items: list[Item], tokens: Tokens) -> Words:
    """The held-out side."""
    return Words.split(items, tokens, ALPHABET, Split(held_out=0.3, seed=0))[1]


@pytest.fixture(scope="session")
def tests() -> Statistics:
    return Statistics(
        resamples=200,
        draws=999,
        level=0.01,
        smallest_excess=0.05,
        smallest_loss=0.05,
        needed_level=0.05,
    )


@pytest.fixture(scope="session")
def trained(tokens: Tokens) -> Trained:
    """A random model as if it had been trained to write."""
    return Trained("handwriting", random_model(tokens), tokens, ALPHABET)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def whole(items: list[Item], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole study of a bank of the public format (no letterIndex), from `run`."""
    folder = tmp_path_factory.mktemp("study")
    bank = folder / "mine.zip"
    save_bank(bank, [Item(item.author, item.text, item.points, None) for item in items])
    source = {"path": str(bank), "sha256": file_sha256(bank)}
    profile = write_profile(folder / "mine.yaml", source, steps=6, warmup=2, checkpoint_every=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        done = call("run", "--profile", str(profile), "--out", str(folder / "out"))
    assert done.exit_code == 0, done.output
    return folder
