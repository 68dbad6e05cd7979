"""The exact effect of ablating a unit: only the layers behind it run again, many units stacked in
one batch.

Everything before a layer is as in the clean run, and a neuron writes along one direction. So its
ablation is a change of the residual stream after its layer, and no part of the layer itself runs
again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_core.mamba.subject import MambaSubject
from interp_core.mamba.suffix import Suffix
from interp_core.progress import progress
from mamba_neurons.data import Texts
from mamba_neurons.measure_divergence import Streamed, divergence
from mamba_neurons.model import CleanRun, Model, clean_run, neuron_means
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


@dataclass(frozen=True)
class Scored:
    """The clean predictions at the scored positions of a batch, and how to compare others with
    them.
    """

    clean: CleanRun
    logits: Float[Tensor, "scored vocab"]
    p: Float[Tensor, "scored vocab"]
    target: Int[Tensor, " scored"]
    weights: Float[Tensor, "text scored"]  # rows sum to 1: a text's mean over its scored positions
    hidden: Float[Tensor, "batch position d_model"]  # normed
    streamed: Streamed | None

    @classmethod
    @torch.no_grad()
    def of(cls, model: Model, texts: Texts) -> "Scored":
        """Run the clean model on a batch."""
        clean = clean_run(model, texts)
        text, position = torch.nonzero(clean.counted, as_tuple=True)
        hidden = clean.rerun(model.n_layers, clean.residual[-1])
        logits = model.subject.unembed(hidden[clean.counted]).float()

        weights = torch.zeros(len(texts), len(text), device=logits.device)
        weights[text, torch.arange(len(text), device=text.device)] = 1.0
        weights /= weights.sum(dim=1, keepdim=True)

        p, target = logits.softmax(dim=-1), clean.ids[text, position + 1]
        head: Any = model.subject.model.get_output_embeddings()
        streamed = Streamed.of(head, logits, p, target)
        return cls(clean, logits, p, target, weights, hidden, streamed)

    @property
    def loss(self) -> Float[np.ndarray, " text"]:
        """Clean loss of each text, nats."""
        scored = torch.nn.functional.cross_entropy(self.logits, self.target, reduction="none")
        return (self.weights @ scored).double().cpu().numpy()

    @torch.no_grad()
    def compare(
        self,
        hidden: Float[Tensor, "copies_batch position d_model"],
        reference: Float[Tensor, "batch position d_model"] | None = None,
    ) -> tuple[Float[Tensor, "copy text"], Float[Tensor, "copy text"]]:
        """KL and change of loss of normed hidden states of several copies of the batch.

        `reference` are the clean ones where the code that computed these rounds otherwise than the
        clean run did.
        """
        at = hidden.unflatten(0, (-1, len(self.clean.ids)))[:, self.clean.counted]

        if self.streamed is None:
            logits = self.clean.model.subject.unembed(at).float()
            kl, loss = divergence(logits, self.logits, self.p, self.target)
        else:
            clean = self.hidden if reference is None else reference
            kl, loss = self.streamed(at - clean[self.clean.counted])

        return kl @ self.weights.T, loss @ self.weights.T

    @torch.no_grad()
    def of_changes(
        self, layer: int, changes: Float[Tensor, "unit text position d_model"]
    ) -> tuple[Float[Tensor, "unit text"], Float[Tensor, "unit text"]]:
        """KL and change of loss when each of these is added to the residual stream after a layer;
        hooks fire.
        """
        return self.compare(self.clean.rerun(layer + 1, self.clean.changed(layer + 1, changes)))

    def behind(self, layer: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """of_changes of this layer without hooks: a Mamba's layers on the CPU run on the study's
        own kernels.
        """
        subject = self.clean.model.subject
        suffix = Suffix.of(subject) if isinstance(subject, MambaSubject) else None
        if suffix is None:
            return lambda changes: self.of_changes(layer, changes)

        # The kernels round otherwise than the clean run did: they have a clean run of their own.
        clean = self.clean
        reference = suffix.run(clean.residual[layer + 1].clone(), layer + 1)
        return lambda changes: self.compare(
            suffix.run(clean.changed(layer + 1, changes), layer + 1), reference
        )


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

    index = torch.as_tensor(list(neurons))
    on_device = index.to(model.subject.device)
    directions = model.write_directions(layer)[on_device].to(model.precision)
    own_means = None if means is None else means[layer][index]

    def changes(scored: Scored, batch: Texts) -> Change:
        activation = scored.clean.neurons[layer][..., index]
        away = replacement(activation, ablation, own_means, batch) - activation
        away = away.to(directions.dtype)
        return lambda units: torch.einsum("btu,ud->ubtd", away[..., units], directions[units])

    label = f"{model.name}: layer {layer}, {ablation}"
    return effects(model, texts, layer, len(index), changes, params, label=label)


def set_effects(
    model: Model,
    texts: Texts,
    layer: int,
    sets: Sequence[Sequence[int]],
    params: MambaNeurons,
    means: Float[Tensor, "layer neuron"],
) -> Effects:
    """Exact effects of mean-ablating each of these sets of neurons of a layer, together."""
    directions = model.write_directions(layer).to(model.precision)
    member = directions.new_zeros(len(sets), len(directions))
    for row, chosen in zip(member, sets, strict=True):
        row[list(chosen)] = 1.0

    def changes(scored: Scored, batch: Texts) -> Change:
        away = means[layer] - scored.clean.neurons[layer]
        return lambda units: torch.stack([(away * row) @ directions for row in member[units]])

    label = f"{model.name}: sets of layer {layer}"
    return effects(model, texts, layer, len(sets), changes, params, label=label)


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


def scored_batches(
    model: Model, texts: Texts, batch_size: int, *, label: str
) -> Iterator[tuple[slice, Texts, Scored]]:
    """Each batch of texts with its clean run, and which rows it is."""
    first = 0
    for batch in progress(texts.batches(batch_size), label, unit="batch"):
        yield slice(first, first + len(batch)), batch, Scored.of(model, batch)
        first += len(batch)


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
