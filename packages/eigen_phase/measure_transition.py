"""When each metric of a run turns, how abruptly, and what leads what over seeds."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import special

from eigen_phase.params import Transition
from eigen_phase.run_directory import RunDirectory
from interp_core.statistics.resampling import discoveries
from interp_core.statistics.transitions import FEWEST, Turn, midpoint_interval, turn_of

ACCURACY = "pattern_accuracy"
PLAIN = (
    ACCURACY,
    "pattern_loss",
    "other_loss",
    "held_out_loss",
    "gradient_norm",
    "top_eigenvalue",
    "most_negative_eigenvalue",
    "spectral_norm",
    "alignment_mass",
    "alignment_independent",
    "alignment_training",
    "alignment_update",
    "persistence",
)
OF_HEADS = ("prefix_matching", "previous_token", "duplicate_token", "copying", "qk_matching")

Series = tuple[np.ndarray, np.ndarray]  # steps, values
Report = dict[str, Any]


def metrics_of(run: RunDirectory) -> dict[str, Series]:
    """Every curve that is fitted.

    Of each kind of head score it is that of one head: the one that leads at the end.
    """
    found = {name: run.series(name) for name in PLAIN if name in run.history}
    if "top_eigenvalue" in found:  # steep up, slow down: its rise is dated by itself
        steps, values = found["top_eigenvalue"]
        peak = values[1:].argmax() + 2
        found["top_eigenvalue up to its peak"] = (steps[:peak], values[:peak])
    for family in OF_HEADS:
        if family in run.history:
            heads = run.history[family]
            layer, head = np.unravel_index(heads[-1].argmax(), heads[-1].shape)
            found[f"{family} of the best head"] = (run.history["step"], heads[:, layer, head])
    if "k_composition" in run.history:
        pairs = run.history["k_composition"]
        found["k_composition of the best pair"] = (
            run.history["step"],
            pairs[:, pairs[-1].argmax()],
        )
    return found


def transition_report(
    runs: Sequence[RunDirectory], settings: Transition, rng: np.random.Generator
) -> Report:
    """Fits and a verdict for each run, and leads and lags for each condition, whose runs are its
    seeds.

    Verdicts: `transition` (step-like by BIC, large enough, abrupt), `gradual` (the same, but spread
    over more than abrupt_ratio in steps; or a change without a step), `no transition`. Never an
    error for a run that does not turn. Other metrics are fitted from midpoint / window on: what
    they do in the first steps, when the model learns which tokens there are, is another story.
    """
    found = {run.name: _of_run(run, settings) for run in runs}
    conditions = list(dict.fromkeys(run.condition for run in runs))
    return {
        "runs": found,
        "conditions": {
            condition: _of_condition(
                [found[run.name] for run in runs if run.condition == condition], settings, rng
            )
            for condition in conditions
        },
    }


def _of_run(run: RunDirectory, settings: Transition) -> Report:
    metrics: dict[str, Report] = {}
    base = {
        "name": run.name,
        "condition": run.condition,
        "seed": run.training.seed,
        "metrics": metrics,
    }
    steps, values = run.series(ACCURACY)
    if (steps > 0).sum() < FEWEST:
        return base | {
            "verdict": "too few points",
            "sentence": "too few points to say",
            "midpoint": None,
        }
    turn = turn_of(steps, values)
    verdict = _verdict(turn, settings)
    start = turn.midpoint / settings.window if verdict != "no transition" else 1.0
    for name, (at, curve) in metrics_of(run).items():
        late = at >= (0.0 if name == ACCURACY else start)
        if (at[late] > 0).sum() >= FEWEST:
            fitted = turn_of(at[late], curve[late])
            metrics[name] = asdict(fitted) | {
                "event": _event(fitted),
                "event_step": _event_step(fitted),
            }
    if verdict == "no transition":
        sentence = (
            f"no transition: pattern accuracy {values[0]:.2f} at first, {values[-1]:.2f} at the end"
        )
        return base | {"verdict": verdict, "sentence": sentence, "midpoint": None}
    interval = midpoint_interval(steps, values)
    change = np.abs(np.diff(values)).max() / abs(turn.size)
    return base | {
        "verdict": verdict,
        "sentence": f"{verdict} at step {turn.midpoint:.0f} [{interval[0]:.0f}, {interval[1]:.0f}], pattern accuracy"
        f" {turn.low:.2f} to {turn.high:.2f}, 10 to 90 % within a factor {turn.ratio:.2f} of steps",
        "midpoint": turn.midpoint,
        "midpoint_interval": list(interval),
        "ratio": turn.ratio,
        "largest_share_in_one_interval": float(change),
    }


def _verdict(turn: Turn, settings: Transition) -> str:
    if abs(turn.size) < settings.smallest_change:
        return "no transition"
    if not turn.steps:
        return "no transition" if turn.best == "flat" else "gradual"
    return "transition" if turn.ratio <= settings.abrupt_ratio else "gradual"


def _event(turn: Turn) -> str | None:
    """What dates a curve: the middle of its step, its peak or its trough; nothing where a line does
    as well.
    """
    if not turn.turns:
        return None
    if turn.best == "bump":
        return "peak" if turn.height > 0 else "trough"
    return "midpoint"


def _event_step(turn: Turn) -> float | None:
    event = _event(turn)
    return None if event is None else turn.midpoint if event == "midpoint" else turn.bump


def _of_condition(runs: Sequence[Report], settings: Transition, rng: np.random.Generator) -> Report:
    """Midpoints over seeds, and each metric's lead (negative) or lag against pattern accuracy."""
    turned = [run for run in runs if run["midpoint"] is not None]
    report: Report = {
        "runs": len(runs),
        "verdicts": {
            verdict: sum(run["verdict"] == verdict for run in runs) for verdict in _verdicts(runs)
        },
        "midpoint": None,
        "ratio": None,
        "lags": {},
    }
    if turned:
        middles = np.log([run["midpoint"] for run in turned])
        report["midpoint"] = _exponential(_over_seeds(middles, settings, rng))
        report["ratio"] = _exponential(
            _over_seeds(np.log([run["ratio"] for run in turned]), settings, rng)
        )
        report["lags"] = _lags(turned, settings, rng)
    return report


def _verdicts(runs: Sequence[Report]) -> list[str]:
    return list(dict.fromkeys(run["verdict"] for run in runs))


def _lags(turned: Sequence[Report], settings: Transition, rng: np.random.Generator) -> Report:
    """By metric: step of its commonest event over that of the accuracy's midpoint, over the seeds
    that have it.
    """
    lags: Report = {}
    for name in turned[0]["metrics"]:
        if name == ACCURACY:
            continue
        found = [run["metrics"].get(name, {}).get("event") for run in turned]
        events = [event for event in found if event is not None]
        if not events:
            lags[name] = {"event": None, "n": 0, "of": len(turned), "lag": None}
            continue
        event = max(dict.fromkeys(events), key=events.count)
        those = [run for run, its in zip(turned, found, strict=True) if its == event]
        steps = np.array([run["metrics"][name]["event_step"] for run in those])
        middles = np.array([run["midpoint"] for run in those])
        lag = _over_seeds(np.log(steps / middles), settings, rng)
        lags[name] = {
            "event": event,
            "n": len(those),
            "of": len(turned),
            "lag": _exponential(lag),
            "steps": _over_seeds(steps - middles, settings, rng),
            "p": lag["p"],
        }
    tested = [name for name, lag in lags.items() if lag["n"] > 1]
    kept = discoveries(
        np.array([lags[name]["p"] for name in tested]), rate=settings.false_discovery_rate
    )
    for name, discovery in zip(tested, kept, strict=True):
        lags[name]["verdict"] = (
            _lag_verdict(lags[name]["lag"]["value"]) if discovery else "no lead or lag shown"
        )
    return lags


def _lag_verdict(ratio: float) -> str:
    return "leads" if ratio < 1 else "lags"


def _over_seeds(
    values: Float[np.ndarray, " seed"], settings: Transition, rng: np.random.Generator
) -> Report:
    """mean_over_seeds with the percentile bootstrap's interval beside it: with a handful of seeds
    that is too narrow (five normal values: about 83 % for a nominal 95 %), so verdicts use
    Student's.
    """
    n = len(values)
    drawn = values[rng.integers(n, size=(settings.resamples, n))].mean(axis=1)
    ends = np.quantile(drawn, [0.025, 0.975]).tolist() if n > 1 else None
    return mean_over_seeds(values) | {"bootstrap_ci": ends}


def mean_over_seeds(values: Float[np.ndarray, " seed"]) -> Report:
    """Mean over seeds with Student's 95 % interval and p against zero (exact for normal values),
    and the p of the exact sign-flip test, never below 2 / 2^n. No interval for one seed.
    """
    n, mean = len(values), float(values.mean())
    if n == 1:
        return {"value": mean, "ci": None, "p": 1.0, "signs_p": 1.0, "n": 1}
    error = float(values.std(ddof=1) / np.sqrt(n))
    reach = float(special.stdtrit(n - 1, 0.975)) * error
    signs = np.array(list(product((1.0, -1.0), repeat=n)))
    return {
        "value": mean,
        "ci": [mean - reach, mean + reach],
        "p": float(2 * special.stdtr(n - 1, -abs(mean) / error)) if error > 0 else float(mean == 0),
        "signs_p": float((np.abs(signs @ values) >= abs(values.sum()) - 1e-12).mean()),
        "n": n,
    }


def _exponential(found: Report) -> Report:
    """From logarithms of steps to steps, or to ratios of steps."""
    ends = {
        key: None if found[key] is None else np.exp(found[key]).tolist()
        for key in ("ci", "bootstrap_ci")
    }
    return found | {"value": float(np.exp(found["value"]))} | ends
