"""Arrays as they travel inside a page: attention in 255 steps, everything else with four digits."""

import base64
import math
from decimal import ROUND_05UP, Context
from typing import Any

import numpy as np
from jaxtyping import Float

DIGITS = 4  # significant, of numbers that a reader sees

# Cut, not rounded: 290.457 as 290.5 would be 291 when it is rounded again. A cut that ends in 0 or
# 5 goes one up, so that it does not pass for a number that ends there.
_CUT = Context(prec=DIGITS, rounding=ROUND_05UP)


def shares(values: Float[np.ndarray, "..."]) -> dict[str, Any]:
    """Numbers in [0, 1] as one byte each; off by at most 1/510."""
    steps = np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)
    return {"shape": list(steps.shape), "bytes": base64.b64encode(steps.tobytes()).decode()}


def lower(patterns: Float[np.ndarray, "*head query key"]) -> dict[str, Any]:
    """Causal patterns without their empty half: query by query, keys up to the query."""
    query, key = np.tril_indices(patterns.shape[-1])
    return shares(patterns[..., query, key])


def numbers(values: Any) -> Any:
    """Nested lists of numbers with four significant digits; not-a-number becomes None.

    The page shows fewer digits, and what it rounds again comes out as if rounded once.
    """
    if isinstance(values, np.ndarray | np.generic):
        return numbers(values.tolist())

    if isinstance(values, list | tuple):
        return [numbers(value) for value in values]

    if isinstance(values, float):
        # By its shortest digits: 0.1 is 0.1, not the binary number just above it.
        return float(_CUT.create_decimal(repr(values))) if math.isfinite(values) else None

    return values
