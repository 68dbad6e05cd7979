"""The headline numbers of the study, from its metrics files alone."""

from pathlib import Path
from typing import Any

from interp_core.console.answers import Answer, ends
from interp_core.files.artifacts import load_json

Report = dict[str, Any]


def answers(metrics: Path) -> list[Answer]:
    """When the transition comes, what leads it, what drives it, and what brings it forward."""
    controls = load_json(metrics / "controls" / "controls.json")
    clamped = load_json(metrics / "controls" / "clamped.json")
    arms = [load_json(file) for file in sorted((metrics / "controls").glob("subspace_*.json"))]
    free = _free_condition(load_json(metrics / "transition" / "transition.json"), controls)

    return [
        _step(free),
        _lag("eigenvalue_rise_over_step", "top_eigenvalue up to its peak", free),
        _lag("matching_over_step", "qk_matching of the best head", free),
        _arm("loss_change_inside", "inside", arms),
        _arm("loss_change_outside", "outside", arms),
        _clamped(clamped),
    ]


def _free_condition(transition: Report, controls: Report) -> Report:
    """The condition that the controls are compared with: the only one that both files have."""
    (free,) = (name for name in transition["conditions"] if name in controls["conditions"])
    return transition["conditions"][free]


def _step(free: Report) -> Answer:
    says = "step of the transition, middle of the rise of pattern accuracy"
    return _over_trainings("transition_step", free["midpoint"], says)


def _lag(name: str, metric: str, free: Report) -> Answer:
    """A ratio of steps: below 1 the metric's event comes before the transition."""
    lag = free["lags"].get(metric, {"lag": None})["lag"]
    return _over_trainings(name, lag, f"step of {metric} over the transition's")


def _over_trainings(name: str, found: Report | None, says: str) -> Answer:
    if found is None:
        return Answer(name, None, None, None, 0, "trainings", f"{says}: dated in no training")

    if found["ci"] is None:
        says = f"{says}; one training, so no interval"

    low, high = ends(found["ci"])
    unit = "training" if found["n"] == 1 else "trainings"
    return Answer(name, found["value"], low, high, found["n"], unit, says)


def _arm(name: str, arm: str, arms: list[Report]) -> Answer:
    """Of the continued training that got farthest inside: what is said of all must hold there."""
    if not arms:
        return Answer(name, None, None, None, 0, "trainings", "this profile continues no training")

    farthest = min(arms, key=lambda report: report["change_of_pattern_loss"]["inside"])
    says = (
        f"nats in {farthest['steps']} steps {arm} the top {farthest['k']} eigenvectors,"
        f" {farthest['name']}; one training, so no interval"
    )
    return Answer(name, farthest["change_of_pattern_loss"][arm], None, None, 1, "training", says)


def _clamped(clamped: Report) -> Answer:
    says = "step of the transition with a previous-token head clamped, over the free step"

    if clamped["ratio"] is None:
        says = clamped["verdict"]

    return Answer(
        "clamped_over_free_step",
        clamped["ratio"],
        *ends(clamped["ci"]),
        n=len(clamped["seeds"]),
        unit="trainings",
        says=says,
    )
