"""Where each layer reads from when a token comes again, what it writes then, and how alike its
states are.

Effective attention E_l[i, j] is model.effective_rows, the same quantity for a Mamba and for a
transformer. Everything is asked at copy operations (stimuli.Pairs): query i, earlier occurrence of
its token s; offset d is the key s + d.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_core.mamba.hidden_attention import (
    Call,
    attention_entries,
    observing_mixers,
    stream_attention,
)
from interp_core.mamba.subject import MambaSubject
from interp_core.measures.scores import CopyBatch, copy_batches, score_heads
from interp_core.models.hooks import capture
from interp_core.models.sites import Site
from interp_core.models.subject import AttentionRows, Subject, as_transformer
from interp_core.stimuli.prompts import Prompts
from mamba_induction.data import sampled
from mamba_induction.model import attended_vectors, effective_rows
from mamba_induction.params import OFFSETS, PREFIX, MambaInduction

_PREFIX = [OFFSETS.index(offset) for offset in PREFIX]


def offset_profiles(
    subject: Subject, prompts: Prompts, params: MambaInduction, *, control: bool = False
) -> Float[np.ndarray, "prompt layer offset"]:
    """prof_l(d) = mean over queries of E_l[i, s + d] / sum_j E_l[i, j], in [0, 1], by prompt, for d
    in OFFSETS.

    control=True asks the same positions of the control prompts, where nothing came before.
    """
    asked = sampled(prompts, params)
    shares = offset_shares(subject, asked, params, control=control)
    return prompt_means(shares, asked)


def prefix_matching(profile: Float[np.ndarray, "*unit offset"]) -> Float[np.ndarray, "*unit"]:
    """Share of effective attention on the keys that may carry the token after the earlier
    occurrence: offsets 1 to 3, because the convolution of four taps may move it so far. In [0, 1].
    """
    return profile[..., _PREFIX].sum(axis=-1)


def offset_shares(
    subject: Subject, prompts: Prompts, params: MambaInduction, *, control: bool = False
) -> Float[np.ndarray, "pair layer offset"]:
    """The offset profile of every copy operation, each of which must have room for all offsets
    (data.sampled).
    """
    offsets = torch.tensor(OFFSETS, device=subject.device)
    tiny = torch.finfo(torch.float32).tiny  # a row of zeros has no shares
    shares = []

    for batch in _batches(subject, prompts, params, control):
        keys = batch.key[:, None] - 1 + offsets  # [pair, offset]
        rows = effective_rows(subject, batch.ids, batch.where, batch.query)
        of_layer = []

        for layer in sorted(rows):
            whole = rows[layer].sum(1, keepdim=True).clamp_min(tiny)
            of_layer.append(rows[layer].gather(1, keys) / whole)

        shares.append(torch.stack(of_layer, dim=1).double().cpu().numpy())

    return np.concatenate(shares)


@torch.no_grad()
def copying_shares(
    subject: Subject, prompts: Prompts, params: MambaInduction
) -> tuple[Float[np.ndarray, "pair layer"], Float[np.ndarray, "pair layer"]]:
    """Of all logits that the keys s + 1 to s + 3 raise above the mean through a layer's direct
    path, the share that goes to the token after the earlier occurrence, in [0, 1]; and the share of
    another pair's token, which is chance.

    As the copying score of Olsson et al. 2022, with effective attention in the place of a head's.
    """
    unembedding = subject.unembedding()
    unembedding = unembedding - unembedding.mean(dim=1, keepdim=True)
    tiny = torch.finfo(torch.float32).tiny  # a layer that raises nothing has no share
    own, others = [], []

    for batch in _batches(subject, prompts, params, control=False):
        written = _written_by_prefix(subject, batch)
        raised = [(written[layer] @ unembedding).clamp_min(0) for layer in range(subject.n_layers)]
        total = torch.stack([logits.sum(dim=1) for logits in raised], dim=1).clamp_min(tiny)

        # Another pair's target is what a random token would get.
        for found, token in ((own, batch.target), (others, batch.target.roll(1))):
            at = torch.stack([logits.gather(1, token[:, None])[:, 0] for logits in raised], dim=1)
            found.append((at / total).double().cpu().numpy())

    return np.concatenate(own), np.concatenate(others)


@torch.no_grad()
def unit_prefix_matching(
    subject: MambaSubject, prompts: Prompts, params: MambaInduction
) -> Float[np.ndarray, "layer unit"]:
    """Share of |alpha| on offsets 1 to 3 by channel, or by head in a Mamba-2, averaged over the
    copy operations, in [0, 1].
    """
    sums: Any = np.zeros((subject.n_layers, subject.n_scans))

    for batch in _batches(subject, prompts, params, control=False):
        where, query = (
            np.tile(index.cpu().numpy(), len(PREFIX)) for index in (batch.where, batch.query)
        )
        key = np.concatenate([batch.key.cpu().numpy() - 1 + offset for offset in PREFIX])

        def add(
            layer: int, call: Call, wanted: tuple[np.ndarray, ...] = (where, query, key)
        ) -> None:
            places = dict(zip(("batch", "query", "key"), wanted, strict=True))
            streamed = stream_attention(call, **places, group=np.zeros_like(wanted[0]), groups=1)
            sums[layer] += streamed.shares.sum(dim=(0, 1)).double().cpu().numpy()

        with observing_mixers(subject, add):
            subject.trunk(batch.ids)

    return sums / len(prompts.pairs)


def head_prefix_matching(
    subject: Subject, prompts: Prompts, params: MambaInduction
) -> Float[np.ndarray, "layer head"]:
    """A transformer's attention to s + 1 by head, averaged over the copy operations, in [0, 1]."""
    keys = {"prefix_matching": prompts.pairs.induction_key}
    found = score_heads(
        subject, prompts.tokens, prompts.pairs, keys, batch_size=params.prompts_at_once
    )
    return found.heads["prefix_matching"].mean(axis=0, dtype=np.float64)


def hidden_similarity(
    subject: Subject, prompts: Prompts, params: MambaInduction, *, control: bool = False
) -> Float[np.ndarray, "prompt layer"]:
    """pair_similarity by prompt.

    Alone it is near 1 in early layers of any model, trained or not: both positions hold the same
    token. control=True compares the same positions where the earlier token is another one.
    """
    return prompt_means(pair_similarity(subject, prompts, params, control=control), prompts)


@torch.no_grad()
def pair_similarity(
    subject: Subject, prompts: Prompts, params: MambaInduction, *, control: bool = False
) -> Float[np.ndarray, "pair layer"]:
    """Cosine of h_l at a repeated token with h_l at its earlier occurrence (the largest, where it
    is the only one), in [-1, 1]; h_l is the residual stream after layer l.
    """
    sites = [Site(layer, "resid_post") for layer in range(subject.n_layers)]
    found = []

    for batch in _batches(subject, prompts, params, control):
        with capture(subject, sites) as seen:
            subject.trunk(batch.ids)

        cosines = [
            torch.cosine_similarity(
                seen[site][batch.where, batch.query].double(),
                seen[site][batch.where, batch.key - 1].double(),
                dim=-1,
            )
            for site in sites
        ]
        found.append(torch.stack(cosines, dim=1).cpu().numpy())

    return np.concatenate(found)


def prompt_means(
    values: Float[np.ndarray, "pair *unit"], prompts: Prompts
) -> Float[np.ndarray, "prompt *unit"]:
    """Means over each prompt's copy operations."""
    sums = np.zeros((len(prompts.tokens), *values.shape[1:]))
    np.add.at(sums, prompts.pairs.batch, values)
    counts = np.bincount(prompts.pairs.batch, minlength=len(sums))
    return sums / counts.reshape(-1, *[1] * (values.ndim - 1))


def _batches(
    subject: Subject, prompts: Prompts, params: MambaInduction, control: bool
) -> Iterator[CopyBatch]:
    tokens = prompts.control if control else prompts.tokens
    return copy_batches(subject, tokens, prompts.pairs, params.prompts_at_once)


def _written_by_prefix(
    subject: Subject, batch: CopyBatch
) -> dict[int, Float[Tensor, "pair d_model"]]:
    """What the keys s + 1 to s + 3 together write into the residual stream at the query."""
    keys: Int[Tensor, "key pair"] = torch.stack([batch.key - 1 + offset for offset in PREFIX])
    found: dict[int, Tensor] = {}
    if isinstance(subject, MambaSubject):

        def of_mixer(layer: int, call: Call) -> None:
            inner = torch.zeros_like(call.x[batch.where, batch.query])
            for key in keys:
                inner += (
                    attention_entries(call, batch.where, batch.query, key)
                    * call.x[batch.where, key]
                )
            out: Any = subject.mixer(layer).out_proj.weight
            found[layer] = (inner * call.gate[batch.where, batch.query]).float() @ out.float().T

        with observing_mixers(subject, of_mixer):
            subject.trunk(batch.ids)
        return found

    heads = as_transformer(subject)

    def of_attention(layer: int, rows: AttentionRows) -> None:
        found[layer] = attended_vectors(heads, layer, rows, batch.where, batch.query, keys).sum(
            dim=1
        )

    with heads.observing(of_attention):
        subject.trunk(batch.ids)
    return found
