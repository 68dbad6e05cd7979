"""Causal neurons: every channel of one layer exactly, in three ways; every channel of the model by
calibrated estimates; the best ones together against random sets; in a Mamba-2 every head too.
"""

from typing import Any

import numpy as np

from interp_core.mamba.mamba2 import Mamba2Subject
from interp_core.mamba.subject import as_mamba
from interp_core.statistics.against_random import against_random
from interp_core.statistics.heads import Channel
from interp_core.statistics.interval import Interval, bootstrap
from interp_core.statistics.random_sets import matched_sets
from interp_core.statistics.resampling import Interval as Ends
from interp_core.statistics.resampling import (
    mean_interval,
    percentile_interval,
    resampled_means,
    sign_flip_threshold,
    split_half_rank,
)
from mamba_neurons.data import Texts, halves
from mamba_neurons.intervene import ABLATIONS, Effects, neuron_effects, set_effects
from mamba_neurons.intervene_estimates import WholeModel, rank_agreement, whole_model
from mamba_neurons.intervene_states import head_effects, state_effects
from mamba_neurons.model import Model, neuron_means
from mamba_neurons.params import MambaNeurons

Arrays = dict[str, np.ndarray]
Report = dict[str, Any]


def causal(
    model: Model, texts: Texts, params: MambaNeurons, rng: np.random.Generator
) -> tuple[Arrays, Report]:
    """The whole of the command `causal` for a Mamba: arrays and report."""
    model.check_layer(params.layer)
    model.check_top_k(params.top_k)

    channels = range(model.n_neurons)
    by_kind = {
        kind: neuron_effects(model, texts, params.layer, channels, params, ablation=kind)
        for kind in ABLATIONS
        if kind != "mean"
    }
    whole = whole_model(model, texts, params, rng, also_exact=(params.layer,))
    by_kind["mean"] = Effects(whole.kl[:, params.layer], whole.loss[:, params.layer])

    sets, together = joint_effects(model, texts, by_kind["mean"], params, rng)
    best = _best(by_kind["mean"], params.top_k)
    subject = as_mamba(model.subject)
    of_states = state_effects(model, texts, params.layer, best, params)
    state_kl = of_states.mean_kl.reshape(-1, subject.d_state)

    arrays = _layer_arrays(by_kind, params, rng) | _whole_arrays(whole) | sets
    arrays |= {"state_kl": state_kl}
    report = {
        "layer": _layer_report(model, by_kind, texts, params, rng),
        "whole_model": _whole_report(whole, params, rng),
        "together": together,
        "states": {
            "channels": [int(c) for c in best],
            "kl": state_kl,
            "note": "mean-ablating what one state of the channel gives to y, alone",
        },
        **texts.described(),
    }

    if isinstance(subject, Mamba2Subject):
        of_heads, report["heads"] = head_effects(model, texts, params, rng)
        arrays |= of_heads

    return arrays, report


def joint_effects(
    model: Model, texts: Texts, single: Effects, params: MambaNeurons, rng: np.random.Generator
) -> tuple[Arrays, Report]:
    """The best channels of the layer ablated together, ranked on every second text and judged on
    the others, against distinct random sets of as many channels of the layer.
    """
    rank_rows, rows = halves(texts)
    order = np.argsort(-single.kl[rank_rows].mean(axis=0), kind="stable")
    doses = [k for k in params.dose_k if k <= len(order)]

    everyone = [Channel(params.layer, c) for c in range(len(order))]
    best = [[everyone[c] for c in order[:k]] for k in doses]
    random = [matched_sets(top, everyone, rng, draws=params.random_sets) for top in best]

    means = neuron_means(model, texts, params.batch_size)
    sets = [*best, *(one for of_dose in random for one in of_dose.sets)]
    numbers = [[unit.channel for unit in one] for one in sets]
    found = set_effects(model, texts.rows(rows), params.layer, numbers, params, means)

    report: Report = {"n": len(rows), "layer": params.layer, "doses": []}
    arrays: Arrays = {}
    start = len(best)

    for place, (k, of_dose) in enumerate(zip(doses, random, strict=True)):
        drawn = found.mean_kl[start : start + len(of_dose.sets)]
        start += len(of_dose.sets)
        arrays[f"together_random_kl/{k}"] = drawn

        kl, loss = (
            bootstrap(values[:, place], rng, resamples=params.bootstrap_resamples, unit="texts")
            for values in (found.kl, found.loss)
        )
        report["doses"].append(
            {
                "k": k,
                "kl": kl.to_json(),
                "loss": loss.to_json(),
                "against_random": against_random(kl.value, drawn, direction="above").to_json(),
                "random_sets": of_dose.words,
                "sum_of_single": float(single.kl[rows][:, order[:k]].mean(axis=0).sum()),
            }
        )

    return arrays, report


def _best(single: Effects, k: int) -> np.ndarray:
    return np.argsort(-single.mean_kl, kind="stable")[:k]


def _layer_arrays(
    by_kind: dict[str, Effects], params: MambaNeurons, rng: np.random.Generator
) -> Arrays:
    arrays: Arrays = {}
    for kind, found in by_kind.items():
        for name, values in (("kl", found.kl), ("loss", found.loss)):
            interval = mean_interval(values, rng, resamples=params.bootstrap_resamples)
            arrays |= {
                f"layer_{kind}_{name}": interval.value,
                f"layer_{kind}_{name}_low": interval.low,
                f"layer_{kind}_{name}_high": interval.high,
            }
    return arrays


def _layer_report(
    model: Model,
    by_kind: dict[str, Effects],
    texts: Texts,
    params: MambaNeurons,
    rng: np.random.Generator,
) -> Report:
    """One layer, exactly: each ablation's totals and stability, and the best channels by KL under
    mean ablation.
    """
    of_mean = by_kind["mean"]
    interval = mean_interval(of_mean.kl, rng, resamples=params.bootstrap_resamples)

    settings = {"alpha": params.alpha, "draws": params.permutation_draws}
    hurt = sign_flip_threshold(of_mean.loss, rng, **settings)
    helped = sign_flip_threshold(-of_mean.loss, rng, **settings)

    kinds = {
        kind: {
            "mean_kl": float(found.kl.mean()),
            "largest_kl": float(found.mean_kl.max()),
            "split_half": split_half_rank(found.kl, rng, splits=params.splits),
            "agrees_with_mean": rank_agreement(found.mean_kl, of_mean.mean_kl),
        }
        for kind, found in by_kind.items()
    }

    return {
        "layer": params.layer,
        "channels": model.n_neurons,
        "ablations": kinds,
        "loss_rises_for": int((hurt.p <= params.alpha).sum()),
        "loss_falls_for": int((helped.p <= params.alpha).sum()),
        "top": [
            _channel(Channel(params.layer, c), by_kind, interval, texts)
            for c in _best(of_mean, params.top_k).tolist()
        ],
    }


def _channel(
    channel: Channel, by_kind: dict[str, Effects], kl: Ends, texts: Texts
) -> dict[str, Any]:
    c, repeated = channel.channel, texts.repeated
    loss = by_kind["mean"].loss[:, c]
    others = {
        f"kl_{kind}": float(found.mean_kl[c]) for kind, found in by_kind.items() if kind != "mean"
    }

    return {
        "neuron": str(channel),
        "kl": _at(kl, c, len(texts)),
        **others,
        "loss": float(loss.mean()),
        "loss_on_texts": float(loss[~repeated].mean()),
        "loss_on_repeats": float(loss[repeated].mean()) if repeated.any() else None,
    }


def _at(ends: Ends, place: int | tuple[int, int], n: int) -> dict[str, Any]:
    """One interval of many, in the shape of reports."""
    parts = (float(part[place]) for part in (ends.value, ends.low, ends.high))
    return Interval(*parts, n=n, unit="texts").to_json()


def _whole_arrays(whole: WholeModel) -> Arrays:
    samples = {f"sample_{layer}": found.sample for layer, found in enumerate(whole.calibrations)}
    exact = {
        f"sample_{layer}_kl": found.exact.mean_kl for layer, found in enumerate(whole.calibrations)
    }
    losses = {
        f"sample_{layer}_loss": found.exact.loss.mean(axis=0)
        for layer, found in enumerate(whole.calibrations)
    }
    return {
        "kl": whole.mean_kl,
        "loss": whole.loss.mean(axis=0),
        "exact": whole.exact,
        "estimated_kl": whole.estimates.kl.mean(axis=0),
        "estimated_loss": whole.estimates.loss.mean(axis=0),
        **samples,
        **exact,
        **losses,
    }


def _whole_report(whole: WholeModel, params: MambaNeurons, rng: np.random.Generator) -> Report:
    """Agreement of the estimates by layer, which layers were computed exactly, and the model's best
    channels.
    """
    draws = resampled_means(whole.kl, rng, resamples=params.bootstrap_resamples)
    interval = percentile_interval(whole.mean_kl, draws)
    n = len(whole.kl)

    return {
        "agreement": [
            {"layer": layer, **found.agreement, "factor": found.factor, "sample": len(found.sample)}
            for layer, found in enumerate(whole.calibrations)
        ],
        "least_agreement": params.least_agreement,
        "exact_layers": whole.exact_layers,
        "exact_channels": int(whole.exact.sum()),
        "channels": whole.exact.size,
        "mean_kl_by_layer": whole.mean_kl.mean(axis=1),
        "top": [
            {
                "neuron": str(Channel(*place)),
                "kl": _at(interval, place, n),
                "loss": float(whole.loss[:, *place].mean()),
                "exact": bool(whole.exact[place]),
            }
            for place in whole.top(params.top_k)
        ],
    }
