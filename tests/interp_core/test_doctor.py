"""Each fault of an installation is found and named with its mend, and a good one has none."""

import hashlib
import importlib.metadata
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from interp_core.cli import main
from interp_core.console import doctor

CONTENT = b"an array"
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one output, which lies in the cache too."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "small.yaml").write_text("corpus: {}\n")
    (tmp_path / "params.yaml").write_text("profile: small\n")
    (tmp_path / "constraints.txt").write_text(f"click=={importlib.metadata.version('click')}\n")
    lock = f"stages:\n  make:\n    outs:\n    - path: data/array.npz\n      md5: {MD5}\n"
    (tmp_path / "dvc.lock").write_text(lock)

    cached = tmp_path / ".dvc" / "cache" / "files" / "md5" / MD5[:2] / MD5[2:]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(CONTENT)
    (tmp_path / ".dvc" / "config").write_text("['remote \"store\"']\n    url = ../store\n")
    (tmp_path / "store").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "array.npz").write_bytes(CONTENT)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path


def told() -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.examine()}


def test_a_good_installation_has_no_error(project: Path) -> None:
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 0, done.output
    assert "error" not in done.output
    assert told()["data"].state == told()["cache"].state == told()["packages"].state == "ok"


def test_a_flipped_bit_in_the_cache_is_an_error(project: Path) -> None:
    (cached,) = (project / ".dvc" / "cache").rglob(MD5[2:])
    cached.write_bytes(b"an errax")

    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    assert f"1 damaged objects, {cached} first" in done.output


def test_data_that_was_not_pulled_is_told_with_the_command_that_brings_it(project: Path) -> None:
    (project / "data" / "array.npz").unlink()
    assert "dvc checkout" in told()["data"].mend

    (cached,) = (project / ".dvc" / "cache").rglob(MD5[2:])
    cached.unlink()
    assert "dvc pull" in told()["data"].mend


def test_a_package_of_another_version_is_named(project: Path) -> None:
    (project / "constraints.txt").write_text("click==0.0.1\n")
    found = told()["packages"]
    assert found.state == "error"
    assert found.is_so == f"click {importlib.metadata.version('click')} for 0.0.1"


def test_a_profile_that_is_not_there_is_named(project: Path) -> None:
    (project / "params.yaml").write_text("profile: smal\n")
    found = told()["profile"]
    assert found.state == "error"
    assert "known here: small" in found.is_so


def test_a_full_disk_is_an_error(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_DISK", 1e18)
    assert told()["disk"].state == "error"


def test_the_switch_to_native_is_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INDUCTION_LAB_CPU", "native")
    assert told()["instructions"].state == "note"


def test_a_hub_that_does_not_answer_is_a_note(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert told()["hub"].state == "note"
    assert "127.0.0.1: " in told()["hub"].is_so
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in told()["hub"].mend


def test_a_remote_that_does_not_answer_is_an_error(project: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    config = "[core]\n    remote = store\n['remote \"store\"']\n    url = http://127.0.0.1:9\n"
    (project / ".dvc" / "config").write_text(config)
    (project / "dvc.yaml").write_text("stages:\n  make: {cmd: make, outs: [data/array.npz]}\n")
    lock = (project / "dvc.lock").read_text().replace("  make:\n", "  make:\n    cmd: make\n")
    (project / "dvc.lock").write_text(f"schema: '2.0'\n{lock}")
    found = told()["remote"]
    assert found.state == "error"
    assert found.is_so.startswith("remote store (http://127.0.0.1:9): ")


def test_code_of_another_checkout_is_told(project: Path) -> None:
    assert told()["code"].state == "ok"
    (project / "shared" / "interp_core").mkdir(parents=True)
    assert told()["code"].state == "note"
    assert str(project) in told()["code"].is_so


def test_the_version_is_of_the_code_that_runs(project: Path) -> None:
    ours = CliRunner().invoke(main, ["--version"]).output
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    assert CliRunner().invoke(main, ["--version"]).output == ours
    # A wheel in a folder of somebody's repository has no revision.
    assert doctor.version(project) == importlib.metadata.version("induction-lab")


def test_the_version_names_the_revision() -> None:
    said = CliRunner().invoke(main, ["--version"]).output
    assert said.startswith(f"induction-lab {importlib.metadata.version('induction-lab')}")
    assert "(" in said
