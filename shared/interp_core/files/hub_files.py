"""Single files of one commit of a hub dataset, checked against their hash."""

import socket
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from interp_core.errors import InputError, first_line
from interp_core.files.artifacts import file_sha256


def fetch_pinned(dataset: str, file: str, *, revision: str, sha256: str | None) -> Path:
    """A dataset's file at a full commit, from the local cache or else the hub; its sha256 must be
    the given one.

    `datasets.load_dataset` answers with another revision's cache when offline; this names the
    commit or fails. InputError, within 5 s when the hub is unreachable, naming dataset, revision
    and the ways out.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    what = f"file {file} of dataset {dataset} at revision {revision}"
    ways_out = (
        "go online once, set HF_HOME to a cache that holds it, or use local text (`path: {path: "
        "FOLDER}`"
        " instead of `hub` in the profile's corpus section)"
    )
    fetch = partial(hf_hub_download, dataset, file, repo_type="dataset", revision=revision)
    try:
        found = fetch(local_files_only=True)
    except LocalEntryNotFoundError:
        if constants.HF_HUB_OFFLINE or not _answers(constants.ENDPOINT):
            raise InputError(
                f"{what}: not cached, and {constants.ENDPOINT} is out of reach: {ways_out}"
            ) from None
        try:
            found = fetch()
        except (EntryNotFoundError, HfHubHTTPError) as problem:
            raise InputError(f"{what}: {first_line(problem)}: {ways_out}") from None
    actual = file_sha256(Path(found))
    if sha256 is not None and actual != sha256:
        raise InputError(
            f"{what}: its sha256 is {actual}, the profile says {sha256}: delete {found} or mend "
            "the profile"
        )
    return Path(found)


def _answers(endpoint: str, timeout: float = 4.0) -> bool:
    """Whether the hub's host (or the proxy on the way to it) accepts a connection."""
    from urllib.request import getproxies

    parts = urlsplit(getproxies().get("https") or endpoint)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=timeout).close()
    except OSError:
        return False
    return True
