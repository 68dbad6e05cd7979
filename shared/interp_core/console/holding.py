"""A command's folder is its own until it ends."""

import os
from pathlib import Path

import click

from interp_core.files.locks import alone_in


def hold(folder: Path, *, shared: bool = False) -> None:
    """Keep other commands out of the folder until this one ends. InputError where one is in it.

    `shared`: a stage, which lets other stages of its study in. Outside of a command, nothing. Of
    the processes of one torchrun the first one holds it for all.
    """
    context = click.get_current_context(silent=True)
    if context is None or os.environ.get("RANK", "0") != "0":
        return

    if not context.with_resource(alone_in(folder, shared=shared)):
        click.echo(
            f"note: {folder} is on a file system without locks: run one command at a time in it",
            err=True,
        )
