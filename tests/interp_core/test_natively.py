"""What was made natively is told as long as it lies in data/, whoever laid it out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from interp_core import cli, processor
from interp_core.console.natively import made_natively
from interp_core.files.artifacts import save_json

# A command of ours as DVC runs it; of what it writes one file has the instructions' last digits.
COMMAND = """
import sys
from pathlib import Path
import click
from interp_core import processor
from interp_core.console.options import Group

@click.group(cls=Group)
def main(): pass

@main.command()
def digits():
    Path("data/folder/deep").mkdir(parents=True)
    Path("data/folder/deep/loss.json").write_text(processor.instructions())

@main.command()
def tokens():
    Path("data/tokens.json").write_text("the same whatever computes")

main()
"""
PIPELINE = f"""
stages:
  digits:
    cmd: {sys.executable} command.py digits
    outs: [data/folder]
  tokens:
    cmd: {sys.executable} command.py tokens
    outs: [data/tokens.json: {{cache: false}}]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text("profile: none\n")
    (tmp_path / "profiles").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / ".gitignore").write_text(".scratch/\n")
    (tmp_path / "command.py").write_text(COMMAND)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*command: str, **changes: str) -> str:
    chosen = {*processor.PINNED, processor.SWITCH}
    environment = {name: value for name, value in os.environ.items() if name not in chosen}
    done = subprocess.run(
        command, env=environment | changes, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def repro(**changes: str) -> None:
    run(sys.executable, "-m", "dvc", "repro", "--quiet", "--force", **changes)


def commit() -> None:
    run("git", "add", "--all")
    person = ("-c", "user.name=tester", "-c", "user.email=tester@example.org")
    run("git", *person, "commit", "--quiet", "--message", "Run the pipeline")


def test_what_a_stage_wrote_natively_is_told_while_it_is_there(project: Path) -> None:
    run("git", "init", "--quiet")
    run(sys.executable, "-m", "dvc", "init", "--quiet")
    repro()
    commit()
    assert made_natively(project) == []

    repro(INDUCTION_LAB_CPU="native")
    assert made_natively(project) == ["digits"]  # tokens are as they were committed

    # Whoever commits it has it from the same processor still.
    natively = (project / "dvc.lock").read_text()
    commit()
    repro(INDUCTION_LAB_CPU="native")
    assert made_natively(project) == ["digits"]

    repro()
    assert made_natively(project) == []

    # DVC's run-cache may lay it out again, and then no command runs.
    (project / "dvc.lock").write_text(natively)
    assert made_natively(project) == ["digits"]


def test_a_stage_that_wrote_the_same_bytes_with_other_instructions_is_struck_off(
    project: Path,
) -> None:
    run("git", "init", "--quiet")
    run(sys.executable, "-m", "dvc", "init", "--quiet")
    repro(INDUCTION_LAB_CPU="native")  # nothing is committed that could say so before
    assert made_natively(project) == ["digits", "tokens"]

    repro()
    assert made_natively(project) == []


def test_a_command_that_is_no_stage_leaves_no_note(project: Path) -> None:
    run(sys.executable, "command.py", "digits", INDUCTION_LAB_CPU="native")
    run(sys.executable, "command.py", "tokens", INDUCTION_LAB_CPU="native", DVC_STAGE="theirs")
    assert not (project / ".scratch").exists()


@pytest.mark.parametrize(("count", "named"), [(1, "s0;"), (5, "s0, s1, s2 and 2 more;")])
def test_the_table_of_answers_ends_with_it(project: Path, count: int, named: str) -> None:
    save_json(project / "data" / "study" / "metrics" / "one.json", {})
    save_json(project / "data" / "study" / "answers.json", {})
    outs = "".join(f"  s{k}: {{outs: [{{path: data/{k}, md5: m{k}}}]}}\n" for k in range(count))
    (project / "dvc.lock").write_text(f"stages:\n{outs}")
    done = CliRunner().invoke(cli.main, ["answers", "--compare"])
    assert done.stderr == ""

    for k in range(count):
        save_json(project / ".scratch" / "natively" / f"s{k}.json", {f"m{k}": f"data/{k}"})
    save_json(project / ".scratch" / "natively" / "other.json", {"gone": "data/0"})

    (line,) = CliRunner().invoke(cli.main, ["answers", "--compare"]).stderr.splitlines()
    assert line.startswith(f"note: made with this processor's own instructions: {named} numbers")
    assert "last digits" in line
    assert line.endswith("`dvc repro --force` makes them again")
