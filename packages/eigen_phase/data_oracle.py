"""How well these rows can be predicted at all: the induction oracle's accuracy and the floor of the
loss.
"""

from dataclasses import dataclass
from math import log

import numpy as np
from jaxtyping import Float, Int

from eigen_phase.data import Data, Sequences
from interp_core.statistics.resampling import mean_interval


def oracle(ids: Int[np.ndarray, "row position"]) -> Int[np.ndarray, "row position"]:
    """Prediction of each token from those before it: what followed the most recent occurrence of
    the longest suffix that occurred before; -1 where not even the last token did (and at position
    0).
    """
    rows, length = ids.shape
    prediction = np.full((rows, length), -1)
    matched = np.zeros(
        (rows, length), dtype=np.int64
    )  # length of the common suffix ending at t and at each position
    for t in range(length - 1):
        matched[:, 1:] = matched[:, :-1]
        matched[:, 0] = 0
        matched = np.where(ids == ids[:, t : t + 1], matched + 1, 0)
        if t == 0:
            continue
        candidates = matched[:, :t] * length + np.arange(t)  # longest first, then most recent
        best = candidates.argmax(axis=1)
        found = matched[np.arange(rows), best] > 0
        prediction[found, t + 1] = ids[found, best[found] + 1]
    return prediction


@dataclass(frozen=True)
class Ceiling:
    """Accuracy of the oracle with its 95 % interval over rows, in [0, 1]; guesses where it knows
    nothing count 1/vocab.

    `predictable` is over predictable targets (not-a-number where there are none), `all` over all
    targets.
    """

    predictable: float
    predictable_interval: tuple[float, float]
    all: float
    all_interval: tuple[float, float]
    rows: int


def ceiling(
    sequences: Sequences, vocab_size: int, rng: np.random.Generator, *, resamples: int
) -> Ceiling:
    """What one who does nothing but the longest induction reaches on these rows."""
    predicted = oracle(sequences.ids)
    hit = np.where(predicted < 0, 1 / vocab_size, predicted == sequences.ids)[:, 1:]
    flagged = sequences.predictable[:, 1:]
    everywhere = mean_interval(hit.mean(axis=1), rng, resamples=resamples)
    found, low, high = float("nan"), float("nan"), float("nan")
    if flagged.any():
        some = flagged.any(axis=1)
        per_row = (hit * flagged)[some].sum(axis=1) / flagged[some].sum(axis=1)
        interval = mean_interval(per_row, rng, resamples=resamples)
        found, low, high = float(interval.value), float(interval.low), float(interval.high)
    return Ceiling(
        predictable=found,
        predictable_interval=(low, high),
        all=float(everywhere.value),
        all_interval=(float(everywhere.low), float(everywhere.high)),
        rows=len(sequences),
    )


def entropy_floor(sequences: Sequences, settings: Data) -> tuple[float, bool]:
    """Lowest mean loss, nats a counted target, that any predictor can reach on average; and whether
    it is exact.

    Exact for tiled rows (the Bayesian predictor, which knows the prior of the period), for rows of
    one distance and for rows without repeats. For placed patterns a lower bound: the loss of one
    who is told where the copies lie.
    """
    if settings.data == "tiled":
        nats = -np.log(tiled_posterior(sequences.ids, settings))
    else:
        nats = np.where(sequences.source >= 0, 0.0, log(settings.vocab_size))
    counted = np.ones_like(sequences.predictable)
    if settings.leave_out_predictable:
        counted = ~sequences.predictable
    return float(nats[:, 1:][counted[:, 1:]].mean()), settings.data != "placed"


def tiled_posterior(
    ids: Int[np.ndarray, "row position"], settings: Data
) -> Float[np.ndarray, "row position"]:
    """Probability that the Bayesian predictor gives each token: periods equally likely before,
    tokens uniform.

    A period p that agrees with t tokens has likelihood V^-min(t, p), and predicts token t - p, or
    any one while t < p.
    """
    rows, length = ids.shape
    low, high = settings.period
    periods = np.arange(low, high + 1)
    agrees = np.ones((rows, len(periods)), dtype=bool)
    probability = np.empty((rows, length))
    for t in range(length):
        weight = agrees * float(settings.vocab_size) ** -np.minimum(t, periods)
        back = np.maximum(t - periods, 0)
        hit = ids[:, back] == ids[:, t : t + 1]
        predicted = np.where(t < periods, 1 / settings.vocab_size, hit)
        probability[:, t] = (weight * predicted).sum(axis=1) / weight.sum(axis=1)
        agrees &= (t < periods) | hit
    return probability
