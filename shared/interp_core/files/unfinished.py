"""Where unfinished trainings are kept, and what is made on the way."""

from pathlib import Path

import click

from interp_core.errors import InputError
from interp_core.files.artifacts import check_writable
from interp_core.files.params import project_root

SCRATCH = ".scratch"


def scratch_folder(name: str, *, beside: Path) -> Path:
    """The folder `.scratch/NAME` of the project, made; of `beside`, the user's own, where the
    project's cannot be written.

    InputError where neither can.
    """
    ours, theirs = (home / SCRATCH / name for home in (project_root(), beside))
    try:
        check_writable(ours)
    except InputError as problem:
        is_new = not theirs.exists()
        check_writable(theirs)
        if is_new:
            click.echo(f"note: {problem}: what is unfinished is kept in {theirs}", err=True)
        return theirs
    return ours
