"""A command's folder is its own until it ends."""

import os
from pathlib import Path

import click

from interp_core.files.locks import alone_in
from interp_core.files.vouching import guarding


def guard(folder: Path) -> None:
    """Until the command ends, replace in the folder and below it only what a record of this program
    lists. Outside of a command, nothing.
    """
    context = click.get_current_context(silent=True)
    if context is not None:
        context.with_resource(guarding(folder))


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
