"""Bars are for people at a terminal: seen there, and nowhere else."""

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

PROGRAM = """
import interp_core.progress as progress
progress.DELAY = 0
with progress.training_bar(40, "neox-4l", 10) as bar:
    for _ in range(30):
        bar.advance()
    bar.show({"loss": 1.23456})
    bar.show({"accuracy": 0.5, "step": 3})
    bar._bar.refresh()
assert list(progress.progress(iter("abc"), "letters", total=3)) == ["a", "b", "c"]
"""


def seen_on_a_terminal(program: str) -> str:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    subprocess.run([sys.executable, "-c", program], stderr=theirs, check=True)
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux's end of a terminal whose other side is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    return seen.decode()


def test_a_terminal_sees_steps_numbers_and_remaining_time() -> None:
    seen = seen_on_a_terminal(PROGRAM)
    last = seen.replace("\r", "\n").split("neox-4l:")[-1]
    assert "40/40" in last
    assert "loss=1.23" in last
    assert "accuracy=0.5" in last
    assert "00:00<00:00" in last
    assert "letters" in seen


def test_a_pipe_sees_nothing(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("wb") as file:
        subprocess.run([sys.executable, "-c", PROGRAM], stderr=file, check=True)
    assert (tmp_path / "stderr").read_bytes() == b""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    assert done.stderr == done.stdout == b""


def test_work_of_less_than_three_seconds_shows_no_bar() -> None:
    assert "letters" not in seen_on_a_terminal(PROGRAM.replace("progress.DELAY = 0\n", ""))
