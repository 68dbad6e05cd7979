"""What is wrong with an installation, and the mend: the machine, the environment, the data.

Each finding is one line. A finding that stops a command, or makes its numbers wrong, is an error;
what only costs time or a service is a note.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from interp_core import processor
from interp_core.console.dvc_files import (
    Out,
    Sums,
    artifacts_by_object,
    cache_folder,
    changed_in,
    files_of,
    name_of,
    object_of,
    objects_in,
    outs_of,
)
from interp_core.console.natively import MEND, made_natively, said
from interp_core.console.own_code import code_root
from interp_core.errors import InputError
from interp_core.files.params import profile_path, project_root, read_yaml, settings_root
from interp_core.files.way_out import default_address

LEAST_PYTHON = (3, 11)  # as pyproject.toml says
LEAST_DISK = 5e9  # bytes: arrays, weights and cache of a whole run take about 3e9
LEAST_MEMORY = 4e9  # bytes: the largest stage of the profile laptop takes about 1e9
HASHED_PER_SECOND = 4e8  # bytes, MD5 on one core
SHOWN = 10  # damaged files, each with a line of its own
_MAKE = "`dvc repro --force` of its stage"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what is so, and, where it is not well, what mends it."""

    state: Literal["ok", "note", "error"]
    what: str
    is_so: str
    mend: str = ""

    def __str__(self) -> str:
        end = f"; {self.mend}" if self.mend else ""
        return f"{self.state:<5}  {self.what}: {self.is_so}{end}"


def examine() -> Iterator[Finding]:
    """Every finding, the quick ones first."""
    from interp_core.console import doctor_network

    root = project_root()
    yield _python()
    yield _code(root)
    yield _instructions()
    yield _threads()
    yield _memory()
    yield _disk(root)
    yield from _versions(root / "constraints.txt")
    yield _profile()
    yield _tracking()
    yield doctor_network.hub()

    if (root / "dvc.lock").is_file():
        try:
            yield from _artifacts(root)
        except InputError as problem:
            yield Finding("error", "DVC", str(problem))


def version(root: Path) -> str:
    """The package's version, with the revision of a checkout and a `+` where it was changed."""
    number = importlib.metadata.version("induction-lab")
    # A wheel may lie inside somebody's repository, whose revision is not ours.
    is_checkout = (root / "shared" / "interp_core").is_dir()
    head = _git(root, "rev-parse", "--short", "HEAD") if is_checkout else None
    if head is None:
        return number
    changed = "+" if _git(root, "status", "--porcelain", "--untracked-files=no") else ""
    return f"{number} ({head}{changed})"


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _python() -> Finding:
    number = platform.python_version()
    if sys.version_info >= LEAST_PYTHON:
        return Finding("ok", "Python", f"{number} at {sys.prefix}")
    least = ".".join(map(str, LEAST_PYTHON))
    return Finding("error", "Python", number, f"make setup PYTHON=python{least}")


def _code(root: Path) -> Finding:
    """A person's commands run what is installed; DVC's run the project's own (own_code.py)."""
    installed = code_root()
    ours = (root / "shared" / "interp_core").is_dir()
    if not ours or root.resolve() == installed:
        return Finding("ok", "code", f"{version(installed)} of {installed}")
    mend = f"source {root}/.venv/bin/activate, or make setup there"
    return Finding("note", "code", f"that of {installed}, and this is {root}", mend)


def _instructions() -> Finding:
    found = processor.instructions()
    if found == "avx2":
        return Finding("ok", "instructions", "as on every machine with AVX2: the committed bytes")
    return Finding(
        "note",
        "instructions",
        "this processor's own: numbers differ from the committed ones in the last digits",
        f"unset {processor.SWITCH} where it is set",
    )


def _threads() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = os.environ.get("OMP_NUM_THREADS")
    said = "" if limit is None else f", OMP_NUM_THREADS={limit}"
    return Finding(
        "ok", "processor", f"{cores} cores{said}; profiles say how many threads they use"
    )


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if total >= LEAST_MEMORY:
        return Finding("ok", "memory", f"{total / 1e9:.0f} GB")
    return Finding("note", "memory", f"{total / 1e9:.1f} GB", "set `processes: 1` in the profile")


def _disk(root: Path) -> Finding:
    free = shutil.disk_usage(root).free
    if free >= LEAST_DISK:
        return Finding("ok", "disk", f"{free / 1e9:.0f} GB free in {root}")
    mend = f"a whole run takes about {LEAST_DISK / 1e9:.0f} GB: free some, or `dvc gc --workspace`"
    return Finding("error", "disk", f"{free / 1e9:.1f} GB free in {root}", mend)


def _versions(constraints: Path) -> Iterator[Finding]:
    """Installed packages that are pinned to another version; a pin for another Python is none."""
    if not constraints.is_file():
        return

    other = []
    for line in constraints.read_text().splitlines():
        pin = re.fullmatch(r"([\w.-]+)==(\S+)", line.strip())
        if pin is None:
            continue
        try:
            installed = importlib.metadata.version(pin[1])
        except importlib.metadata.PackageNotFoundError:
            continue
        if installed.partition("+")[0] != pin[2]:
            other.append(f"{pin[1]} {installed} for {pin[2]}")

    if not other:
        yield Finding("ok", "packages", "as constraints.txt pins them")
        return

    more = f" and {len(other) - 3} more" if len(other) > 3 else ""
    mend = "pip install -c constraints.txt -e ."
    yield Finding("error", "packages", f"{', '.join(other[:3])}{more}", mend)


def _profile() -> Finding:
    try:
        path = profile_path()
        sections = len(read_yaml(path))
    except InputError as problem:
        return Finding("error", "profile", str(problem), f"mend {settings_root() / 'params.yaml'}")
    return Finding("ok", "profile", f"{path.stem}, {sections} sections")


def _tracking() -> Finding:
    from interp_core.training.account import mode

    found = mode()
    if found == "online":
        return Finding("ok", "W&B", "online")
    return Finding("note", "W&B", f"{found}: runs stay on this machine", "wandb login")


def _artifacts(root: Path) -> Iterator[Finding]:
    """What DVC looks after; hashing it takes longest, and comes last."""
    cache, outs = cache_folder(root), outs_of(root)
    yield _store(root)
    yield _data(root, outs, cache)
    if natively := made_natively(root):
        yield Finding("note", "natively", said(natively), MEND)
    yield from _hashed(root, outs, cache)


def _data(root: Path, outs: list[Out], cache: Path) -> Finding:
    """What dvc.lock names and the folder lacks, and which command brings it."""
    absent = [out for out in outs if not (root / out.path).exists()]

    if not absent:
        return Finding("ok", "data", f"all {len(outs)} outputs that dvc.lock names are here")

    if all(object_of(cache, out.md5).is_file() for out in absent):
        mend = "`dvc checkout` lays them out from the cache"
    else:
        mend = "`dvc pull` fetches them; without a remote `make repro` makes them, in half an hour"
    example = absent[0].path
    return Finding(
        "note", "data", f"{len(absent)} of {len(outs)} are not here ({example} ...)", mend
    )


def _hashed(root: Path, outs: list[Out], cache: Path) -> Iterator[Finding]:
    """Every object of DVC's cache and every output that is here, against the names and hashes that
    they have; how long that takes comes first."""
    objects = objects_in(cache)
    here = [file for out in outs for file in files_of(root / out.path)]
    sizes = {(found.st_dev, found.st_ino): found.st_size for found in map(os.stat, objects + here)}
    size, seconds = sum(sizes.values()), sum(sizes.values()) / HASHED_PER_SECOND
    told = f"{len(sizes)} files of cache and data, {size / 1e9:.1f} GB: about {seconds:.0f} s"
    yield Finding("ok", "to hash", told)

    sums = Sums()
    damaged = [file for file in objects if sums.md5(file) != name_of(file)]
    names = artifacts_by_object(cache, outs) if damaged else {}

    if not damaged:
        yield Finding("ok", "cache", f"{len(objects)} objects in {cache}, each what its name says")
    for file in damaged[:SHOWN]:
        artifact = names.get(name_of(file), "of no output of dvc.lock")
        is_so = f"{file} ({artifact}) is not what its name says"
        yield Finding("error", "cache", is_so, f"`rm {file}`, then `dvc pull`, or {_MAKE}")
    yield from _more("cache", damaged)

    changed = [file for out in outs for file in changed_in(root, out, cache, sums)]
    if not changed:
        yield Finding("ok", "artifacts", "each what dvc.lock says, where it is here")
    for path in changed[:SHOWN]:
        is_so = f"{path} is not what dvc.lock says"
        mend = f"`rm -r {path}`, then `dvc pull` (`git checkout` for what git has), or {_MAKE}"
        yield Finding("error", "artifacts", is_so, mend)
    yield from _more("artifacts", changed)


def _more(what: str, found: list[Any]) -> Iterator[Finding]:
    if len(found) > SHOWN:
        yield Finding("error", what, f"and {len(found) - SHOWN} more like these")


def _store(root: Path) -> Finding:
    """The default remote; a folder can be looked at, another one is named."""
    address = default_address(root)

    if address is None:
        return Finding("note", "remote", "none", "`dvc remote add --default store ADDRESS`")
    if "://" in address:
        from interp_core.console.doctor_network import remote

        return remote(root)

    if Path(address).is_dir():
        return Finding("ok", "remote", address)
    return Finding("note", "remote", f"{address} is not there yet", "`dvc push` makes it")
