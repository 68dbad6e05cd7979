"""Rankings of all units of a model: by what each is worth alone, and by what it is worth in what is
left of the others.

Single effects say little of sets: units stand in for each other. The joint ranking takes units away
in rounds; in each it estimates anew, in the model that is left, what every unit still there is
worth. With p the clean predictions and q those of what is left, taking a unit away moves KL(p || q)
by (E a - a) dKL/da to first order, and the Fisher term (1/2) E[((E a - a) g)^2] to second, g for
labels drawn from q. Before the first round p = q, and this is the estimate of single effects.
"""

from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_core.progress import progress
from mamba_neurons.intervene_estimates import WholeModel, drawn_labels
from mamba_neurons.intervene_scored import Scored
from mamba_neurons.intervene_units import Kept, Means, keeping, kept_effects
from mamba_neurons.model import Model
from mamba_neurons.params import MambaNeurons

Order = Int[np.ndarray, " flat_unit"]  # flat indices of [layer, unit], the most needed first


def single_effects(
    model: Model, batches: list[Scored], whole: WholeModel, params: MambaNeurons, means: Means
) -> Float[np.ndarray, "layer unit"]:
    """KL of each unit alone: neurons as they were estimated or computed, heads exactly."""
    strength = np.zeros(means.shape)
    strength[:, : model.n_neurons] = whole.mean_kl

    heads = [(layer, unit) for layer, unit in np.ndindex(means.shape) if unit >= model.n_neurons]
    if heads:
        without = np.ones((len(heads), *means.shape), dtype=bool)
        for place, head in enumerate(heads):
            without[place][head] = False

        label = f"{model.name}: heads"
        found = kept_effects(model, batches, list(without), params, means, label=label)
        strength[tuple(np.array(heads).T)] = found.mean_kl

    return strength


def joint_order(
    model: Model,
    batches: list[Scored],
    params: MambaNeurons,
    means: Means,
    rng: np.random.Generator,
) -> Order:
    """All units, those that left last first: as many leave in each of the rounds."""
    seed = int(rng.integers(2**62))
    generator = torch.Generator(device=model.subject.device).manual_seed(seed)

    total = means.shape[0] * means.shape[1]
    sizes = np.unique(np.round(np.linspace(0, total, params.joint_rounds + 1)).astype(int))[::-1]
    kept: Kept = np.ones(means.shape, dtype=bool)
    weakest_first: list[np.ndarray] = []

    for now, then in progress(list(pairwise(sizes)), f"{model.name}: joint ranking", unit="round"):
        worth = removal_costs(model, batches, kept, params, means, generator)
        worth[~kept] = np.inf  # they have left before

        leaving = np.argsort(worth, axis=None, kind="stable")[: now - then]
        kept.flat[leaving] = False
        weakest_first.append(leaving)

    return np.concatenate(weakest_first)[::-1]


@torch.enable_grad()
def removal_costs(
    model: Model,
    batches: list[Scored],
    kept: Kept,
    params: MambaNeurons,
    means: Means,
    generator: torch.Generator,
) -> Float[np.ndarray, "layer unit"]:
    """Estimated rise of KL from the clean predictions when a unit that is kept leaves too, mean
    over texts, nats.
    """
    mask = torch.as_tensor(kept, device=means.neurons.device)[None]
    total, n_texts = np.zeros(means.shape), 0

    for scored in batches:
        activations: dict[tuple[int, str], Tensor] = {}

        def leaf(
            layer: int, kind: str, a: Tensor, into: dict[tuple[int, str], Tensor] = activations
        ) -> Tensor:
            # Weights have no gradients: what nothing before it needs begins the graph.
            into[layer, kind] = a if a.requires_grad else a.detach().requires_grad_()
            return into[layer, kind]

        with keeping(model, mask, means, seen=leaf):
            hidden = model.subject.trunk(scored.clean.ids)

        log_q = model.subject.unembed(hidden[scored.clean.counted]).float().log_softmax(dim=-1)
        labels = drawn_labels(log_q.detach(), params.label_draws, generator)
        places = list(activations)

        def gradients(
            value: Tensor, into: dict[tuple[int, str], Tensor] = activations
        ) -> tuple[Tensor, ...]:
            return torch.autograd.grad(value, list(into.values()), retain_graph=True)

        # -E_p log q is KL(p || q) but for a constant.
        first = gradients(-(scored.p * log_q).sum())
        cost = {at: _along(at, activations, g, means) for at, g in zip(places, first, strict=True)}

        for draw in range(params.label_draws):
            of_labels = gradients(log_q.gather(1, labels[:, draw, None]).sum())
            for at, g in zip(places, of_labels, strict=True):
                moved = _along(at, activations, g, means)
                cost[at] = cost[at] + moved**2 / (2 * params.label_draws)

        positions = scored.clean.counted.sum(dim=1)
        total += _by_unit(cost, positions, means)
        n_texts += len(positions)

    return total / n_texts


def _along(
    at: tuple[int, str],
    activations: dict[tuple[int, str], Tensor],
    gradient: Tensor,
    means: Means,
) -> Float[Tensor, "text part"]:
    """(E a - a) times the gradient, summed over a text's positions and over a head's vector."""
    layer, kind = at
    mean = means.neurons[layer] if kind == "neurons" else means.heads[layer]
    moved = (mean - activations[at].detach()) * gradient
    by_position = moved if kind == "neurons" else moved.sum(dim=-1)
    return by_position.sum(dim=1)


def _by_unit(
    cost: dict[tuple[int, str], Float[Tensor, "text part"]],
    positions: Int[Tensor, " text"],
    means: Means,
) -> Float[np.ndarray, "layer unit"]:
    """Sum over texts of each unit's cost, mean over a text's scored positions."""
    split = means.neurons.shape[1]
    found = np.zeros(means.shape)

    for (layer, kind), of_place in cost.items():
        units = slice(0, split) if kind == "neurons" else slice(split, None)
        by_text = of_place / positions[:, None]
        found[layer, units] = by_text.sum(dim=0).double().cpu().numpy()

    return found
