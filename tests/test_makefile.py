"""What a newcomer types first: make alone explains, and an old Python is named before pip runs."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=kept, capture_output=True, text=True, check=False
    )


def test_make_alone_explains() -> None:
    said = make(ROOT).stdout
    for target in ("make setup", "make repro", "make test", "make published"):
        assert target in said


def test_an_old_python_is_named_and_no_environment_is_left(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    old = tmp_path / "python3.10"
    # Answers as Python 3.10 does: it is too old, and it says its version.
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.10.14" && exit 0\nexit 1\n')
    old.chmod(0o755)

    done = make(tmp_path, "setup", f"PYTHON={old}")

    assert done.returncode == 2
    assert "is Python 3.10.14, and Python 3.11 or newer is needed" in done.stderr
    assert not (tmp_path / ".venv").exists()
