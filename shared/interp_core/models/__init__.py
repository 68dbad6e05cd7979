"""Models: where they come from, and how activations are read and edited by name."""

from typing import Any


def __getattr__(name: str) -> Any:
    """The room's first module answers for the room: `from interp_core.models import ...`."""
    if name.startswith("__"):
        raise AttributeError(name)

    from interp_core.models import subject

    return getattr(subject, name)
