"""The gap between recognising a repeat and predicting its continuation: by layer, by rival, and by
path.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_core.mamba.hidden_attention import Call, attention_entries, observing_mixers
from interp_core.mamba.subject import MambaSubject
from interp_core.measures.scores import CopyBatch, copy_batches
from interp_core.models.hooks import capture
from interp_core.models.sites import Site
from interp_core.models.subject import Subject
from interp_core.statistics.interval import mean_share
from interp_core.statistics.resampling import resampled_means
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
from mamba_induction.streams import STREAMS

# of a mixer: alpha_ii x_i, the sum of alpha_ij x_j over j < i, D x_i
PATHS = ("convolution", "scan", "skip")
CONDITIONS = ("second", "first", "control")  # occurrences of the token; nothing to copy


@dataclass(frozen=True)
class Lens:
    """What the residual stream says of a target at each depth (0: embedding, l + 1: after layer l),
    read through the final norm and the unembedding: the full softmax over the vocabulary.
    """

    log_rank: Float[np.ndarray, "pair depth"]  # ln of 1 + number of ids above the target
    probability: Float[np.ndarray, "pair depth"]
    entropy: Float[np.ndarray, "pair depth"]  # nats
    top5: Float[np.ndarray, "pair depth"]  # 1 where the target, by id, is among the five first
    # of the model's own output: the target's and the bigram competitor's
    logits: Float[np.ndarray, "pair two"]


def at_condition(prompts: Prompts, condition: str) -> Prompts:
    """The prompts with their copy operations asked at the second occurrence, at the first, or in
    the control: the same targets each time.
    """
    pairs = prompts.pairs
    tokens = prompts.control if condition == "control" else prompts.tokens

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
        logp = logits.log_softmax(dim=2)

        at_target = batch.target[:, None, None].expand(-1, logits.shape[1], 1)
        rank = 1 + (logits > logits.gather(2, at_target)).sum(dim=2)

        other = torch.as_tensor(rival[batch.rows], device=logits.device)
        both = torch.stack([batch.target, other], dim=1)

        parts.append(
            [
                rank.double().log(),
                logp.gather(2, at_target)[..., 0].exp(),
                -(logp.exp() * logp).sum(dim=2),
                (rank <= 5).double(),
                logits[:, -1].gather(1, both),
            ]
        )

    columns = zip(*parts, strict=True)
    return Lens(*(torch.cat(column).double().cpu().numpy() for column in columns))


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
    transformer, the final norm's bias), then by layer and path.

    In a Mamba the paths are PATHS, exact because y = alpha x + D x.
    """
    unembedding = subject.unembedding()
    unembedding = unembedding - unembedding.mean(dim=1, keepdim=True)
    names, found = [], []

    for batch in copy_batches(subject, prompts.tokens, prompts.pairs, params.prompts_at_once):
        with subject.final_scale() as scales:
            written = _written(subject, batch)

        logits = subject.unembed(batch.at_queries(subject.trunk(batch.ids))).double()
        total = logits.gather(1, batch.target[:, None])[:, 0] - logits.mean(dim=1)

        # The final norm divides by one number a position: with it fixed, the logit is linear.
        scale = scales[0][batch.where, batch.query][:, None]
        direction = unembedding.T[batch.target] / scale

        each = [(vector * direction).sum(dim=1).double() for vector in written.values()]
        parts = torch.stack(each, dim=1)
        rest = total - parts.sum(dim=1)

        found.append(torch.cat([rest[:, None], parts], dim=1).cpu().numpy())
        names = ["embedding", *written]

    return names, np.concatenate(found)


def _written(subject: Subject, batch: CopyBatch) -> dict[str, Float[Tensor, "pair d_model"]]:
    """What each layer and path writes at the queries; runs the model once."""
    if not isinstance(subject, MambaSubject):
        sites = {
            f"L{layer} {kind}": at
            for layer in range(subject.n_layers)
            for kind, at in write_sites(subject, layer).items()
        }
        with capture(subject, sites.values()) as seen:
            subject.trunk(batch.ids)
        return {name: batch.at_queries(seen[site]).float() for name, site in sites.items()}

    found: dict[str, Tensor] = {}

    def split(layer: int, call: Call) -> None:
        x, gate = call.x[batch.where, batch.query], call.gate[batch.where, batch.query]

        own = gate * x * attention_entries(call, batch.where, batch.query, batch.query)
        skip = gate * x * call.D
        scan = batch.at_queries(call.gated_y) - own - skip

        out: Any = subject.mixer(layer).out_proj.weight
        for path, inner in zip(PATHS, (own, scan, skip), strict=True):
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
    # share that is recognised while another token is ranked first
    not_predicted: Float[np.ndarray, " prompt"]
    predicted: Float[np.ndarray, " prompt"]  # share that is ranked first, recognised or not


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

    shares = (prompt_means(values, prompts) for values in (recognised, missed, predicted))
    return Recognition(layer, threshold, *shares)


def beside_independence(found: Recognition, params: MambaInduction) -> dict[str, Any]:
    """Recognised but not predicted, beside the same if recognising told nothing of predicting.

    `independent`: the product of the two rates. `above_independence`: the share less that product;
    below zero where what is recognised is predicted more often than the rest. Both conditional
    rates of prediction, without a value where nothing, or everything, is recognised.
    """
    by_prompt = np.stack([found.recognised, found.not_predicted, found.predicted], axis=1)
    rng = STREAMS.rng("independence", params.seed)
    draws = resampled_means(by_prompt, rng, resamples=params.bootstrap_resamples)

    value, drawn = _rates(by_prompt.mean(axis=0)[None]), _rates(draws)
    described = {}

    for name, at in value.items():
        entry: dict[str, Any] = {"value": None, "low": None, "high": None}

        # Without a repeat of the one kind there is no rate among them, in the data or in a draw.
        if np.isfinite(at[0]):
            low, high = np.nanquantile(drawn[name], [0.025, 0.975])
            entry = {"value": float(at[0]), "low": float(low), "high": float(high)}

        described[name] = entry | {"n": len(by_prompt), "unit": "prompts"}

    return described


def _rates(means: Float[np.ndarray, "draw three"]) -> dict[str, Float[np.ndarray, " draw"]]:
    recognised, missed, predicted = means.T
    independent = recognised * (1 - predicted)

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)

    return {
        "independent": independent,
        "above_independence": missed - independent,
        "predicted_if_recognised": share(recognised - missed, recognised),
        "predicted_if_not": share(predicted - (recognised - missed), 1 - recognised),
    }


def recognition_by_attention(
    subject: Subject, asked: Prompts, params: MambaInduction
) -> dict[str, Any]:
    """Recognition by prefix matching, as gap_of_family has it, alone: three rates and what
    independence of them gives.
    """
    found = lens(subject, asked, asked.pairs.target, params)

    score, control = (
        prefix_matching(offset_shares(subject, asked, params, control=control))
        for control in (False, True)
    )
    at = recognition(score, control, _first(found), asked, quantile=params.recognised_quantile)

    shares = {
        "recognised": at.recognised,
        "not_predicted": at.not_predicted,
        "predicted": at.predicted,
    }
    described = {
        name: mean_share(values, unit="prompts").to_json() for name, values in shares.items()
    }
    return {"layer": at.layer} | described | beside_independence(at, params)


def _first(found: Lens) -> Float[np.ndarray, " pair"]:
    """1 where the model's own output ranks the target first."""
    return (found.log_rank[:, -1] == 0).astype(np.float64)


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
            margin = found.logits[:, 0] - found.logits[:, 1]
            arrays[f"{name}/margin"] = prompt_means(margin, asked)

    names: list[str] = []
    for name in ("second", "control"):
        names, parts = decomposition(subject, at_condition(asked, name), params)
        arrays[f"{name}/parts"] = prompt_means(parts, asked)

    described: dict[str, Any] = {"parts": names, "recognition": {}}

    for kind, (score, control) in _scores(subject, asked, params).items():
        found = recognition(
            score, control, _first(lenses["second"]), asked, quantile=params.recognised_quantile
        )
        arrays[f"recognised/{kind}"] = found.recognised
        arrays[f"not_predicted/{kind}"] = found.not_predicted
        arrays["predicted"] = found.predicted

        at = {"layer": found.layer, "threshold": found.threshold}
        described["recognition"][kind] = at | beside_independence(found, params)

    return arrays, described


def _scores(
    subject: Subject, asked: Prompts, params: MambaInduction
) -> dict[str, list[Float[np.ndarray, "pair layer"]]]:
    """What may recognise a repeat: at the repeats, and at the same places of the control."""
    return {
        "attention": [
            prefix_matching(offset_shares(subject, asked, params, control=control))
            for control in (False, True)
        ],
        "hidden_similarity": [
            pair_similarity(subject, asked, params, control=control) for control in (False, True)
        ],
    }
