"""Composition of heads from weights: what earlier heads write against what a self-attention head
reads.

|W_OV W_read| / (|W_OV| |W_read|) as in Elhage et al. 2021, Frobenius norms, rotary turns averaged;
z against writers of the same singular values whose outputs point in random directions. The raw
score of random matrices is about 1 / sqrt(d_model), not zero. Induction is K-composition.
"""

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cursive_circuits.measure_circuits import folded
from cursive_circuits.model import CursiveTransformer, Head, Kind
from cursive_circuits.model_blocks import turned
from interp_core.measures.circuits import k_composition
from interp_core.measures.paths import Reads
from interp_core.models.subject import HeadWeights

Report = dict[str, Any]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Seat:
    """A model as the core's k_composition reads it, with another matrix in the keys' seat: queries,
    keys or values of self-attention are what is read, self- or cross-attention is what writes.
    """

    model: CursiveTransformer
    writer: Kind
    reads: Reads

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.model.n_layers

    @property
    def n_heads(self) -> int:
        """Heads a layer."""
        return self.model.n_heads

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.model.d_model

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return self.model.d_head

    def head_weights(self, layer: int) -> HeadWeights:
        """W_K is what reads the writer, W_Q what multiplies it from the other side."""
        query, key, value = (part[:, :-1] for part in folded(self.model, layer, "self"))
        out = self.model.out_weights(layer, "self").detach()
        read, other = {"k": (key, query), "q": (query, key), "v": (value, out.transpose(1, 2))}[
            self.reads
        ]
        _, _, written = folded(self.model, layer, self.writer)
        return HeadWeights(
            other, read, written[:, :-1], self.model.out_weights(layer, self.writer).detach()
        )

    def rotated(self, weights: Float[Tensor, "head d_model d_head"], distance: int) -> Tensor:
        """The other side turned as positions turn it; values are not turned."""
        if self.model.shape.positions == "learned" or self.reads == "v":
            return weights
        sign = 1 if self.reads == "k" else -1
        angles = (sign * distance * self.model.frequencies()).to(weights.dtype)
        return turned(weights, angles.cos(), angles.sin())

    def embedding(self) -> Float[Tensor, "vocab d_model"]:
        """W_E."""
        return self.model.embed.weight.detach()

    def unembedding(self) -> Float[Tensor, "d_model vocab"]:
        """W_U with the final norm's gain folded in."""
        return (self.model.unembed.weight * self.model.norm.weight).T.detach()


def get_composition_score(W_A: Float[Tensor, "a b"], W_B: Float[Tensor, "b c"]) -> float:
    """|W_A W_B| / (|W_A| |W_B|), Frobenius norms, in [0, 1]; of random d x d matrices about 1 /
    sqrt(d).
    """
    return float(torch.linalg.norm(W_A @ W_B) / (torch.linalg.norm(W_A) * torch.linalg.norm(W_B)))


def compositions(
    model: CursiveTransformer, *, distances: tuple[int, ...], draws: int, seed: int
) -> tuple[Arrays, Report]:
    """All pairs.

    Arrays `<writer>_<reads>_z` and `_score` [writer layer, writer, reader layer, reader]; pairs
    whose writer does not come before the reader are 0. Report: the ten strongest pairs of each kind
    by z.
    """
    arrays: Arrays = {}
    report: Report = {"baseline": model.d_model**-0.5}
    for writer in get_args(Kind):
        for reads in get_args(Reads):
            generator = torch.Generator().manual_seed(seed)
            found = k_composition(
                Seat(model, writer, reads), distances=distances, draws=draws, generator=generator
            )
            arrays |= {f"{writer}_{reads}_z": found.z, f"{writer}_{reads}_score": found.score}
            report[f"{writer}_{reads}"] = _strongest(found.z, found.score, writer)
    return arrays, report


def _strongest(z: np.ndarray, score: np.ndarray, writer: Kind, n: int = 10) -> list[Report]:
    # Only pairs whose writer comes first: a real pair below zero is behind no zero of the others.
    a, _, c, _ = np.indices(z.shape)
    before = np.where(a < c, z, -np.inf)
    order = np.argsort(-before, axis=None, kind="stable")[: min(n, int((a < c).sum()))]

    pairs = []
    for flat in order:
        place = tuple(int(i) for i in np.unravel_index(flat, z.shape))
        layer, head, reader_layer, reader = place
        names = {
            "writer": str(Head(layer, writer, head)),
            "reader": str(Head(reader_layer, "self", reader)),
        }
        pairs.append(names | {"z": float(z[place]), "score": float(score[place])})

    return pairs
