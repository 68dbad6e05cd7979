"""Where the runs of a call go: to a W&B server, onto this machine, or nowhere.

A call asks once whether the server answers. Its workers inherit the answer through the environment,
so that a server that is away costs a call seconds, and not seconds a training.
"""

import base64
import json
import netrc
import os
import ssl
import threading
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import click

from interp_core.errors import InputError, first_line
from interp_core.files.params import profile_path

PATIENCE = 6  # seconds that a server may take to say who asks
FOUND = "INDUCTION_LAB_TRACKED_CALL"  # the environment's variable with what a call found out


@dataclass(frozen=True)
class Call:
    """What is the same for all runs of a call."""

    wish: str  # online, offline, disabled or shared: what the environment asks for
    server: str
    profile: str  # its name
    trouble: str | None  # why an online wish cannot be met

    @property
    def mode(self) -> str:
        """The wish, or offline where the server cannot be used."""
        return "offline" if self.trouble else self.wish


def mode() -> str:
    """online, offline, disabled or shared: WANDB_MODE if set, else online where a key is
    configured, else offline.
    """
    chosen = os.environ.get("WANDB_MODE")
    if chosen == "dryrun" or (chosen is None and _key() is None):
        return "offline"
    return chosen if chosen in ("offline", "disabled", "shared") else "online"


def server() -> str:
    """The address of the W&B server."""
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")


def begin() -> Call:
    """Ask for a new call, and keep the answer for its runs in this process and its workers."""
    wish = mode()
    trouble = _trouble() if wish == "online" else None
    return _keep(Call(wish, server(), _profile(), trouble))


def this_call() -> Call:
    """What the call found out that this process is part of; found out now where none began."""
    kept = os.environ.get(FOUND)
    call = Call(**json.loads(kept)) if kept else None

    # The environment of a long process may have been changed since.
    if call is None or (call.wish, call.server) != (mode(), server()):
        return begin()
    return call


def answers() -> bool:
    """Whether the server answers just now."""
    return _trouble() is None


def give_up(trouble: str) -> None:
    """The server went away: later runs of this process and its workers do not wait for it."""
    call = this_call()
    _keep(Call(call.wish, call.server, call.profile, trouble))


def _keep(call: Call) -> Call:
    os.environ[FOUND] = json.dumps(asdict(call))
    return call


def _profile() -> str:
    """The profile that the running command was called with, or the project's own, or `none`."""
    context = click.get_current_context(silent=True)
    given = context.params.get("profile") if context is not None else None
    try:
        return profile_path(given).stem
    except InputError:
        return "none"


def _trouble() -> str | None:
    """Why no run can be sent, or None."""
    found: list[str | None] = []

    # In a thread: a resolver that hangs has no timeout of its own.
    asking = threading.Thread(target=lambda: found.append(_ask()), daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return found[0] if found else f"no answer in {PATIENCE} seconds"


def _ask() -> str | None:
    """Ask the server who the key belongs to; None when it says so, or may say so to wandb."""
    key = _key()
    headers = {"content-type": "application/json"}
    if key is not None:
        headers["authorization"] = f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}"
    question = json.dumps({"query": "query { viewer { id } }"}).encode()

    try:
        with urlopen(Request(f"{server()}/graphql", question, headers), timeout=PATIENCE) as reply:
            viewer = (json.load(reply).get("data") or {}).get("viewer")
    except HTTPError as problem:
        # Without a key of ours there may be another way in, which wandb knows.
        is_known = problem.code in (401, 403)
        return None if is_known and key is None else _said(problem.code)
    except URLError as problem:
        # wandb may trust certificates that Python does not.
        return None if isinstance(problem.reason, ssl.SSLError) else str(problem.reason)
    except (OSError, HTTPException) as problem:
        return first_line(problem)
    except (ValueError, AttributeError):
        return "what answers there is no W&B server"
    return None if viewer or key is None else _said(401)


def _said(code: int) -> str:
    return "it refuses the API key" if code in (401, 403) else f"it answers {code}"


def _key() -> str | None:
    """The API key, from the environment or from netrc."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key

    host = urlsplit(server()).hostname or ""
    names = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]

    for path in (Path(name).expanduser() for name in names):
        try:
            entry = netrc.netrc(path).authenticators(host) if path.is_file() else None
        except (netrc.NetrcParseError, OSError):
            continue
        if entry:
            return entry[2]
    return None
