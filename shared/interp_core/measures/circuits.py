"""Circuits from weights alone: copying by OV eigenvalues, and composition of heads against random
orientation.

Symbols are those of Elhage et al. 2021, A Mathematical Framework for Transformer Circuits. Norm
gains are folded in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp_core.models.subject import HeadWeights


@runtime_checkable
class CircuitWeights(Protocol):
    """What circuits are read from: a models.Subject, or any module that answers the same.

    See Subject for each.
    """

    @property
    def n_layers(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def d_head(self) -> int: ...

    def head_weights(self, layer: int) -> HeadWeights: ...
    def rotated(self, weights: Float[Tensor, "head d_model d_head"], distance: int) -> Tensor: ...
    def embedding(self) -> Float[Tensor, "vocab d_model"]: ...
    def unembedding(self) -> Float[Tensor, "d_model vocab"]: ...


@runtime_checkable
class ValueWeights(Protocol):
    """What also tells values by themselves: queries and keys may be read through a norm."""

    def value_weights(self, layer: int) -> Float[Tensor, "head d_model d_head"]: ...
    def out_weights(self, layer: int) -> Float[Tensor, "head d_head d_model"]: ...


def _values_and_out(subject: CircuitWeights, layer: int) -> tuple[Tensor, Tensor]:
    """W_V and W_O of a layer."""
    if isinstance(subject, ValueWeights):
        return subject.value_weights(layer), subject.out_weights(layer)
    weights = subject.head_weights(layer)
    return weights.W_V, weights.W_O


@torch.no_grad()
def copying_eigenvalues(subject: CircuitWeights) -> Float[np.ndarray, "layer head"]:
    """Sum of the eigenvalues of W_E W_OV W_U over the sum of their magnitudes, in [-1, 1]: 1 is a
    pure copier.

    The eigenvalues of that [vocab, vocab] matrix are those of the [d_head, d_head] one W_O (W_U
    W_E) W_V.
    """
    there_and_back = subject.unembedding().double() @ subject.embedding().double()
    scores = []
    for layer in range(subject.n_layers):
        W_V, W_O = _values_and_out(subject, layer)
        core = torch.einsum("hed,dc,hcf->hef", W_O.double(), there_and_back, W_V.double())
        scores.append(_positivity(core))
    return np.stack(scores)


@torch.no_grad()
def matching_eigenvalues(
    subject: CircuitWeights, *, distances: Sequence[int]
) -> Float[np.ndarray, "layer head"]:
    """The same of the QK circuit W_E W_Q R W_K^T W_E^T, mean over rotary distances.

    1 is a head that matches a token with itself so many tokens back, -1 one that looks away from
    it. At distance 0 nothing is turned, and what matches is the query's own position. Eigenvalues
    are those of W_K^T (W_E^T W_E) W_Q R; they are complex, for the circuit is not symmetric.
    """
    tokens = subject.embedding().double()
    overlap = tokens.T @ tokens
    scores = []

    for layer in range(subject.n_layers):
        weights = subject.head_weights(layer)
        by_distance = []

        for distance in distances:
            queries = subject.rotated(weights.W_Q, distance).double()
            core = torch.einsum("hde,dc,hcf->hef", weights.W_K.double(), overlap, queries)
            by_distance.append(_positivity(core))

        scores.append(np.mean(by_distance, axis=0))

    return np.stack(scores)


def _positivity(cores: Float[Tensor, "head d_head d_head"]) -> Float[np.ndarray, " head"]:
    """Sum of eigenvalues over sum of their magnitudes."""
    # NumPy's LAPACK: torch's fails to converge on the nearly nilpotent matrices of hand-built
    # heads.
    eigenvalues = np.linalg.eigvals(cores.cpu().numpy())
    total = np.abs(eigenvalues).sum(axis=-1)
    return eigenvalues.real.sum(axis=-1) / np.maximum(total, np.finfo(np.float64).tiny)


def vocabulary_covariance(
    unembedding: Float[Tensor, "d_model vocab"],
) -> Float[Tensor, "d_model d_model"]:
    """Covariance over the vocabulary of an unembedding that is centred over it: r C r is the
    variance of r's logits.
    """
    return unembedding @ unembedding.T / unembedding.shape[1]


@dataclass(frozen=True)
class Composition:
    """How strongly each head's output feeds a later head's keys; entries from a layer not before
    the reader's are 0.
    """

    score: Float[np.ndarray, "writer_layer writer reader_layer reader"]  # in [0, 1]
    z: Float[
        np.ndarray, "writer_layer writer reader_layer reader"
    ]  # against random orientations, or other heads' directions: standard deviations


@torch.no_grad()
def k_composition(
    subject: CircuitWeights, *, distances: Sequence[int], draws: int, generator: torch.Generator
) -> Composition:
    """K-composition |W_OV W_K R W_Q^T| / (|W_OV| |W_K R W_Q^T|), Frobenius norms, mean over rotary
    distances.

    `distances` are how many tokens the reader looks back (ignored by models without rotary
    positions). z compares with writers whose output directions are drawn at random with the same
    singular values, `draws` times.
    """
    writers = [_writer(subject, layer) for layer in range(subject.n_layers)]
    readers = [_reader(subject, layer, distances) for layer in range(subject.n_layers)]
    singular = torch.stack([values for values, _ in writers])
    shape = (subject.n_layers, subject.n_heads, subject.n_layers, subject.n_heads)
    score = torch.zeros(shape, dtype=torch.float64)
    for layer, reader in enumerate(readers):
        for before in range(layer):
            values, directions = writers[before]
            inner = torch.einsum("wed,rdf->wref", directions, reader.keys)
            score[before, :, layer] = _strength(values, _rows(inner, reader), reader)
    random = torch.zeros(draws, *shape, dtype=torch.float64)
    for draw in range(draws):
        gaussian = torch.randn(
            subject.d_model, subject.d_head, dtype=torch.float64, generator=generator
        )
        orthonormal = torch.linalg.qr(gaussian).Q.to(singular.device).T
        for layer, reader in enumerate(readers[1:], start=1):
            inner = torch.einsum("ed,rdf->ref", orthonormal, reader.keys)

            # The same directions serve writers of every earlier layer: only singular values differ.
            rows = _rows(inner[None], reader)
            strength = _strength(singular[:layer].flatten(0, 1), rows, reader)
            random[draw, :layer, :, layer] = strength.unflatten(0, (layer, subject.n_heads))

    spread = random.std(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    below = (torch.arange(subject.n_layers)[:, None] < torch.arange(subject.n_layers))[
        :, None, :, None
    ]
    z = torch.where(below, (score - random.mean(dim=0)) / spread, 0.0)
    return Composition(score=score.numpy(), z=z.numpy())


_LEAST_SPREAD = 1e-6  # of scores in [0, 1]: heads that differ by rounding alone give no scale


@torch.no_grad()
def k_composition_among_heads(subject: CircuitWeights, *, distances: Sequence[int]) -> Composition:
    """The score of k_composition, with z against the output directions of the other earlier heads.

    Heads of a trained model write into few directions and read from the same: nearly all of them
    compose more than directions at random, and a z against those says little of a pair. Here a
    writer keeps its singular values and takes the directions of every other head before the
    reader, strongest to strongest. z is 0 where fewer than two such heads are.
    """
    writers = [_writer(subject, layer) for layer in range(subject.n_layers)]
    shape = (subject.n_layers, subject.n_heads, subject.n_layers, subject.n_heads)
    score, z = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))

    for layer in range(1, subject.n_layers):
        reader = _reader(subject, layer, distances)
        values = torch.cat([values for values, _ in writers[:layer]])
        rows = torch.cat(
            [
                _rows(torch.einsum("wed,rdf->wref", directions, reader.keys), reader)
                for _, directions in writers[:layer]
            ],
            dim=1,
        )  # [distance, writer, reader, d_head]

        strength = torch.stack(
            [_strength(values, rows[:, [other]], reader) for other in range(len(values))]
        )  # [directions' head, writer, reader]
        own = strength.diagonal(dim1=0, dim2=1).T
        score[:layer, :, layer] = own.unflatten(0, (layer, subject.n_heads))

        if (others := len(values) - 1) < 2:
            continue
        mean = (strength.sum(dim=0) - own) / others
        from_mean = (strength - mean).pow(2).sum(dim=0) - (own - mean).pow(2)
        spread = (from_mean.clamp_min(0) / (others - 1)).sqrt().clamp_min(_LEAST_SPREAD)
        z[:layer, :, layer] = ((own - mean) / spread).unflatten(0, (layer, subject.n_heads))

    return Composition(score=score.numpy(), z=z.numpy())


@dataclass(frozen=True)
class _Reader:
    keys: Float[Tensor, "reader d_model d_head"]
    queries: Float[
        Tensor, "distance reader d_head d_head"
    ]  # R of the QR factorisation: same norms as W_Q
    norms: Float[Tensor, "distance reader"]  # |W_K R W_Q^T|


def _writer(
    subject: CircuitWeights, layer: int
) -> tuple[Float[Tensor, "writer d_head"], Float[Tensor, "writer d_head d_model"]]:
    """Singular values of W_OV and its output directions."""
    weights = subject.head_weights(layer)
    right = torch.linalg.qr(weights.W_O.double().transpose(-1, -2))
    left = torch.linalg.qr(weights.W_V.double()).R
    _, values, rows = torch.linalg.svd(left @ right.R.transpose(-1, -2))
    return values, rows @ right.Q.transpose(-1, -2)


def _reader(subject: CircuitWeights, layer: int, distances: Sequence[int]) -> _Reader:
    weights = subject.head_weights(layer)
    keys = weights.W_K.double()
    queries = torch.stack(
        [torch.linalg.qr(subject.rotated(weights.W_Q, d).double()).R for d in distances]
    )
    key_factor = torch.linalg.qr(keys).R
    norms = torch.einsum("rif,nrjf->nrij", key_factor, queries).flatten(-2).norm(dim=-1)
    return _Reader(keys, queries, norms)


def _rows(
    inner: Float[Tensor, "writer reader d_head d_head"], reader: _Reader
) -> Float[Tensor, "distance writer reader d_head"]:
    """Squared norms of the rows of inner W_Q^T, for each distance."""
    return torch.einsum("wref,nrjf->nwrej", inner, reader.queries).pow(2).sum(dim=-1)


def _strength(
    values: Float[Tensor, "writer d_head"],
    rows: Float[Tensor, "distance #writer reader d_head"],
    reader: _Reader,
) -> Float[Tensor, "writer reader"]:
    """Mean over distances of |S inner W_Q^T| / (|S| |W_K W_Q^T|), S singular values of a writer."""
    total = torch.einsum("we,nwre->nwr", values.pow(2), rows.expand(-1, len(values), -1, -1)).sqrt()
    tiny = torch.finfo(torch.float64).tiny
    whole = (values.norm(dim=-1)[:, None] * reader.norms[:, None]).clamp_min(tiny)
    return (total / whole).mean(dim=0).cpu()
