"""Where tasks run is said by whoever starts a command, and what cannot be is one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from interp_core.files.params import project_root

# A command in an environment without Dask, whatever this one has.
WITHOUT_DASK = (
    "import sys; sys.modules['dask'] = None; sys.argv[0] = 'induction-lab';"
    "from interp_core.cli import main; main()"
)


def said(folder: Path, *arguments: str, **environment: str) -> tuple[int, list[str]]:
    """Exit code of a command and its lines on standard error, but for its sign of life."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"WANDB_MODE": "disabled"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("loading ")]
    return done.returncode, lines


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The smoke profile, its trainings on whatever device there is."""
    smoke = yaml.safe_load((project_root() / "profiles" / "smoke.yaml").read_text())
    smoke["reference_models"]["recipe"]["device"] = "auto"
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "test.yaml").write_text(yaml.safe_dump(smoke))
    (tmp_path / "params.yaml").write_text("profile: test\n")
    return tmp_path


def test_a_cluster_without_dask_names_the_extra(project: Path) -> None:
    code, lines = said(project, "-c", WITHOUT_DASK, "models", "--cluster", "local:2")
    assert code == 2
    assert lines == ['error: --cluster needs Dask: pip install -c constraints.txt -e ".[cluster]"']


def test_a_stage_asks_the_environment_for_its_cluster(project: Path) -> None:
    told = {"INDUCTION_LAB_CLUSTER": "local:2"}
    code, lines = said(project, "-c", WITHOUT_DASK, "models", **told)
    assert code == 2
    assert "--cluster needs Dask" in lines[0]


def test_a_command_without_a_cluster_loads_no_dask() -> None:
    program = "import sys, interp_core.training.workers as w; assert w.cluster() is None"
    program += "; assert not {'dask', 'distributed', 'torch'} & set(sys.modules)"
    assert said(project_root(), "-c", program) == (0, [])


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="torchrun has a GPU to use here")
def test_torchrun_without_a_gpu_is_told_what_to_do(project: Path) -> None:
    command = ["-m", "interp_core.cli", "models"]
    code, lines = said(project, *command, WORLD_SIZE="2", RANK="0")
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: torchrun started 2 processes, but `device: auto` finds no")
    assert "set `device: cpu`" in lines[0]
    assert said(project, *command, WORLD_SIZE="2", RANK="1") == (2, [])


def test_torchrun_and_a_cluster_exclude_each_other(project: Path) -> None:
    pytest.importorskip("distributed", reason="Dask is not installed (make test-servers)")
    smoke = (project / "profiles" / "test.yaml").read_text().replace("auto", "cpu")
    (project / "profiles" / "test.yaml").write_text(smoke)
    command = ["-m", "interp_core.cli", "models", "--cluster", "local:2"]
    code, lines = said(project, *command, WORLD_SIZE="2", RANK="0")
    assert code == 2
    assert "choose one" in lines[-1]
