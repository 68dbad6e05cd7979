"""What a page shows of a model on one text: where every head looks, and what is predicted without it.

Heads are replaced by their mean vector over the text and its control. Each set of heads stands beside
random heads of the same layers.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_core.ablation import Head
from interp_core.hooks import Edit, capture, intervene
from interp_core.models import Subject
from interp_core.page.texts import Shown
from interp_core.progress import progress
from interp_core.sites import Site

TOP = 3  # predictions kept at each place
COPIES = 8  # of the text, each without other heads, in one forward pass


@dataclass(frozen=True)
class Predicted:
    """At every place but the last: loss of the token that follows (nats), and the likeliest tokens."""

    loss: Float[np.ndarray, "set position"]
    top: Int[np.ndarray, "set position rank"]
    probability: Float[np.ndarray, "set position rank"]


@torch.no_grad()
def attention(subject: Subject, rows: Int[np.ndarray, "row position"]) -> Float[np.ndarray, "row layer head q k"]:
    """Every head's whole pattern, in [0, 1]: for texts short enough to be looked at."""
    sites = [Site(layer, "attn.pattern") for layer in range(subject.n_layers)]

    with capture(subject, sites) as seen:
        subject.trunk(subject.ids(rows))

    return torch.stack([seen[site].float() for site in sites], dim=1).cpu().numpy()


@torch.no_grad()
def mean_vectors(subject: Subject, text: Shown) -> dict[int, Float[Tensor, "head d_head"]]:
    """Each head's mean vector over the places of the text and of its control, by layer."""
    sites = [Site(layer, "attn.z") for layer in range(subject.n_layers)]

    with capture(subject, sites) as seen:
        subject.trunk(subject.ids(np.stack([text.ids, text.control])))

    return {site.layer: seen[site].mean(dim=(0, 1)) for site in sites}


@torch.no_grad()
def predicted(
    subject: Subject,
    ids: Int[np.ndarray, " position"],
    sets: Sequence[Sequence[Head]],
    means: dict[int, Float[Tensor, "head d_head"]],
    *,
    label: str | None = None,
) -> Predicted:
    """Predictions without each set of heads; an empty set is the whole model."""
    found: list[Predicted] = []
    starts = range(0, len(sets), COPIES)

    for start in progress(starts, label, unit="batch") if label else starts:
        chosen = sets[start : start + COPIES]
        rows = subject.ids(np.tile(ids, (len(chosen), 1)))

        with ExitStack() as stack:
            if edits := _edits(chosen, means):
                stack.enter_context(intervene(subject, edits))
            found.append(_read(subject.logits(rows)[:, :-1], rows[:, 1:]))

    parts = [[getattr(one, name) for one in found] for name in ("loss", "top", "probability")]
    return Predicted(*(np.concatenate(part) for part in parts))


def random_sets(best: Sequence[Head], n_heads: int, *, draws: int, rng: np.random.Generator) -> list[list[Head]]:
    """Sets with as many heads of each layer as `best`, of its other heads where those are enough."""
    return [_random_set(best, n_heads, rng) for _ in range(draws)]


def _random_set(best: Sequence[Head], n_heads: int, rng: np.random.Generator) -> list[Head]:
    drawn: list[Head] = []

    for layer in sorted({layer for layer, _ in best}):
        taken = [head for of_layer, head in best if of_layer == layer]
        others = np.setdiff1d(np.arange(n_heads), taken)
        pool = others if len(others) >= len(taken) else np.arange(n_heads)
        drawn += [(layer, int(head)) for head in rng.choice(pool, size=len(taken), replace=False)]

    return drawn


def _edits(sets: Sequence[Sequence[Head]], means: dict[int, Tensor]) -> dict[Site, Edit]:
    """One edit a layer: copy i of the text loses the heads of set i."""
    layers = sorted({layer for heads in sets for layer, _ in heads})
    return {Site(layer, "attn.z"): _edit(layer, sets, means[layer]) for layer in layers}


def _edit(layer: int, sets: Sequence[Sequence[Head]], mean: Tensor) -> Edit:
    def edit(z: Float[Tensor, "set position head d_head"]) -> Tensor:
        edited = z.clone()

        for copy, heads in enumerate(sets):
            for of_layer, head in heads:
                if of_layer == layer:
                    edited[copy, :, head] = mean[head].to(z.dtype)

        return edited

    return edit


def _read(logits: Float[Tensor, "set position vocab"], target: Int[Tensor, "set position"]) -> Predicted:
    log_p = logits.float().log_softmax(dim=-1)
    loss = -log_p.gather(-1, target[..., None])[..., 0]
    top = log_p.topk(min(TOP, log_p.shape[-1]), dim=-1)

    return Predicted(loss.cpu().numpy(), top.indices.cpu().numpy(), top.values.exp().cpu().numpy())
