"""A sign of life: one line on standard error before a command loads what takes seconds to load.

PyTorch and transformers take two to ten seconds from a cold disk. Whichever command needs them says
so just before they are imported, and a command that refuses its input before that says only why.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import click

_SLOW = ("torch", "transformers", "matplotlib")
_NAMING = ("model", "models", "transformer", "run_directories")  # options that name what is loaded


def say_before_loading() -> None:
    """Say `loading ...` once, when the first of the slow libraries is about to be imported."""
    if not any(name in sys.modules for name in _SLOW):
        # Before all others: one of them (processor.py) finds PyTorch and asks no further.
        sys.meta_path.insert(0, _Saying())


class _Saying(MetaPathFinder):
    """Finds nothing: it is asked for every import, and speaks at the first slow one.

    It stays where it is: the list is being walked while it is asked, and who takes itself out of it
    has the next one passed over (processor.py's, on which the committed bytes hang).
    """

    def __init__(self) -> None:
        self._has_spoken = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in _SLOW and not self._has_spoken:
            self._has_spoken = True
            click.echo(f"loading {_named()}...", err=True)
        return None


def _named() -> str:
    """What the command was told to load, and a blank; nothing where no option names it."""
    context = click.get_current_context(silent=True)
    given: dict[str, Any] = {} if context is None else context.params
    several = (given.get(option) or () for option in _NAMING)
    names = [str(one) for some in several for one in (some if isinstance(some, tuple) else (some,))]
    return " ".join([*names, ""])
