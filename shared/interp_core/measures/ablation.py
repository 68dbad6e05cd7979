"""What ablating heads does to copying: exactly, by re-running only the layers behind them, and to
first order.

A head's vector z is replaced (by zero, by its mean over prompts and positions, or by its value in
another prompt) and the change of loss and accuracy at the copy operations is reported. Everything
before the head's layer is as in the clean run, so its residual stream is cached once and only the
suffix runs again, several heads stacked in the batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_core.errors import InputError
from interp_core.measures.means import PlaceMeans
from interp_core.measures.scores import CopyBatch, copy_batches
from interp_core.models.hooks import Edit, HasSites, capture, intervene
from interp_core.models.native import NativeSubject
from interp_core.models.recording import Recording, recording
from interp_core.models.sites import Site
from interp_core.models.subject import Subject, Transformer, as_transformer
from interp_core.progress import progress
from interp_core.stimuli.prompts import Prompts

Head = tuple[int, int]  # layer, head
Place = tuple[Site, int]  # where heads' vectors are, and which of them
Ablation = Literal["zero", "mean", "resample"]

STACK = 4  # sets of heads in one re-run of a suffix


@dataclass(frozen=True)
class Effects:
    """Per prompt and ablated set of heads: loss (nats) and accuracy at the copy operations, and the
    clean ones.
    """

    loss: Float[np.ndarray, "prompt set"]
    accuracy: Float[np.ndarray, "prompt set"]
    clean_loss: Float[np.ndarray, " prompt"]
    clean_accuracy: Float[np.ndarray, " prompt"]


@torch.no_grad()
def ablation_effects(
    subject: Subject,
    prompts: Prompts,
    sets: Sequence[Sequence[Head]],
    *,
    ablation: Ablation = "mean",
    batch_size: int = 16,
    stack: int = STACK,
    freeze_attention: bool = False,
    label: str | None = None,
) -> Effects:
    """Ablate each set of heads in turn and measure copying.

    Sets whose first layer is the same are stacked, `stack` at a time, in the batch of one re-run of
    the suffix. freeze_attention keeps every pattern as in the clean run, so that only what the
    heads write changes (the pattern-preserving ablation of Olsson et al. 2022); it runs the whole
    model.
    """
    subject = as_transformer(subject)
    _check_heads(subject, sets)
    batch_size = _full_batches(prompts, batch_size, ablation)
    fast = isinstance(subject, NativeSubject) and subject.reruns and not freeze_attention
    parts: list[_Outcome] = []
    sources = _mean_vectors(subject, prompts, batch_size) if ablation == "mean" else None
    batches = list(copy_batches(subject, prompts.tokens, prompts.pairs, batch_size))

    for batch in progress(batches, label or f"ablations in {subject.name}", unit="batch"):
        lengths = batch.of_prompts(prompts.lengths)

        with (
            capture(subject, [Site(layer, "attn.z") for layer in _layers(sets)]) as clean,
            _maybe_record(subject, fast) as record,
        ):
            hidden = subject.trunk(batch.ids)

        vectors = {
            site.layer: _source(z, ablation, sources, site.layer, lengths)
            for site, z in clean.items()
        }
        clean_behaviour = batch.behaviour(subject.unembed(batch.at_queries(hidden)))
        outcome = _Outcome.empty(len(batch), len(sets), clean_behaviour)

        if record is not None:
            z = {site.layer: seen for site, seen in clean.items()}
            _rerun_suffixes(subject, batch, sets, vectors, z, record, stack, outcome)
        else:
            _rerun_whole(subject, batch, sets, vectors, freeze_attention, outcome)

        parts.append(outcome)

    return Effects(
        loss=np.concatenate([part.loss for part in parts]),
        accuracy=np.concatenate([part.accuracy for part in parts]),
        clean_loss=np.concatenate([part.clean[0] for part in parts]),
        clean_accuracy=np.concatenate([part.clean[1] for part in parts]),
    )


def _check_heads(subject: Transformer, sets: Sequence[Sequence[Head]]) -> None:
    """InputError for a head that is not there, and for a set of none."""
    for heads in sets:
        if not heads:
            raise InputError("a set of heads to ablate is empty")
        for layer, head in heads:
            if not (0 <= layer < subject.n_layers and 0 <= head < subject.n_heads):
                raise InputError(
                    f"{subject.name} has layers 0 to {subject.n_layers - 1} of heads 0 to "
                    f"{subject.n_heads - 1}: there is no L{layer}H{head}"
                )


def first_order_effects(
    subject: Subject, prompts: Prompts, *, ablation: Ablation = "mean", batch_size: int = 16
) -> Float[np.ndarray, "prompt layer head"]:
    """Change of loss (nats) by ablating each head alone, to first order: (replacement - z) .
    dloss/dz.

    One forward and one backward pass for all heads (attribution patching, Nanda 2023). Saturated
    heads fool it: calibrate against `ablation_effects` before trusting the ranking.
    """
    subject = as_transformer(subject)
    batch_size = _full_batches(prompts, batch_size, ablation)
    sources = _mean_vectors(subject, prompts, batch_size) if ablation == "mean" else None
    parts = []

    for batch in copy_batches(subject, prompts.tokens, prompts.pairs, batch_size):
        lengths = batch.of_prompts(prompts.lengths)
        zs: dict[int, Tensor] = {}

        with torch.enable_grad(), ExitStack() as stack:
            for layer in range(subject.n_layers):
                # The first z is a leaf: nothing before it asks for a gradient here.
                def through(z: Tensor, layer: int = layer, zs: dict[int, Tensor] = zs) -> Tensor:
                    zs[layer] = z if z.requires_grad else z.detach().requires_grad_()
                    return zs[layer]

                stack.enter_context(subject.attach(Site(layer, "attn.z"), through))

            logits = subject.unembed(batch.at_queries(subject.trunk(batch.ids)))
            inputs = [zs[layer] for layer in range(subject.n_layers)]
            gradients = torch.autograd.grad(batch.nats(logits).sum(), inputs)

        columns = []

        for layer, gradient in enumerate(gradients):
            z = zs[layer].detach()
            change = _source(z, ablation, sources, layer, lengths) - z
            columns.append((change * gradient).double().sum(dim=(1, 3)))

        parts.append(torch.stack(columns, dim=1).cpu().numpy())

    return np.concatenate(parts)


@contextmanager
def ablated(
    subject: HasSites, vectors: Mapping[Place, Float[Tensor, "*batch d_head"]]
) -> Iterator[None]:
    """Run with these heads' vectors replaced by given ones, which broadcast to [batch, position,
    d_head]. What reads them gets nothing else; everything behind runs on.
    """
    by_site: dict[Site, dict[int, Tensor]] = {}

    for (site, head), vector in vectors.items():
        by_site.setdefault(site, {})[head] = vector

    with intervene(subject, {site: _replacing(heads) for site, heads in by_site.items()}):
        yield


def _replacing(vectors: Mapping[int, Tensor]) -> Edit:
    def edit(z: Float[Tensor, "batch position head d_head"]) -> Tensor:
        edited = z.clone()
        for head, vector in vectors.items():
            edited[..., head, :] = vector.to(z.dtype)
        return edited

    return edit


@contextmanager
def _maybe_record(subject: Transformer, fast: bool) -> Iterator[Recording | None]:
    if fast and isinstance(subject, NativeSubject):
        with recording(subject) as record:
            yield record
    else:
        yield None


def _rerun_suffixes(
    subject: Transformer,
    batch: CopyBatch,
    sets: Sequence[Sequence[Head]],
    vectors: Mapping[int, Tensor],
    clean: Mapping[int, Tensor],
    record: Recording,
    stack: int,
    outcome: "_Outcome",
) -> None:
    assert isinstance(subject, NativeSubject)

    for group in same_first_layer(sets, stack):
        layers = _layers([sets[index] for index in group])
        edits = {
            Site(layer, "attn.z"): _stacked_edit(
                [_of_layer(sets[index], layer) for index in group], vectors[layer]
            )
            for layer in layers
        }
        first, residual = layers[0], record.inputs[layers[0]].repeat(len(group), 1, 1)

        if getattr(subject.config, "use_parallel_residual", False):
            # The MLP does not read what this block's heads write, so that the block need not run
            # again.
            edit = edits.pop(Site(first, "attn.z"))
            change = edit(clean[first].repeat(len(group), 1, 1, 1)) - clean[first].repeat(
                len(group), 1, 1, 1
            )
            written = torch.einsum(
                "bphe,hed->bpd", change, subject.out_weights(first).to(change.dtype)
            )
            behind = record.inputs[first + 1].repeat(len(group), 1, 1)
            first, residual = first + 1, behind + written.to(behind.device)

        with intervene(subject, edits):
            final = record.run(subject, first, residual)

        for index, copy in zip(group, final.chunk(len(group)), strict=True):
            outcome.put(
                index, batch.behaviour(subject.unembed(subject.normed(batch.at_queries(copy))))
            )


def _rerun_whole(
    subject: Transformer,
    batch: CopyBatch,
    sets: Sequence[Sequence[Head]],
    vectors: Mapping[int, Tensor],
    freeze_attention: bool,
    outcome: "_Outcome",
) -> None:
    with ExitStack() as stack:
        if freeze_attention:
            stack.enter_context(subject.freezing_attention(batch.ids))

        for index, heads in enumerate(sets):
            chosen = {
                (Site(layer, "attn.z"), head): vectors[layer][..., head, :] for layer, head in heads
            }
            with ablated(subject, chosen):
                hidden = subject.trunk(batch.ids)
            outcome.put(index, batch.behaviour(subject.unembed(batch.at_queries(hidden))))


def _stacked_edit(
    heads_of_copy: Sequence[Sequence[int]], source: Tensor
) -> Callable[[Tensor], Tensor]:
    """Each copy in the batch has heads of its own replaced."""

    def edit(z: Float[Tensor, "copies_batch position head d_head"]) -> Tensor:
        edited = z.clone()
        for copy, heads in zip(edited.chunk(len(heads_of_copy)), heads_of_copy, strict=True):
            if heads:
                copy[..., list(heads), :] = source[..., list(heads), :].to(z.dtype)
        return edited

    return edit


def same_first_layer(sets: Sequence[Sequence[Head]], stack: int = STACK) -> Iterator[list[int]]:
    """Places of the sets that one re-run of a suffix measures together: their first layer is one.

    Sets in the order of some of these groups fall into the same groups again.
    """
    by_layer: dict[int, list[int]] = {}
    for index, heads in enumerate(sets):
        by_layer.setdefault(_layers([heads])[0], []).append(index)
    for indices in by_layer.values():
        for start in range(0, len(indices), stack):
            yield indices[start : start + stack]


def _layers(sets: Sequence[Sequence[Head]]) -> list[int]:
    return sorted({layer for heads in sets for layer, _ in heads})


def _of_layer(heads: Sequence[Head], layer: int) -> list[int]:
    return [head for of_layer, head in heads if of_layer == layer]


def _full_batches(prompts: Prompts, batch_size: int, ablation: Ablation) -> int:
    """The batch size, raised so far that resampling leaves no prompt alone in its batch."""
    if ablation != "resample":
        return batch_size

    n_prompts = len(prompts.tokens)

    if n_prompts < 2:
        raise InputError(
            "resample ablation takes a head's vectors from another prompt: give at least two "
            "prompts"
        )

    size = max(2, batch_size)

    # A prompt alone in the last batch would be its own source.
    while n_prompts % size == 1:
        size += 1

    return size


def _source(
    z: Float[Tensor, "prompt position head d_head"],
    ablation: Ablation,
    means: Mapping[int, Tensor] | None,
    layer: int,
    lengths: Int[Tensor, " prompt"],
) -> Float[Tensor, "prompt position head d_head"]:
    """What replaces a layer's head vectors; resample takes the next prompt of the batch at the same
    position, counted around where that prompt is shorter, so that padding is never a source.
    """
    if ablation == "zero":
        return torch.zeros_like(z)

    if ablation == "resample":
        prompt = torch.arange(len(z), device=z.device).roll(1)
        position = torch.arange(z.shape[1], device=z.device) % lengths[prompt, None]
        return z[prompt[:, None], position]

    assert means is not None
    return means[layer].expand_as(z)


@torch.no_grad()
def _mean_vectors(
    subject: Transformer, prompts: Prompts, batch_size: int
) -> dict[int, Float[Tensor, "head d_head"]]:
    """Mean of each head's vector over prompts and positions; padding does not count."""
    means: PlaceMeans[int] = PlaceMeans()
    sites = [Site(layer, "attn.z") for layer in range(subject.n_layers)]

    for first in range(0, len(prompts.tokens), batch_size):
        rows = slice(first, first + batch_size)
        ids = subject.ids(prompts.tokens[rows])
        lengths = torch.as_tensor(prompts.lengths[rows], device=ids.device)
        real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]

        with capture(subject, sites) as seen:
            subject.trunk(ids)

        means.add({site.layer: z for site, z in seen.items()}, real)

    return means.means()


@dataclass(frozen=True)
class _Outcome:
    loss: Float[np.ndarray, "prompt set"]
    accuracy: Float[np.ndarray, "prompt set"]
    clean: tuple[Float[np.ndarray, " prompt"], Float[np.ndarray, " prompt"]]

    @classmethod
    def empty(cls, prompts: int, sets: int, clean: tuple[np.ndarray, np.ndarray]) -> "_Outcome":
        return cls(np.empty((prompts, sets)), np.empty((prompts, sets)), clean)

    def put(self, index: int, measured: tuple[np.ndarray, np.ndarray]) -> None:
        self.loss[:, index], self.accuracy[:, index] = measured
