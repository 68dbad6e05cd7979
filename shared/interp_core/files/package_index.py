"""A wheel from the package index: downloaded alone, never installed, and its code never runs."""

import subprocess
import sys
from pathlib import Path

from interp_core.errors import InputError

_SECONDS = 20  # until an index that does not answer is given up


class NotHadError(InputError):
    """A wheel that the package index does not give, or no index that can be reached."""


def download(
    distribution: str, version: str, folder: Path, *, way_out: str, python: str | None = None
) -> Path:
    """The wheel, from the index that pip is set up for; of another Python where `python` names one
    ("3.11").

    NotHadError, ending in `way_out`, where it cannot be had.
    """
    wanted = f"{distribution}=={version}"
    command = [sys.executable, "-m", "pip", "download", wanted, "--dest", str(folder)]
    # Nothing is built, and what the wheel would like beside it is not wanted.
    command += ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check"]
    command += ["--retries", "1", "--timeout", str(_SECONDS)]
    command += [] if python is None else ["--python-version", python]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        told = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        # pip's last error says what is wanted; without one it did not start.
        said = told[-1].removeprefix("ERROR: ") if told else done.stderr.strip()[-200:]
        raise NotHadError(f"{wanted} cannot be had ({said}): go online once, or {way_out}")
    return wheels[0]
