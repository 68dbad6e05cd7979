"""Two commands into one folder: the second is refused in one line, never silently the only one."""

import errno
import fcntl
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from interp_core.console import call
from interp_core.console.holding import hold
from interp_core.errors import InputError
from interp_core.files.folders import replacing_folder
from interp_core.files.locks import alone_in, locked_file
from interp_core.files.params import Params, read_yaml
from interp_core.files.sums import SUMS, listed_in
from interp_core.files.vouching import vouching

ROOT = Path(__file__).resolve().parents[2]

# Each is a body with a line `told()` where the other process may go on.
ALONE = "with alone_in(folder): told()"
SHARED = "with alone_in(folder, shared=True): told()"
REPLACES = """
with alone_in(folder):
    with replacing_folder(folder, kind="runs", name="a") as part:
        (part / "config.json").write_text("new")
    told()
"""
INSIDE = """
with replacing_folder(folder, kind="runs", name="a") as part:
    (part / "config.json").write_text("new")
    told()
"""
_PROGRAM = """
import sys
from pathlib import Path
from interp_core.files.folders import replacing_folder
from interp_core.files.locks import alone_in
folder = Path(sys.argv[1])
def told():
    print("here", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(body: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has come to `told()`, and goes on when the block ends."""
    running = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM + body, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "here\n"
    try:
        yield running
    finally:
        running.communicate()


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def refusal(folder: Path, *, shared: bool = False) -> str:
    with pytest.raises(InputError) as said, alone_in(folder, shared=shared):
        pass
    return str(said.value)


@pytest.mark.parametrize("body", [ALONE, SHARED, REPLACES])
def test_a_second_process_is_told_who_is_there_and_the_way_out(body: str, tmp_path: Path) -> None:
    with another(body, tmp_path / "mine") as running:
        told = refusal(tmp_path / "mine")
        assert told.endswith("wait until it ends, or name another folder")
        assert f"is writing into {tmp_path / 'mine'}: " in told
        assert told.startswith((f"process {running.pid} ", "another process "))
    with alone_in(tmp_path / "mine"):
        pass


def test_stages_are_there_together_and_an_experiment_is_not(tmp_path: Path) -> None:
    with another(SHARED, tmp_path), alone_in(tmp_path, shared=True):
        pass
    with another(ALONE, tmp_path):
        refusal(tmp_path, shared=True)


def test_a_killed_holder_holds_nothing_and_leaves_no_file(tmp_path: Path) -> None:
    with another(ALONE, tmp_path) as running:
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        with alone_in(tmp_path):
            assert files(tmp_path) == []


def test_a_folder_that_was_made_to_be_held_goes_where_nothing_was_written(tmp_path: Path) -> None:
    with alone_in(tmp_path / "mine"), alone_in(tmp_path / "mine"):
        pass
    assert files(tmp_path) == []
    with alone_in(tmp_path / "mine"):
        (tmp_path / "mine" / "a.json").touch()
    assert files(tmp_path) == ["mine", "mine/a.json"]


def test_a_folder_is_replaced_by_one_process_at_a_time(tmp_path: Path) -> None:
    place = tmp_path / "mine"
    with another(INSIDE, place):
        with (
            pytest.raises(InputError, match=rf"is writing into {place}:"),
            replacing_folder(place, kind="runs", name="a"),
        ):
            pass
        assert ".mine.part/new/config.json" in files(tmp_path)
    assert files(tmp_path) == ["mine", "mine/config.json", "mine/files.json"]


def test_a_file_system_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # NFS, of a folder

    monkeypatch.setattr(fcntl, "flock", cannot)

    @click.command()
    def command() -> None:
        hold(tmp_path)

    done = CliRunner().invoke(command)
    assert done.exit_code == 0, done.output
    assert "a file system without locks: run one command at a time" in done.stderr


def test_records_of_several_processes_lose_no_line(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from interp_core.files.vouching import vouching\n"
        "for i in range(40):\n"
        "    file = Path(sys.argv[1]) / f'{sys.argv[2]}-{i}.json'\n"
        "    with vouching(file): file.write_text(file.name)\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), name]) for name in "ab"
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(listed_in(tmp_path / SUMS)) == 80


def test_results_are_recorded_in_a_folder_that_is_held(tmp_path: Path) -> None:
    with alone_in(tmp_path), vouching(tmp_path / "a.json"):
        (tmp_path / "a.json").write_text("{}")
    assert list(listed_in(tmp_path / SUMS)) == ["a.json"]


def test_who_finds_a_file_s_lock_removed_takes_the_new_one(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    with locked_file(lock) as first, locked_file(lock, patience=0.0) as second:
        assert first is not None
        assert second is None
        lock.unlink()
        with locked_file(lock, patience=0.0) as third:
            assert third is not None


class Settings(Params):
    """Of a study of one number."""

    seed: int = 0


def test_stages_of_one_study_run_side_by_side_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "params.yaml").write_text("profile: first\n")
    (tmp_path / "profiles" / "first.yaml").write_text("models: {}\n")
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "data" / "a_study"

    @click.command()
    @click.option("--out", type=click.Path(path_type=Path))
    def command(out: Path | None) -> None:
        call.start("a_study", Settings(), out=out).check_folder()

    with another(SHARED, own):
        assert CliRunner().invoke(command).exit_code == 0
        done = CliRunner().invoke(command, ["--out", str(own)])
        assert isinstance(done.exception, InputError)
        assert f"is writing into {own}" in str(done.exception)


def writing_commands() -> list[tuple[str, str]]:
    """Programs and commands that take a folder to write into."""
    programs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    found = []
    for where in programs.values():
        main = getattr(importlib.import_module(where.partition(":")[0]), where.partition(":")[2])
        for name, command in main.commands.items():
            if any(one.name == "out" for one in command.params):
                found.append((where, name))
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project's folder without data: of models what is looked at before anything is read."""
    home = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "params.yaml", home)
    shutil.copytree(ROOT / "profiles", home / "profiles")

    for model in read_yaml(home / "profiles" / "smoke.yaml")["models"].values():
        if "path" in model:
            place = home / model["path"]
            place.mkdir(parents=True)
            (place / "config.json").write_text("{}")
            (place / "model.safetensors").touch()
    return home


@pytest.mark.parametrize(("where", "command"), writing_commands())
def test_every_command_is_refused_where_another_one_writes(
    where: str, command: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    module, _, function = where.partition(":")
    out = project / module / command
    out.mkdir(parents=True)
    if module == "pythia_topology.cli":
        (out / "profile_neox-2l.json").write_text("{}")  # what its `figures` draws

    with another(ALONE, out):
        before = files(project)
        arguments = [command, "--out", str(out)]
        if command not in ("report", "answers"):
            arguments += ["--profile", "smoke"]
        if command == "crosssize":
            arguments += ["--models", "neox-2l", "neox-4l"]
        done = CliRunner().invoke(getattr(importlib.import_module(module), function), arguments)
        assert done.exit_code == 2, done.output
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert f"is writing into {out}: wait until it ends" in done.stderr
        assert files(project) == before
