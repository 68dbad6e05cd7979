"""Does a previous-token head that is there from the start bring the transition forward?

More than a head clamped elsewhere does: clamping alone also takes a head away from the search, or
makes it a bag of words. So the same head is clamped to its own position and to t - 2 as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eigen_phase.measure_transition import geometric

Report = dict[str, Any]
BySeed = Mapping[int, Report]  # runs of measure_transition's report


def clamped_against_free(clamped: Mapping[str, BySeed], free: BySeed) -> Report:
    """Dates of clamped runs over those of free runs of the same seeds, by condition.

    The first condition is the one that is asked about, the others are its controls; it is compared
    with each of them too. `ratio` below 1 is earlier; its interval is Student's over logarithms,
    paired by seed. None unless both runs of every seed are dated: none is left out.
    """
    first, *controls = clamped
    over_free = {name: _ratio(runs, free) for name, runs in clamped.items()}
    over_controls = {name: _ratio(clamped[first], clamped[name]) for name in controls}

    verdict = f"{first}: {_says(over_free[first], 'free')}"
    for name in controls:
        verdict += f"; {_says(over_controls[name], name)}"

    return {
        "clamped": first,
        "verdict": verdict,
        "over_free": over_free,
        "over_controls": over_controls,
    }


def _ratio(runs: BySeed, others: BySeed) -> Report:
    seeds = sorted(runs.keys() & others.keys())
    pairs = [(runs[seed]["midpoint"], others[seed]["midpoint"]) for seed in seeds]
    dated = [(one, other) for one, other in pairs if one is not None and other is not None]
    enough = len(dated) == len(pairs) > 1

    return {
        "seeds": seeds,
        "dated": len(dated),
        "midpoints": [one for one, _ in pairs],
        "other_midpoints": [other for _, other in pairs],
        "ratio": geometric(_quotients(dated)).to_json() if enough else None,
    }


def _quotients(pairs: Sequence[tuple[float, float]]) -> list[float]:
    return (np.array(pairs)[:, 0] / np.array(pairs)[:, 1]).tolist()


def _says(found: Report, other: str) -> str:
    ratio = found["ratio"]
    if ratio is None:
        return (
            f"no comparison with {other}: dated in {found['dated']} of {len(found['seeds'])} pairs"
        )

    words = f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] of the {other} step"
    if ratio["low"] <= 1 <= ratio["high"]:
        return f"no difference from {other} shown ({words})"

    return f"{'earlier' if ratio['value'] < 1 else 'later'} than {other} ({words})"
