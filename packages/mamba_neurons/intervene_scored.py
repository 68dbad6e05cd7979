"""The clean predictions of a batch, and how to compare those of a changed model with them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_core.mamba.subject import MambaSubject
from interp_core.mamba.suffix import Suffix
from interp_core.progress import progress
from mamba_neurons.data import Texts
from mamba_neurons.measure_divergence import Streamed, divergence
from mamba_neurons.model import CleanRun, Model, clean_run


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


def scored_batches(
    model: Model, texts: Texts, batch_size: int, *, label: str
) -> Iterator[tuple[slice, Texts, Scored]]:
    """Each batch of texts with its clean run, and which rows it is."""
    first = 0
    for batch in progress(texts.batches(batch_size), label, unit="batch"):
        yield slice(first, first + len(batch)), batch, Scored.of(model, batch)
        first += len(batch)
