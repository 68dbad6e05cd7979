"""How few units keep the loss: along each ranking, with an interval over texts, against random
orders of the same units.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from interp_core.statistics.against_random import against_random
from interp_core.statistics.enough import enough
from interp_core.statistics.interval import Interval, array_json
from interp_core.statistics.resampling import percentile_interval
from mamba_neurons.intervene_joint import Order
from mamba_neurons.intervene_scored import Scored
from mamba_neurons.intervene_units import Kept, Means, clean_loss, kept_effects
from mamba_neurons.model import Model
from mamba_neurons.params import MambaNeurons

ByText = Float[np.ndarray, " text"]


@dataclass
class Judge:
    """Change of the loss when the first of an order are kept, each size measured once."""

    model: Model
    batches: list[Scored]
    params: MambaNeurons
    means: Means
    known: dict[tuple[bytes, int], ByText] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Units of the model."""
        layers, units = self.means.shape
        return layers * units

    def rises(self, order: Order, sizes: list[int], label: str) -> Float[np.ndarray, "text size"]:
        """Change of each text's loss, nats, with so many of the order kept."""
        self.measure([(order, size) for size in sizes], label)
        return np.stack([self.known[order.tobytes(), size] for size in sizes], axis=1)

    def measure(self, wanted: list[tuple[Order, int]], label: str) -> None:
        """Measure these orders and sizes, many in one batch, where they are not known."""
        missing = [one for one in wanted if (one[0].tobytes(), one[1]) not in self.known]
        if not missing:
            return

        kept = [self._first(order, size) for order, size in missing]
        label = f"{self.model.name}: {label}"
        found = kept_effects(self.model, self.batches, kept, self.params, self.means, label=label)

        for place, (order, size) in enumerate(missing):
            self.known[order.tobytes(), size] = found.loss[:, place]

    def _first(self, order: Order, size: int) -> Kept:
        kept = np.zeros(self.total, dtype=bool)
        kept[order[:size]] = True
        return kept.reshape(self.means.shape)


def how_few(
    model: Model,
    batches: list[Scored],
    orders: dict[str, Order],
    params: MambaNeurons,
    means: Means,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Of each ranking: the fewest units whose mean-ablated complement keeps the loss within the
    tolerance, by bisection in every bootstrap draw, and the curve at the sizes that bisection
    begins with. p: against random orders, bisected alike.
    """
    judge = Judge(model, batches, params, means)
    clean = clean_loss(batches)
    total = judge.total
    sizes = halving(total, params.loss_halvings)
    random = [random_order(means, rng) for _ in range(params.random_orders)]

    judge.measure([(order, size) for order in random for size in sizes], "random orders")
    by_chance = bisect_together(judge, clean, random)
    curves = np.stack([judge.rises(order, sizes, "").mean(axis=0) for order in random])
    low, high = np.quantile(curves, [0.025, 0.975], axis=0) / clean.mean()

    return {
        "units": total,
        "neurons": model.n_layers * model.n_neurons,
        "heads": model.n_layers * model.n_heads,
        "tolerance": params.loss_tolerance,
        "clean_loss": float(clean.mean()),
        "n": len(clean),
        "rankings": {
            name: _of_ranking(name, order, sizes, judge, clean, by_chance, rng)
            for name, order in orders.items()
        },
        "random": {
            "sizes": sizes,
            "rise": {
                "value": curves.mean(axis=0) / clean.mean(),
                "low": low,
                "high": high,
                "n": len(random),
                "unit": "orders",
            },
        },
    }


def random_order(means: Means, rng: np.random.Generator) -> Order:
    """Heads, then neurons, each in random order.

    Heads are few and each is worth many neurons: an order that loses one early is certain to do
    badly, and would be no control.
    """
    layers, units = means.shape
    flat = np.arange(layers * units).reshape(layers, units)
    n_neurons = means.neurons.shape[1]

    neurons, heads = flat[:, :n_neurons].ravel(), flat[:, n_neurons:].ravel()
    return np.concatenate([rng.permutation(heads), rng.permutation(neurons)])


def halving(total: int, depth: int) -> list[int]:
    """The sizes that bisection between 0 and total can ask for in its first steps, and total."""
    between = [(0, total)]
    sizes = {total}

    for _ in range(depth):
        middles = [(low, (low + high) // 2, high) for low, high in between]
        sizes |= {middle for _, middle, _ in middles}
        between = [ends for low, at, high in middles for ends in ((low, at), (at, high))]

    return sorted(sizes - {0})


def bisect_together(judge: Judge, clean: ByText, orders: list[Order]) -> list[float]:
    """The fewest of each order that keep the mean loss; all orders take a step at a time, so that
    they are measured in one batch.
    """
    tolerated = judge.params.loss_tolerance * clean.mean()
    brackets = [(0, judge.total)] * len(orders)

    while any(high - low > 1 for low, high in brackets):
        middles = [(low + high) // 2 for low, high in brackets]
        asked = [one for one in zip(orders, middles, strict=True) if one[1] > 0]
        judge.measure(asked, "random orders")

        for place, (order, middle) in enumerate(zip(orders, middles, strict=True)):
            low, high = brackets[place]
            if high - low > 1:
                fine = judge.rises(order, [middle], "")[:, 0].mean() <= tolerated
                brackets[place] = (low, middle) if fine else (middle, high)

    return [float(high) for _, high in brackets]


def _of_ranking(
    name: str,
    order: Order,
    sizes: list[int],
    judge: Judge,
    clean: ByText,
    by_chance: list[float],
    rng: np.random.Generator,
) -> dict[str, Any]:
    params = judge.params
    found = enough(
        shortfall(judge, order, clean, name),
        total=judge.total,
        rng=rng,
        resamples=params.bootstrap_resamples,
        unit="texts",
    )

    # Around the crossing every size that some draw asked for is known: the curve shows them.
    asked = {size for key, size in judge.known if key == order.tobytes()}
    shown = sorted({*sizes, *asked})
    rises = judge.rises(order, shown, name)
    curve = relative(rises, clean, rng, resamples=params.bootstrap_resamples)

    return {
        "enough": found.to_json(),
        "enough_share": _share(found, judge.total).to_json(),
        "against_random": against_random(found.value, by_chance, direction="below").to_json(),
        "sizes": shown,
        "rise": curve,
    }


def shortfall(judge: Judge, order: Order, clean: ByText, label: str) -> Callable[[int], ByText]:
    """By text: what the first k of an order lack, in nats; at most 0 in the mean is enough."""

    def missing(k: int) -> ByText:
        rise = judge.rises(order, [k], label)[:, 0]
        return rise - judge.params.loss_tolerance * clean

    return missing


def relative(
    rises: Float[np.ndarray, "text size"],
    clean: ByText,
    rng: np.random.Generator,
    *,
    resamples: int,
) -> dict[str, Any]:
    """Rise of the loss as a share of the clean loss, by size; texts are resampled whole."""
    n = len(clean)
    shares = rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n
    draws = (shares @ rises) / (shares @ clean)[:, None]

    found = percentile_interval(rises.mean(axis=0) / clean.mean(), draws)
    return array_json(found, n=n, unit="texts")


def _share(found: Interval, total: int) -> Interval:
    assert found.low is not None
    assert found.high is not None
    ends = (part / total for part in (found.value, found.low, found.high))
    return Interval(*ends, n=found.n, unit=found.unit)
