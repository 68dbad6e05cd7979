"""The exact effect of ablating a unit: only the layers behind it run again, many units stacked in
one batch.

Everything before a layer is as in the clean run, and a neuron writes along one direction. So its
ablation is a change of the residual stream after its layer, and no part of the layer itself runs
again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp_core.files.artifacts import array_sha256
from interp_core.models.subject import Subject
from interp_core.training.shares import in_shares
from mamba_neurons.data import Texts
from mamba_neurons.intervene_scored import Scored, scored_batches
from mamba_neurons.model import Model, clean_run, neuron_means
from mamba_neurons.params import MambaNeurons

Ablation = Literal["zero", "mean", "resample"]
ABLATIONS: tuple[Ablation, ...] = ("zero", "mean", "resample")


@dataclass(frozen=True)
class Effects:
    """What ablating each unit does to the predictions of each text, mean over its scored positions,
    in nats.
    """

    kl: Float[np.ndarray, "text unit"]  # KL(p || p with the unit ablated), never negative
    loss: Float[np.ndarray, "text unit"]  # change of the loss: positive where the unit helped

    @property
    def mean_kl(self) -> Float[np.ndarray, " unit"]:
        """Over texts."""
        return self.kl.mean(axis=0)


def neuron_effects(
    model: Model,
    texts: Texts,
    layer: int,
    neurons: Sequence[int],
    params: MambaNeurons,
    *,
    ablation: Ablation = "mean",
    means: Float[Tensor, "layer neuron"] | None = None,
) -> Effects:
    """Exact effects of ablating each of these neurons of a layer, alone, at every position."""
    if means is None and ablation == "mean":
        means = neuron_means(model, texts, params.batch_size)

    return _stacked(measure_neurons, model, texts, layer, list(neurons), params, means, ablation)


def measure_neurons(
    subject: Subject,
    stacks: Sequence[Sequence[int]],
    texts: Texts,
    layer: int,
    params: MambaNeurons,
    means: Float[np.ndarray, "layer neuron"] | None,
    ablation: Ablation,
) -> dict[str, np.ndarray]:
    """The same of these stacks of neurons, as arrays."""
    model = Model(subject)
    index = torch.as_tensor(list(chain(*stacks)))
    on_device = index.to(model.subject.device)
    directions = model.write_directions(layer)[on_device].to(model.precision)
    own_means = None if means is None else _on(model, means)[layer][index]

    def changes(scored: Scored, batch: Texts) -> Change:
        activation = scored.clean.neurons[layer][..., index]
        away = replacement(activation, ablation, own_means, batch) - activation
        away = away.to(directions.dtype)
        return lambda units: torch.einsum("btu,ud->ubtd", away[..., units], directions[units])

    label = f"{model.name}: layer {layer}, {ablation}"
    return vars(effects(model, texts, layer, len(index), changes, params, label=label))


def set_effects(
    model: Model,
    texts: Texts,
    layer: int,
    sets: Sequence[Sequence[int]],
    params: MambaNeurons,
    means: Float[Tensor, "layer neuron"],
) -> Effects:
    """Exact effects of mean-ablating each of these sets of neurons of a layer, together."""
    return _stacked(measure_sets, model, texts, layer, sets, params, means)


def measure_sets(
    subject: Subject,
    stacks: Sequence[Sequence[Sequence[int]]],
    texts: Texts,
    layer: int,
    params: MambaNeurons,
    means: Float[np.ndarray, "layer neuron"],
) -> dict[str, np.ndarray]:
    """The same of these stacks of sets, as arrays."""
    model = Model(subject)
    sets = list(chain(*stacks))
    directions = model.write_directions(layer).to(model.precision)
    member = directions.new_zeros(len(sets), len(directions))
    for row, chosen in zip(member, sets, strict=True):
        row[list(chosen)] = 1.0

    of_layer = _on(model, means)[layer]

    def changes(scored: Scored, batch: Texts) -> Change:
        away = of_layer - scored.clean.neurons[layer]
        return lambda units: torch.stack([(away * row) @ directions for row in member[units]])

    label = f"{model.name}: sets of layer {layer}"
    return vars(effects(model, texts, layer, len(sets), changes, params, label=label))


def _stacked(
    measure: Callable[..., dict[str, np.ndarray]],
    model: Model,
    texts: Texts,
    layer: int,
    units: Sequence[Any],
    params: MambaNeurons,
    means: Float[Tensor, "layer neuron"] | None,
    *more: Ablation,
) -> Effects:
    """Effects of units of a layer, in shares of whole stacks: each beside the same others.

    The means are handed over: all shares put the same in a neuron's place.
    """
    handed = None if means is None else means.cpu().numpy()
    read = [texts.sha256, "" if handed is None else array_sha256(handed)]
    stacks = [units[first : first + params.stack] for first in range(0, len(units), params.stack)]
    behind = (model.n_layers - layer) / model.n_layers

    found = in_shares(
        measure,
        stacks,
        model.subject,
        texts,
        layer,
        params,
        handed,
        *more,
        about=[*read, layer, *more],
        tokens=texts.tokens.size,
        passes=behind * params.stack,
    )
    return Effects(
        *(np.concatenate([share[name] for share in found], axis=1) for name in ("kl", "loss"))
    )


def _on(model: Model, means: Float[np.ndarray, "layer neuron"]) -> Float[Tensor, "layer neuron"]:
    return torch.as_tensor(means, device=model.subject.device)


def residual_effects(model: Model, texts: Texts, layer: int, params: MambaNeurons) -> Effects:
    """Exact effects of mean-ablating each dimension of the residual stream after a layer."""
    total = torch.zeros(model.subject.d_model, dtype=torch.float64, device=model.subject.device)

    for batch in texts.batches(params.batch_size):
        real = torch.as_tensor(batch.real, device=total.device)
        total += clean_run(model, batch).residual[layer + 1][real].double().sum(dim=0)

    mean = (total / int(texts.lengths.sum())).to(model.precision)

    def changes(scored: Scored, batch: Texts) -> Change:
        away = mean - scored.clean.residual[layer + 1]

        def change(units: slice) -> Tensor:
            dims = torch.arange(len(mean), device=mean.device)[units]
            put = away.new_zeros(len(dims), *away.shape)
            put[torch.arange(len(dims)), ..., dims] = torch.einsum("btu->ubt", away[..., dims])
            return put

        return change

    label = f"{model.name}: residual after {layer}"
    return effects(model, texts, layer, len(mean), changes, params, label=label)


Change = Callable[[slice], Float[Tensor, "unit text position d_model"]]  # of a slice of the units


def effects(
    model: Model,
    texts: Texts,
    layer: int,
    n_units: int,
    changes: Callable[[Scored, Texts], Change],
    params: MambaNeurons,
    *,
    label: str,
) -> Effects:
    """Effects of `n_units` changes of the residual stream after a layer; `changes` prepares those
    of a batch.
    """
    kl, loss = np.empty((len(texts), n_units)), np.empty((len(texts), n_units))

    for rows, batch, scored in scored_batches(model, texts, params.batch_size, label=label):
        change, behind = changes(scored, batch), scored.behind(layer)

        for first in range(0, n_units, params.stack):
            units = slice(first, min(first + params.stack, n_units))
            found = behind(change(units))
            kl[rows, units], loss[rows, units] = (part.T.double().cpu().numpy() for part in found)

    return Effects(kl, loss)


def replacement(
    activation: Float[Tensor, "text position neuron"],
    ablation: Ablation,
    means: Float[Tensor, " neuron"] | None,
    texts: Texts,
) -> Float[Tensor, "text position neuron"]:
    """What an ablation puts in a neuron's place. resample takes the next text of the batch at the
    same position, counted around where that text is shorter, so that padding is never a source.
    """
    if ablation == "zero":
        return torch.zeros_like(activation)

    if ablation == "mean":
        assert means is not None
        return means.expand_as(activation)

    text = torch.arange(len(activation), device=activation.device).roll(1)
    lengths: Any = torch.as_tensor(texts.lengths, device=activation.device)
    position = torch.arange(activation.shape[1], device=activation.device) % lengths[text, None]
    return activation[text[:, None], position]
