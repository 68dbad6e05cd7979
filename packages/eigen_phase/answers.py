"""The numbers of the study and which are headlines, from its metrics files alone."""

from pathlib import Path
from typing import Any

from interp_core.console.answers import Answer, headline
from interp_core.files.artifacts import load_json

Report = dict[str, Any]


def answers(metrics: Path) -> list[Answer]:
    """When the transition comes, what leads it, what drives it, and what brings it forward."""
    controls = load_json(metrics / "controls" / "controls.json")
    clamped = load_json(metrics / "controls" / "clamped.json")
    arms = [load_json(file) for file in sorted((metrics / "controls").glob("subspace_*.json"))]
    free = _free_condition(load_json(metrics / "transition" / "transition.json"), controls)

    # The first clamp that is no previous token's is what the verdict compares with.
    against, *others = _over_control(clamped)

    return [
        headline(_step(free)),
        headline(_peak(free)),
        headline(_lag("eigenvalue_rise_over_step", "largest_eigenvalue", free)),
        headline(_lag("own_matching_over_step", "own_matching of the best head", free)),
        _lag("matching_over_step", "qk_matching of the best head", free),
        _arm("loss_change_inside", "inside", arms),
        _arm("loss_change_outside", "outside", arms),
        _arm("loss_change_short", "short", arms),
        headline(_clamped(clamped)),
        headline(against),
        *others,
    ]


# What a continued training does, by its arm.
_STEPS = {
    "inside": "steps inside the top eigenvectors",
    "outside": "steps outside the top eigenvectors",
    "short": "free steps as short as those inside",
}


def _free_condition(transition: Report, controls: Report) -> Report:
    """The condition that the controls are compared with: the only one that both files have."""
    (free,) = (name for name in transition["conditions"] if name in controls["conditions"])
    return transition["conditions"][free]


def _step(free: Report) -> Answer:
    says = "step of the transition, middle of the rise of pattern accuracy"
    if free["midpoint"] is None:
        says += "; not in every training"
    return _over_trainings("transition_step", free["midpoint"], says)


def _peak(free: Report) -> Answer:
    """Where the largest eigenvalue on many rows is highest: above 1 after the transition."""
    says = "look at which the largest eigenvalue peaks over the transition's step, above 1 later"
    if free["peak_over_step"] is None:
        says += "; not in every training"
    return _over_trainings("peak_over_step", free["peak_over_step"], says)


def _lag(name: str, metric: str, free: Report) -> Answer:
    """A ratio of steps: below 1 the metric's event comes before the transition."""
    lag = free["lags"].get(metric, {"ratio": None, "dated": 0, "of": free["runs"]})
    says = f"date of {metric.replace('_', ' ')} over the transition's, below 1 earlier"

    if lag["ratio"] is None:
        says += f"; dated in {lag['dated']} of {lag['of']} trainings, so no ratio"

    return _over_trainings(name, lag["ratio"], says)


def _over_trainings(name: str, found: Report | None, says: str) -> Answer:
    if found is None:
        return Answer(name, None, None, None, 0, "trainings", says)

    if found["low"] is None:
        says = f"{says}; one training, so no interval"

    unit = "training" if found["n"] == 1 else "trainings"
    return Answer(name, found["value"], found["low"], found["high"], found["n"], unit, says)


def _arm(name: str, arm: str, arms: list[Report]) -> Answer:
    """Of the continued training that got farthest inside: what is said of all must hold there."""
    if not arms:
        return Answer(name, None, None, None, 0, "trainings", "this profile continues no training")

    farthest = min(arms, key=lambda report: report["change_of_pattern_loss"]["inside"])
    says = (
        f"nats through the transition, {_STEPS[arm]}, {farthest['name']},"
        f" {farthest['steps']} steps; one training, so no interval"
    )
    return Answer(name, farthest["change_of_pattern_loss"][arm], None, None, 1, "training", says)


def _clamped(clamped: Report) -> Answer:
    found = clamped["over_free"][clamped["clamped"]]
    says = "step of the transition with a previous-token head clamped over the free step"

    if found["ratio"] is None:
        says += f"; dated in {found['dated']} of {len(found['seeds'])} pairs, so no ratio"

    return _over_trainings("clamped_over_free_step", found["ratio"], says)


def _over_control(clamped: Report) -> list[Answer]:
    """Against the same head clamped elsewhere; several controls, so the names are theirs."""
    return [
        _over_trainings(
            f"clamped_over_{control.removeprefix('clamped_')}_step",
            found["ratio"],
            f"the same over the step with that head clamped otherwise ({control})"
            + ("" if found["ratio"] else "; not dated in every training"),
        )
        for control, found in clamped["over_controls"].items()
    ]
