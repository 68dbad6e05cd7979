"""What sets of neurons are worth: the best ones deleted, the best ones alone kept, against random
orders. All by mean ablation in all layers at once, on texts that took no part in ranking.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from interp_core.statistics.against_random import against_random
from interp_core.statistics.interval import Interval
from interp_core.statistics.resampling import percentile_interval, resampled_means
from mamba_neurons.data import Texts
from mamba_neurons.intervene_units import Kept, Means, kept_effects, scored_texts
from mamba_neurons.model import Model
from mamba_neurons.params import MambaNeurons


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
    means: Means,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Deletion curves (the first x of every layer's order ablated: a good order hurts early) and
    insertion curves (only they kept: a good order heals early), KL in nats, of each order and of
    random ones.

    `area` is the mean over fractions of the curve's distance to the random mean, positive where the
    order is better.
    """
    shape = (model.n_layers, model.n_neurons)
    in_order = np.tile(np.arange(shape[1]), (shape[0], 1))
    random = [rng.permuted(in_order, axis=1) for _ in range(params.random_orders)]

    everything = [*orders.values(), *random]
    grid = [(order, fraction) for order in everything for fraction in params.fractions]
    batches = scored_texts(model, texts, params)
    report: dict[str, Any] = {
        "fractions": params.fractions,
        "n": len(texts),
        "random_orders": len(random),
    }

    for name, sign in (("deletion", 1.0), ("insertion", -1.0)):
        first = [leading(*point) for point in grid]
        kept = [~chosen for chosen in first] if name == "deletion" else first
        found = kept_effects(model, batches, kept, params, means, label=f"{model.name}: {name}")

        kl = found.kl.reshape(len(texts), len(everything), -1)
        of_orders, by_text = kl[:, : len(orders)], kl[:, len(orders) :].mean(axis=1)
        of_random = kl[:, len(orders) :].mean(axis=0)
        areas = sign * (of_random - of_random.mean(axis=0)).mean(axis=1)

        report[name] = {"random": _band(of_random)}
        for i, method in enumerate(orders):
            report[name][method] = _curve(of_orders[:, i], by_text, areas, sign, params, rng)

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
    draws = resampled_means(away, rng, resamples=params.bootstrap_resamples)
    interval = percentile_interval(away.mean(axis=0), draws)

    by_text = sign * away.mean(axis=1)
    area = float(by_text.mean())
    draws = resampled_means(by_text, rng, resamples=params.bootstrap_resamples)
    ends = percentile_interval(area, draws)

    return {
        "kl": kl.mean(axis=0),
        "low": random.mean(axis=0) + interval.low,
        "high": random.mean(axis=0) + interval.high,
        "area": Interval.of(ends, n=len(kl), unit="texts").to_json(),
        "against_random": against_random(area, random_areas, direction="above").to_json(),
    }


def _band(curves: Float[np.ndarray, "draw point"]) -> dict[str, Any]:
    low, high = np.quantile(curves, [0.025, 0.975], axis=0)
    return {"mean": curves.mean(axis=0), "low": low, "high": high}
