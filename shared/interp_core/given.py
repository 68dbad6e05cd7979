"""What a call in Python gives, looked at before it is used: numbers, rows of numbers, places.

A command's options are checked by its Params. These are the same for calls: InputError of one line
that says what would be right, in place of whatever Python, torch or a kernel would do with it.
"""

import operator
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from interp_core.errors import InputError


def whole(value: Any, what: str, *, least: int | None = None) -> int:
    """A whole number, NumPy's and torch's too. InputError for anything else, and below `least`."""
    try:
        # True is a number to Python, and a slip of whoever wrote it.
        number = None if _is_bool(value) else operator.index(value)
    except TypeError:
        number = None

    if number is None:
        raise InputError(f"{what} is a whole number, such as 2; got {shown(value)}")
    if least is not None and number < least:
        raise InputError(f"{what} must be at least {least}, got {number}")
    return number


def wholes(values: Any, what: str) -> list[int]:
    """A list of whole numbers. InputError for one number alone, a text, and other kinds."""
    several = isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping)

    # An array without axes calls itself iterable, and is one number alone.
    if not several or getattr(values, "ndim", 1) == 0:
        raise InputError(f"{what} is a list of whole numbers, such as [2, 5]; got {shown(values)}")

    return [whole(value, f"each of {what}") for value in values]


def places(
    values: Any, what: str, *, below: int, length: int | None = None
) -> Int[np.ndarray, " entry"]:
    """Places in something of `below` places: whole numbers in one row, from 0, `length` of them.

    InputError for others. A negative one would count from the end, and one too large would read
    whatever lies behind.
    """
    plain = values.detach().cpu() if hasattr(values, "detach") else values
    try:
        array = np.asarray(plain)
    except (TypeError, ValueError):  # rows of several lengths
        array = np.empty(0, dtype=object)

    if array.size == 0 and array.ndim == 1 and array.dtype != object:
        array = array.astype(np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{what} is one row of whole numbers from 0; got {shown(values)}")
    if length is not None and len(array) != length:
        raise InputError(f"{what} has {len(array)} numbers, and there are {length} to go with it")

    if array.size and not 0 <= (least := int(array.min())) <= (most := int(array.max())) < below:
        wrong = least if least < 0 else most
        raise InputError(f"{what} holds {wrong}: it lies from 0 to {below - 1}")

    return array


def shown(value: Any) -> str:
    """A value in an error's line: short, in one line."""
    kind = type(value).__name__
    if hasattr(value, "shape") and getattr(value, "ndim", 0):
        return f"{kind} of {list(value.shape)}"
    return " ".join(reprlib.repr(value).split())


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
