"""Files as git's last commit has them."""

import subprocess
from pathlib import Path


def at_head(folder: Path, name: str) -> str | None:
    """A file of a folder; None where git, the repository or the file is missing."""
    command = ["git", "show", f"HEAD:./{name}"]

    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None

    return done.stdout if done.returncode == 0 else None
