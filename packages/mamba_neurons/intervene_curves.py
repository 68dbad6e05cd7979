"""What sets of neurons are worth: the best ones deleted, the best ones alone kept, against random
orders; and how few are enough. All by mean ablation in all layers at once, on texts that took no
part in ranking the neurons.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_core.statistics.resampling import percentile_interval, resampled_means
from mamba_neurons.data import Texts
from mamba_neurons.intervene import Effects, Scored, scored_batches
from mamba_neurons.model import Model
from mamba_neurons.params import MambaNeurons

Kept = Bool[np.ndarray, "layer neuron"]


def halves(texts: Texts) -> tuple[np.ndarray, np.ndarray]:
    """Rows that rank neurons and rows that judge rankings: every second one."""
    rows = np.arange(len(texts))
    return rows[::2], rows[1::2]


@torch.no_grad()
def kept_effects(
    model: Model,
    texts: Texts,
    kept: Sequence[Kept],
    params: MambaNeurons,
    means: Float[Tensor, "layer neuron"],
    *,
    label: str,
) -> Effects:
    """Effects when only these neurons keep their activations and all others are their means, for
    each set.
    """
    kl, loss = np.empty((len(texts), len(kept))), np.empty((len(texts), len(kept)))
    masks = [torch.as_tensor(mask, device=means.device) for mask in kept]
    for rows, _, scored in scored_batches(model, texts, params.batch_size, label=label):
        for index, mask in enumerate(masks):
            found = scored.compare(_hidden(model, scored, mask, means))
            kl[rows, index], loss[rows, index] = (part[0].double().cpu().numpy() for part in found)
    return Effects(kl, loss)


def clean_loss(model: Model, texts: Texts, params: MambaNeurons) -> Float[np.ndarray, " text"]:
    """Loss of each text in the untouched model, mean over its scored positions, nats."""
    return np.concatenate(
        [Scored.of(model, batch).loss for batch in texts.batches(params.batch_size)]
    )


def leading(order: Int[np.ndarray, "layer neuron"], fraction: float) -> Kept:
    """The first of every layer's order, at least one."""
    count = max(1, round(fraction * order.shape[1]))
    chosen = np.zeros(order.shape, dtype=bool)
    np.put_along_axis(chosen, order[:, :count], values=True, axis=1)
    return chosen


def faithfulness(
    model: Model,
    texts: Texts,
    orders: dict[str, Int[np.ndarray, "layer neuron"]],
    params: MambaNeurons,
    means: Float[Tensor, "layer neuron"],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Deletion curves (the first x of every layer's order ablated: a good order hurts early) and
    insertion curves (only they kept: a good order heals early), KL in nats, of each order and of
    random ones.

    `area` is the mean over fractions of the curve's distance to the random mean, positive where the
    order is better; p is (1 + random orders with at least this area) / (1 + random orders).
    """
    shape = (model.n_layers, model.n_neurons)
    random = [
        rng.permuted(np.tile(np.arange(shape[1]), (shape[0], 1)), axis=1)
        for _ in range(params.random_orders)
    ]
    everything = [*orders.values(), *random]
    grid = [(order, fraction) for order in everything for fraction in params.fractions]
    report: dict[str, Any] = {
        "fractions": params.fractions,
        "n": len(texts),
        "random_orders": len(random),
    }
    for name, sign in (("deletion", 1.0), ("insertion", -1.0)):
        kept = [~leading(*point) if name == "deletion" else leading(*point) for point in grid]
        found = kept_effects(model, texts, kept, params, means, label=f"{model.name}: {name}")
        kl = found.kl.reshape(len(texts), len(everything), -1)
        of_orders, by_text = kl[:, : len(orders)], kl[:, len(orders) :].mean(axis=1)
        of_random = kl[:, len(orders) :].mean(axis=0)
        areas = sign * (of_random - of_random.mean(axis=0)).mean(axis=1)
        report[name] = {"random": _band(of_random)} | {
            method: _curve(of_orders[:, i], by_text, areas, sign, params, rng)
            for i, method in enumerate(orders)
        }
    return report


def _curve(
    kl: Float[np.ndarray, "text point"],
    random: Float[np.ndarray, "text point"],
    random_areas: Float[np.ndarray, " draw"],
    sign: float,
    params: MambaNeurons,
    rng: np.random.Generator,
) -> dict[str, Any]:
    # In pairs, because texts differ far more than orders do: the band is of the distance from the
    # random mean.
    away = kl - random
    interval = percentile_interval(
        away.mean(axis=0), resampled_means(away, rng, resamples=params.bootstrap_resamples)
    )
    by_text = sign * away.mean(axis=1)
    area = float(by_text.mean())
    ends = percentile_interval(
        area, resampled_means(by_text, rng, resamples=params.bootstrap_resamples)
    )
    return {
        "kl": kl.mean(axis=0),
        "low": random.mean(axis=0) + interval.low,
        "high": random.mean(axis=0) + interval.high,
        "area": area,
        "area_ci": [float(ends.low), float(ends.high)],
        "p": (1 + int((random_areas >= area).sum())) / (1 + len(random_areas)),
    }


def _band(curves: Float[np.ndarray, "draw point"]) -> dict[str, Any]:
    low, high = np.quantile(curves, [0.025, 0.975], axis=0)
    return {"mean": curves.mean(axis=0), "low": low, "high": high}


def functional_curve(
    model: Model,
    texts: Texts,
    strength: Float[np.ndarray, "layer neuron"],
    params: MambaNeurons,
    means: Float[Tensor, "layer neuron"],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Relative rise of the loss when only the m strongest neurons of the whole model are kept,
    beside random sets of m; `enough` is the fewest, among the sizes tried, from which on every
    larger size stays within the tolerance.
    """
    total = strength.size
    clean = clean_loss(model, texts, params)
    order = np.argsort(-strength, axis=None, kind="stable")
    from_both_ends = np.geomspace(1, total, params.loss_points)
    sizes = np.unique(
        np.round([*from_both_ends, *(total - from_both_ends[:-1]), total]).astype(int)
    )

    def rise(
        orders: list[np.ndarray], of_sizes: np.ndarray, label: str
    ) -> Float[np.ndarray, "text order size"]:
        kept = [_first(ranked, int(m), strength.shape) for ranked in orders for m in of_sizes]
        found = kept_effects(model, texts, kept, params, means, label=f"{model.name}: {label}")
        return found.loss.reshape(len(texts), len(orders), -1)

    tried = sizes
    random = rise(
        [rng.permutation(total) for _ in range(params.random_orders)], tried, "random sets"
    ).mean(axis=0)
    loss = rise([order], sizes, "functional curve")[:, 0]
    for _ in range(3):  # sizes on both sides of the crossing get neighbours
        bracket = _crossing(sizes, loss.mean(axis=0) / clean.mean(), params.loss_tolerance)
        more = np.setdiff1d(np.round(np.linspace(*bracket, 6)).astype(int), sizes)
        if len(more) == 0:
            break
        both = np.concatenate([sizes, more])
        loss = np.concatenate([loss, rise([order], more, "functional curve")[:, 0]], axis=1)[
            :, np.argsort(both)
        ]
        sizes = np.sort(both)
    relative = loss.mean(axis=0) / clean.mean()
    draws = rng.integers(0, len(texts), size=(params.bootstrap_resamples, len(texts)))
    resampled = loss[draws].mean(axis=1) / clean[draws].mean(axis=1)[:, None]
    interval = percentile_interval(relative, resampled)
    enough = _crossing(sizes, relative, params.loss_tolerance)[1]
    drawn = np.array(
        [float(_crossing(sizes, curve, params.loss_tolerance)[1]) for curve in resampled]
    )
    ends = percentile_interval(float(enough), drawn)
    return {
        "sizes": sizes,
        "rise": interval.value,
        "low": interval.low,
        "high": interval.high,
        "random": {"sizes": tried, **_band(random / clean.mean())},
        "tolerance": params.loss_tolerance,
        "enough": enough,
        "enough_ci": [float(ends.low), float(ends.high)],
        "enough_share": enough / total,
        "random_enough": _crossing(
            tried, random.mean(axis=0) / clean.mean(), params.loss_tolerance
        )[1],
        "neurons": total,
        "clean_loss": float(clean.mean()),
        "n": len(texts),
    }


def _first(order: np.ndarray, m: int, shape: tuple[int, ...]) -> Kept:
    kept = np.zeros(order.size, dtype=bool)
    kept[order[:m]] = True
    return kept.reshape(shape)


def _crossing(sizes: np.ndarray, relative: np.ndarray, tolerance: float) -> tuple[int, int]:
    """The largest size beyond the tolerance (0: none) and the next one tried; keeping everything
    costs nothing.
    """
    beyond = np.flatnonzero(relative > tolerance)
    if len(beyond) == 0:
        return 0, int(sizes[0])
    return int(sizes[beyond[-1]]), int(sizes[min(beyond[-1] + 1, len(sizes) - 1)])


def _hidden(model: Model, scored: Scored, kept: Tensor, means: Tensor) -> Tensor:
    """Normed hidden states with all but the kept neurons at their means."""
    edits = {
        layer: (lambda a, layer=layer: torch.where(kept[layer], a, means[layer].to(a.dtype)))
        for layer in range(model.n_layers)
    }
    with model.edited(edits):
        return model.subject.trunk(scored.clean.ids)
