"""Settings, hand-built and random Mambas, and a project for the study's commands."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import known_mamba as known
from built_once import built_once
from interp_core.files.params import check
from interp_core.loading import subject_of
from interp_core.mamba.subject import MambaSubject, as_mamba
from interp_core.stimuli.prompts import Prompts, repeated_tokens
from mamba_induction.params import MambaInduction
from mamba_project import Said, build_project, mamba_induction, random_mamba


def settings(**changes: Any) -> MambaInduction:
    """The smoke profile's, with changes."""
    smoke = yaml.safe_load((Path(__file__).parents[2] / "profiles" / "smoke.yaml").read_text())
    return check(MambaInduction, smoke["mamba_induction"] | changes, where="test")


@pytest.fixture
def params() -> MambaInduction:
    """The smoke profile's settings."""
    return settings()


@pytest.fixture(params=[1, 2, 3])
def offset(request: pytest.FixtureRequest) -> int:
    """Where induction is planted: tokens from the earlier occurrence to the key that is read."""
    return request.param


@pytest.fixture(params=["mamba", "mamba2"])
def kind(request: pytest.FixtureRequest) -> str:
    """What the circuit is planted in."""
    return request.param


@pytest.fixture
def planted(kind: str, offset: int) -> MambaSubject:
    """The hand-built Mamba with induction at `offset`."""
    build = {"mamba": known.induction_mamba, "mamba2": known.induction_mamba2}[kind]
    return as_mamba(subject_of(build(offset), name="planted", bos=0))


@pytest.fixture
def prompts() -> Prompts:
    """Two copies of 16 distinct ids of the hand-built Mamba."""
    return repeated_tokens(known.VOCABULARY, period=16, n_prompts=12, rng=np.random.default_rng(0))


@pytest.fixture
def untrained() -> MambaSubject:
    """A Mamba with random weights and 96 ids."""
    return as_mamba(subject_of(random_mamba(seed=0), name="random", bos=0))


@pytest.fixture(scope="session")
def project_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a text, a Mamba and a twin that share a tokenizer; nothing may change it."""
    return build_project(tmp_path_factory.mktemp("mamba"))


@pytest.fixture(scope="session")
def finished(project_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """The folder of `mamba-induction run`, and what it said; nothing may change it."""

    def run(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(project_folder)
            said = mamba_induction("run", "--out", folder / "out", "--twin", "twin")
        (folder / "said.json").write_text(json.dumps(asdict(said)))

    folder = built_once(tmp_path_factory, "mamba_induction", run)
    return folder / "out", Said(**json.loads((folder / "said.json").read_text()))


@pytest.fixture
def project(project_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the working directory."""
    monkeypatch.chdir(project_folder)
    return project_folder
