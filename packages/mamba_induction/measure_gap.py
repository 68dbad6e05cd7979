"""The gap between recognising a repeat and predicting its continuation: by layer, by rival, and by
path.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_core.mamba.hidden_attention import MixerCall, attention_entries, observing_mixers
from interp_core.mamba.subject import MambaSubject
from interp_core.measures.scores import CopyBatch, copy_batches
from interp_core.models.hooks import capture
from interp_core.models.sites import Site
from interp_core.models.subject import Subject
from interp_core.stimuli.prompts import Pairs, Prompts
from mamba_induction.data import Bigrams, sampled
from mamba_induction.measure_attention import (
    offset_shares,
    pair_similarity,
    prefix_matching,
    prompt_means,
)
from mamba_induction.model import normed, write_sites
from mamba_induction.params import MambaInduction

PATHS = (
    "convolution",
    "scan",
    "skip",
)  # of a mixer: alpha_ii x_i, the sum of alpha_ij x_j over j < i, D x_i
CONDITIONS = ("second", "first", "control")  # second occurrence, first occurrence, nothing to copy


@dataclass(frozen=True)
class Lens:
    """What the residual stream says of a target at each depth (0: embedding, l + 1: after layer l),
    read through the final norm and the unembedding: the full softmax over the vocabulary.
    """

    log_rank: Float[np.ndarray, "pair depth"]  # ln of 1 + number of ids above the target
    probability: Float[np.ndarray, "pair depth"]
    entropy: Float[np.ndarray, "pair depth"]  # nats
    top5: Float[np.ndarray, "pair depth"]  # 1 where the target, by id, is among the five first
    logits: Float[
        np.ndarray, "pair two"
    ]  # of the model's own output: the target's and the bigram competitor's


def at_condition(prompts: Prompts, condition: str) -> Prompts:
    """The prompts with their copy operations asked at the second occurrence, at the first, or in
    the control: the same targets each time.
    """
    pairs, tokens = prompts.pairs, prompts.control if condition == "control" else prompts.tokens
    if condition == "first":
        pairs = Pairs(pairs.batch, pairs.earlier, pairs.earlier, pairs.target)
    return Prompts(prompts.family, tokens, prompts.control, pairs, prompts.lengths)


@torch.no_grad()
def lens(
    subject: Subject, prompts: Prompts, rival: Int[np.ndarray, " pair"], params: MambaInduction
) -> Lens:
    """The logit lens at every copy operation's query."""
    parts: list[list[Tensor]] = []
    for batch in copy_batches(subject, prompts.tokens, prompts.pairs, params.prompts_at_once):
        logits = lens_logits(subject, batch)
        target = logits.gather(2, batch.target[:, None, None].expand(-1, logits.shape[1], 1))
        rank = 1 + (logits > target).sum(dim=2)
        logp = logits.log_softmax(dim=2)
        other = torch.as_tensor(rival[batch.rows], device=logits.device)
        parts.append(
            [
                rank.double().log(),
                logp.gather(2, batch.target[:, None, None].expand(-1, logits.shape[1], 1))[
                    ..., 0
                ].exp(),
                -(logp.exp() * logp).sum(dim=2),
                (rank <= 5).double(),
                logits[:, -1].gather(1, torch.stack([batch.target, other], dim=1)),
            ]
        )
    return Lens(*(torch.cat(column).double().cpu().numpy() for column in zip(*parts, strict=True)))


def lens_logits(subject: Subject, batch: CopyBatch) -> Float[Tensor, "pair depth vocab"]:
    """Logits at the queries, read at each depth."""
    sites = [
        Site(0, "resid_pre"),
        *(Site(layer, "resid_post") for layer in range(subject.n_layers)),
    ]
    with capture(subject, sites) as seen:
        subject.trunk(batch.ids)
    stream = torch.stack([batch.at_queries(seen[site]) for site in sites], dim=1)
    return subject.unembed(normed(subject, stream)).float()


@torch.no_grad()
def decomposition(
    subject: Subject, prompts: Prompts, params: MambaInduction
) -> tuple[list[str], Float[np.ndarray, "pair part"]]:
    """The final logit of each target above the mean logit, nats, as a sum: embedding (and, in a
    transformer, the final norm's bias), then by layer and path. In a Mamba the paths are PATHS,
    exact because y = alpha x + D x.
    """
    unembedding = subject.unembedding()
    unembedding = unembedding - unembedding.mean(dim=1, keepdim=True)
    names, found = [], []
    for batch in copy_batches(subject, prompts.tokens, prompts.pairs, params.prompts_at_once):
        with subject.final_scale() as scales:
            written = _written(subject, batch)
        logits = subject.unembed(batch.at_queries(subject.trunk(batch.ids))).double()
        total = logits.gather(1, batch.target[:, None])[:, 0] - logits.mean(dim=1)
        direction = unembedding.T[batch.target] / scales[0][batch.where, batch.query][:, None]
        parts = torch.stack(
            [(vector * direction).sum(dim=1).double() for vector in written.values()], dim=1
        )
        found.append(torch.cat([(total - parts.sum(dim=1))[:, None], parts], dim=1).cpu().numpy())
        names = ["embedding", *written]
    return names, np.concatenate(found)


def _written(subject: Subject, batch: CopyBatch) -> dict[str, Float[Tensor, "pair d_model"]]:
    """What each layer and path writes into the residual stream at the queries; runs the model once."""
    if not isinstance(subject, MambaSubject):
        layers = range(subject.n_layers)
        sites = {
            f"L{layer} {kind}": at
            for layer in layers
            for kind, at in write_sites(subject, layer).items()
        }
        with capture(subject, sites.values()) as seen:
            subject.trunk(batch.ids)
        return {name: batch.at_queries(seen[site]).float() for name, site in sites.items()}
    found: dict[str, Tensor] = {}

    def split(layer: int, call: MixerCall) -> None:
        x, gate = call.x[batch.where, batch.query], call.gate[batch.where, batch.query]
        own = gate * x * attention_entries(call, batch.where, batch.query, batch.query)
        skip = gate * x * call.D
        out: Any = subject.mixer(layer).out_proj.weight
        for path, inner in zip(
            PATHS, (own, batch.at_queries(call.gated_y) - own - skip, skip), strict=True
        ):
            found[f"L{layer} {path}"] = inner.float() @ out.float().T

    with observing_mixers(subject, split):
        subject.trunk(batch.ids)
    return found


@dataclass(frozen=True)
class Recognition:
    """Which copy operations a score recognises, and which of these are not predicted."""

    layer: int  # where the score stands out most over its control
    threshold: float  # the quantile of the control's scores above which a repeat is recognised
    recognised: Float[np.ndarray, " prompt"]  # share of copy operations
    not_predicted: Float[
        np.ndarray, " prompt"
    ]  # share that is recognised while another token is ranked first


def recognition(
    score: Float[np.ndarray, "pair layer"],
    control: Float[np.ndarray, "pair layer"],
    predicted: Float[np.ndarray, " pair"],
    prompts: Prompts,
    *,
    quantile: float,
) -> Recognition:
    """Recognised is what exceeds this quantile of the control's scores in the layer of the largest
    mean excess.
    """
    layer = int(np.argmax((score - control).mean(axis=0)))
    threshold = float(np.quantile(control[:, layer], quantile))
    recognised = (score[:, layer] > threshold).astype(np.float64)
    missed = recognised * (1 - predicted)
    return Recognition(
        layer, threshold, prompt_means(recognised, prompts), prompt_means(missed, prompts)
    )


def gap_of_family(
    subject: Subject, prompts: Prompts, bigrams: Bigrams | None, params: MambaInduction
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Per-prompt arrays of one family, and what has no prompts: names of the parts, thresholds of
    recognition.
    """
    asked = sampled(prompts, params)
    pairs = asked.pairs
    token = asked.tokens[pairs.batch, pairs.query]
    rival = pairs.target if bigrams is None else bigrams.competitor(token, pairs.target)
    lenses = {name: lens(subject, at_condition(asked, name), rival, params) for name in CONDITIONS}
    arrays: dict[str, np.ndarray] = {}
    for name, found in lenses.items():
        for kind in ("log_rank", "probability", "entropy", "top5"):
            arrays[f"{name}/{kind}"] = prompt_means(getattr(found, kind), asked)
        if bigrams is not None:
            arrays[f"{name}/margin"] = prompt_means(found.logits[:, 0] - found.logits[:, 1], asked)
    names: list[str] = []
    for name in ("second", "control"):
        names, parts = decomposition(subject, at_condition(asked, name), params)
        arrays[f"{name}/parts"] = prompt_means(parts, asked)
    predicted = (lenses["second"].log_rank[:, -1] == 0).astype(np.float64)
    scores = {
        "attention": [
            prefix_matching(offset_shares(subject, asked, params, control=control))
            for control in (False, True)
        ],
        "hidden_similarity": [
            pair_similarity(subject, asked, params, control=control) for control in (False, True)
        ],
    }
    described: dict[str, Any] = {"parts": names, "recognition": {}}
    for kind, (score, control) in scores.items():
        found = recognition(score, control, predicted, asked, quantile=params.recognised_quantile)
        arrays[f"recognised/{kind}"], arrays[f"not_predicted/{kind}"] = (
            found.recognised,
            found.not_predicted,
        )
        described["recognition"][kind] = {"layer": found.layer, "threshold": found.threshold}
    return arrays, described
