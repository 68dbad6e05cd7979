"""The check of pinned versions: a hole that can be mended fails, silence is told and fails not."""

import json
from pathlib import Path
from typing import Any

import pytest

import advisories

HOLE = {"id": "PYSEC-2026-1", "fix_versions": ["2.0"], "aliases": [], "description": "..."}


def package(name: str, *holes: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "version": "1.0", "vulns": list(holes)}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pins, one of them held, and no pip-audit."""
    (tmp_path / "constraints.txt").write_text(
        "click==1.0\nnumpy==1.0\nrich==1.0 ; os_name == 'x'\n"
    )
    (tmp_path / "pyproject.toml").write_text(
        '[tool.uv]\nconstraint-dependencies = ["numpy==1.0"]\n'
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()
    return tmp_path


def stand_in(project: Path, script: str) -> None:
    """A program of that name, as PATH finds it."""
    program = project / "bin" / "pip-audit"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def answering(project: Path, *found: dict[str, Any]) -> None:
    """One that says the same of every file."""
    content = json.dumps({"dependencies": list(found), "fixes": []})
    stand_in(project, f"cat <<'END'\n{content}\nEND")


def test_a_hole_with_a_mended_version_is_an_error() -> None:
    lines, fails = advisories.told([package("click", HOLE), package("rich")], held={"numpy"})
    assert fails
    assert lines[0] == "error: click 1.0: PYSEC-2026-1, mended in 2.0"
    assert lines[1] == "advisories: 2 pins asked about, 1 holes"


@pytest.mark.parametrize(
    ("name", "mended", "why"),
    [("numpy", ["2.0"], "pinned for the bytes of results"), ("click", [], "not mended yet")],
)
def test_a_hole_that_cannot_be_mended_is_told(name: str, mended: list[str], why: str) -> None:
    lines, fails = advisories.told([package(name, HOLE | {"fix_versions": mended})], {"numpy"})
    assert not fails
    assert lines[0].startswith(f"note ({why}): {name} 1.0: PYSEC-2026-1, ")


@pytest.mark.parametrize("strict", [False, True])
def test_a_known_hole_is_told_and_fails_who_asks_strictly(
    strict: bool, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(project, package("click", HOLE))
    assert advisories.main(project, strict=strict) == strict
    assert "error: click 1.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "pip-audit is not installed: `make setup`"),
        ("echo 'Name or service not known' >&2; exit 1", "failed: Name or service not known"),
        ("exec sleep 60", "no answer in 0 s"),
        (
            'echo \'{"dependencies": [{"name": "click", "skip_reason": "not found"}]}\'',
            "the index has no advisories: it does not know click==1.0",
        ),
    ],
)
def test_where_nobody_answers_the_reason_is_told_and_nothing_fails(
    script: str | None,
    reason: str,
    project: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(advisories, "SECONDS", 0.3 if script == "exec sleep 60" else 10.0)
    if script is not None:
        stand_in(project, script)
    assert advisories.main(project, strict=True) == 0
    said = capsys.readouterr().out
    assert said.startswith("advisories: skipped, ")
    assert said.strip().endswith(reason)
