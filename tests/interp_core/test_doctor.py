"""Each fault of an installation is found and named with its mend, and a good one has none."""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from interp_core.cli import main
from interp_core.console import doctor
from interp_core.errors import InputError
from interp_core.files.artifacts import load_arrays

CONTENT = b"an array"
# A stage of a user's that writes as ours do.
MAKE = """
import numpy as np
from pathlib import Path
from interp_core.files.artifacts import save_arrays
from interp_core.files.vouching import vouching
for file in (Path("data/one.npz"), Path("data/deep/two.npz")):
    with vouching(file):
        save_arrays(file, {file.stem: np.full(2, 2.0)})
"""
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
    remote = "[core]\n    remote = store\n['remote \"store\"']\n    url = ../store\n"
    (tmp_path / ".dvc" / "config").write_text(remote)
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


def flip(file: Path) -> None:
    """One bit the other way, time and mode as before: nothing but a hash sees it."""
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    file.chmod(before.st_mode)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_flipped_bit_in_the_cache_is_an_error(project: Path) -> None:
    (cached,) = (project / ".dvc" / "cache").rglob(MD5[2:])
    flip(cached)

    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    (line,) = [line for line in done.output.splitlines() if line.startswith("error")]
    assert f"{cached} (data/array.npz) is not what its name says; `rm {cached}`, then" in line
    assert "`dvc pull`" in line


def test_a_flipped_bit_in_what_was_pulled_is_an_error(project: Path) -> None:
    flip(project / "data" / "array.npz")

    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    (line,) = [line for line in done.output.splitlines() if line.startswith("error")]
    assert "artifacts: data/array.npz is not what dvc.lock says; `rm -r data/array.npz`" in line


def test_how_much_is_hashed_is_told_before(project: Path) -> None:
    (project / "data" / "array.npz").unlink()
    os.link(next((project / ".dvc" / "cache").rglob(MD5[2:])), project / "data" / "array.npz")
    before = list(told())
    assert before.index("to hash") < before.index("cache") < before.index("artifacts")
    assert told()["to hash"].is_so.startswith("1 files of cache and data, 0.0 GB: about 0 s")


def test_a_configuration_of_dvc_that_cannot_be_read_is_an_error(project: Path) -> None:
    (project / ".dvc" / "config").write_text("half[")
    assert told()["DVC"].state == "error"


def dvc(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_what_dvc_checks_out_damaged_is_found_and_the_mend_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "project"
    (home / "profiles").mkdir(parents=True)
    (home / "profiles" / "small.yaml").write_text("corpus: {}\n")
    (home / "params.yaml").write_text("profile: small\n")
    (home / "dvc.yaml").write_text(
        f"stages:\n  make:\n    cmd: {sys.executable} make.py\n    outs: [data]\n"
    )
    (home / "make.py").write_text(MAKE)
    monkeypatch.chdir(home)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    dvc("init", "--no-scm")
    dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    dvc("repro")
    dvc("push")
    cache = home / "elsewhere"
    (home / ".dvc" / "cache").rename(cache)
    dvc("cache", "dir", "--local", str(cache))
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 0

    array = home / "data" / "deep" / "two.npz"
    md5 = hashlib.md5(array.read_bytes(), usedforsecurity=False).hexdigest()
    two = cache / "files" / "md5" / md5[:2] / md5[2:]
    flip(two)
    shutil.rmtree("data")
    dvc("checkout")
    assert "up to date" in dvc("status")  # DVC sees nothing
    with pytest.raises(InputError, match=r"two\.npz is damaged"):
        load_arrays(array)

    done = CliRunner().invoke(main, ["doctor"])
    errors = [line for line in done.output.splitlines() if line.startswith("error")]
    assert done.exit_code == 1
    assert f"cache: {two} (data/deep/two.npz) is not what its name says" in errors[0]
    assert "artifacts: data/deep/two.npz is not what dvc.lock says" in errors[1]

    for mend in (line.split("`")[1] for line in errors):
        subprocess.run(mend, shell=True, check=True)
    dvc("pull")
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 0
    assert load_arrays(array)["two"].tolist() == [2.0, 2.0]


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


def test_what_was_made_natively_is_told_with_the_way_to_make_it_again(project: Path) -> None:
    assert "natively" not in told()
    note = project / ".scratch" / "natively" / "make.json"
    note.parent.mkdir(parents=True)
    note.write_text(f'{{"{MD5}": "data/array.npz"}}')

    found = told()["natively"]
    assert found.state == "note"
    assert found.is_so.startswith("made with this processor's own instructions: make;")
    assert found.mend == "unset INDUCTION_LAB_CPU, and `dvc repro --force` makes them again"


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


def test_of_several_remotes_the_default_one_is_looked_at(project: Path) -> None:
    config = project / ".dvc" / "config"
    (project / "backup").mkdir()
    config.write_text(config.read_text() + "['remote \"backup\"']\n    url = ../backup\n")
    assert told()["remote"].is_so == str(project / "store")

    # A clone's own settings come before the project's, whichever file says more.
    (project / ".dvc" / "config.local").write_text("[core]\n    remote = backup\n")
    assert told()["remote"].is_so == str(project / "backup")
    (project / "backup").rmdir()
    assert told()["remote"].is_so == f"{project / 'backup'} is not there yet"

    config.write_text(config.read_text().replace("[core]\n    remote = store\n", ""))
    (project / ".dvc" / "config.local").unlink()
    assert (told()["remote"].state, told()["remote"].is_so) == ("note", "none")


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
