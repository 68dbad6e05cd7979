"""Several stages at once: the order is that of the files, and the records are DVC's own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from interp_core.errors import InputError
from interp_core.pipeline.reproduce import in_order, reproduce, stages_read

ROOT = Path(__file__).resolve().parents[2]

# Waits for a file that only the other stage of its pair writes: alone, it never ends.
MEETING = """
import pathlib, sys, time
mine, other, out = (pathlib.Path(name) for name in sys.argv[1:])
mine.touch()
for _ in range(600):
    if other.exists():
        break
    time.sleep(0.1)
else:
    sys.exit("alone")
print("met", other)
out.write_text(out.name)
"""
COPY = """
import pathlib, sys
read, written = (pathlib.Path(name) for name in sys.argv[1:])
written.write_text(read.read_text() + "!")
"""


def stage(command: str, deps: list[str], outs: list[str]) -> dict[str, Any]:
    return {"cmd": command, "deps": deps, "outs": outs}


def project(folder: Path, stages: dict[str, Any]) -> Path:
    """A folder that DVC takes for a project, without git."""
    dvc(folder, "init", "--no-scm", "--quiet")
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (folder / "meeting.py").write_text(MEETING)
    (folder / "copy.py").write_text(COPY)
    (folder / "given").write_text("given")
    return folder


def dvc(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "dvc", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def python(file: str, *arguments: str) -> str:
    return " ".join([sys.executable, file, *arguments])


def pair_and_reader() -> dict[str, Any]:
    """Two stages that must run at the same time, and one that reads both and is written first."""
    return {
        "reader": stage(python("copy.py", "left", "both"), ["left", "right"], ["both"]),
        "left": stage(python("meeting.py", "at-left", "at-right", "left"), ["given"], ["left"]),
        "right": stage(python("meeting.py", "at-right", "at-left", "right"), ["given"], ["right"]),
    }


def test_independent_stages_run_at_once_and_a_reader_after_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project(tmp_path, pair_and_reader())

    reproduce(folder, at_once=2)

    said = capsys.readouterr().out.splitlines()
    assert "left | met at-right" in said
    assert "right | met at-left" in said
    ends = {line.split(":")[0]: i for i, line in enumerate(said) if ": ended after" in line}
    assert said.index("reader: begins") > max(ends["left"], ends["right"])
    assert (folder / "both").read_text() == "left!"

    # The records are DVC's own.
    assert "up to date" in dvc(folder, "status")
    reproduce(folder, at_once=2)
    assert capsys.readouterr().out == "Data and pipelines are up to date.\n"


def test_what_is_up_to_date_is_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = {
        "one": stage(python("copy.py", "given", "one"), ["given"], ["one"]),
        "two": stage(python("copy.py", "one", "two"), ["one"], ["two"]),
        "apart": stage(python("copy.py", "own", "three"), ["own"], ["three"]),
    }
    (tmp_path / "own").write_text("own")
    folder = project(tmp_path, copies)
    reproduce(folder, at_once=1)
    (folder / "given").write_text("given anew")
    capsys.readouterr()

    reproduce(folder, at_once=1)

    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.endswith("begins")] == [
        "one: begins",
        "two: begins",
    ]
    assert (folder / "two").read_text() == "given anew!!"


def test_a_stage_that_fails_ends_the_run_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {
        "broken": stage(python("copy.py", "given", "nowhere/one"), ["given"], ["one"]),
        "after": stage(python("copy.py", "one", "two"), ["one"], ["two"]),
    }
    folder = project(tmp_path, broken)

    with pytest.raises(InputError, match="stage broken failed"):
        reproduce(folder, at_once=2)

    said = capsys.readouterr().out
    assert "broken | FileNotFoundError" in said
    assert "after: begins" not in said


def test_an_interrupted_run_leaves_no_process(tmp_path: Path) -> None:
    alone = {
        "alone": stage(python("meeting.py", "at-left", "at-right", "left"), ["given"], ["left"])
    }
    folder = project(tmp_path, alone)
    code = (
        "import signal\n"
        "from pathlib import Path\n"
        # Whoever runs the tests may ignore Ctrl-C, and a process inherits that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from interp_core.pipeline.reproduce import reproduce\n"
        f"reproduce(Path({str(folder)!r}), 1)"
    )
    # Not this test's group: the signal is for this one process.
    run = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    for _ in range(600):
        if (folder / "at-left").exists():
            break
        time.sleep(0.05)

    os.kill(run.pid, signal.SIGINT)

    assert run.wait(timeout=60) != 0
    left = subprocess.run(["pgrep", "-f", f"{folder}"], capture_output=True, text=True, check=False)
    assert not [pid for pid in left.stdout.split() if pid != str(os.getpid())]


def test_a_dependency_on_a_folder_or_on_a_file_in_it_is_one() -> None:
    stages = {
        "folder": {"outs": ["data/a", {"data/b": {"cache": False}}], "metrics": ["data/m.json"]},
        "inside": {"deps": ["data/a/one"]},
        "around": {"deps": ["data"]},
        "alike": {"deps": ["data/aa", "other"]},
        "measured": {"deps": ["data/m.json"]},
    }
    assert stages_read(stages) == {
        "folder": set(),
        "inside": {"folder"},
        "around": {"folder"},
        "alike": set(),
        "measured": {"folder"},
    }


def test_this_pipeline_is_read_as_dvc_reads_it() -> None:
    from dvc.repo import Repo

    graph = Repo(str(ROOT)).index.graph
    theirs = {each.name: {read.name for read in graph.successors(each)} for each in graph.nodes}
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert stages_read(stages) == theirs


def test_what_most_wait_for_begins_first() -> None:
    reads = {"lonely": set(), "leaf": {"root"}, "last": {"leaf"}, "root": set()}
    assert in_order(set(reads), reads) == ["root", "leaf", "lonely", "last"]
    assert in_order({"leaf"}, reads) == ["leaf", "last"]
