"""Causal neurons: every channel of one layer exactly, in three ways; every channel of the model by
calibrated estimates; the best ones together against random sets.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp_core.mamba.hidden_attention import mixer_calls
from interp_core.mamba.subject import MambaSubject
from interp_core.statistics.resampling import (
    mean_interval,
    percentile_interval,
    resampled_means,
    sign_flip_threshold,
    split_half_rank,
)
from mamba_neurons.data import Texts
from mamba_neurons.intervene import (
    ABLATIONS,
    Change,
    Effects,
    Scored,
    effects,
    neuron_effects,
    set_effects,
)
from mamba_neurons.intervene_estimates import WholeModel, rank_agreement, whole_model
from mamba_neurons.measure_activity import states
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
    sets, dose = joint_effects(model, texts, by_kind["mean"], params, rng)
    of_states = state_effects(
        model, texts, params.layer, _best(by_kind["mean"], params.top_k), params
    )
    arrays = _layer_arrays(by_kind, params, rng) | _whole_arrays(whole) | sets
    arrays |= {"state_kl": of_states.mean_kl.reshape(-1, _n_states(model))}
    report = {
        "layer": _layer_report(model, by_kind, texts, params, rng),
        "whole_model": _whole_report(whole, params, rng),
        "together": dose,
        "states": {
            "channels": [int(c) for c in _best(by_kind["mean"], params.top_k)],
            "kl": of_states.mean_kl.reshape(-1, _n_states(model)),
            "note": "mean-ablating what one state of the channel gives to y, alone",
        },
        **texts.described(),
    }
    return arrays, report


def joint_effects(
    model: Model, texts: Texts, single: Effects, params: MambaNeurons, rng: np.random.Generator
) -> tuple[Arrays, Report]:
    """The best channels of the layer ablated together, ranked on every second text and judged on
    the others, against random sets of as many channels of the layer.
    """
    rank_rows, rows = np.arange(len(texts))[::2], np.arange(len(texts))[1::2]
    order = np.argsort(-single.kl[rank_rows].mean(axis=0), kind="stable")
    doses = [k for k in params.dose_k if k <= len(order)]
    best = [order[:k].tolist() for k in doses]
    random = [
        rng.permutation(len(order))[:k].tolist() for k in doses for _ in range(params.random_sets)
    ]
    means = neuron_means(model, texts, params.batch_size)
    found = set_effects(model, texts.rows(rows), params.layer, [*best, *random], params, means)
    interval = mean_interval(found.kl[:, : len(best)], rng, resamples=params.bootstrap_resamples)
    loss = mean_interval(found.loss[:, : len(best)], rng, resamples=params.bootstrap_resamples)
    drawn = found.mean_kl[len(best) :].reshape(len(doses), -1)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=1)
    hits = (drawn >= interval.value[:, None]).sum(axis=1)
    report = {
        "k": doses,
        "kl": interval.value,
        "kl_low": interval.low,
        "kl_high": interval.high,
        "loss": loss.value,
        "loss_low": loss.low,
        "loss_high": loss.high,
        "random_mean": drawn.mean(axis=1),
        "random_low": low,
        "random_high": high,
        "p": (1 + hits) / (1 + drawn.shape[1]),
        "random_sets": params.random_sets,
        "sum_of_single": [float(single.kl[rows][:, chosen].mean(axis=0).sum()) for chosen in best],
        "n": len(rows),
    }
    return {"together_random_kl": drawn}, report


def state_effects(
    model: Model, texts: Texts, layer: int, channels: np.ndarray, params: MambaNeurons
) -> Effects:
    """Exact effects of mean-ablating what each state n of these channels gives to y: C_i[n] h_i[c,
    n] SiLU(z_i[c]).
    """
    subject = model.subject
    assert isinstance(subject, MambaSubject)

    @torch.no_grad()
    def given(batch: Texts) -> Float[Tensor, "text position unit"]:
        call = mixer_calls(subject, subject.ids(batch.tokens))[layer]
        h = states(call)[:, :, channels]
        return (h * call.C[:, :, None, :] * call.gate[..., channels, None]).flatten(2)

    total, n = None, int(texts.lengths.sum())
    for batch in texts.batches(params.batch_size):
        part = given(batch)[batch.real].double().sum(dim=0)
        total = part if total is None else total + part
    assert total is not None
    mean = (total / n).to(model.precision)
    directions = (
        model.write_directions(layer)
        .to(model.precision)[channels]
        .repeat_interleave(_n_states(model), dim=0)
    )

    def changes(scored: Scored, batch: Texts) -> Change:
        away = (mean - given(batch)).to(mean.dtype)
        return lambda units: torch.einsum("btu,ud->ubtd", away[..., units], directions[units])

    return effects(
        model,
        texts,
        layer,
        len(mean),
        changes,
        params,
        label=f"{model.name}: states of layer {layer}",
    )


def _n_states(model: Model) -> int:
    assert isinstance(model.subject, MambaSubject)
    return model.subject.d_state


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
    hurt = sign_flip_threshold(
        of_mean.loss, rng, alpha=params.alpha, draws=params.permutation_draws
    )
    helped = sign_flip_threshold(
        -of_mean.loss, rng, alpha=params.alpha, draws=params.permutation_draws
    )
    kinds = {
        kind: {
            "mean_kl": float(found.kl.mean()),
            "largest_kl": float(found.mean_kl.max()),
            "split_half": split_half_rank(found.kl, rng, splits=params.splits),
            "agrees_with_mean": rank_agreement(found.mean_kl, of_mean.mean_kl),
        }
        for kind, found in by_kind.items()
    }
    repeated = texts.repeated
    top = [
        {
            "neuron": f"L{params.layer}C{c}",
            "kl": interval.value[c],
            "kl_ci": [interval.low[c], interval.high[c]],
            **{
                f"kl_{kind}": float(found.mean_kl[c])
                for kind, found in by_kind.items()
                if kind != "mean"
            },
            "loss": float(of_mean.loss[:, c].mean()),
            "loss_on_texts": float(of_mean.loss[~repeated, c].mean()),
            "loss_on_repeats": float(of_mean.loss[repeated, c].mean()) if repeated.any() else None,
        }
        for c in _best(of_mean, params.top_k).tolist()
    ]
    return {
        "layer": params.layer,
        "channels": model.n_neurons,
        "ablations": kinds,
        "loss_rises_for": int((hurt.p <= params.alpha).sum()),
        "loss_falls_for": int((helped.p <= params.alpha).sum()),
        "top": top,
    }


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
    best = whole.top(params.top_k)
    draws = resampled_means(whole.kl, rng, resamples=params.bootstrap_resamples)
    interval = percentile_interval(whole.mean_kl, draws)
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
                "neuron": f"L{layer}C{channel}",
                "kl": float(whole.mean_kl[layer, channel]),
                "kl_ci": [
                    float(interval.low[layer, channel]),
                    float(interval.high[layer, channel]),
                ],
                "loss": float(whole.loss[:, layer, channel].mean()),
                "exact": bool(whole.exact[layer, channel]),
            }
            for layer, channel in best
        ],
    }
