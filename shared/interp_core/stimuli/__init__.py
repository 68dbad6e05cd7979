"""Stimuli: prompts of ids and of text, their control, and the corpus they are drawn from."""

from typing import Any


def __getattr__(name: str) -> Any:
    """The room's first module answers for the room: `from interp_core.stimuli import ...`."""
    if name.startswith("__"):
        raise AttributeError(name)

    from interp_core.stimuli import prompts

    return getattr(prompts, name)
