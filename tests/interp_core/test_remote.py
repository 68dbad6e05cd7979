"""What a remote lacks is named, and sent again; a folder is the remote here, real servers are in
end_to_end/test_remotes.py.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from interp_core.console import remote
from interp_core.errors import InputError


def edited(folder: Path) -> Any:
    """DVC's own settings of a project, written when the block ends."""
    return Repo(str(folder)).config.edit()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one folder of two files, all sent to a store beside it."""
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "long").write_bytes(b"of results, the longer one")
    (folder / "data" / "short").write_bytes(b"of results")
    monkeypatch.chdir(folder)

    Repo.init(str(folder), no_scm=True)
    with edited(folder) as config:
        config["core"] |= {"remote": "store", "analytics": False}
        config["remote"]["store"] = {"url": str(tmp_path / "store"), "verify": True}
    dvc: Any = Repo(str(folder))
    dvc.add("data")
    assert "all sent to remote store" in remote.send(folder)
    return folder


def objects(project: Path) -> dict[str, Path]:
    """Where the store has the list and the two files."""
    there = [file for file in (project.parent / "store").rglob("*") if file.is_file()]
    by_size = sorted(
        (file for file in there if file.suffix != ".dir"), key=lambda one: one.stat().st_size
    )
    (listed,) = [file for file in there if file.suffix == ".dir"]
    return {"list": listed, "short": by_size[0], "long": by_size[1]}


def emptied(project: Path) -> None:
    """As a fresh clone: nothing is cached and nothing laid out."""
    shutil.rmtree(project / ".dvc" / "cache")
    shutil.rmtree(project / "data")


def flip(file: Path) -> None:
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def test_what_was_sent_is_fetched(project: Path) -> None:
    emptied(project)
    assert "has nothing to run" in remote.fetch(project)
    assert (project / "data" / "short").read_bytes() == b"of results"


@pytest.mark.parametrize("name", ["list", "short", "long"])
def test_what_is_missing_is_named_and_sent_again(project: Path, name: str) -> None:
    lost = objects(project)[name]
    content = lost.read_bytes()
    cache = shutil.copytree(project / ".dvc" / "cache", project.parent / "cache")
    lost.unlink()
    emptied(project)

    what = "data" if name == "list" else f"data/{name}"
    with pytest.raises(InputError) as said:
        remote.fetch(project)
    if name == "list":  # without it nothing of this run can be found
        assert "has nothing of this run" in str(said.value)
    else:
        assert f"object {lost} of {what} is missing; `make push`" in str(said.value)

    shutil.copytree(cache, project / ".dvc" / "cache", dirs_exist_ok=True)
    remote.send(project)
    assert lost.read_bytes() == content


def test_what_is_damaged_is_named(project: Path) -> None:
    flip(objects(project)["long"])
    emptied(project)
    with pytest.raises(InputError, match="of data/long is damaged; delete what is damaged there"):
        remote.fetch(project)
    assert not (project / "data" / "long").exists()


def test_a_cut_object_is_sent_again(project: Path) -> None:
    cut = objects(project)["long"]
    content = cut.read_bytes()
    cut.chmod(0o644)
    cut.write_bytes(content[:-1])
    remote.send(project)
    assert cut.read_bytes() == content


def test_no_remote_is_told(project: Path) -> None:
    with edited(project) as config:
        del config["core"]["remote"]
    with pytest.raises(InputError, match="no remote: `dvc remote add --default store ADDRESS`"):
        remote.fetch(project)


def test_a_way_to_a_remote_that_is_not_installed_is_named_with_its_extra(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dvc_s3", None)
    with edited(project) as config:
        config["remote"]["store"] = {"url": "s3://bucket/lab"}
    with pytest.raises(InputError, match=r'install -c constraints.txt -e "\.\[s3\]"'):
        remote.fetch(project)


@pytest.mark.parametrize(
    ("said", "mend"),
    [
        ("Permission denied for user root on host 127.0.0.1", "give a key"),
        ("Unable to locate credentials", "give a key"),
        ("An error occurred (403) when calling HeadObject: Forbidden", "give a key"),
        ("The specified bucket does not exist", "make that folder or bucket"),
        ("Connect call failed ('127.0.0.1', 9)", "start its server"),
        ("Could not connect to the endpoint URL", "start its server"),
        ('Could not connect to the endpoint URL: "http://127.0.0.1:40327/keys/ab"', "start its"),
        ("refused: ssh://me@host/keys/files/md5/50/3a1b6f94cb800a6e1f36e172888c50", "start its"),
        ("50/3401b6f94cb800a6e1f36e172888c5.dir: Connect call failed", "start its server"),
        ("files/md5/40/3401b6f94cb800a6e1f36e172888c5.dir: (403) Forbidden", "give a key"),
    ],
)
def test_each_trouble_has_its_mend(said: str, mend: str, project: Path) -> None:
    assert remote.default_remote(project).mend(said).startswith(mend)


@pytest.mark.parametrize(
    ("said", "is_full"),
    [
        ("failed to transfer 'c2': No space left on device: '/a' -> '/b'", True),
        ("failed to transfer 'c2': Disk quota exceeded", True),
        ("(XMinioStorageFull) when calling the PutObject operation: Storage backend has", True),
        ("failed to transfer 'c2': Failure", False),
        ("failed to transfer 'c2': Connection lost", False),
    ],
)
def test_a_store_is_full_in_anybodys_words(said: str, is_full: bool, project: Path) -> None:
    store = remote.default_remote(project)
    assert store.is_full([said, "failed to push data to the cloud: 1 files"], 10) is is_full
