"""When each metric of a run turns, how abruptly, and what leads what over seeds.

Every curve is dated by one rule, the half-height crossing of interp_core.statistics.events, in the
direction written here before any curve was seen. A curve that the rule does not date has no date.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from eigen_phase.params import Transition
from eigen_phase.run_directory import RunDirectory
from interp_core.statistics.events import Direction, Event, Guards, half_height, lag_over_seeds
from interp_core.statistics.interval import Interval, student
from interp_core.statistics.transitions import FEWEST, turn_of

ACCURACY = "pattern_accuracy"
LARGEST = "largest_eigenvalue"  # on many rows, from `curvature`; top_eigenvalue is on the probe's
TRAININGS = "trainings"

# Losses fall. Of the rest each is asked whether it rises, the most negative eigenvalue downwards.
DIRECTIONS: dict[str, Direction] = {
    ACCURACY: "rise",
    "pattern_loss": "fall",
    "other_loss": "rise",
    "held_out_loss": "fall",
    "gradient_norm": "rise",
    "top_eigenvalue": "rise",
    "most_negative_eigenvalue": "fall",
    "spectral_norm": "rise",
    "alignment_mass": "rise",
    "alignment_independent": "rise",
    "alignment_training": "rise",
    "alignment_update": "rise",
    "persistence": "rise",
}
OF_HEADS = (
    "prefix_matching",
    "previous_token",
    "duplicate_token",
    "own_position",
    "copying",
    "qk_matching",
    "own_matching",
)

Series = tuple[np.ndarray, np.ndarray]  # steps, values
Report = dict[str, Any]


def metrics_of(run: RunDirectory, largest: Series | None = None) -> dict[str, Series]:
    """Every curve that is dated.

    Of each kind of head score it is that of one head: the one that leads at the end. `largest` is
    the largest eigenvalue on many rows, where it was measured.
    """
    found = {name: run.series(name) for name in DIRECTIONS if name in run.history}

    if largest is not None:
        found[LARGEST] = largest

    for family in OF_HEADS:
        if family in run.history:
            heads = run.history[family]
            layer, head = np.unravel_index(heads[-1].argmax(), heads[-1].shape)
            found[f"{family} of the best head"] = (run.history["step"], heads[:, layer, head])

    if "k_composition" in run.history:
        pairs = run.history["k_composition"]
        best = pairs[:, pairs[-1].argmax()]
        found["k_composition of the best pair"] = (run.history["step"], best)

    return found


def transition_report(
    runs: Sequence[RunDirectory],
    settings: Transition,
    largest: Mapping[str, Series] | None = None,
) -> Report:
    """A verdict for each run, and leads and lags for each condition, whose runs are its seeds.

    Verdicts: `transition` (large enough, dated, abrupt), `gradual` (the same, but spread over more
    than abrupt_ratio in steps), `not dated` (large enough, without a date), `no transition`. Never
    an error for a run that does not turn. All metrics are looked at from midpoint / window on, the
    midpoint that of a logistic fit to the accuracy: what they do in the first steps, when the model
    learns which tokens there are, is another story.
    `largest`: the largest eigenvalue by run, measured on many rows.
    """
    known = largest or {}
    dated = {run.name: _of_run(run, settings, known.get(run.name)) for run in runs}
    conditions = dict.fromkeys(run.condition for run in runs)

    return {
        "runs": {name: report for name, (report, _) in dated.items()},
        "conditions": {
            condition: _of_condition(
                [dated[run.name] for run in runs if run.condition == condition], settings
            )
            for condition in conditions
        },
    }


def guards_of(settings: Transition) -> Guards:
    """What a step must be before it is dated."""
    return Guards(edge=settings.edge, widest=settings.widest, noise=settings.noise)


Dated = tuple[Report, dict[str, Event]]


def _of_run(run: RunDirectory, settings: Transition, largest: Series | None) -> Dated:
    base: Report = {
        "name": run.name,
        "condition": run.condition,
        "seed": run.training.seed,
        "midpoint": None,
        "peak": None,
        "metrics": {},
    }
    steps, values = run.series(ACCURACY)
    if (steps > 0).sum() < FEWEST:
        words = "too few points"
        return base | {"verdict": words, "sentence": f"{words} to say"}, {}

    # The fit only says where to look: before the window accuracy climbs from nothing to what
    # guessing among the row's tokens gives, which is no part of the step.
    start = turn_of(steps, values).midpoint / settings.window
    if (steps >= start).sum() < FEWEST:
        start = 1.0

    guards = guards_of(settings)
    looked = steps >= start
    turn = half_height(steps[looked], values[looked], guards, direction="rise")
    turn = _if_over(turn, steps[looked], settings)
    verdict = _verdict(turn, settings)

    events = {ACCURACY: turn}
    for name, (at, curve) in metrics_of(run, largest).items():
        late = at >= start
        if name != ACCURACY and late.sum() >= FEWEST:
            direction = DIRECTIONS.get(name, "rise")
            events[name] = half_height(at[late], curve[late], guards, direction=direction)

    found = base | {
        "verdict": verdict,
        "sentence": _sentence(verdict, turn, values),
        "metrics": {name: asdict(event) for name, event in events.items()},
    }
    if turn.step is None or turn.low is None or turn.high is None:
        return found, events

    shares = np.abs(np.diff(values)).max() / abs(turn.height)
    return found | {
        "midpoint": turn.step,
        "ratio": turn.high / turn.low,
        "largest_share_in_one_interval": float(shares),
        "peak": None if largest is None else _peak(largest, turn.step, start),
    }, events


def _if_over(turn: Event, steps: np.ndarray, settings: Transition) -> Event:
    """Without its date where 90 % of the rise lies at the end of the window."""
    if turn.high is None:
        return turn

    first, last = np.log(steps[[0, -1]].astype(np.float64))
    if np.log(turn.high) < last - settings.edge * (last - first):
        return turn

    # What is half of a height that is not reached yet? The run says too little.
    return Event(None, None, None, turn.height, "not dated: it may not be over at the end")


def _verdict(turn: Event, settings: Transition) -> str:
    if turn.height < settings.smallest_change:
        return "no transition"

    if turn.low is None or turn.high is None:
        return "not dated"

    return "transition" if turn.high / turn.low <= settings.abrupt_ratio else "gradual"


def _sentence(verdict: str, turn: Event, values: np.ndarray) -> str:
    levels = f"pattern accuracy {values[0]:.2f} at first, {values[-1]:.2f} at the end"

    if turn.step is None or turn.low is None or turn.high is None:
        return f"{verdict}: {levels}"

    factor = turn.high / turn.low
    return (
        f"{verdict} at step {turn.step:.0f}, {levels},"
        f" 10 to 90 % within a factor {factor:.2f} of steps"
    )


def _peak(largest: Series, date: float, start: float) -> Report | None:
    """The look at which the largest eigenvalue is highest; None at an edge of its window."""
    steps, values = largest
    late = steps >= start
    steps, values = steps[late], values[late]
    top = int(values.argmax())

    if top in (0, len(values) - 1):
        return None

    return {
        "step": int(steps[top]),
        "value": float(values[top]),
        "over_step": float(steps[top] / date),
    }


def _of_condition(dated: Sequence[Dated], settings: Transition) -> Report:
    """Dates over seeds, and each metric's lead (below 1) or lag against pattern accuracy's.

    A number over seeds is None unless every seed has it: none is left out for how its curve looks.
    """
    reports = [report for report, _ in dated]
    verdicts = [report["verdict"] for report in reports]
    middles = [report["midpoint"] for report in reports]
    ratios = [report.get("ratio") for report in reports]
    peaks = [None if report["peak"] is None else report["peak"]["over_step"] for report in reports]

    return {
        "runs": len(reports),
        "verdicts": {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)},
        "midpoint": over_seeds(middles),
        "ratio": over_seeds(ratios),
        "peak_over_step": over_seeds(peaks),
        "lags": _lags([events for _, events in dated], settings),
    }


def over_seeds(values: Sequence[float | None]) -> Report | None:
    """Geometric mean with Student's interval of the logarithms; None unless all seeds have one."""
    there = [value for value in values if value is not None]
    if not there or len(there) < len(values):
        return None

    return geometric(there).to_json()


def geometric(values: Sequence[float]) -> Interval:
    """Mean of logarithms, back in the values' unit: for steps, and ratios of steps."""
    logs = student([float(np.log(value)) for value in values], unit=TRAININGS)
    ends = None if logs.ends is None else [float(np.exp(end)) for end in logs.ends]
    low, high = (None, None) if ends is None else ends
    return Interval(float(np.exp(logs.value)), low, high, logs.n, TRAININGS)


def _lags(by_seed: Sequence[dict[str, Event]], settings: Transition) -> Report:
    """By metric: its date over the accuracy's, with a 95 % interval.

    Verdicts are at the level that leaves family_error for all metrics together (Bonferroni).
    """
    references = [events[ACCURACY] for events in by_seed if ACCURACY in events]
    if len(references) < len(by_seed) or not any(event.dated for event in references):
        return {}

    shared = set.intersection(*(set(events) for events in by_seed)) - {ACCURACY}
    names = [name for name in by_seed[0] if name in shared]
    corrected = 1 - settings.family_error / max(len(names), 1)
    lags: Report = {}

    for name in names:
        events = [by_name[name] for by_name in by_seed]
        lag = lag_over_seeds(events, references)
        verdict = lag_over_seeds(events, references, level=corrected).verdict
        lags[name] = lag.to_json() | {
            "verdict": verdict,
            "event": DIRECTIONS.get(name, "rise"),
            "undated": [event.says for event in events if not event.dated],
        }

    return lags
