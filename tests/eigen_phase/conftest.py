"""Small real runs that several tests read."""

import pytest

from eigen_phase.params import EigenPhase
from eigen_phase.run_directory import RunDirectory
from eigen_phase.train import train_run
from interp_core.params import read_section


@pytest.fixture(scope="session")
def section() -> EigenPhase:
    """The smoke profile's section."""
    return read_section("eigen_phase", EigenPhase, "smoke")


@pytest.fixture(autouse=True)
def no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture(scope="session")
def small_run(section: EigenPhase, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Thirty steps with the Hessian looked at every ten."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        train_run("tiled-s0", section.runs["tiled-s0"], folder / "tiled-s0")
    return RunDirectory.open(folder / "tiled-s0")
