"""Influence: what one residual dimension is worth layer by layer, and what ablating a neuron does
to later neurons.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp_core.mamba.subject import as_mamba
from interp_core.statistics.against_random import against_random
from interp_core.statistics.heads import Channel
from interp_core.statistics.interval import Interval
from interp_core.statistics.random_sets import matched_sets
from interp_core.statistics.resampling import (
    mean_interval,
    percentile_interval,
    resampled_means,
    split_half_rank,
)
from mamba_neurons.data import Texts
from mamba_neurons.intervene import replacement, residual_effects
from mamba_neurons.intervene_estimates import rank_agreement
from mamba_neurons.intervene_scored import scored_batches
from mamba_neurons.model import CleanRun, Model, clean_run, neuron_means
from mamba_neurons.params import MambaNeurons


def inter_layer(
    model: Model, texts: Texts, params: MambaNeurons, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """KL when one dimension of the residual stream is mean-ablated after each layer in turn."""
    found = [residual_effects(model, texts, layer, params) for layer in range(model.n_layers)]
    kl = np.stack([effects.kl for effects in found], axis=1)  # [text, layer, dimension]
    interval = mean_interval(kl, rng, resamples=params.bootstrap_resamples)

    draws = resampled_means(kl, rng, resamples=params.bootstrap_resamples).mean(axis=2)
    by_layer = percentile_interval(interval.value.mean(axis=1), draws)

    layers = []
    for layer in range(model.n_layers):
        ends = (float(part[layer]) for part in (by_layer.value, by_layer.low, by_layer.high))
        layers.append(
            {
                "layer": layer,
                "mean_kl": Interval(*ends, n=len(texts), unit="texts").to_json(),
                "top_dimension": int(interval.value[layer].argmax()),
                "top_kl": interval.value[layer].max(),
                "split_half": split_half_rank(kl[:, layer], rng, splits=params.splits),
            }
        )

    top = np.argsort(-interval.value.mean(axis=0), kind="stable")[: params.top_k]
    report = {
        "layers": layers,
        "rank_correlation": [
            [rank_agreement(a, b) for b in interval.value] for a in interval.value
        ],
        "top": [{"dimension": int(d), "kl_by_layer": interval.value[:, d]} for d in top],
        **texts.described(),
    }
    arrays = {
        "kl": interval.value,
        "kl_low": interval.low,
        "kl_high": interval.high,
        "loss": np.stack([effects.loss.mean(axis=0) for effects in found]),
    }
    return arrays, report


@torch.no_grad()
def neuron_spread(
    model: Model, texts: Texts, params: MambaNeurons
) -> Float[Tensor, "layer neuron"]:
    """Each neuron's standard deviation over all tokens: the unit in which influence is measured."""
    n = int(texts.lengths.sum())
    shape = (2, model.n_layers, model.n_neurons)  # sums, and sums of squares
    sums = torch.zeros(shape, dtype=torch.float64, device=model.subject.device)

    for batch in texts.batches(params.batch_size):
        real = torch.as_tensor(batch.real, device=sums.device)

        for layer, neurons in enumerate(clean_run(model, batch).neurons):
            a = neurons[real].double()
            sums[0, layer] += a.sum(dim=0)
            sums[1, layer] += (a**2).sum(dim=0)

    return (sums[1] / n - (sums[0] / n) ** 2).clamp_min(0).sqrt().float()


@torch.no_grad()
def influence_of(
    model: Model,
    texts: Texts,
    layer: int,
    sources: Sequence[int],
    params: MambaNeurons,
    *,
    means: Float[Tensor, "layer neuron"],
    spread: Float[Tensor, "layer neuron"],
) -> dict[str, np.ndarray]:
    """Mean over tokens of |change| of every later neuron, in its own standard deviations, when a
    source is ablated.

    `total` and `direct` [source, later layer, neuron]: direct leaves the layers between as they
    were, so that only what the source itself wrote arrives. `total_kl` and `direct_kl` [source]:
    the same for the predictions.
    """
    later = range(layer + 1, model.n_layers)
    total, direct = (np.zeros((len(sources), len(later), model.n_neurons)) for _ in range(2))
    kl = np.zeros((2, len(sources)))
    index = torch.as_tensor(list(sources), device=means.device)
    directions = model.write_directions(layer)[index].to(model.precision)
    label = f"{model.name}: layer {layer} on later"

    for _, batch, scored in scored_batches(model, texts, params.batch_size, label=label):
        clean, real = scored.clean, torch.as_tensor(batch.real, device=means.device)
        activation = clean.neurons[layer][..., index]
        away = replacement(activation, "mean", means[layer][index], batch) - activation
        away = away.to(directions.dtype)

        for first in range(0, len(sources), params.stack):
            units = slice(first, min(first + params.stack, len(sources)))
            change = torch.einsum("btu,ud->ubtd", away[..., units], directions[units])

            found: dict[int, Tensor] = {}
            watched = {to: (lambda a, to=to, found=found: found.__setitem__(to, a)) for to in later}
            with model.edited(watched):
                effects = scored.of_changes(layer, change)[0]

            at_the_end = clean.changed(model.n_layers, change)
            straight = scored.compare(clean.rerun(model.n_layers, at_the_end))[0]
            kl[0, units] += effects.sum(dim=1).double().cpu().numpy()
            kl[1, units] += straight.sum(dim=1).double().cpu().numpy()

            for place, to in enumerate(later):
                # What the source wrote arrives; nothing between has answered to it.
                alone = block_neurons(clean, to, clean.changed(to, change))
                for into, neurons in ((total, found[to]), (direct, alone)):
                    into[units, place] += _moved(neurons, clean.neurons[to], real, spread[to])

    n = int(texts.lengths.sum())
    return {
        "total": total / n,
        "direct": direct / n,
        "total_kl": kl[0] / len(texts),
        "direct_kl": kl[1] / len(texts),
    }


def block_neurons(
    clean: CleanRun, layer: int, residual: Float[Tensor, "copies_batch position d_model"]
) -> Float[Tensor, "copies_batch position neuron"]:
    """A Mamba layer's neurons when this is the residual stream before it."""
    model = clean.model
    seen: list[Tensor] = []
    with as_mamba(model.subject).fast(), model.attach(layer, seen.append):
        model.subject.model.get_submodule(f"backbone.layers.{layer}")(residual)
    return seen[0]


def _moved(
    neurons: Tensor, clean: Tensor, real: Tensor, spread: Tensor
) -> Float[np.ndarray, "source neuron"]:
    """Sum over tokens of |change| in standard deviations; a neuron that never moves cannot be
    moved.
    """
    change = (neurons.unflatten(0, (-1, len(clean))) - clean).abs()[:, real]
    unit = torch.where(spread > 0, spread, torch.inf)
    return (change.double().sum(dim=1) / unit).cpu().numpy()


def cross_layer(
    model: Model,
    texts: Texts,
    kl: Float[np.ndarray, "layer neuron"],
    params: MambaNeurons,
    rng: np.random.Generator,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The top_k neurons of each layer by KL and their influence on all later neurons, against
    distinct random sets of other neurons of the same layer.
    """
    means = neuron_means(model, texts, params.batch_size)
    spread = neuron_spread(model, texts, params)
    n = model.n_layers
    aggregate = {name: np.full((n, n), np.nan) for name in ("total", "direct")}
    arrays: dict[str, np.ndarray] = {}
    layers, pairs = [], []

    for layer in range(n):
        order = np.argsort(-kl[layer], kind="stable")
        top, rest = order[: params.top_k], order[params.top_k :]

        # All others where there are few; of many a random sample, from which the sets are drawn.
        others = rng.permutation(rest)[: params.null_units]
        both = np.concatenate([top, others])
        found = influence_of(model, texts, layer, both.tolist(), params, means=means, spread=spread)
        arrays |= {f"{layer}/{name}": values[: len(top)] for name, values in found.items()}
        arrays |= {f"{layer}/top": top}

        # [source, later layer]
        by_source = {name: found[name].mean(axis=2) for name in ("total", "direct")}
        arrays |= {
            f"{layer}/sources": both,
            f"{layer}/source_kl": found["total_kl"],
            f"{layer}/source_total": by_source["total"],
        }
        for place, to in enumerate(range(layer + 1, n)):
            for name, values in by_source.items():
                aggregate[name][layer, to] = values[: len(top), place].mean()

            total = dict(zip(both.tolist(), by_source["total"][:, place], strict=True))
            against = _against_others(layer, top, others, total, params, rng)
            pairs.append({"from": layer, "to": to, **against})

        layers.append(_layer_report(layer, top, found))

    report = {name: _without_nan(values) for name, values in aggregate.items()}
    return arrays | aggregate, {
        "influence": {**report, "pairs": pairs},
        "layers": layers,
        "null_units": params.null_units,
        **texts.described(),
    }


def _against_others(
    layer: int,
    top: np.ndarray,
    others: np.ndarray,
    influence: dict[int, float],
    params: MambaNeurons,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Mean influence of the top neurons on one later layer, against sets of as many others."""
    chosen = [Channel(layer, int(c)) for c in top]
    pool = [Channel(layer, int(c)) for c in others]
    random = matched_sets(chosen, pool, rng, draws=params.permutation_draws)

    observed = float(np.mean([influence[unit.channel] for unit in chosen]))
    drawn = [float(np.mean([influence[unit.channel] for unit in one])) for one in random.sets]
    found = against_random(observed, drawn, direction="above")
    return {"against_random": found.to_json(), "random_sets": random.words}


def _layer_report(layer: int, top: np.ndarray, found: dict[str, np.ndarray]) -> dict[str, Any]:
    """The top neurons of one layer: their KL, total and direct, and the later neuron that each
    moves most.
    """
    k, total = len(top), found["total"]
    has_later = total.shape[1] > 0

    threshold = None
    if has_later and len(total) > k:
        threshold = float(np.quantile(total[k:].max(axis=(1, 2)), 0.95))

    units = []
    for place, channel in enumerate(top):
        entry = {
            "neuron": str(Channel(layer, int(channel))),
            "total_kl": found["total_kl"][place],
            "direct_kl": found["direct_kl"][place],
        }

        if has_later:
            farthest = int(total[place].argmax())
            to, unit = np.unravel_index(farthest, total[place].shape)
            moved = Channel(layer + 1 + int(to), int(unit))
            entry |= {"moves_most": str(moved), "by": total[place, to, unit]}

        units.append(entry)

    null = {name: _mean(found[name][k:]) for name in ("total_kl", "direct_kl")}
    return {"layer": layer, "top": units, "largest_move_of_random_95": threshold, "random": null}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _without_nan(matrix: Float[np.ndarray, "layer layer"]) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]
