"""K-composition of earlier heads into later ones: from weights as a z-score, confirmed by path
patching.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp_core.measures.ablation import Head
from interp_core.measures.circuits import Composition, k_composition
from interp_core.models.hooks import capture, intervene
from interp_core.models.sites import Site
from interp_core.models.subject import AttentionRows, Subject
from interp_core.progress import progress
from interp_core.statistics.resampling import mean_interval
from interp_core.stimuli.prompts import Prompts
from pythia_topology.intervene import first_prompts, head_name, rank_heads
from pythia_topology.params import PythiaTopology

Pair = tuple[Head, Head]  # writer, reader


def composition(
    subject: Subject,
    prompts: Prompts,
    excess: Float[np.ndarray, "layer head"],
    params: PythiaTopology,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The report and arrays of composition_<name>.

    For the best induction heads as readers, the writers with the highest z are path patched: the
    writer's output is replaced by its mean in the reader's KEY input only, and the reader's prefix
    matching is measured again. As many random writers of the same layers, for the same readers, are
    the control.
    """
    generator = torch.Generator().manual_seed(params.seed)
    circuit = k_composition(
        subject,
        distances=params.composition_distances,
        draws=params.composition_draws,
        generator=generator,
    )
    arrays = {"score": circuit.score.astype(np.float32), "z": circuit.z.astype(np.float32)}
    top, control = _chosen_pairs(circuit, excess, params)
    used = first_prompts(prompts, params.causal_sequences)
    patched = path_patching(subject, used, [*top, *control], batch_size=params.batch_size)
    rng = np.random.default_rng([params.seed, 7])
    reports = [
        _pair_report(circuit, pair, change, rng, params)
        for pair, change in zip([*top, *control], patched.T, strict=True)
    ]
    later = circuit.z[_ordered(circuit.z.shape)]
    report = {
        "name": subject.name,
        "seed": params.seed,
        "n": len(used.tokens),
        "pairs": reports[: len(top)],
        "random_pairs": reports[len(top) :],
        "z_max": float(later.max()) if later.size else None,
        "share_above_2": float((later > 2).mean()) if later.size else None,
        "verdict": _verdict(reports[: len(top)], reports[len(top) :], least=params.smallest_excess),
    }
    return report, arrays


@torch.no_grad()
def path_patching(
    subject: Subject, prompts: Prompts, pairs: Sequence[Pair], *, batch_size: int
) -> Float[np.ndarray, "prompt pair"]:
    """Change of each reader's prefix matching (attention, in [-1, 1]) when the writer's output,
    less its mean over prompts and positions, is taken out of what the reader's keys are computed
    from, and out of nothing else.
    """
    if not pairs:
        return np.empty((len(prompts.tokens), 0))
    sites = [Site(layer, "attn.z") for layer in sorted({writer[0] for writer, _ in pairs})]
    means = _means(subject, prompts, sites, batch_size)
    parts = []
    for first in progress(
        list(range(0, len(prompts.tokens), batch_size)),
        f"{subject.name}: path patching",
        unit="batch",
    ):
        ids = subject.ids(prompts.tokens[first : first + batch_size])
        rows = np.flatnonzero(
            (prompts.pairs.batch >= first) & (prompts.pairs.batch < first + len(ids))
        )
        entries = _Entries.of(prompts, rows, first, ids)
        with capture(subject, sites) as clean:
            subject.trunk(ids)
        changes = []
        for writer, reader in pairs:
            site = Site(writer[0], "attn.z")
            z = clean[site][:, :, writer[1]].float()
            written = (z - means[site][writer[1]]) @ subject.out_weights(writer[0])[writer[1]]
            before = entries.attention(subject, ids, reader)
            after = entries.attention_with_keys(subject, ids, reader, written)
            changes.append(after - before)
        parts.append(torch.stack(changes, dim=1).cpu().numpy())
    return np.concatenate(parts)


def _means(
    subject: Subject, prompts: Prompts, sites: Sequence[Site], batch_size: int
) -> dict[Site, Float[Tensor, "head d_head"]]:
    """Mean of each head's vector over all prompts and positions, whatever the batches are."""
    n = len(prompts.tokens)
    means: dict[Site, Tensor] = {}
    for first in range(0, n, batch_size):
        ids = subject.ids(prompts.tokens[first : first + batch_size])
        with capture(subject, sites) as seen:
            subject.trunk(ids)
        for site, z in seen.items():
            means[site] = means.get(site, 0) + z.float().mean(dim=(0, 1)) * (len(ids) / n)
    return means


class _Entries:
    """The induction entries of one batch of prompts."""

    def __init__(self, where: Tensor, query: Tensor, key: Tensor, n_prompts: int) -> None:
        self.where, self.query, self.key, self.n_prompts = where, query, key, n_prompts

    @classmethod
    def of(cls, prompts: Prompts, rows: np.ndarray, first: int, ids: Tensor) -> "_Entries":
        pairs = prompts.pairs
        columns = (pairs.batch[rows] - first, pairs.query[rows], pairs.induction_key[rows])
        return cls(
            *(torch.as_tensor(column, device=ids.device) for column in columns), n_prompts=len(ids)
        )

    def attention(self, subject: Subject, ids: Tensor, reader: Head) -> Float[Tensor, " prompt"]:
        """Mean prefix matching of one head by prompt; interventions in force apply."""
        found: list[Tensor] = []

        def observe(layer: int, rows: AttentionRows) -> None:
            found.append(
                rows.entries(self.where, self.query, self.key[None])[0, :, reader[1]].double()
            )

        with subject.observing(observe, [reader[0]]):
            subject.trunk(ids)
        sums = torch.zeros(self.n_prompts, dtype=torch.float64, device=ids.device).index_add(
            0, self.where, found[0]
        )
        return sums / torch.bincount(self.where, minlength=self.n_prompts)

    def attention_with_keys(
        self,
        subject: Subject,
        ids: Tensor,
        reader: Head,
        written: Float[Tensor, "batch position d_model"],
    ) -> Float[Tensor, " prompt"]:
        """The same when the reader's keys come from a residual stream without `written`."""
        layer, head = reader
        site = Site(layer, "attn.rot_k")
        without = {Site(layer, "resid_pre"): lambda residual: residual - written.to(residual.dtype)}
        with intervene(subject, without), capture(subject, [site]) as patched:
            subject.trunk(ids)
        keys = patched[site]
        own = head // (subject.n_heads // keys.shape[2])

        def only_own(key: Tensor) -> Tensor:
            edited = key.clone()
            edited[:, :, own] = keys[:, :, own]
            return edited

        with intervene(subject, {site: only_own}):
            return self.attention(subject, ids, reader)


def _chosen_pairs(
    circuit: Composition, excess: Float[np.ndarray, "layer head"], params: PythiaTopology
) -> tuple[list[Pair], list[Pair]]:
    """The pairs with the highest z into the best induction heads, and as many other writers of the
    same layers.
    """
    readers = [head for head in rank_heads(excess) if head[0] > 0][: max(1, params.causal_top_k)]
    scored = [
        (circuit.z[layer, head, reader[0], reader[1]], ((layer, head), reader))
        for reader in readers
        for layer in range(reader[0])
        for head in range(excess.shape[1])
    ]
    scored.sort(key=lambda item: (-item[0], item[1]))
    pairs = [pair for _, pair in scored]
    top = pairs[: params.path_pairs]
    rest = pairs[params.path_pairs :]
    rng = np.random.default_rng([params.seed, 8])
    chosen = rng.permutation(len(rest))[: len(top)]
    return top, [rest[i] for i in sorted(chosen)]


def _pair_report(
    circuit: Composition,
    pair: Pair,
    change: Float[np.ndarray, " prompt"],
    rng: np.random.Generator,
    params: PythiaTopology,
) -> dict[str, Any]:
    writer, reader = pair
    interval = mean_interval(change, rng, resamples=params.bootstrap_resamples)
    return {
        "writer": head_name(writer),
        "reader": head_name(reader),
        "score": float(circuit.score[(*writer, *reader)]),
        "z": float(circuit.z[(*writer, *reader)]),
        "path_patching": {
            "change": float(interval.value),
            "ci": [float(interval.low), float(interval.high)],
            "n": len(change),
        },
    }


def _ordered(shape: tuple[int, ...]) -> np.ndarray:
    """Entries whose writer lies in an earlier layer than its reader."""
    layers = np.arange(shape[0])
    return np.broadcast_to((layers[:, None] < layers)[:, None, :, None], shape)


def _verdict(
    top: Sequence[dict[str, Any]], random: Sequence[dict[str, Any]], *, least: float
) -> str:
    if not top:
        return "no pair of heads can compose: one layer"
    strongest = min(top, key=lambda pair: pair["path_patching"]["change"])
    change, ci = strongest["path_patching"]["change"], strongest["path_patching"]["ci"]
    worst_random = min((pair["path_patching"]["change"] for pair in random), default=0.0)
    named = f"{strongest['writer']} -> {strongest['reader']} (z {strongest['z']:+.1f})"
    if ci[1] < 0 and change < worst_random and change <= -least:
        return (
            f"confirmed: without {named} in its keys the reader's prefix matching changes by "
            f"{change:+.2f}"
        )
    return (
        f"not confirmed: without {named} prefix matching changes by {change:+.2f}, at random by "
        f"{worst_random:+.2f}"
    )
