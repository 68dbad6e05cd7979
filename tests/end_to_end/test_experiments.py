"""A stage runs the code of the project that it is a stage of, wherever the environment's lies."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = '"source": documents.source'  # in the code that writes a corpus's record
OWN = "of this project"  # what the environment's checkout does not say


def environment(**changes: str) -> dict[str, str]:
    """As one installed from this tree: its code is found first, by absolute paths."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
    return (
        kept
        | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(str(ROOT / home) for home in ("packages", "shared")),
            "WANDB_MODE": "disabled",
            "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": "user.name",
            "GIT_CONFIG_VALUE_0": "tester",
            "GIT_CONFIG_KEY_1": "user.email",
            "GIT_CONFIG_VALUE_1": "tester@example.org",
        }
        | changes
    )


def call(folder: Path, *command: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def run(folder: Path, *command: str) -> str:
    done = call(folder, *command)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A second checkout with one stage, whose corpus says which code wrote it."""
    folder = tmp_path / "second"
    for name in run(ROOT, "git", "ls-files", "-co", "--exclude-standard", "-z").split("\0"):
        if name.startswith(("shared/", "profiles/", ".dvc")) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)

    for name in ("pyproject.toml", "constraints.txt", ".gitignore"):
        shutil.copy2(ROOT / name, folder / name)
    (folder / "params.yaml").write_text("profile: smoke\n")

    head, *blocks = re.split(r"(?m)^(?=  \w[\w-]*:$)", (ROOT / "dvc.yaml").read_text())
    (folder / "dvc.yaml").write_text(head + blocks[0])
    assert "induction-lab corpus" in blocks[0]

    corpus = folder / "shared" / "interp_core" / "stimuli" / "corpus.py"
    text = corpus.read_text()
    marked = text.replace(SOURCE, f'"said": "{OWN}", {SOURCE}')
    assert marked != text
    corpus.write_text(marked)

    run(folder, "git", "init", "--quiet")
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "One stage")
    return folder


def said(folder: Path) -> str | None:
    """Which code wrote a folder's corpus."""
    return json.loads((folder / "data" / "corpus" / "corpus.json").read_text()).get("said")


def test_a_stage_of_a_second_checkout_runs_its_own_code(project: Path) -> None:
    done = call(project, "induction-lab", "corpus", DVC_STAGE="corpus", DVC_ROOT=str(project))
    assert done.returncode == 0, done.stderr
    assert said(project) == OWN


def test_what_a_person_types_runs_the_code_that_is_installed(project: Path) -> None:
    run(project, "induction-lab", "corpus")
    assert said(project) is None


def test_a_stage_is_refused_where_the_environment_keeps_to_other_code(project: Path) -> None:
    # -E: an environment that reads no PYTHONPATH, as some batch systems set up.
    program = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'shared')!r}];"
        "from interp_core.cli import main; main(['corpus'])"
    )
    done = call(project, sys.executable, "-E", "-c", program, DVC_STAGE="corpus")
    assert done.returncode == 2
    assert done.stderr.startswith("error: stage corpus would run the code of ")
    assert len(done.stderr.splitlines()) == 1
    assert not (project / "data").exists()


@pytest.mark.slow
def test_an_experiment_in_a_temporary_folder_runs_its_own_code(project: Path) -> None:
    run(project, "dvc", "exp", "run", "--temp", "--name", "own")
    run(project, "dvc", "exp", "apply", "own")
    assert said(project) == OWN


@pytest.mark.slow
def test_a_queued_experiment_runs_the_code_that_was_queued(project: Path) -> None:
    run(project, "dvc", "exp", "run", "--queue", "--name", "queued")
    corpus = project / "shared" / "interp_core" / "stimuli" / "corpus.py"
    later = corpus.read_text().replace(OWN, "written later")
    corpus.write_text(later)

    run(project, "dvc", "queue", "start")
    run(project, "dvc", "queue", "logs", "queued", "--follow")
    run(project, "git", "checkout", "--quiet", ".")
    run(project, "dvc", "exp", "apply", "queued")
    assert said(project) == OWN
