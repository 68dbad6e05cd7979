"""When a curve is half way through its one step, or why it has no date.

    guards = Guards(edge=0.05, widest=0.5, noise=6.0)
    events = [half_height(steps, curve, guards, direction="rise") for curve in seeds]
    lag = lag_over_seeds(events, accuracy_events)        # no verdict unless every seed is dated

A half-height crossing needs no fitted level, so that no logistic is cut at the end of its window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Num

from interp_core.errors import InputError
from interp_core.statistics.interval import Interval, student
from interp_core.statistics.transitions import FEWEST, turn_of

Direction = Literal["rise", "fall"]


@dataclass(frozen=True)
class Guards:
    """What a step must be before it is dated; values come from a study's params."""

    edge: float  # share of the window, in log steps, at either end: a crossing in it is not dated
    widest: float  # share of the window, in log steps, that 10 to 90 % of the step may take
    noise: float  # least height of the step, in standard deviations of the curve outside it


@dataclass(frozen=True)
class Event:
    """The date of a step, in steps of training, or None and why."""

    step: float | None
    low: float | None  # steps at 10 and at 90 % of the height: how abrupt it is, no interval
    high: float | None
    height: float  # change of level, with its sign
    says: str

    @property
    def dated(self) -> bool:
        return self.step is not None


def half_height(
    step: Num[np.ndarray, " point"],
    values: Float[np.ndarray, " point"],
    guards: Guards,
    *,
    direction: Direction,
) -> Event:
    """Where a curve last crosses half of the height from its start to its highest (lowest) level.

    The highest level is of medians of three points, the start the lowest of three. The crossing is
    interpolated in log steps. Points after the extreme are left out: a rise to a peak and a rise to
    a plateau are dated alike. Not dated: a crossing near either end of the window, a step that
    begins before it, one that is wider or lower than the guards allow, and one that a straight line
    explains as well by BIC. InputError for fewer than FEWEST points after step 0.
    """
    there = step > 0
    if there.sum() < FEWEST:
        n = int(there.sum())
        raise InputError(f"an event needs at least {FEWEST} points after step 0, got {n}")

    x = np.log(step[there].astype(np.float64))
    sign = 1.0 if direction == "rise" else -1.0
    curve = sign * values[there].astype(np.float64)
    smooth = _medians(curve)

    top = int(smooth.argmax())

    # The lowest of three: a curve that rises from its first point on then begins at the edge.
    base = float(curve[:3].min())
    height = float(smooth[top]) - base

    if height <= 0 or top < 2:
        return Event(None, None, None, sign * height, f"not dated: no {direction} in the window")

    climb = (x[: top + 1], smooth[: top + 1])
    tenth, half, most = (_last_crossing(*climb, base + share * height) for share in (0.1, 0.5, 0.9))
    span = x[-1] - x[0]
    reason = _reason(x, curve, (tenth, half, most), top, height, guards)

    # Last, because it takes milliseconds: curves without a step may still climb by chance.
    if reason is None and not turn_of(step[there], curve).turns:
        reason = "a straight line does as well"

    if reason is not None:
        return Event(None, None, None, sign * height, f"not dated: {reason}")

    dates = [float(np.exp(at)) for at in (tenth, half, most)]
    width = (most - tenth) / span
    says = f"{direction} at step {dates[1]:.0f}, 10 to 90 % in {100 * width:.0f} % of the window"
    return Event(dates[1], dates[0], dates[2], sign * height, says)


def _reason(
    x: Float[np.ndarray, " point"],
    curve: Float[np.ndarray, " point"],
    crossings: tuple[float, float, float],
    top: int,
    height: float,
    guards: Guards,
) -> str | None:
    tenth, half, most = crossings
    span = x[-1] - x[0]
    margin = guards.edge * span

    # A step that has begun at the first point has no level before it, and no half height.
    if half - x[0] <= margin or x[-1] - half <= margin or tenth <= x[1]:
        return "at the edge of its window"

    if (most - tenth) / span > guards.widest:
        return f"wider than {guards.widest:g} of its window"

    before = curve[x < tenth]
    after = curve[: top + 1][x[: top + 1] > most]  # what falls after a peak is no noise
    spreads = [side.std(ddof=1) for side in (before, after) if len(side) >= 3]
    if not spreads:
        return "too few points outside its step"

    if height < guards.noise * float(max(spreads)):
        return f"lower than {guards.noise:g} standard deviations of its noise"

    return None


def _medians(curve: Float[np.ndarray, " point"]) -> Float[np.ndarray, " point"]:
    """Of each point and its neighbours: one outlier makes no peak, and a step keeps its place."""
    padded = np.concatenate([curve[:1], curve, curve[-1:]])
    return np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0)


def _last_crossing(
    x: Float[np.ndarray, " point"], curve: Float[np.ndarray, " point"], level: float
) -> float:
    """Where the curve rises through the level for the last time; it ends above it."""
    below = np.flatnonzero(curve < level)
    if len(below) == 0:
        return float(x[0])

    i = int(below[-1])
    share = (level - curve[i]) / (curve[i + 1] - curve[i])
    return float(x[i] + share * (x[i + 1] - x[i]))


@dataclass(frozen=True)
class Lag:
    """How much later one event is than another: ratio of steps, over seeds; below 1 it leads."""

    ratio: Interval | None  # None unless every seed has both dates
    dated: int
    of: int
    verdict: str

    def to_json(self) -> dict[str, Any]:
        ratio = None if self.ratio is None else self.ratio.to_json()
        return {"ratio": ratio, "dated": self.dated, "of": self.of, "verdict": self.verdict}


def lag_over_seeds(
    events: Sequence[Event], references: Sequence[Event], *, level: float = 0.95
) -> Lag:
    """Lag of a metric's events behind those of a reference (pattern accuracy), seed by seed.

    No seed is dropped: where one is not dated, there is no lag, and the verdict says how many are.
    The interval is Student's, of logarithms. For many metrics, pass a corrected `level`.
    """
    if len(events) != len(references):
        n, others = len(events), len(references)
        raise InputError(f"{n} events, {others} references: give one of each a seed")

    both = [
        (one.step, other.step)
        for one, other in zip(events, references, strict=True)
        if one.step is not None and other.step is not None
    ]
    n = len(events)

    if len(both) < n or n < 2:
        return Lag(None, len(both), n, f"no lead or lag: dated in {len(both)} of {n} seeds")

    ratios = [float(np.log(own / other)) for own, other in both]
    of_logs = student(ratios, unit="trainings", level=level)
    assert of_logs.low is not None
    assert of_logs.high is not None
    low, high = float(np.exp(of_logs.low)), float(np.exp(of_logs.high))
    ratio = Interval(float(np.exp(of_logs.value)), low, high, n, "trainings")

    if not of_logs.excludes(0.0):
        return Lag(ratio, n, n, "no lead or lag shown")

    return Lag(ratio, n, n, "leads" if ratio.value < 1 else "lags")
