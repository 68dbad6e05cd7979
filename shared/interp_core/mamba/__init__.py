"""Mamba: the selective scan, hidden attention, and the model as a sequence of mixers."""

from typing import Any


def __getattr__(name: str) -> Any:
    """The room's first module answers for the room: `from interp_core.mamba import ...`."""
    if name.startswith("__"):
        raise AttributeError(name)

    from interp_core.mamba import subject

    return getattr(subject, name)
