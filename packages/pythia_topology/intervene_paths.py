"""K-composition of earlier heads into later ones.

From weights as a z-score, confirmed by path patching.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp_core.measures.circuits import Composition, k_composition
from interp_core.measures.paths import Cut, without
from interp_core.models.hooks import capture
from interp_core.models.sites import Site
from interp_core.models.subject import AttentionRows, Transformer
from interp_core.progress import progress
from interp_core.statistics.heads import Head
from interp_core.statistics.interval import bootstrap
from interp_core.stimuli.prompts import Prompts
from pythia_topology.data import first_prompts
from pythia_topology.intervene_controls import Roles
from pythia_topology.params import PythiaTopology
from pythia_topology.streams import STREAMS

Pair = tuple[Head, Head]  # writer, reader


def composition(
    subject: Transformer,
    prompts: Prompts,
    roles: Roles,
    params: PythiaTopology,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The report and arrays of composition_<name>, z against random orientations."""
    generator = torch.Generator().manual_seed(params.seed)
    circuit = k_composition(
        subject,
        distances=params.composition_distances,
        draws=params.composition_draws,
        generator=generator,
    )
    return confirmed(subject, prompts, roles, params, circuit)


def confirmed(
    subject: Transformer,
    prompts: Prompts,
    roles: Roles,
    params: PythiaTopology,
    circuit: Composition,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Pairs that weights name, confirmed by path patching: report and arrays.

    For the best induction heads as readers, the writers with the highest z are path patched: the
    writer's output is replaced by its mean in the reader's KEY input only, and the reader's prefix
    matching is measured again. The control are as many random pairs of the same readers with
    writers that are no previous-token heads, of the same layers or the nearest.
    """
    arrays = {"score": circuit.score.astype(np.float32), "z": circuit.z.astype(np.float32)}
    top, control = _chosen_pairs(circuit, roles, params)

    used = first_prompts(prompts, params.causal_sequences)
    patched = path_patching(subject, used, [*top, *control], batch_size=params.batch_size)
    rng = STREAMS.rng("paths", params.seed)

    reports = [
        _pair_report(circuit, pair, change, rng, params)
        for pair, change in zip([*top, *control], patched.T, strict=True)
    ]
    later = circuit.z[_ordered(circuit.z.shape)]
    chosen, random = reports[: len(top)], reports[len(top) :]

    report = {
        "name": subject.name,
        "seed": params.seed,
        "n": len(used.tokens),
        "pairs": chosen,
        "random_pairs": random,
        "control": _control_words(control),
        "z_max": float(later.max()) if later.size else None,
        "share_above_2": share_above(circuit, 2.0),
        "verdict": _verdict(chosen, random, least=params.smallest_excess),
    }
    return report, arrays


@torch.no_grad()
def path_patching(
    subject: Transformer, prompts: Prompts, pairs: Sequence[Pair], *, batch_size: int
) -> Float[np.ndarray, "prompt pair"]:
    """Change of each reader's prefix matching (attention, in [-1, 1]) without one writer.

    The writer's output, less its mean over prompts and positions, is taken out of what the reader's
    keys are computed from, and out of nothing else.
    """
    subject.check_plain_writes()
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

        # Several writers have one reader: how it attends with all of them is found once.
        before = {
            reader: entries.attention(subject, ids, reader)
            for reader in dict.fromkeys(reader for _, reader in pairs)
        }
        changes = []

        for writer, reader in pairs:
            site = Site(writer[0], "attn.z")
            z = clean[site][:, :, writer[1]].float()

            # The mean stays: what every prompt and position gets alike says nothing of a token.
            written = (z - means[site][writer[1]]) @ subject.out_weights(writer[0])[writer[1]]
            after = entries.attention_with_keys(subject, ids, reader, written)
            changes.append(after - before[reader])

        parts.append(torch.stack(changes, dim=1).cpu().numpy())

    return np.concatenate(parts)


def _means(
    subject: Transformer, prompts: Prompts, sites: Sequence[Site], batch_size: int
) -> dict[Site, Float[Tensor, "head d_head"]]:
    """Mean of each head's vector over all prompts and positions, whatever the batches are."""
    n = len(prompts.tokens)
    means: dict[Site, Tensor] = {}

    for first in range(0, n, batch_size):
        ids = subject.ids(prompts.tokens[first : first + batch_size])
        with capture(subject, sites) as seen:
            subject.trunk(ids)

        for site, z in seen.items():
            # Batches may have other sizes: each weighs as many prompts as it has.
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

    def attention(
        self, subject: Transformer, ids: Tensor, reader: Head
    ) -> Float[Tensor, " prompt"]:
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
        subject: Transformer,
        ids: Tensor,
        reader: Head,
        written: Float[Tensor, "batch position d_model"],
    ) -> Float[Tensor, " prompt"]:
        """The same when the reader's keys come from a residual stream without `written`."""
        layer, head = reader
        cut = Cut(layer, "k", (head,), written)

        with without(subject, [cut], lambda: subject.trunk(ids)):
            return self.attention(subject, ids, reader)


def _chosen_pairs(
    circuit: Composition, roles: Roles, params: PythiaTopology
) -> tuple[list[Pair], list[Pair]]:
    """The pairs with the highest z into the best induction heads, and their control.

    Writers of control pairs are no previous-token heads, and come from the chosen writers' layers
    as far as those have others; there may be fewer of them.
    """
    n_heads = roles.excess.shape[1]
    readers = [head for head in roles.ranked if head.layer > 0][: max(1, params.causal_top_k)]

    scored = [
        (circuit.z[layer, head, reader.layer, reader.head], (Head(layer, head), reader))
        for reader in readers
        for layer in range(reader.layer)
        for head in range(n_heads)
    ]
    scored.sort(key=lambda item: (-item[0], item[1]))
    pairs = [pair for _, pair in scored]
    top, rest = pairs[: params.path_pairs], pairs[params.path_pairs :]

    layers = {writer.layer for writer, _ in top}
    idle = [pair for pair in rest if pair[0] not in roles.writers]

    def away(pair: Pair) -> int:
        return min(abs(pair[0].layer - layer) for layer in layers)

    rng = STREAMS.rng("control_pairs", params.seed)
    shuffled = [idle[i] for i in rng.permutation(len(idle))]
    return top, sorted(sorted(shuffled, key=away)[: len(top)])


def _control_words(control: Sequence[Pair]) -> str:
    """How many control pairs there are, and which layers' heads write in them."""
    if not control:
        return "no control pairs: every other writer is a previous-token head"

    layers = sorted({writer.layer for writer, _ in control})
    where = " and ".join(f"L{layer}" for layer in layers)
    return f"{len(control)} random pairs, writers from {where}, no previous-token heads"


def _pair_report(
    circuit: Composition,
    pair: Pair,
    change: Float[np.ndarray, " prompt"],
    rng: np.random.Generator,
    params: PythiaTopology,
) -> dict[str, Any]:
    writer, reader = pair
    mean = bootstrap(change, rng, resamples=params.bootstrap_resamples, unit="prompts")

    return {
        "writer": str(writer),
        "reader": str(reader),
        "score": float(circuit.score[(*writer, *reader)]),
        "z": float(circuit.z[(*writer, *reader)]),
        "path_patching": mean.to_json(),
    }


def share_above(circuit: Composition, z: float) -> float | None:
    """Share of the pairs in order whose z is larger; None for a model of one layer."""
    later = circuit.z[_ordered(circuit.z.shape)]
    return float((later > z).mean()) if later.size else None


def _ordered(shape: tuple[int, ...]) -> np.ndarray:
    """Entries whose writer lies in an earlier layer than its reader."""
    layers = np.arange(shape[0])
    return np.broadcast_to((layers[:, None] < layers)[:, None, :, None], shape)


def _verdict(
    top: Sequence[dict[str, Any]], random: Sequence[dict[str, Any]], *, least: float
) -> str:
    if not top:
        return "no pair of heads can compose: one layer"

    strongest = min(top, key=lambda pair: pair["path_patching"]["value"])
    patching = strongest["path_patching"]
    change = patching["value"]
    named = f"{strongest['writer']} -> {strongest['reader']} (z {strongest['z']:+.1f})"

    worst = min((pair["path_patching"]["value"] for pair in random), default=None)
    beside = "and no control pair is left" if worst is None else f"at random by {worst:+.2f}"

    if patching["high"] < 0 and change <= -least and (worst is None or change < worst):
        return (
            f"confirmed: without {named} in its keys the reader's prefix matching changes by "
            f"{change:+.2f}, {beside}"
        )

    return f"not confirmed: without {named} prefix matching changes by {change:+.2f}, {beside}"
