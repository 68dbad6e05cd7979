"""Artifacts to and from the remote, with DVC; where it fails, one line says at what and the mend.

DVC says that files failed, seldom which, and nothing of what to do. So after a failure each object
is asked for: one that is not in the remote is missing, one that is there and did not arrive is
damaged, and a remote that does not answer says why.
"""

import hashlib
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp_core.errors import InputError, first_line

# By the scheme of an address: the extra that brings DVC's way to it, and how a key is named.
EXTRAS = {"s3": "s3", "ssh": "ssh"}
KEYS = {"s3": "profile MY_AWS_PROFILE", "ssh": "keyfile ~/.ssh/id_ed25519"}

# In what servers and their clients say.
_REFUSED = ("permission denied", "forbidden", "403", "401", "credentials", "signature", "key")
_ABSENT = ("no such file", "bucket does not exist")
# The system's words, those of a quota, and MinIO's.
_FULL = ("no space left", "quota exceeded", "storagefull")
# S3 has no word for a full disk: a server that meets one says that it failed.
_FAILED = ("internal error", "internalerror", "503", "service unavailable")
# Addresses and hashes are no words: a port or an object may well have 403 or `key` in it.
_NO_WORDS = re.compile(r"\w+://[^\s\"']+|[0-9a-f]{2}/[0-9a-f]{30}\S*|\b[0-9a-f]{32}\S*")
_AGAIN = "`make push` where the run was made"


@dataclass(frozen=True)
class Remote:
    """The default remote of a project, and DVC's way to its objects."""

    name: str
    address: str
    objects: Any  # dvc_data's HashFileDB
    cache: Path  # where DVC keeps objects on this machine

    def __str__(self) -> str:
        return f"remote {self.name} ({self.address})"

    @property
    def modify(self) -> str:
        """The command that changes where it is."""
        return f"`dvc remote modify {self.name} url ADDRESS`"

    def place(self, md5: str) -> str:
        """Where an object lies in it, as its own tools name it."""
        found = self.objects.oid_to_path(md5)
        return str(self.objects.fs.unstrip_protocol(found)).removeprefix("local://")

    def cached(self, md5: str) -> Path:
        """Where DVC keeps an object on this machine."""
        return self.cache / md5[:2] / md5[2:]

    def is_here(self, md5: str) -> bool:
        """Whether an object has been fetched."""
        return self.cached(md5).is_file()

    def sizes(self) -> dict[str, int]:
        """Bytes of every object that is in the remote, by MD5."""
        fs, place = self.objects.fs, self.objects.path
        if not self.scheme:
            files = (file for file in Path(place).glob("??/*") if file.is_file())
            return {f"{file.parent.name}{file.name}": file.stat().st_size for file in files}

        try:
            found = fs.fs.find(place, detail=True)
        except FileNotFoundError:
            return {}
        except _problems() as problem:
            raise InputError(self._trouble(problem)) from None
        return {"".join(fs.parts(name)[-2:]): about["size"] for name, about in found.items()}

    def has(self, md5: str) -> bool:
        """Whether an object is in the remote, whatever is in it.

        InputError where the remote does not say.
        """
        return self._asked(self.objects.fs.info, md5) is not None

    def content(self, md5: str) -> bytes | None:
        """An object as the remote has it; None where it has none."""
        return self._asked(self.objects.fs.cat_file, md5)

    def _asked(self, ask: Callable[[str], Any], md5: str) -> Any:
        place = self.objects.oid_to_path(md5)
        # Not `exists`: over HTTP it takes a server that is down for an empty one.
        try:
            return ask(place)
        except FileNotFoundError as problem:
            # It may be a file of this machine that is not there: a key.
            if problem.filename not in (None, place):
                raise InputError(self._trouble(problem)) from None
            # Over HTTP this is said of every trouble; only 404 means it.
            cause = problem.__cause__
            if cause is None or not isinstance(cause, (OSError, *_of("aiohttp", "ClientError"))):
                return None
            if getattr(cause, "status", 0) == 404:
                return None
            raise InputError(self._trouble(cause)) from None
        except _problems() as problem:
            raise InputError(self._trouble(problem)) from None

    def is_full(self, said: list[str], wanted: int) -> bool:
        """Whether what it said means that it has no room for so many bytes."""
        if _no_room(said):
            return True
        # SSH's protocol has no word for it: its server is asked what is free.
        free = self._free() if any(one.endswith(": Failure") for one in said) else None
        return free is not None and free < wanted

    def _free(self) -> int | None:
        """Free bytes behind a server of SSH; None where none is asked, or it does not tell."""
        client = getattr(self.objects.fs.fs, "client", None)
        if self.scheme != "ssh" or client is None:
            return None

        from fsspec.asyn import sync

        async def ask() -> int:
            async with client.start_sftp_client() as files:
                found = await files.statvfs(self.objects.path)
                return found.bavail * found.frsize

        try:
            return sync(self.objects.fs.fs.loop, ask)
        except _problems():
            return None

    def _trouble(self, problem: BaseException) -> str:
        return f"{self}: {reason(problem)}; {self.mend(str(problem))}"

    def mend(self, said: str) -> str:
        """What to do about what a server, or its client, said."""
        words = _NO_WORDS.sub(" ", said.lower())
        other = f"or name another one: {self.modify}"
        if any(word in words for word in _REFUSED):
            key = KEYS.get(self.scheme, "NAME VALUE")
            return f"give a key that it lets in: `dvc remote modify --local {self.name} {key}`"
        if any(word in words for word in _ABSENT):
            return f"make that folder or bucket there, {other}"
        if any(word in words for word in _FAILED):
            return f"its server failed: look at its log and at its disk, which may be full, {other}"
        return f"start its server and try again, {other}"

    @property
    def scheme(self) -> str:
        """ssh, s3, http ...; nothing for a folder."""
        return self.address.partition("://")[0] if "://" in self.address else ""


def fetch(root: Path) -> str:
    """Every artifact that dvc.lock names into the working tree, checked; returns what is then so.

    Runs no stage. InputError for what is not to be had.
    """
    remote = answering(root)
    code, said = _dvc("pull")

    if code != 0 and _no_room(said):
        raise InputError(
            f"this disk is full, what {remote} has finds no room; make some, then `make pull`"
        )
    if code != 0:
        raise InputError(_why_not_here(root, remote, said))

    stale = _stale(root)
    if stale:
        return (
            f"all fetched from {remote}; of what you changed `make repro` runs {', '.join(stale)}"
        )
    return f"all fetched from {remote}; `make repro` has nothing to run"


def send(root: Path) -> str:
    """Every artifact of the last run into the remote; returns what is then so.

    InputError for what it did not take.
    """
    remote = answering(root)
    if remote.scheme not in ("http", "https"):
        _forget_incomplete(remote, root)
    code, said = _dvc("push")

    if code == 0:
        return f"all sent to {remote}"

    if remote.scheme in ("http", "https"):
        raise InputError(f"{remote} is read-only over HTTP; name one to write to: {remote.modify}")

    there = remote.sizes()
    here = {
        one: size for md5 in objects_of(root) for one, size in _with_listed(remote, md5).items()
    }
    wanted = sum(size for one, size in here.items() if one not in there)
    if remote.is_full(said, wanted):
        raise InputError(
            f"{remote} is full, {wanted:,} bytes have no room there; make room and `make push` "
            f"again, or name another one: {remote.modify}"
        )

    # The first says what happened to an object, the last only how many there were.
    first = said[0] if said else "it took not everything"
    why = re.sub(r"^failed to transfer '\w+(\.dir)?': ", "", first).rstrip(".")
    raise InputError(f"{remote}: {why}; {remote.mend(why)}")


def _no_room(said: list[str]) -> bool:
    """Whether a disk is full, in the words of those who have some for it."""
    return any(word in one.lower() for one in said for word in _FULL)


def _with_listed(remote: Remote, md5: str) -> dict[str, int]:
    """Bytes of an object in the cache, and of those that it lists, by MD5; of what is here."""
    listed: list[dict[str, str]] = []
    if md5.endswith(".dir") and remote.is_here(md5):
        listed = json.loads(remote.cached(md5).read_bytes())

    every = {md5, *(entry["md5"] for entry in listed)}
    return {one: remote.cached(one).stat().st_size for one in every if remote.is_here(one)}


def _forget_incomplete(remote: Remote, root: Path) -> None:
    """Let DVC see what the remote lacks of folders that it has the list of.

    DVC takes all files of a folder for sent where its list is, for ever. So lists of files that
    are missing or cut are deleted there, and with them what is cut: the push sends both again.
    """
    from dvc_data.hashfile.db import get_index

    there = remote.sizes()
    incomplete = False

    for md5 in objects_of(root):
        if not md5.endswith(".dir") or md5 not in there or not remote.is_here(md5):
            continue

        ours = _with_listed(remote, md5)
        wrong = {one for one, size in ours.items() if there.get(one) != size}

        if wrong:
            incomplete = True
            for one in (wrong | {md5}) & there.keys():
                remote.objects.fs.rm_file(remote.objects.oid_to_path(one))

    if incomplete:
        get_index(remote.objects).clear()


def answering(root: Path) -> Remote:
    """The default remote, asked for one object: DVC itself tries a dead one for a minute.

    InputError where it does not answer.
    """
    remote = default_remote(root)
    for md5 in objects_of(root):
        remote.has(md5)
        break
    return remote


def default_remote(root: Path) -> Remote:
    """The remote that DVC takes when none is named. InputError where there is none, or no way."""
    from dvc.config import ConfigError
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        repo = Repo(str(root))
        name = repo.config["core"].get("remote")
    except (ConfigError, DvcException) as problem:
        mend = "settings of another kind of remote go out first: README, Take the artifacts"
        raise InputError(f"{root / '.dvc' / 'config'}: {reason(problem)}; {mend}") from None

    if name is None:
        raise InputError("no remote: `dvc remote add --default store ADDRESS`")

    address = str(repo.config["remote"].get(name, {}).get("url", "nowhere"))
    try:
        objects = repo.cloud.get_remote_odb(name)
    except (ConfigError, DvcException, ImportError) as problem:
        raise InputError(
            f"remote {name} ({address}): {reason(problem)}{_install(address)}"
        ) from None
    return Remote(name, address, objects, Path(repo.cache.local.path))


def _install(address: str) -> str:
    """What brings DVC's way to an address, where it is not here."""
    extra = EXTRAS.get(address.partition(":")[0])
    return f'; pip install -c constraints.txt -e ".[{extra}]"' if extra else ""


def objects_of(root: Path) -> dict[str, str]:
    """What dvc.lock names, a folder or a file of the project, by the MD5 of its object."""
    from dvc.repo import Repo

    found = {}
    for out in Repo(str(root)).index.outs:
        if out.use_cache and out.hash_info and out.hash_info.value:
            found[out.hash_info.value] = str(Path(out.fs_path).relative_to(root))
    return found


def _why_not_here(root: Path, remote: Remote, said: list[str]) -> str:
    """The line for a pull that failed."""
    named = objects_of(root)
    if not any(remote.is_here(md5) or remote.has(md5) for md5 in named):
        return f"{remote} has nothing of this run; {_AGAIN}, or name another one: {remote.modify}"

    faults = [fault for md5, what in named.items() for fault in _faults(remote, md5, what)]
    if not faults:
        last = said[-1] if said else "the pull failed"
        return f"{remote}: {last}; its objects are whole: try again"

    # Three are enough to see what happened, and to find it.
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    delete = "delete what is damaged there, " if any("damaged" in one for one in faults) else ""
    return f"{remote}: {', '.join(faults[:3])}{more}; {delete}{_AGAIN}, then `make pull`"


def _faults(remote: Remote, md5: str, what: str) -> Iterator[str]:
    """What is wrong in the remote with an object that has not arrived, and with those it lists."""
    # A folder's list is kept only when all of its files have come: it is asked for.
    is_list = md5.endswith(".dir")
    if remote.is_here(md5) and not is_list:
        return

    content = remote.content(md5)
    if content is None:
        yield f"object {remote.place(md5)} of {what} is missing"
    elif hashlib.md5(content, usedforsecurity=False).hexdigest() != md5.removesuffix(".dir"):
        yield f"object {remote.place(md5)} of {what} is damaged"
    elif is_list:
        for entry in json.loads(content):
            yield from _faults(remote, entry["md5"], f"{what}/{entry['relpath']}")


def _stale(root: Path) -> list[str]:
    """Stages that a repro would run."""
    from dvc.repo import Repo

    return list(Repo(str(root)).status())


def _dvc(command: str) -> tuple[int, list[str]]:
    """DVC's command as a terminal has it: its exit code, and the errors that it printed."""
    from dvc.cli import main

    said: list[str] = []
    keeping = _Keeping(said)
    loggers = [logging.getLogger(name) for name in ("dvc", "dvc_data", "dvc_objects")]
    for logger in loggers:
        logger.addHandler(keeping)
    try:
        sys.stdout.flush()
        return int(main([command]) or 0), said
    finally:
        for logger in loggers:
            logger.removeHandler(keeping)


class _Keeping(logging.Handler):
    """Keeps errors, and the exceptions behind them, as text; and no half of a copy."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        problem = record.exc_info[1] if record.exc_info else None
        parts = [record.getMessage(), reason(problem) if problem else ""]
        self._said.append(": ".join(part for part in parts if part))

        # DVC leaves the half of a copy that found no room, and the disk full.
        half = getattr(problem, "filename2", None)
        if half is not None and re.fullmatch(r"\..+\.tmp", Path(half).name):
            Path(half).unlink(missing_ok=True)


def reason(problem: BaseException) -> str:
    """One line of what went wrong."""
    said = re.sub(r"^\[Errno -?\d+\] ", "", first_line(problem))
    halves = said.split(": ")
    # asyncssh says everything twice.
    if len(halves) == 2 and halves[0] == halves[1]:
        return halves[0]
    return said


def _problems() -> tuple[type[BaseException], ...]:
    """What the clients of servers raise."""
    return (
        OSError,
        *_of("dvc.exceptions", "DvcException"),
        *_of("asyncssh", "Error"),
        *_of("botocore.exceptions", "BotoCoreError", "ClientError"),
        *_of("aiohttp", "ClientError"),
    )


def _of(module: str, *names: str) -> tuple[type[BaseException], ...]:
    """Exceptions of a module that is loaded: who is not, raises none."""
    loaded = sys.modules.get(module)
    return tuple(getattr(loaded, name) for name in names) if loaded is not None else ()
