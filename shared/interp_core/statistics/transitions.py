"""When a curve turns, and whether it turns at all: a step or a bump against flat and straight
lines.

Everything is fitted over log steps: training moves fast first and slowly later. Curves of one
training are autocorrelated, which makes a plain BIC find changes in noise; here the residuals of
every fit follow an AR(1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Num
from scipy import special

from interp_core.errors import InputError
from interp_core.statistics.resampling import Interval, percentile_interval, resampled_means

Kind = Literal["logistic", "change_point", "bump", "line", "flat"]
STRONG = 10.0  # difference of BIC that counts (Kass & Raftery 1995: very strong evidence)
PARAMETERS: dict[Kind, int] = {"logistic": 4, "change_point": 3, "bump": 4, "line": 2, "flat": 1}
FEWEST = 8  # points


@dataclass(frozen=True)
class LogisticFit:
    """low + (high - low) / (1 + exp(-(step - midpoint) / width)), width >= 0, each with its
    interval.
    """

    midpoint: Interval
    width: Interval
    low: Interval
    high: Interval


@dataclass(frozen=True)
class Turn:
    """How a curve changes. Steps are in steps of training; nothing here is not-a-number."""

    best: Kind  # lowest BIC
    # BIC of the better of flat and straight line, less the lowest of the three curves that turn
    advantage: float
    step_advantage: float  # the same for a step alone, the bump left out
    midpoint: float  # of the logistic: the step where half of the change is made
    ratio: float  # step at 90 % of the logistic's change over the step at 10 %, at least 1
    low: float  # levels of the logistic before and after
    high: float
    change_point: float  # step between the two points where the mean shifts
    bump: float  # step where the bump, a Gaussian in log steps, is highest (or lowest)
    height: float  # of the bump over its base; negative for a dip
    points: int

    @property
    def turns(self) -> bool:
        """Whether a step or a bump wins by STRONG."""
        return self.advantage > STRONG

    @property
    def steps(self) -> bool:
        """Whether a step wins by STRONG over flat and straight lines, a bump or not."""
        return self.step_advantage > STRONG

    @property
    def size(self) -> float:
        """Change of level, with its sign."""
        return self.high - self.low


def turn_of(step: Num[np.ndarray, " point"], values: Float[np.ndarray, " point"]) -> Turn:
    """Fit a curve of one training.

    Step 0 has no logarithm and is left out. InputError for fewer than FEWEST points.
    """
    there = step > 0
    step, curve = step[there].astype(np.float64), values[there].astype(np.float64)

    if len(step) < FEWEST:
        raise InputError(f"a turn needs at least {FEWEST} points after step 0, got {len(step)}")

    x = np.log(step)
    origin, span = x[0], x[-1] - x[0]
    scaled = (x - origin) / span
    rise = fit_rises(scaled, curve[None])[0]
    hill = fit_rises(scaled, curve[None], shape=_gaussian)[0]
    split, shifted = _mean_shift(curve)
    line = min(
        (_straight(axis, curve) for axis in (x, step)), key=lambda found: _squares(curve - found)
    )
    fits: dict[Kind, np.ndarray] = {
        "logistic": rise[2] + (rise[3] - rise[2]) * special.expit((scaled - rise[0]) / rise[1]),
        "change_point": shifted,
        "bump": hill[2] + (hill[3] - hill[2]) * _gaussian((scaled - hill[0]) / hill[1]),
        "line": line,
        "flat": np.full_like(curve, curve.mean()),
    }
    bic = _bic(curve, fits)

    return Turn(
        best=min(bic, key=lambda kind: bic[kind]),
        advantage=float(
            min(bic["line"], bic["flat"]) - min(bic["logistic"], bic["change_point"], bic["bump"])
        ),
        step_advantage=float(
            min(bic["line"], bic["flat"]) - min(bic["logistic"], bic["change_point"])
        ),
        midpoint=float(np.exp(origin + span * rise[0])),
        ratio=float(np.exp(2 * np.log(9) * span * rise[1])),
        low=float(rise[2]),
        high=float(rise[3]),
        change_point=float(np.sqrt(step[split - 1] * step[split])),
        bump=float(np.exp(origin + span * hill[0])),
        height=float(hill[3] - hill[2]),
        points=len(step),
    )


def _mean_shift(curve: Float[np.ndarray, " point"]) -> tuple[int, Float[np.ndarray, " point"]]:
    """Index of the first point after the least-squares change of mean, and the fitted curve; two
    points a side.
    """
    n = len(curve)
    sums = np.cumsum(curve)
    after = np.arange(2, n - 1)
    before_mean, after_mean = sums[after - 1] / after, (sums[-1] - sums[after - 1]) / (n - after)
    explained = after * (n - after) * (before_mean - after_mean) ** 2
    split = int(after[explained.argmax()])

    return split, np.concatenate(
        [np.full(split, curve[:split].mean()), np.full(n - split, curve[split:].mean())]
    )


def _straight(
    axis: Float[np.ndarray, " point"], curve: Float[np.ndarray, " point"]
) -> Float[np.ndarray, " point"]:
    slope, intercept = np.polyfit(axis, curve, 1)
    return intercept + slope * axis


def _bic(curve: Float[np.ndarray, " point"], fits: dict[Kind, np.ndarray]) -> dict[Kind, float]:
    """Of each fit with residuals that follow an AR(1) of their own: n ln(SSE of its innovations /
    n) - ln(1 - r^2) plus ln(n) for each parameter and for r. A fit that is exact counts as one to a
    millionth of the curve's spread.
    """
    n = len(curve)
    floor = 1e-12 * max(_squares(curve - curve.mean()), 1e-300)
    found: dict[Kind, float] = {}

    for kind, fitted in fits.items():
        residuals = curve - fitted
        r = _lag_one(residuals)
        innovations = (1 - r**2) * residuals[0] ** 2 + _squares(residuals[1:] - r * residuals[:-1])
        likelihood = n * np.log(max(innovations, floor) / n) - np.log(1 - r**2)
        found[kind] = float(likelihood + (PARAMETERS[kind] + 1) * np.log(n))

    return found


def _lag_one(residuals: Float[np.ndarray, " point"]) -> float:
    """Lag-one autocorrelation, from 0 to .99."""
    products = float((residuals[1:] * residuals[:-1]).sum())
    return float(np.clip(products / max(_squares(residuals), 1e-300), 0.0, 0.99))


def _squares(residuals: Float[np.ndarray, " point"]) -> float:
    return float((residuals**2).sum())


def _gaussian(u: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.exp(-0.5 * u**2)


def logistic_fit(
    step: Num[np.ndarray, " step"],
    values: Float[np.ndarray, "prompt step"],
    rng: np.random.Generator,
    *,
    resamples: int,
    level: float = 0.95,
) -> LogisticFit:
    """Least-squares logistic rise of the mean curve over steps (pass log steps for a rise on a log
    axis); intervals from resampling prompts. Midpoint lies within the steps, in their units, as
    does the width.
    """
    if len(step) < 4:
        raise InputError(f"a logistic rise needs at least 4 steps, got {len(step)}")

    curves = np.concatenate(
        [
            values.mean(axis=0, keepdims=True, dtype=np.float64),
            resampled_means(values, rng, resamples=resamples),
        ]
    )
    origin, span = float(step.min()), float(step.max() - step.min())
    fits = fit_rises((step.astype(np.float64) - origin) / span, curves)
    fits = fits * np.array([span, span, 1.0, 1.0]) + np.array([origin, 0.0, 0.0, 0.0])
    found = percentile_interval(fits[0], fits[1:], level=level)

    return LogisticFit(
        *(
            Interval(*(np.asarray(end[i]) for end in (found.value, found.low, found.high)))
            for i in range(4)
        )
    )


def fit_rises(
    scaled: Float[np.ndarray, " step"],
    curves: Float[np.ndarray, "curve step"],
    *,
    shape: Callable[[np.ndarray], np.ndarray] = special.expit,
) -> Float[np.ndarray, "curve 4"]:
    """Midpoint, width, low and high of each curve's logistic rise (or fall) by least squares; steps
    scaled to [0, 1].

    Low and high are linear given midpoint and width, so these two are searched on a grid that zooms
    in. The smallest width is a tenth of the smallest gap between steps: a sharper rise lies in the
    middle of its gap. Another `shape` than the logistic goes from low at 0 to high at 1 as well.
    """
    narrowest = np.diff(np.sort(scaled)).min() / 10
    midpoint, log_width = np.meshgrid(np.linspace(0, 1, 81), np.linspace(np.log(narrowest), 0, 25))
    place = np.broadcast_to(midpoint.ravel(), (len(curves), midpoint.size))
    log_width = np.broadcast_to(log_width.ravel(), place.shape)
    reach = np.array([1 / 80, -np.log(narrowest) / 24])
    offsets = np.stack(np.meshgrid(np.linspace(-1, 1, 7), np.linspace(-1, 1, 7)), axis=-1).reshape(
        -1, 2
    )
    best = _best_rise(scaled, curves, place, log_width, shape)

    for _ in range(9):
        place = np.clip(best[:, :1] + reach[0] * offsets[:, 0], 0, 1)
        log_width = np.clip(best[:, 1:] + reach[1] * offsets[:, 1], np.log(narrowest), 0)
        best = _best_rise(scaled, curves, place, log_width, shape)
        reach = reach / 2

    shaped = shape((scaled - best[:, :1]) / np.exp(best[:, 1:]))  # [curve, step]
    centred = shaped - shaped.mean(axis=1, keepdims=True)
    height = (centred * curves).sum(axis=1) / np.maximum((centred**2).sum(axis=1), 1e-12)
    low = curves.mean(axis=1) - height * shaped.mean(axis=1)

    return np.stack([best[:, 0], np.exp(best[:, 1]), low, low + height], axis=1)


def _best_rise(
    scaled: Float[np.ndarray, " step"],
    curves: Float[np.ndarray, "curve step"],
    midpoint: Float[np.ndarray, "curve candidate"],
    log_width: Float[np.ndarray, "curve candidate"],
    shape: Callable[[np.ndarray], np.ndarray],
) -> Float[np.ndarray, "curve 2"]:
    """The midpoint and log width of each curve's candidates that explain most of its variance."""
    best = np.empty((len(curves), 2))

    for i, curve in enumerate(curves):
        shaped = shape((scaled - midpoint[i, :, None]) / np.exp(log_width[i, :, None]))
        centred = shaped - shaped.mean(axis=1, keepdims=True)
        explained = (centred @ curve) ** 2 / np.maximum((centred**2).sum(axis=1), 1e-12)
        chosen = explained.argmax()
        best[i] = midpoint[i, chosen], log_width[i, chosen]

    return best
