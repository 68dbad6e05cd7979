"""Units of a whole model, kept or replaced by their means in all layers at once.

A unit is a neuron, or an attention head of a transformer (all that the head wrote before W_O). So
a model with no unit left writes the same at every position, a Mamba as well as a transformer. In a
layer neurons come first, then heads.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp_core.measures.means import PlaceMeans
from interp_core.models.hooks import capture
from interp_core.models.sites import Site
from interp_core.progress import progress
from interp_core.statistics.heads import Channel, Head
from mamba_neurons.data import Texts
from mamba_neurons.intervene import Effects
from mamba_neurons.intervene_scored import Scored
from mamba_neurons.model import Model, clean_run
from mamba_neurons.params import MambaNeurons

Kept = Bool[np.ndarray, "layer unit"]


@dataclass(frozen=True)
class Means:
    """What takes the place of units that are not kept: their means over all tokens."""

    neurons: Float[Tensor, "layer neuron"]
    heads: Float[Tensor, "layer head d_head"]  # no head in a Mamba

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, and units of a layer."""
        return len(self.neurons), self.neurons.shape[1] + self.heads.shape[1]

    def name(self, layer: int, unit: int) -> Channel | Head:
        """L0C17 for a neuron, L0H1 for a head."""
        n_neurons = self.neurons.shape[1]
        return Channel(layer, unit) if unit < n_neurons else Head(layer, unit - n_neurons)


@torch.no_grad()
def unit_means(model: Model, texts: Texts, batch_size: int) -> Means:
    """Means of every unit over all tokens of all texts; padding does not count."""
    neurons: PlaceMeans[int] = PlaceMeans()
    heads: PlaceMeans[int] = PlaceMeans()

    for batch in texts.batches(batch_size):
        real = torch.as_tensor(batch.real)

        with capture(model.subject, head_sites(model)) as vectors:
            clean = clean_run(model, batch)

        neurons.add(dict(enumerate(clean.neurons)), real)
        heads.add({site.layer: z for site, z in vectors.items()}, real)

    by_layer, of_heads = (found.means() for found in (neurons, heads))
    ours = torch.stack([by_layer[layer] for layer in range(model.n_layers)])
    if not of_heads:
        return Means(ours, ours.new_zeros(model.n_layers, 0, 0))

    return Means(ours, torch.stack([of_heads[layer] for layer in sorted(of_heads)]))


def head_sites(model: Model) -> list[Site]:
    """Where attention heads' vectors are; nowhere in a Mamba."""
    return [Site(layer, "attn.z") for layer in range(model.n_layers) if model.n_heads]


@contextmanager
def keeping(
    model: Model,
    kept: Bool[Tensor, "copy layer unit"],
    means: Means,
    *,
    seen: Callable[[int, str, Tensor], Tensor] = lambda layer, kind, a: a,
) -> Iterator[None]:
    """Inside the block each copy in the batch keeps its own units; all others are their means.

    `seen` gets every activation before that, with its layer and kind ("neurons" or "heads"), and
    returns what is used: a leaf for gradients.
    """
    split = means.neurons.shape[1]

    def neurons_of(layer: int) -> Callable[[Tensor], Tensor]:
        def edit(a: Float[Tensor, "copies_batch position neuron"]) -> Tensor:
            mask = kept[:, None, None, layer, :split]
            used = seen(layer, "neurons", a).unflatten(0, (len(kept), -1))
            return torch.where(mask, used, means.neurons[layer].to(a.dtype)).flatten(0, 1)

        return edit

    def heads_of(layer: int) -> Callable[[Tensor], Tensor]:
        def edit(z: Float[Tensor, "copies_batch position head d_head"]) -> Tensor:
            mask = kept[:, None, None, layer, split:, None]
            used = seen(layer, "heads", z).unflatten(0, (len(kept), -1))
            return torch.where(mask, used, means.heads[layer].to(z.dtype)).flatten(0, 1)

        return edit

    with ExitStack() as stack:
        for layer in range(model.n_layers):
            stack.enter_context(model.attach(layer, neurons_of(layer)))
        for site in head_sites(model):
            stack.enter_context(model.subject.attach(site, heads_of(site.layer)))
        yield


def scored_texts(model: Model, texts: Texts, params: MambaNeurons) -> list[Scored]:
    """The clean predictions of all batches, kept in memory: hundreds of sets are compared with
    them.
    """
    return [Scored.of(model, batch) for batch in texts.batches(params.batch_size)]


@torch.no_grad()
def kept_effects(
    model: Model,
    batches: Sequence[Scored],
    kept: Sequence[Kept],
    params: MambaNeurons,
    means: Means,
    *,
    label: str,
) -> Effects:
    """Effects when only these units keep their activations and all others are their means, for
    each set; several sets run in one batch.
    """
    masks = torch.as_tensor(np.stack(kept), device=means.neurons.device)
    starts = range(0, len(kept), params.stack)
    kl, loss = [], []

    for scored in progress(batches, label, unit="batch"):
        found = [
            scored.compare(_hidden(model, scored, masks[first : first + params.stack], means))
            for first in starts
        ]
        kl.append(torch.cat([part for part, _ in found]).T.double().cpu().numpy())
        loss.append(torch.cat([part for _, part in found]).T.double().cpu().numpy())

    return Effects(np.concatenate(kl), np.concatenate(loss))


def _hidden(
    model: Model, scored: Scored, kept: Bool[Tensor, "copy layer unit"], means: Means
) -> Float[Tensor, "copies_batch position d_model"]:
    """Normed hidden states with all but the kept units at their means."""
    with keeping(model, kept, means):
        return model.subject.trunk(scored.clean.ids.repeat(len(kept), 1))


def clean_loss(batches: Sequence[Scored]) -> Float[np.ndarray, " text"]:
    """Loss of each text in the untouched model, mean over its scored positions, nats."""
    return np.concatenate([scored.loss for scored in batches])
