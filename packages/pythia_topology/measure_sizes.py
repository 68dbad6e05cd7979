"""Where induction heads sit, over trainings: sizes as groups, trainings as units.

Do sizes hold their centre at one relative depth (equivalence over trainings), and which rule says
best where a size's centre lies: a constant relative depth, a constant layer, or a constant number
of layers after the previous-token heads? From the profile files of several runs, nothing else.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from interp_core.errors import InputError
from interp_core.statistics.interval import student
from interp_core.statistics.trainings import (
    RIVALS,
    UNIT,
    SizesAlike,
    Training,
    compare_rivals,
    sizes_alike,
)

Report = Mapping[str, Any]
MEASURED = (
    "centre_of_mass",
    "centre_in_layers",
    "peak_rel",
    "peak_layer",
    "previous_token_layer",
    "peak_after_previous",
    "without_top_heads",  # change of accuracy when they are ablated
    "without_best_layer",
)


def sizes_summary(
    profiles: Mapping[str, Sequence[Report]], *, margin: float, alpha: float
) -> dict[str, Any]:
    """The content of sizes.json; `profiles` are each size's, one a seed, in one order of seeds.

    A training without induction heads has no centre: it is left out, and counted. Intervals are
    95 % over trainings (Student); sizes are compared seed by seed, because a seed draws the same
    tokens for each. InputError for a size whose trainings have other depths, and for profiles of an
    older version.
    """
    sizes = {size: _of_size(size, reports) for size, reports in profiles.items()}

    def compared(measure: str) -> SizesAlike:
        values = {
            size: [_value(report, measure) for report in reports]
            for size, reports in profiles.items()
        }
        return sizes_alike(values, margin=margin, alpha=alpha)

    alike = compared("centre_of_mass")
    rivals = compare_rivals(_trainings(profiles))
    entries = rivals.to_json()

    for entry, rival in zip(entries["rivals"], rivals.rivals, strict=True):
        entry["predicts"] = _predictions(rival.name, rival.fitted, profiles)

    return {
        "unit": UNIT,
        "margin": margin,
        "equivalence_alpha": alpha,
        "sizes": sizes,
        "centre_of_mass": alike.to_json(),
        "peak_rel": compared("peak_rel").to_json(),
        "rivals": entries["rivals"],
        "rivals_verdict": rivals.verdict,
        "verdict": f"relative depth: {alike.verdict}; best rule: {rivals.verdict}",
    }


def _of_size(size: str, reports: Sequence[Report]) -> dict[str, Any]:
    """One size's numbers, training by training, with their means and intervals."""
    depths = {report["n_layers"] for report in reports}
    if len(depths) != 1:
        raise InputError(f"{size} has {sorted(depths)} layers: give trainings of one size a name")

    kept = [report for report in reports if report["centre_of_mass"] is not None]
    found: dict[str, Any] = {
        "n_layers": depths.pop(),
        "trainings": len(reports),
        "without_induction_heads": len(reports) - len(kept),
    }

    for name in MEASURED:
        values = [value for report in kept if (value := _value(report, name)) is not None]
        mean = student(values, unit=UNIT).to_json() if values else None
        found[name] = {"mean": mean, "values": values}

    return found


def _value(report: Report, name: str) -> float | None:
    """A number of a profile; intervals of one training are not used.

    `peak_after_previous`: layers from the previous-token heads to the peak.
    """
    if name == "peak_after_previous":
        peak, previous = _value(report, "peak_layer"), _value(report, "previous_token_layer")
        return None if peak is None or previous is None else peak - previous

    if name not in report:
        raise InputError(
            f"profile_{report['name']}.json lacks `{name}`: run `induct profile` again"
        )

    entry = report[name]
    value = entry["value"] if isinstance(entry, Mapping) else entry
    return None if value is None else float(value)


def _trainings(profiles: Mapping[str, Sequence[Report]]) -> list[Training]:
    """Those that have a centre and previous-token heads to start from."""
    found = []

    for size, reports in profiles.items():
        for report in reports:
            centre = _value(report, "centre_in_layers")
            previous = _value(report, "previous_token_layer")

            if centre is not None and previous is not None:
                found.append(Training(size, report["n_layers"], centre, previous))

    return found


def _predictions(
    name: str, fitted: float, profiles: Mapping[str, Sequence[Report]]
) -> dict[str, float]:
    """Where a rival puts the centre of each size, in layers; the mean over its trainings."""
    slope_of, start_of = RIVALS[name]
    by_size: dict[str, list[float]] = {}

    for one in _trainings(profiles):
        by_size.setdefault(one.size, []).append(fitted * slope_of(one) + start_of(one))

    return {size: math.fsum(values) / len(values) for size, values in by_size.items()}
