"""Single sequences, for looking at: what every position attends to, resembles and predicts, layer
by layer.
"""

import re

import numpy as np
import torch

from interp_core.models.hooks import capture
from interp_core.models.sites import Site
from interp_core.models.subject import Subject
from interp_core.stimuli.prompts import Prompts, repeated_tokens
from mamba_induction.data import Stimuli, vocabulary_of
from mamba_induction.model import effective_rows, normed
from mamba_induction.params import MambaInduction
from mamba_induction.streams import STREAMS

TOP = 5  # predictions that are kept at each position


def examples(
    subject: Subject, stimuli: Stimuli, params: MambaInduction
) -> list[tuple[str, Prompts, int]]:
    """Family, prompts and row of each sequence: repeated random tokens, then (where there is text)
    natural repeats.
    """
    rng = STREAMS.rng("examples", params.seed)
    random = repeated_tokens(
        vocabulary_of(subject), period=params.example_period, n_prompts=params.examples, rng=rng
    )
    chosen = [("repeated random tokens", random, row) for row in range(params.examples)]
    if stimuli.natural is not None:
        n = min(params.examples, len(stimuli.natural.tokens))
        chosen += [("real text", stimuli.natural, row) for row in range(n)]
    return chosen


def sequence_arrays(
    subject: Subject, stimuli: Stimuli, params: MambaInduction
) -> dict[str, np.ndarray]:
    """Arrays `<i>/<name>` of each example i.

    family, words [position]; tokens; query, earlier, target of its copy operations; attention
    [layer, query, key] (rows of effective attention, summing to 1); similarity [layer, position,
    position] (cosines of the residual stream); norm [depth, position] of the residual stream; and
    of the next token at each depth: log_rank, probability [depth, position]; entropy [depth,
    position]; top_ids, top_words, top_probability [position, TOP] of the output.
    """
    found: dict[str, np.ndarray] = {}
    for index, (family, prompts, row) in enumerate(examples(subject, stimuli, params)):
        mine = prompts.pairs.batch == row
        tokens = prompts.tokens[row, : prompts.lengths[row]]
        arrays = {
            "family": np.array(family),
            "tokens": tokens,
            "words": _words(subject, tokens),
            "query": prompts.pairs.query[mine],
            "earlier": prompts.pairs.earlier[mine],
            "target": prompts.pairs.target[mine],
            **_of_sequence(subject, tokens),
        }
        found |= {f"{index}/{name}": values for name, values in arrays.items()}
    return found


@torch.no_grad()
def _of_sequence(subject: Subject, tokens: np.ndarray) -> dict[str, np.ndarray]:
    ids = subject.ids(tokens[None])
    length, layers = ids.shape[1], range(subject.n_layers)
    sites = [Site(0, "resid_pre"), *(Site(layer, "resid_post") for layer in layers)]
    with capture(subject, sites) as seen:
        every = torch.arange(length, device=ids.device)
        rows = effective_rows(subject, ids, torch.zeros_like(every), every)
    tiny = torch.finfo(torch.float32).tiny  # a row of zeros has no shares
    attention = torch.stack(
        [rows[layer] / rows[layer].sum(dim=1, keepdim=True).clamp_min(tiny) for layer in layers]
    )
    stream = torch.stack([seen[site][0] for site in sites]).float()
    unit = torch.nn.functional.normalize(stream[1:], dim=-1)
    logits = subject.unembed(
        normed(subject, torch.stack([seen[site][0] for site in sites]))
    ).double()[:, :-1]
    logp, target = logits.log_softmax(dim=-1), ids[0, 1:]
    at_target = target.expand(len(sites), -1)[..., None]
    rank = 1 + (logits > logits.gather(2, at_target)).sum(dim=-1)
    top = logp[-1].topk(TOP, dim=-1)
    found = {
        "attention": attention.float(),
        "similarity": torch.einsum("lid,ljd->lij", unit, unit),
        "norm": stream.norm(dim=-1),
        "log_rank": rank.double().log().float(),
        "probability": logp.gather(2, at_target)[..., 0].exp().float(),
        "entropy": -(logp.exp() * logp).sum(dim=-1).float(),
        "top_ids": top.indices,
        "top_probability": top.values.exp().float(),
    }
    arrays = {name: tensor.cpu().numpy() for name, tensor in found.items()}
    return arrays | {"top_words": _words(subject, arrays["top_ids"])}


def _words(subject: Subject, ids: np.ndarray) -> np.ndarray:
    """Each id as text (spaces visible), or its number where the model has no tokenizer."""
    tokenizer = subject.tokenizer
    decoded = [
        str(i) if tokenizer is None else str(tokenizer.decode([int(i)])) for i in ids.ravel()
    ]
    words = [
        re.sub("␣{3,}", lambda run: f"␣x{len(run[0])}", repr(word)[1:-1].replace(" ", "␣"))
        for word in decoded
    ]
    return np.array(words).reshape(ids.shape)
