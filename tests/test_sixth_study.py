"""The sixth study in one hour, done literally in a copy of the project."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ruamel.yaml import YAML

from built_once import built_once

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = Path(__file__).parent / "sixth_study"
DECLARED = yaml.safe_load((TEMPLATE / "declared.yaml").read_text())
STAGES = ("sixth_measure", "sixth_figures", "sixth_answers")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with one study more."""
    return built_once(tmp_path_factory, "sixth_study", build)


def build(folder: Path) -> None:
    for name in ("shared", "packages", "profiles"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "pyproject.toml", "params.yaml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)

    no_words = shutil.ignore_patterns("declared.yaml", "__pycache__")
    shutil.copytree(TEMPLATE, folder / "packages" / "sixth_study", ignore=no_words)
    for name in ("laptop", "overlays/smoke", "overlays/paper"):
        add(folder / "profiles" / f"{name}.yaml", DECLARED[f"profiles/{name}.yaml"])
    add(folder / "dvc.yaml", {"stages": DECLARED["dvc.yaml"]})
    into_pyproject(folder / "pyproject.toml")
    (folder / "params.yaml").write_text("profile: smoke\n")

    # smoke measures models of its own too: the toy joins them.
    smoke = folder / "profiles" / "overlays" / "smoke.yaml"
    add(smoke, {"models": DECLARED["profiles/laptop.yaml"]["models"]})

    run(folder, "interp_core.cli", "stages")
    for command in ("measure", "figures", "answers"):
        run(folder, "sixth_study.cli", command)


def add(path: Path, more: dict) -> None:
    """Keys into a YAML file, its comments and tags kept."""
    reader = YAML()
    reader.width = 4096
    content = reader.load(path.read_text())

    for key, value in more.items():
        if key in content:
            content[key].update(value)
        else:
            content[key] = value
    with path.open("w") as written:
        reader.dump(content, written)


def into_pyproject(path: Path) -> None:
    script, package = DECLARED["pyproject.toml"]["script"], DECLARED["pyproject.toml"]["package"]
    text = path.read_text()
    text = text.replace("[project.scripts]\n", f"[project.scripts]\n{script}\n")
    text = text.replace("\npackages = [\n", f'\npackages = [\n  "{package}",\n')
    path.write_text(text)


def run(folder: Path, module: str, *arguments: str) -> str:
    homes = os.pathsep.join(str(folder / home) for home in ("shared", "packages"))
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": homes},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_stages_depend_on_its_own_files_and_parameters(project: Path) -> None:
    stages = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    measure, figures = stages["sixth_measure"], stages["sixth_figures"]

    assert {"packages/sixth_study/measure.py", "shared/interp_core/loading.py"} <= {
        *measure["deps"]
    }
    assert "packages/sixth_study/figures.py" not in measure["deps"]
    assert "shared/interp_core/loading.py" not in figures["deps"]
    # measure reads every key, figures one of them.
    assert "sixth_study" in sections(measure)
    assert "sixth_study.models" in sections(figures)
    assert not {"sixth_study", "sixth_study.period"} & sections(figures)


def sections(stage: dict) -> set[str]:
    """What a stage lists of its profile."""
    return {key for params in stage["params"] for keys in params.values() for key in keys}


def test_every_profile_has_its_section(project: Path) -> None:
    for profile in (project / "profiles").glob("*.yaml"):
        assert "sixth_study" in yaml.safe_load(profile.read_text()), profile


def test_what_is_derived_is_up_to_date_at_once(project: Path) -> None:
    run(project, "interp_core.cli", "stages", "--check")


def test_it_measures_draws_and_answers(project: Path) -> None:
    data = project / "data" / "sixth_study"
    (answer,) = json.loads((data / "answers.json").read_text()).values()
    report = json.loads((data / "metrics" / "measure" / "toy.json").read_text())

    assert (data / "figures" / "toy.png").stat().st_size > 10_000
    assert answer["value"] == report["attention"]["value"]
    assert answer["low"] <= answer["value"] <= answer["high"]
    assert 0 < report["chance"] < 1


def test_the_page_names_every_file_of_the_template() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = {file.name for file in TEMPLATE.glob("*.py")} - {"__init__.py"}
    assert [room for room in sorted(rooms) if f"`{room}`" not in page] == []
