"""What a page shows of a model on one text: where every head looks, and what is predicted without
it.

Heads are replaced by their mean vector over the text and its control. Each set of heads stands
beside random ones, none of them its own. A Mamba's layer counts as one head, its mixer, and looks
by its hidden attention.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_core.mamba.hidden_attention import mixer_calls, stream_attention
from interp_core.mamba.subject import MambaSubject
from interp_core.measures.ablation import Head as Place
from interp_core.measures.means import PlaceMeans
from interp_core.models.hooks import Edit, capture, intervene
from interp_core.models.sites import Site
from interp_core.models.subject import Subject, Transformer
from interp_core.progress import progress
from interp_core.statistics.heads import Head

TOP = 3  # predictions kept at each place
COPIES = 8  # of the text, each without other heads, in one forward pass


@dataclass(frozen=True)
class Predicted:
    """At every place but the last: loss of the next token (nats), and the likeliest tokens."""

    loss: Float[np.ndarray, "set position"]
    top: Int[np.ndarray, "set position rank"]
    probability: Float[np.ndarray, "set position rank"]


@torch.no_grad()
def attention(
    subject: Subject, rows: Int[np.ndarray, "row position"]
) -> Float[np.ndarray, "row layer head q k"]:
    """Every head's whole pattern, in [0, 1]: for texts short enough to be looked at."""
    if isinstance(subject, MambaSubject):
        return hidden_maps(subject, rows)[:, :, None]

    sites = [Site(layer, "attn.pattern") for layer in range(subject.n_layers)]

    with capture(subject, sites) as seen:
        subject.trunk(subject.ids(rows))

    return torch.stack([seen[site].float() for site in sites], dim=1).cpu().numpy()


@torch.no_grad()
def hidden_maps(
    mamba: MambaSubject, rows: Int[np.ndarray, "row position"]
) -> Float[np.ndarray, "row layer query key"]:
    """Hidden attention of every layer: mean over channels of |alpha|, rows as shares."""
    none = np.zeros(0, dtype=np.int64)
    found = [
        stream_attention(call, batch=none, query=none, key=none, group=none, groups=1).normalised
        for call in mixer_calls(mamba, mamba.ids(rows))
    ]
    return torch.stack(found, dim=1).float().cpu().numpy()


@dataclass(frozen=True)
class Watched:
    """One text as the whole model read it."""

    patterns: Float[np.ndarray, "layer head query key"]
    means: dict[int, Float[Tensor, "head d_head"]]  # over the text's places, by layer
    predicted: Predicted  # of the empty set alone


@torch.no_grad()
def watched(subject: Subject, ids: Int[np.ndarray, " position"]) -> Watched:
    """Patterns, mean vectors and predictions from one pass: somebody waits for them."""
    layers = range(subject.n_layers)
    written = [_site(subject, layer) for layer in layers]
    seen_in = (
        []
        if isinstance(subject, MambaSubject)
        else [Site(layer, "attn.pattern") for layer in layers]
    )

    with capture(subject, [*written, *seen_in]) as seen:
        found = predicted(subject, ids, [[]], {})

    if isinstance(subject, MambaSubject):
        (patterns,) = attention(subject, ids[None])
    else:
        patterns = torch.stack([seen[site][0].float() for site in seen_in]).cpu().numpy()

    return Watched(patterns, _over_places({site: seen[site] for site in written}), found)


def heads_each(subject: Subject) -> int:
    """Heads that can be taken away in each layer."""
    return subject.n_heads if isinstance(subject, Transformer) else 1


@torch.no_grad()
def mean_vectors(
    subject: Subject, rows: Int[np.ndarray, "row position"]
) -> dict[int, Float[Tensor, "head d_head"]]:
    """Each head's mean vector over all places of some texts of one length, by layer."""
    sites = [_site(subject, layer) for layer in range(subject.n_layers)]

    with capture(subject, sites) as seen:
        subject.trunk(subject.ids(rows))

    return _over_places(seen)


def _over_places(seen: Mapping[Site, Tensor]) -> dict[int, Float[Tensor, "head d_head"]]:
    """Means by layer; every place counts."""
    means: PlaceMeans[int] = PlaceMeans()
    vectors = {site.layer: _by_head(written) for site, written in seen.items()}
    shape = next(iter(vectors.values())).shape[:2]
    means.add(vectors, torch.ones(shape, dtype=torch.bool))
    return means.means()


@torch.no_grad()
def predicted(
    subject: Subject,
    ids: Int[np.ndarray, " position"],
    sets: Sequence[Sequence[Place]],
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
            if edits := _edits(subject, chosen, means):
                stack.enter_context(intervene(subject, edits))
            found.append(_read(subject.logits(rows)[:, :-1], rows[:, 1:]))

    parts = [[getattr(one, name) for one in found] for name in ("loss", "top", "probability")]
    return Predicted(*(np.concatenate(part) for part in parts))


def all_heads(subject: Subject) -> list[Head]:
    """What random heads are drawn from."""
    each = heads_each(subject)
    return [Head(layer, head) for layer in range(subject.n_layers) for head in range(each)]


def _site(subject: Subject, layer: int) -> Site:
    """Where a layer's heads write."""
    return Site(layer, "mixer_out" if isinstance(subject, MambaSubject) else "attn.z")


def _by_head(written: Tensor) -> Float[Tensor, "row position head d_head"]:
    """A mixer's output as that of its only head."""
    return written[:, :, None] if written.ndim == 3 else written


def _edits(
    subject: Subject, sets: Sequence[Sequence[Place]], means: dict[int, Tensor]
) -> dict[Site, Edit]:
    """One edit a layer: copy i of the text loses the heads of set i."""
    layers = sorted({layer for heads in sets for layer, _ in heads})
    return {_site(subject, layer): _edit(layer, sets, means[layer]) for layer in layers}


def _edit(layer: int, sets: Sequence[Sequence[Place]], mean: Tensor) -> Edit:
    def edit(written: Tensor) -> Tensor:
        edited = written.clone()
        by_head = _by_head(edited)  # the same memory

        for copy, heads in enumerate(sets):
            for of_layer, head in heads:
                if of_layer == layer:
                    by_head[copy, :, head] = mean[head].to(written.dtype)

        return edited

    return edit


def _read(
    logits: Float[Tensor, "set position vocab"], target: Int[Tensor, "set position"]
) -> Predicted:
    log_p = logits.float().log_softmax(dim=-1)
    loss = -log_p.gather(-1, target[..., None])[..., 0]
    top = log_p.topk(min(TOP, log_p.shape[-1]), dim=-1)

    return Predicted(loss.cpu().numpy(), top.indices.cpu().numpy(), top.values.exp().cpu().numpy())
