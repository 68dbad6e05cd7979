"""What is said of a file of the pipeline that is missing: the remote first, and the right stage."""

from pathlib import Path

import numpy as np
import pytest
import yaml

import cursive_circuits.run_directory as cursive
import eigen_phase.run_directory as eigen
from interp_core.errors import InputError
from interp_core.files.artifacts import file_sha256, load_arrays, load_json, load_weights
from interp_core.files.way_out import origin_of
from interp_core.models.folder import folder_of
from interp_core.models.spec import ModelSpec
from interp_core.page.columns import read_columns

ROOT = Path(__file__).resolve().parents[2]
STAGES = {
    "measure": {
        "cmd": "measure",
        "outs": ["data/scores", {"data/kept": {"persist": True}}],
        "metrics": [{"data/metrics": {"cache": False}}],
        "plots": ["data/plain.svg"],
    },
    "mamba_models": {"cmd": "train", "outs": ["data/models"]},
}
REMOTE = "[core]\n    remote = store\n['remote \"store\"']\n    url = ../store\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh clone: declared, nothing made, and a remote."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "params.yaml").write_text("profile: test\n")
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text(REMOTE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said_of(read: object, *arguments: object) -> str:
    with pytest.raises(InputError) as problem:
        read(*arguments)  # pyright: ignore[reportCallIssue]
    return str(problem.value)


FETCHED = "`make pull` fetches it, or "


@pytest.mark.parametrize("read", [load_arrays, load_json])
def test_what_is_kept_by_dvc_is_fetched_first_and_its_stage_is_named(
    read: object, project: Path
) -> None:
    made = "run the command that writes it first (`dvc repro measure`; `dvc repro` runs all)"
    assert f"is missing: {FETCHED}{made}" in said_of(read, project / "data" / "scores" / "a.npz")

    # Relative paths start at the working directory.
    assert f"is missing: {FETCHED}{made}" in said_of(read, Path("data/scores/a.npz"))

    # Git has these.
    assert f"is missing: {made}" in said_of(read, project / "data" / "metrics" / "a.json")

    (project / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    assert f"is missing: {made}" in said_of(read, project / "data" / "scores" / "a.npz")


def test_what_no_stage_writes_is_as_before(project: Path, tmp_path: Path) -> None:
    said = said_of(load_json, project / "mine" / "a.json")
    assert said.endswith("run the command that writes it first (`dvc repro` runs all)")

    (project / "dvc.yaml").write_text("half: [")
    said = said_of(load_json, project / "data" / "metrics" / "a.json")
    assert said.endswith("run the command that writes it first (`dvc repro` runs all)")


@pytest.mark.parametrize(
    ("read", "verb"),
    [
        (load_weights, "writes"),
        (file_sha256, "writes"),
        (read_columns, "writes"),
        (eigen.RunDirectory.open, "trains"),
        (cursive.open_run, "trains"),
        (lambda path: folder_of(ModelSpec(source="trained", path=path)), "trains"),
        (lambda path: folder_of(ModelSpec(source="local", path=path)), "writes"),
    ],
)
def test_whoever_reads_names_the_stage_that_writes(read: object, verb: str, project: Path) -> None:
    said = said_of(read, project / "data" / "models" / "mamba-2l")
    assert said.endswith(f"; {FETCHED}`dvc repro mamba_models` {verb} it")


def test_settings_beside_a_path_are_no_other_path(project: Path) -> None:
    for path, fetched in (("kept/a", True), ("plain.svg", True), ("metrics/a", False)):
        origin = origin_of(project / "data" / path)
        assert origin is not None
        assert (origin.stage, origin.is_fetched) == ("measure", fetched)


def test_every_model_of_the_profile_has_the_stage_that_trains_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    found = {
        folder: origin.stage
        for folder in ("models/neox-4l", "mamba_models/mamba-2l", "pretrained/x", "corpus/a.json")
        if (origin := origin_of(ROOT / "data" / folder)) is not None
    }
    assert [*found.values()] == ["reference_models", "mamba_models", "pretrained", "corpus"]


def test_what_is_there_asks_nothing(project: Path) -> None:
    (project / "dvc.yaml").write_text("half: [")
    (project / "data").mkdir()
    np.savez(project / "data" / "a.npz", a=np.ones(2))
    assert load_arrays(project / "data" / "a.npz")["a"].tolist() == [1.0, 1.0]
