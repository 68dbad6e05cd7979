"""Artifacts travel over real servers, and what is wrong with one ends in a line that mends it.

Servers are started and stopped here: a folder, sshd, S3 (SeaweedFS), and nginx, which only reads.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import yaml

import servers

ROOT = Path(__file__).parents[2]
STAGES = ("corpus", "reference_models")
PUSH = "induction-lab push"
KINDS = ("folder", "ssh", "s3", "http")

# No key, no known host and no cache of the user's.
HOME = tempfile.TemporaryDirectory(prefix="induction-lab-home-")

pytestmark = [pytest.mark.slow, pytest.mark.servers]

NEEDS = {
    "folder": (),
    "ssh": ("sshd", "ssh-keygen"),
    "s3": ("weed",),
    "http": ("nginx",),
}
PACKAGES = {"ssh": "dvc_ssh", "s3": "dvc_s3"}


@dataclass(frozen=True)
class Store:
    """A remote that answers: how DVC is told of it, and a way behind DVC to its objects."""

    kind: str
    url: str
    settings: dict[str, str]
    folder: Path | None  # where its objects lie on this machine; None where a client must ask
    s3: servers.S3 | None = None

    def objects(self) -> list[str]:
        """Files of results by their paths in the store, the largest first."""
        if self.s3 is None:
            assert self.folder is not None
            found = {
                str(file.relative_to(self.folder)): file.stat().st_size
                for file in self.folder.rglob("*")
                if file.is_file()
            }
        else:
            listed = self.s3.client().list_objects_v2(Bucket=servers.BUCKET, Prefix="lab/")
            found = {one["Key"].removeprefix("lab/"): one["Size"] for one in listed["Contents"]}
        files = [name for name in found if not name.endswith(".dir")]
        return sorted(files, key=lambda name: (-found[name], name))

    def read(self, name: str) -> bytes:
        if self.s3 is None:
            assert self.folder is not None
            return (self.folder / name).read_bytes()
        return self.s3.client().get_object(Bucket=servers.BUCKET, Key=f"lab/{name}")["Body"].read()

    def write(self, name: str, content: bytes) -> None:
        if self.s3 is None:
            assert self.folder is not None
            (self.folder / name).unlink(missing_ok=True)  # DVC's objects are read-only
            (self.folder / name).write_bytes(content)
        else:
            self.s3.client().put_object(Bucket=servers.BUCKET, Key=f"lab/{name}", Body=content)

    def delete(self, name: str) -> None:
        if self.s3 is None:
            assert self.folder is not None
            (self.folder / name).unlink()
        else:
            self.s3.client().delete_object(Bucket=servers.BUCKET, Key=f"lab/{name}")


def environment() -> dict[str, str]:
    """Of a project's commands: its own sources are imported, and no account is used."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MAKE", "AWS_", "GIT_")) and key != "MFLAGS"
    }
    return kept | {
        "PATH": servers.PLACES,
        "PYTHONPATH": os.pathsep.join(["packages", "shared"]),
        "WANDB_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
        "HOME": HOME.name,
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": "user.name",
        "GIT_CONFIG_VALUE_0": "tester",
        "GIT_CONFIG_KEY_1": "user.email",
        "GIT_CONFIG_VALUE_1": "tester@example.org",
    }


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """What it ended with."""
        lines = [line for line in self.err.splitlines() if not line.startswith("make: ")]
        return lines[-1]


def call(folder: Path, *command: str) -> Said:
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return Said(done.returncode, done.stdout, done.stderr)


def run(folder: Path, *command: str) -> str:
    said = call(folder, *command)
    assert said.code == 0, f"{' '.join(command)}\n{said.out[-3000:]}\n{said.err[-3000:]}"
    return said.out + said.err


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with this tree's files, two of its stages and one small model, run once."""
    folder = tmp_path_factory.mktemp("lab") / "project"
    listed = run(ROOT, "git", "ls-files", "-co", "--exclude-standard", "-z")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)

    (folder / "dvc.lock").unlink(missing_ok=True)
    text = (folder / "dvc.yaml").read_text()
    head, *blocks = re.split(r"(?m)^(?=  \w[\w-]*:$)", text)
    kept = [block for block in blocks if block.partition(":")[0].strip() in STAGES]
    (folder / "dvc.yaml").write_text(head + "".join(kept))

    smoke = yaml.safe_load((folder / "profiles" / "smoke.yaml").read_text())
    smoke["reference_models"]["models"] = {"small": {"layers": 1, "heads": 2, "width": 16}}
    smoke["reference_models"]["recipe"]["steps"] = 20
    (folder / "profiles" / "small.yaml").write_text(yaml.safe_dump(smoke))
    (folder / "params.yaml").write_text("profile: small\n")

    run(folder, "git", "init", "--quiet")
    run(folder, "dvc", "repro")
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "Run two stages")
    _stand_in_environment(folder)
    return folder


def _stand_in_environment(folder: Path) -> None:
    """What `make setup` makes, without a package index: the environment of these tests."""
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (folder / ".venv" / "installed").touch()


@pytest.fixture(scope="module", params=KINDS)
def store(
    request: pytest.FixtureRequest, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    """A store of each kind, into which the project has been pushed."""
    with started(request.param, tmp_path_factory.mktemp(request.param)) as found:
        # What only reads is filled from behind.
        writes = found if found.kind != "http" else Store("folder", str(found.folder), {}, None)
        told_of(project, writes)
        assert "all sent to" in run(project, "make", "push")
        yield found


@contextmanager
def started(kind: str, folder: Path) -> Iterator[Store]:
    """A store of a kind inside the block; skips where its server cannot run."""
    if (reason := servers.missing(*NEEDS[kind], package=PACKAGES.get(kind))) is not None:
        pytest.skip(reason)

    objects = folder / "store"
    with ExitStack() as stack:
        if kind == "folder":
            yield Store(kind, str(objects), {}, objects)
        elif kind == "ssh":
            ssh = stack.enter_context(servers.sshd(folder / "ssh"))
            yield Store(kind, ssh.address(objects), {"keyfile": str(ssh.key)}, objects)
        elif kind == "http":
            objects.mkdir()
            address = stack.enter_context(servers.nginx(folder / "nginx", objects))
            yield Store(kind, address, {}, objects)
        else:
            s3 = stack.enter_context(servers.seaweed(folder / "s3"))
            yield Store(kind, f"s3://{servers.BUCKET}/lab", of_s3(s3), None, s3)


def of_s3(s3: servers.S3, **changes: str) -> dict[str, str]:
    """Settings of the remote as the README gives them."""
    return {
        "connect_timeout": "10",
        "read_timeout": "60",
        "endpointurl": s3.endpoint,
        "access_key_id": s3.key,
        "secret_access_key": s3.secret,
    } | changes


def told_of(folder: Path, store: Store, **changes: str) -> None:
    """A project whose store this is, and no other."""
    (folder / ".dvc" / "config.local").unlink(missing_ok=True)
    for name, value in ({"url": store.url} | store.settings | changes).items():
        run(folder, "dvc", "remote", "modify", "--local", "store", name, value)


def clone(project: Path, folder: Path, store: Store | None, **changes: str) -> Path:
    """A fresh clone, told of a store."""
    run(folder, "git", "clone", "--quiet", str(project), "clone")
    _stand_in_environment(folder / "clone")
    if store is not None:
        told_of(folder / "clone", store, **changes)
    return folder / "clone"


def results(folder: Path) -> dict[str, bytes]:
    """All files under data, by relative path."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted((folder / "data").rglob("*"))
        if file.is_file()
    }


def test_a_run_travels_and_the_clone_runs_no_stage(
    store: Store, project: Path, tmp_path: Path
) -> None:
    other = clone(project, tmp_path, store)
    said = run(other, "make", "pull")
    assert f"all fetched from remote store ({store.url}); `make repro` has nothing to run" in said
    assert "Running stage" not in run(other, "dvc", "repro")
    assert results(other) == results(project)


def test_what_is_truncated_flipped_and_missing_is_named_and_mended_as_the_line_says(
    store: Store, project: Path, tmp_path: Path
) -> None:
    truncated, flipped, missing = store.objects()[:3]
    whole = {name: store.read(name) for name in (truncated, flipped, missing)}

    try:
        store.write(truncated, whole[truncated][:-100])
        store.write(flipped, bytes([whole[flipped][0] ^ 1]) + whole[flipped][1:])
        store.delete(missing)

        other = clone(project, tmp_path, store)
        said = call(other, "make", "pull")
        assert said.code == 2
        for name, state in ((truncated, "damaged"), (flipped, "damaged"), (missing, "missing")):
            assert re.search(rf"object \S*{name} of data/\S+ is {state}", said.last), said.last
        assert said.last.endswith(
            "delete what is damaged there, `make push` where the run was made, then `make pull`"
        )

        if store.kind != "http":
            store.delete(truncated)
            store.delete(flipped)
            told_of(project, store)
            run(project, "make", "push")
            run(other, "make", "pull")
            assert results(other) == results(project)
    finally:
        for name, content in whole.items():
            store.write(name, content)


def test_a_damaged_list_of_a_folder_is_named(store: Store, project: Path, tmp_path: Path) -> None:
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    md5 = lock["stages"]["reference_models"]["outs"][0]["md5"]
    name = f"files/md5/{md5[:2]}/{md5[2:]}"
    whole = store.read(name)

    try:
        store.write(name, whole[:-40])
        said = call(clone(project, tmp_path, store), "make", "pull")
    finally:
        store.write(name, whole)

    assert said.code == 2
    assert re.search(rf"object \S*{name} of data/models is damaged; delete", said.last), said.last


def test_a_store_that_is_not_there_is_named(store: Store, project: Path, tmp_path: Path) -> None:
    other = clone(project, tmp_path, store, url=f"{store.url}-of-nobody")
    said = call(other, "make", "pull")
    assert said.code == 2
    assert said.last == (
        f"error: remote store ({store.url}-of-nobody) has nothing of this run; `make push` where "
        "the run was made, or name another one: `dvc remote modify store url ADDRESS`"
    )


def test_a_bucket_that_is_not_there_is_named(project: Path, tmp_path: Path) -> None:
    with started("s3", tmp_path) as store:
        told_of(project, store, url="s3://nobodys-bucket/lab")
        said = call(project, "make", "push")
    assert said.code == 2
    assert said.last.startswith("error: remote store (s3://nobodys-bucket/lab): ")
    assert "bucket does not exist" in said.last
    assert "make that folder or bucket there" in said.last


@pytest.mark.parametrize("direction", ["pull", "push"])
@pytest.mark.parametrize("kind", ["ssh", "s3", "http"])
def test_a_dead_server_is_named(kind: str, direction: str, project: Path, tmp_path: Path) -> None:
    with started(kind, tmp_path) as store:
        pass
    other = clone(project, tmp_path, store)
    said = call(other, "make", direction)
    assert said.code == 2
    assert said.last.startswith(f"error: remote store ({store.url}): ")
    assert "onnect" in said.last
    assert said.last.endswith(
        "start its server and try again, or name another one: `dvc remote modify store url ADDRESS`"
    )


@pytest.mark.parametrize("direction", ["pull", "push"])
@pytest.mark.parametrize(
    ("kind", "key"), [("ssh", "keyfile"), ("s3", "secret_access_key"), ("s3", "access_key_id")]
)
def test_a_wrong_key_is_told(
    kind: str, key: str, direction: str, project: Path, tmp_path: Path
) -> None:
    with started(kind, tmp_path) as store:
        wrong = str(tmp_path / "ssh" / "stranger") if kind == "ssh" else "wrong"
        said = call(clone(project, tmp_path, store, **{key: wrong}), "make", direction)
    assert said.code == 2
    assert said.last.startswith(f"error: remote store ({store.url}): ")
    assert "give a key that it lets in: `dvc remote modify --local store " in said.last


def test_a_key_that_is_not_there_is_named(project: Path, tmp_path: Path) -> None:
    with started("ssh", tmp_path) as store:
        absent = str(tmp_path / "no-such-key")
        said = call(clone(project, tmp_path, store, keyfile=absent), "make", "pull")
    assert said.code == 2
    assert absent in said.last
    assert "give a key" in said.last


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A project without stages, of three objects of half a megabyte, and a folder for its store."""
    folder = tmp_path / "large"
    (folder / "data").mkdir(parents=True)
    (tmp_path / "store").mkdir()
    rng = Random(0)
    for name in "abc":
        (folder / "data" / name).write_bytes(rng.randbytes(500_000))

    (folder / "params.yaml").write_text("profile: none\n")
    for home in ("packages", "shared", "profiles"):
        (folder / home).symlink_to(ROOT / home)
    run(folder, "dvc", "init", "--quiet", "--no-scm")
    run(folder, "dvc", "add", "--quiet", "data")
    run(folder, "dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    return folder


def test_a_full_disk_of_a_store_is_one_line_and_no_half_of_a_copy(
    large: Path, tmp_path: Path
) -> None:
    if (reason := servers.no_small_disk()) is not None:
        pytest.skip(reason)

    store = tmp_path / "store"
    disk = servers.small_disk(store, kilobytes=1200)
    room = f"mount -o remount,size=9000k {store}"
    look = f"find {store} -type f -name '*.tmp'"
    said = call(large, *disk, "sh", "-c", f"{PUSH}; {look}; {room}; {PUSH}")

    (told,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(
        rf"error: remote store \({store}\) is full, [\d,]+ bytes have no room there; make room "
        r"and `make push` again, or name another one: `dvc remote modify store url ADDRESS`",
        told,
    )
    assert ".tmp" not in said.out
    assert f"all sent to remote store ({store})" in said.out, "after there was room"


def test_a_full_disk_behind_ssh_is_told_though_its_protocol_has_no_word_for_it(
    large: Path, tmp_path: Path
) -> None:
    reason = servers.missing(*NEEDS["ssh"], package=PACKAGES["ssh"])
    if (reason := reason or servers.no_small_disk(as_root=True)) is not None:
        pytest.skip(reason)

    store = tmp_path / "store"
    disk = servers.small_disk(store, kilobytes=1200, as_root=True)
    with servers.sshd(tmp_path / "ssh", disk=disk) as ssh:
        told_of(large, Store("ssh", ssh.address(store), {"keyfile": str(ssh.key)}, None))
        said = call(large, *PUSH.split())
    assert said.code == 2
    assert said.last.startswith(f"error: remote store ({ssh.address(store)}) is full, ")
    assert "make room and `make push` again, or name another one: " in said.last


def test_a_full_disk_behind_s3_is_what_the_line_sends_one_to_look_at(
    large: Path, tmp_path: Path
) -> None:
    reason = servers.missing(*NEEDS["s3"], package=PACKAGES["s3"])
    if (reason := reason or servers.no_small_disk()) is not None:
        pytest.skip(reason)

    url = f"s3://{servers.BUCKET}/lab"
    with servers.seaweed(tmp_path / "s3", kilobytes=1300) as served:
        told_of(large, Store("s3", url, of_s3(served), None, served))
        said = call(large, *PUSH.split())
        sent = served.client().list_objects_v2(Bucket=servers.BUCKET).get("Contents", [])
    assert said.code == 2
    assert said.last.startswith(f"error: remote store ({url}): ")
    assert "its server failed: look at its log and at its disk, which may be full" in said.last
    # What arrived is whole: an object is there or it is not.
    assert {one["Size"] for one in sent} <= {500_000}
    assert len(sent) < len("abc")


def test_a_full_disk_here_is_told_apart_from_what_is_wrong_with_the_store(
    large: Path, tmp_path: Path
) -> None:
    if (reason := servers.no_small_disk()) is not None:
        pytest.skip(reason)

    run(large, *PUSH.split())
    shutil.rmtree(large / ".dvc" / "cache")
    shutil.rmtree(large / "data")
    (large / ".dvc" / "cache").mkdir()
    disk = servers.small_disk(large / ".dvc" / "cache", kilobytes=1200)
    said = call(large, *disk, "induction-lab", "pull")
    assert said.code == 2
    assert said.last == (
        f"error: this disk is full, what remote store ({tmp_path / 'store'}) has finds no room; "
        "make some, then `make pull`"
    )


def test_what_is_served_over_http_is_not_written_to(project: Path, tmp_path: Path) -> None:
    with started("http", tmp_path) as store:
        told_of(project, store)
        said = call(project, "make", "push")
    assert said.code == 2
    assert said.last == (
        f"error: remote store ({store.url}) is read-only over HTTP; name one to write to: "
        "`dvc remote modify store url ADDRESS`"
    )


def test_the_store_moves_from_s3_to_ssh_as_the_readme_says(project: Path, tmp_path: Path) -> None:
    with started("s3", tmp_path / "a") as before, started("ssh", tmp_path / "b") as after:
        (tmp_path / "here").mkdir()
        here = clone(project, tmp_path / "here", None)
        shutil.copytree(project / ".dvc" / "cache", here / ".dvc" / "cache")
        for command in readme_commands('".[s3]"', {"url": before.url}):
            # Of the two ways to give a key the one that needs no file in the user's home.
            *modify, name, _ = command
            names = ("endpointurl", "access_key_id", "secret_access_key")
            if name == "profile":
                for one in names:
                    run(here, *modify, one, before.settings[one])
            else:
                run(here, *command)
        assert f"all sent to remote store ({before.url})" in run(here, "make", "push")

        said = {"url": after.url, "store": after.url, "keyfile": after.settings["keyfile"]}
        for command in readme_commands("dvc remote remove --local", said):
            run(here, *command)
        for command in readme_commands('".[ssh]"', said):
            run(here, *command)
        assert f"all sent to remote store ({after.url})" in run(here, "make", "push")
        assert "verify = true" in (here / ".dvc" / "config").read_text()

        (tmp_path / "there").mkdir()
        other = clone(project, tmp_path / "there", after)
        run(other, "make", "pull")
        assert results(other) == results(project)


def test_settings_of_another_kind_of_remote_are_told(project: Path, tmp_path: Path) -> None:
    other = clone(project, tmp_path, None)
    with (other / ".dvc" / "config.local").open("w") as written:
        written.write("['remote \"store\"']\n    url = ssh://a@b/c\n    connect_timeout = 10\n")
    said = call(other, "make", "pull")
    assert said.code == 2
    assert "connect_timeout" in said.last
    assert "settings of another kind of remote go out first" in said.last


def readme_commands(beginning: str, said: dict[str, str]) -> Iterator[list[str]]:
    """The README's lines of one recipe; what follows these words is said instead of its example."""
    text = (ROOT / "README.md").read_text()
    (block,) = [one for one in text.split("```") if f"{beginning}" in one]
    recipe = block[block.index(beginning) :].partition("\n\n")[0]

    for line in recipe.splitlines():
        words = line.partition("#")[0].split()
        if words[:1] == ["dvc"]:
            last = said.get(words[-2], words[-1]) if "://" in line or "~" in line else words[-1]
            yield [*words[:-1], last]
