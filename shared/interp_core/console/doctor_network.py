"""What the doctor asks others: the model hub, and the remote."""

import os
import threading
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from interp_core.console.doctor import Finding
from interp_core.console.remote import answering
from interp_core.errors import InputError, first_line

PATIENCE = 5  # seconds that a hub may take


def hub() -> Finding:
    """Whether models can be fetched; what is in the hub's cache works without."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    place = urlsplit(address).hostname or address

    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        mend = "unset HF_HUB_OFFLINE to fetch others"
        return Finding("note", "hub", "offline by HF_HUB_OFFLINE: models of its cache alone", mend)

    found: list[str | None] = []
    # In a thread: a resolver that hangs has no timeout of its own.
    asking = threading.Thread(target=lambda: found.append(_ask(address)), daemon=True)
    asking.start()
    asking.join(PATIENCE + 1)
    trouble = found[0] if found else f"no answer in {PATIENCE} seconds"

    if trouble is None:
        return Finding("ok", "hub", f"{place} answers")
    mend = "profiles laptop, long and smoke need none; HF_ENDPOINT names a mirror"
    return Finding("note", "hub", f"{place}: {trouble}: models of its cache alone", mend)


def _ask(address: str) -> str | None:
    try:
        with urlopen(Request(address, method="HEAD"), timeout=PATIENCE):
            return None
    except URLError as problem:
        return str(problem.reason)
    except OSError as problem:
        return first_line(problem)


def remote(root: Path) -> Finding:
    """Whether the default remote, one that is no folder, answers and lets us in."""
    try:
        found = answering(root)
    except InputError as problem:
        return Finding("error", "remote", str(problem))
    return Finding("ok", "remote", f"{found.address} answers")
