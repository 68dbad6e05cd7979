"""A stranger's model, where nothing was pulled and nothing made: a fresh clone, an empty folder."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import small_project as project
from interp_core.files.params import project_root

ROOT = Path(__file__).resolve().parents[2]
LINE = "no corpus here yet: making one of installed packages' documentation"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A directory of theirs, with a tokenizer that is none of ours."""
    words = project.word_tokenizer(512)
    return project.save_model(tmp_path / "theirs", project.random_model(layers=2, seed=0), words)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh clone with a text, as the working directory."""
    clone = tmp_path / "clone"
    project.write_profile(clone, {})
    profile = clone / "profiles" / "tests.yaml"
    text = {"packaged": {"distributions": ["click"], "min_characters": 80}}
    section = {"corpus": text | {"vocabulary": 512, "validation_every": 4}}
    profile.write_text(profile.read_text() + yaml.safe_dump(section))
    monkeypatch.chdir(clone)
    return clone


def test_a_fresh_clone_measures_it_on_text_made_on_the_spot(theirs: Path, clone: Path) -> None:
    # Their tokenizer of made-up words knows no name and no repeat of a real text.
    asked = ("profile", "--model", theirs, "--task-types", "spaced_pairs")
    first = project.induct(*asked, "--out", "mine")
    again = project.induct(*asked, "--out", "other")

    assert (first.code, again.code) == (0, 0), first.err + again.err
    assert first.err.count(LINE) == 1
    assert LINE not in again.err
    assert (clone / "mine" / "heatmap_theirs.png").is_file()
    assert not (clone / "data").exists()


def test_a_clone_that_cannot_be_written_leaves_its_text_in_out(
    theirs: Path, clone: Path, tmp_path: Path
) -> None:
    (clone / ".scratch").touch()  # no folder can be below a file, whoever asks
    mine = tmp_path / "mine"
    asked = ("profile", "--model", theirs, "--task-types", "spaced_pairs", "--out", mine)
    first, again = project.induct(*asked), project.induct(*asked)

    assert (first.code, again.code) == (0, 0), first.err + again.err
    assert f"Not a directory: what is unfinished is kept in {mine / '.scratch'}" in first.err
    assert LINE not in again.err
    assert (mine / ".scratch" / "corpus" / "corpus.json").is_file()


@pytest.mark.slow
def test_an_installed_wheel_measures_it_in_an_empty_folder(theirs: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path / "wheel"]
    subprocess.run([*build, ROOT], check=True)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site]
    subprocess.run([*install, wheel], check=True)
    empty.mkdir()

    command = [sys.executable, "-m", "pythia_topology.cli", "profile", "--model", theirs]
    small = ("--profile", "smoke", "--task-types", "spaced_pairs", "--out", "mine")
    # Isolated from the checkout, which the environment's own copy is linked to.
    kept = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [*command, *small], cwd=empty, env=kept, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert (empty / "mine" / "heatmap_theirs.png").is_file()


def test_every_profile_travels_in_the_wheel() -> None:
    described = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = described["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {
        "profiles": "interp_core/settings/profiles",
        "params.yaml": "interp_core/settings/params.yaml",
    }


def test_a_project_is_found_from_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write_profile(tmp_path, {})
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert project_root() == tmp_path
