"""Heads and channels by the names people read: L5H1 is head 1 of layer 5, L5C17 its channel 17.

head = Head.read("L5H1")         # Head(layer=5, head=1)
str(head)                        # "L5H1", which is also its JSON
excess[head]                     # a pair of integers, so it indexes a [layer, head] array
"""

import re
from typing import NamedTuple

from interp_core.errors import InputError


class Head(NamedTuple):
    """One attention head; ordered by layer, then head. A tuple, so that it indexes arrays."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def read(cls, name: str) -> "Head":
        """The inverse of str. InputError for anything else."""
        layer, _, head = read_name(name, kinds="H", example="L5H1")
        return cls(layer, head)


class Channel(NamedTuple):
    """One channel (of a Mamba's layer, or a neuron of a transformer's); ordered as heads are."""

    layer: int
    channel: int

    def __str__(self) -> str:
        return f"L{self.layer}C{self.channel}"

    @classmethod
    def read(cls, name: str) -> "Channel":
        """The inverse of str. InputError for anything else."""
        layer, _, channel = read_name(name, kinds="C", example="L5C17")
        return cls(layer, channel)


def read_name(name: str, *, kinds: str, example: str) -> tuple[int, str, int]:
    """Layer, letter and number of a name; `kinds` are the letters it may have.

    InputError unless the name is written as `str` writes it: no spaces, no leading zeros.
    """
    number = "(0|[1-9][0-9]*)"
    found = re.fullmatch(f"L{number}([{kinds}]){number}", name)

    if found is None:
        raise InputError(f"{name!r} is no name: write layer and number as {example}")

    layer, kind, unit = found.groups()
    return int(layer), kind, int(unit)
