"""Arrays as they travel inside a page: attention in 255 steps, everything else with four digits."""

import base64
import math
from typing import Any

import numpy as np
from jaxtyping import Float

DIGITS = 4  # significant, of numbers that a reader sees


def shares(values: Float[np.ndarray, "..."]) -> dict[str, Any]:
    """Numbers in [0, 1] as one byte each; off by at most 1/510."""
    steps = np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)
    return {"shape": list(steps.shape), "bytes": base64.b64encode(steps.tobytes()).decode()}


def lower(patterns: Float[np.ndarray, "*head query key"]) -> dict[str, Any]:
    """Causal patterns without their empty half: query by query, keys up to the query."""
    query, key = np.tril_indices(patterns.shape[-1])
    return shares(patterns[..., query, key])


def numbers(values: Any) -> Any:
    """Nested lists of numbers with four significant digits; not-a-number becomes None."""
    if isinstance(values, np.ndarray | np.generic):
        return numbers(values.tolist())

    if isinstance(values, list | tuple):
        return [numbers(value) for value in values]

    if isinstance(values, float):
        return float(f"{values:.{DIGITS}g}") if math.isfinite(values) else None

    return values
