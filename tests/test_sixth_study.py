"""The sixth study in one hour, done literally in a copy of the project."""

import json
import os
import re
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
ABOUT_STUDIES = ("study_options", "dashboard", "published")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with one study more."""
    return built_once(tmp_path_factory, "sixth_study", build)


def build(folder: Path) -> None:
    copied = ("shared", "packages", "profiles", "published", "tests", "data/training")
    # The template lies in packages/ of the copy, and is no test there.
    left_out = shutil.ignore_patterns("__pycache__", "sixth_study", "test_sixth_study.py")
    for name in (*copied, "data/mamba_training"):
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    for name in ("dvc.yaml", "pyproject.toml", "params.yaml", "constraints.txt", "Makefile"):
        shutil.copy(ROOT / name, folder / name)

    no_words = shutil.ignore_patterns("declared.yaml", "__pycache__")
    shutil.copytree(TEMPLATE, folder / "packages" / "sixth_study", ignore=no_words)
    for name in ("laptop", "overlays/smoke", "overlays/paper"):
        add(folder / "profiles" / f"{name}.yaml", DECLARED[f"profiles/{name}.yaml"])
    add(folder / "dvc.yaml", {"stages": DECLARED["dvc.yaml"]})
    into_pyproject(folder / "pyproject.toml")
    replace_in(
        folder / "shared" / "interp_core" / "console" / "dashboard.py",
        "SHOWN = (\n",
        f"SHOWN = (\n    {DECLARED['shared/interp_core/console/dashboard.py']['row']}\n",
    )

    run(folder, "interp_core.cli", "stages")
    for command in ("measure", "figures", "answers"):
        run(folder, "sixth_study.cli", command)


def add(path: Path, more: dict) -> None:
    """Entries into a YAML file, its comments and tags kept."""
    reader = YAML()
    reader.width = 4096
    content = reader.load(path.read_text())
    join(content, more)

    with path.open("w") as written:
        reader.dump(content, written)


def join(content: dict, more: dict) -> None:
    for key, value in more.items():
        if key not in content:
            content[key] = value
        elif isinstance(value, dict):
            join(content[key], value)
        else:
            content[key].extend(value)


def into_pyproject(path: Path) -> None:
    script, package = DECLARED["pyproject.toml"]["script"], DECLARED["pyproject.toml"]["package"]
    name = Path(package).name
    replace_in(path, "[project.scripts]\n", f"[project.scripts]\n{script}\n")
    replace_in(path, "\npackages = [\n", f'\npackages = [\n  "{package}",\n')
    replace_in(path, "known-first-party = [", f'known-first-party = ["{name}", ')
    replace_in(path, "--jaxtyping-packages=", f"--jaxtyping-packages={name},")


def replace_in(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert text.count(before) == 1, f"{path}: {before}"
    path.write_text(text.replace(before, after))


def run(folder: Path, module: str, *arguments: str) -> str:
    return run_python(folder, "-m", module, *arguments)


def run_python(folder: Path, *arguments: str) -> str:
    homes = os.pathsep.join(str(folder / home) for home in ("shared", "packages"))
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": homes},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
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
        content = yaml.safe_load(profile.read_text())
        assert {*content["sixth_study"]["models"]} <= {*content["models"]}, profile


def test_what_is_derived_is_up_to_date_at_once(project: Path) -> None:
    run(project, "interp_core.cli", "stages", "--check")


@pytest.fixture(scope="module")
def outcomes(project: Path) -> list[str]:
    """How each of the repository's tests about studies ended in the project: word and name."""
    files = [f"tests/interp_core/test_{name}.py" for name in ABOUT_STUDIES]
    homes = os.pathsep.join(str(project / home) for home in ("shared", "packages"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *files, "-rA", "-p", "no:cacheprovider"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": homes},
        capture_output=True,
        text=True,
        check=False,
    )
    return [line for line in done.stdout.splitlines() if re.match(r"[A-Z]+ tests/", line)]


@pytest.mark.parametrize("test", ABOUT_STUDIES)
def test_the_repositorys_tests_about_studies_pass_with_it(test: str, outcomes: list[str]) -> None:
    ended = [line for line in outcomes if f"/test_{test}.py" in line]
    assert ended
    assert [line for line in ended if not line.startswith("PASSED ")] == []


def test_the_answers_of_all_studies_wait_for_its(project: Path) -> None:
    answers = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]["answers"]
    assert "data/sixth_study/answers.json" in answers["deps"]


def test_its_page_says_its_verdict(project: Path) -> None:
    program = (
        "from pathlib import Path; from interp_core.console.answers import of_studies;"
        " from interp_core.page.report import parts_of, verdict;"
        " part = parts_of(['sixth_study'])['sixth_study'];"
        " found = {one.name: one for one in of_studies(Path('data'))['sixth_study']};"
        " print(verdict(part.words.verdict, found, where='page'))"
    )
    said = run_python(project, "-c", program)
    assert re.search(r"by 0\.\d+ \[0\.\d+, 0\.\d+\] of its attention", said), said


def test_it_measures_draws_and_answers(project: Path) -> None:
    data = project / "data" / "sixth_study"
    (answer,) = json.loads((data / "answers.json").read_text()).values()
    report = json.loads((data / "metrics" / "measure" / "toy.json").read_text())

    assert (data / "figures" / "toy.png").stat().st_size > 10_000
    assert answer["value"] == report["attention"]["value"]
    assert answer["low"] <= answer["value"] <= answer["high"]
    assert answer["headline"]
    assert 0 < report["chance"] < 1


def test_the_page_names_every_file_of_the_template() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = {file.name for file in TEMPLATE.glob("*.py")} - {"__init__.py"}
    assert [room for room in sorted(rooms) if f"`{room}`" not in page] == []
