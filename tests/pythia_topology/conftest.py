"""Projects that the tests of the study share; commands run inside them, each with its own --out."""

from pathlib import Path

import pytest

import small_project
from interp_core.loading import load_model
from interp_core.models.spec import ModelSpec
from interp_core.models.subject import Transformer, as_transformer


@pytest.fixture(scope="session")
def random_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random models that share the tokenizer of a corpus; nothing may change it."""
    return small_project.build_project(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="session")
def planted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hand-built circuits with a corpus of random words; nothing may change it."""
    return small_project.build_planted_project(tmp_path_factory.mktemp("planted"))


@pytest.fixture
def project(random_project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The random project, as the working directory."""
    monkeypatch.chdir(random_project)
    return random_project


@pytest.fixture
def planted_project(planted_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The planted project, as the working directory."""
    monkeypatch.chdir(planted_folder)
    return planted_folder


@pytest.fixture
def toy(project: Path) -> Transformer:
    """The random model of two layers."""
    return as_transformer(
        load_model(ModelSpec(source="local", path=project / "models" / "toy"), name="toy")
    )


@pytest.fixture
def induction(planted_project: Path) -> Transformer:
    """The hand-built induction circuit, with a tokenizer and a corpus around it."""
    return as_transformer(
        load_model(
            ModelSpec(source="local", path=planted_project / "models" / "induction"),
            name="induction",
        )
    )


@pytest.fixture
def duplicate(planted_project: Path) -> Transformer:
    """The hand-built duplicate-token circuit."""
    return as_transformer(
        load_model(
            ModelSpec(source="local", path=planted_project / "models" / "duplicate"),
            name="duplicate",
        )
    )
