"""Models: where they come from, and how activations are read and edited by name."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Type checkers know the rooms' modules, and take this for an answer to every name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """What lay in the module of this name before there were rooms."""
        if name.startswith("__"):
            raise AttributeError(name)

        # Not `from interp_core.models import subject`: that asks this function first, for ever.
        return getattr(import_module("interp_core.models.subject"), name)
