"""A seed that is added to the profile is trained and measured alone."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from eigen_phase.cli import main
from interp_core.files.params import profile_path

TRAINED = "{}: trained before with these settings and this code, put back"
MEASURED = "{}: measured before with these settings and this code, put back"

ALL = ("train", "curvature", "controls")


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one's own, as the working directory."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "params.yaml").write_text("profile: test\n")
    section = yaml.safe_load(profile_path("smoke").read_text())["eigen_phase"]
    monkeypatch.chdir(tmp_path)
    # Controls that have no part here are left out.
    controls = section["controls"]
    controls["conditions"] = {name: controls["conditions"][name] for name in controls["clamped"]}
    write(tmp_path, section | {"processes": 1}, seeds=[0])
    return tmp_path


def write(project: Path, section: dict[str, Any], *, seeds: list[int]) -> None:
    """The profile, with these seeds of the runs that repeat and of those with a clamped head."""
    section["conditions"]["tiled"]["seeds"] = seeds
    for condition in section["controls"]["clamped"]:
        section["controls"]["conditions"][condition]["seeds"] = seeds
    (project / "profiles" / "test.yaml").write_text(yaml.safe_dump({"eigen_phase": section}))


def change(project: Path, *, seeds: list[int], **training: object) -> None:
    section = yaml.safe_load((project / "profiles" / "test.yaml").read_text())["eigen_phase"]
    section["training"] |= training
    write(project, section, seeds=seeds)


def stages(*commands: str) -> str:
    """Stages as DVC runs them: what they made before is deleted."""
    shutil.rmtree("data", ignore_errors=True)
    said = ""
    for command in commands:
        done = CliRunner().invoke(main, [command], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        said += done.output
    return said


def written() -> dict[str, bytes]:
    files = (file for file in sorted(Path("data").rglob("*")) if file.is_file())
    return {str(file): file.read_bytes() for file in files}


def test_a_seed_that_is_added_is_trained_and_measured_alone(alone: Path) -> None:
    first = stages(*ALL)
    before = written()

    change(alone, seeds=[0, 1])
    second = stages(*ALL)

    after = written()
    of_seed_0 = [TRAINED.format(name) for name in ("tiled-s0", "placed-s0", "clamped-s0")]
    of_seed_0 += [
        MEASURED.format(name)
        for name in ("curvature_tiled-s0", "tiled-s0", "subspace_tiled-s0", "ablation_placed-s0")
    ]
    of_seed_1 = [TRAINED.format(name) for name in ("tiled-s1", "clamped-s1")]
    of_seed_1 += [MEASURED.format(name) for name in ("tiled-s1", "ablation_tiled-s1")]

    assert not any(line in first for line in of_seed_0)
    assert all(line in second for line in of_seed_0)
    assert not any(line in second for line in of_seed_1)

    own = {name: content for name, content in before.items() if "-s0" in name}
    assert own.items() <= after.items()
    assert "data/eigen_phase/runs/tiled-s1/config.json" in after
    assert "data/eigen_phase/scores/curvature/largest/tiled-s1.npz" in after


def test_other_settings_measure_or_train_anew(alone: Path) -> None:
    stages("train", "curvature")

    section = yaml.safe_load((alone / "profiles" / "test.yaml").read_text())["eigen_phase"]
    section["spectrum"]["probe_runs"] = []
    write(alone, section, seeds=[0])
    said = stages("train", "curvature")
    assert TRAINED.format("tiled-s0") in said
    assert MEASURED.format("tiled-s0") in said
    assert MEASURED.format("curvature_tiled-s0") not in said

    change(alone, seeds=[0], clip=0.9)
    said = stages("train", "curvature")
    assert not any(line.format("tiled-s0") in said for line in (TRAINED, MEASURED))
