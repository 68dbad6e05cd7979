"""A project's folder, and a small real run that several tests read."""

import shutil
from pathlib import Path

import pytest

from eigen_phase.params import EigenPhase
from eigen_phase.run_directory import RunDirectory
from eigen_phase.train import train_run
from interp_core.files.params import read_section

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of this process: tests that run side by side train the same runs, each in a scratch
    of its own.
    """
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    return folder


@pytest.fixture(autouse=True)
def inside_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(project)


@pytest.fixture(scope="session")
def section(project: Path) -> EigenPhase:
    """The smoke profile's section."""
    return read_section("eigen_phase", EigenPhase, str(project / "profiles" / "smoke.yaml"))


@pytest.fixture(scope="session")
def small_run(
    section: EigenPhase, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunDirectory:
    """Thirty steps with the Hessian looked at every ten."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        patch.chdir(project)
        train_run("tiled-s0", section.runs["tiled-s0"], folder / "tiled-s0", ceiling_draws=1000)
    return RunDirectory.open(folder / "tiled-s0")
