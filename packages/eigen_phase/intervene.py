"""Does a previous-token head that is there from the start bring the transition forward?"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from eigen_phase.measure_transition import mean_over_seeds

Report = dict[str, Any]


def clamped_against_free(clamped: Mapping[int, Report], free: Mapping[int, Report]) -> Report:
    """Midpoints of runs with a clamped previous-token head over those of free runs of the same
    seeds.

    Takes the runs of measure_transition's report by seed. Interval and p are Student's over the
    logarithms, paired by seed; `ratio` below 1 is earlier. Seeds where either run does not turn are
    left out and counted.
    """
    seeds = sorted(clamped.keys() & free.keys())
    both = [
        seed
        for seed in seeds
        if clamped[seed]["midpoint"] is not None and free[seed]["midpoint"] is not None
    ]
    report: Report = {
        "seeds": both,
        "left_out": [seed for seed in seeds if seed not in both],
        "clamped_midpoints": [clamped[seed]["midpoint"] for seed in both],
        "free_midpoints": [free[seed]["midpoint"] for seed in both],
        "ratio": None,
        "ci": None,
        "p": None,
    }
    if len(both) < 2:
        return report | {
            "verdict": f"only {len(both)} pairs of clamped and free runs turned: too few to say"
        }
    logs = np.log(np.array(report["clamped_midpoints"]) / np.array(report["free_midpoints"]))
    found = mean_over_seeds(logs)
    assert found["ci"] is not None
    low, high = np.exp(found["ci"])
    ratio = float(np.exp(found["value"]))
    word = "no difference shown" if low <= 1 <= high else "earlier" if ratio < 1 else "later"
    verdict = (
        f"{word}: with a clamped previous-token head the transition comes at {ratio:.2f} "
        f"[{low:.2f}, {high:.2f}] of its"
        f" step ({len(both)} seeds)"
    )
    return report | {
        "ratio": ratio,
        "ci": [float(low), float(high)],
        "p": found["p"],
        "verdict": verdict,
    }
