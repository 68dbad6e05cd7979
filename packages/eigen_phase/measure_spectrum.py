"""Spectra of symmetric operators from products alone: extreme eigenpairs, density, trace; where
eigenvectors live.

Lanczos with full reorthogonalisation, twice where once is not enough: in it a Ritz pair's residual
|Hv - lambda v| is the last coupling times the last entry of its coordinates (Parlett 1980), so that
stopping on true residuals costs no product.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import eigh_tridiagonal
from torch import Tensor, nn

from eigen_phase.measure_curvature import Operator
from interp_core.errors import InputError
from interp_core.statistics.heads import Head

# an eigenvalue below this share of the spectral norm need not be known more finely than the share
SMALL = 0.01


@dataclass(frozen=True)
class Eigenpairs:
    """The k eigenvalues largest by magnitude, in that order, then the most negative one, even if it
    is among them.
    """

    values: Float[Tensor, " pair"]
    vectors: Float[
        Tensor, "pair parameter"
    ]  # unit length; orthogonal but for a most negative one named twice
    residuals: Float[Tensor, " pair"]  # |Hv - lambda v| / |lambda|
    products: int
    converged: bool  # every residual within the tolerance
    # Whether equal eigenvalues are here as often as they are there. If not, each may stand here
    # once for several: one Krylov space holds one direction of an eigenspace.
    multiplicity_known: bool


@torch.no_grad()
def eigenpairs(
    operator: Operator,
    *,
    k: int,
    tolerance: float,
    max_products: int,
    generator: torch.Generator,
    start: Float[Tensor, "some parameter"] | None = None,
    most_negative: bool = True,
    repeated: bool = True,
) -> Eigenpairs:
    """Both ends of the spectrum to a relative residual, signs kept; or, for operators that are
    never negative, the k largest by magnitude alone.

    Stops when |Hv - lambda v| <= tolerance |lambda| for all wanted pairs (for small ones never
    finer than SMALL times the spectral norm asks), or after max_products; then `converged` is False
    and the residuals say how far it came. `start`: vectors whose sum begins the search, such as the
    eigenvectors of an evaluation before. `repeated`: search the complement of what was found too,
    so that equal eigenvalues come as often as they are there; a third more products as a rule, as
    many again where there are some. Memory: one basis of as many vectors as products. InputError
    for more eigenvalues than parameters.
    """
    if not 1 <= k <= operator.size:
        raise InputError(f"asked for {k} eigenvalues, but there are {operator.size} parameters")

    before = operator.products
    krylov = _Krylov(operator, min(max_products, operator.size), generator, start)
    found = _search(krylov, k, tolerance, most_negative=most_negative)

    # A basis of the whole space holds every eigenvector.
    known = krylov.steps == operator.size
    while repeated and found.converged and not known:
        found, known = _with_complement(
            operator, found, k, tolerance, most=max_products - found.products, generator=generator
        )
        if found.products >= max_products:
            break

    return replace(found, products=operator.products - before, multiplicity_known=known)


def _search(
    krylov: "_Krylov",
    k: int,
    tolerance: float,
    *,
    most_negative: bool,
    above: float | None = None,
    floor: float = 0.0,
) -> Eigenpairs:
    """The wanted pairs of one Krylov space.

    With `above`: the largest by magnitude, and up to k of those beyond that magnitude. No residual
    is asked for below `floor`.
    """
    while True:
        krylov.extend()
        early = krylov.steps < min(k + 1 if above is None else 2, krylov.size)

        # Every second step: a look costs an eigenproblem of the tridiagonal matrix.
        if early or (krylov.steps % 2 and krylov.room):
            continue

        values, coordinates = krylov.ritz()
        order = np.argsort(-np.abs(values), kind="stable")
        count = k if above is None else max(1, int((np.abs(values) > above).sum()))
        wanted = order[: min(k, count)]
        if most_negative:
            wanted = np.append(wanted, values.argmin())

        residuals = krylov.coupling * np.abs(coordinates[-1, wanted])
        bound = tolerance * np.abs(values[wanted])
        bound = np.maximum(bound, max(floor, tolerance * SMALL * float(np.abs(values).max())))
        settled = krylov.settled(k + 1 if above is None else len(wanted) + 1)
        converged = settled and bool((residuals <= bound).all())
        if converged or not krylov.room:
            break

    tiny = np.finfo(np.float64).tiny
    basis = krylov.basis[: krylov.steps]
    vectors = torch.from_numpy(coordinates[:, wanted].T).to(basis) @ basis
    return Eigenpairs(
        values=torch.from_numpy(values[wanted]),
        vectors=vectors / vectors.norm(dim=1, keepdim=True),
        residuals=torch.from_numpy(residuals / np.maximum(np.abs(values[wanted]), tiny)),
        products=krylov.steps,
        converged=converged or krylov.steps == krylov.size,
        multiplicity_known=False,
    )


def _with_complement(
    operator: Operator,
    found: Eigenpairs,
    k: int,
    tolerance: float,
    *,
    most: int,
    generator: torch.Generator,
) -> tuple[Eigenpairs, bool]:
    """The pairs with what the complement of the k largest has that is larger than the last of them.

    True when it has nothing more: then multiplicities are known.
    """
    top = found.vectors[:k]
    free = operator.size - k
    if free == 0 or most < 1:
        return found, free == 0

    def outside(vector: Tensor) -> Tensor:
        vector = vector - (top @ vector) @ top
        image = operator(vector)
        return image - (top @ image) @ top

    # An equal one does not displace the last: which direction of its eigenspace is kept is free.
    last = float(found.values[k - 1].abs())
    largest = float(found.values[:k].abs().max())
    floor = tolerance * SMALL * largest
    above = last + max(tolerance * last, floor)

    deflated = Operator(outside, found.vectors[0])
    krylov = _Krylov(deflated, min(most, free), generator, without=top)
    more = _search(krylov, k, tolerance, most_negative=False, above=above, floor=floor)
    products = found.products + more.products
    displaces = more.values.abs() > above

    if not more.converged or not displaces.any():
        return replace(found, products=products), more.converged

    values = torch.cat([found.values[:k], more.values[displaces]])
    vectors = torch.cat([top, more.vectors[displaces]])
    residuals = torch.cat([found.residuals[:k], more.residuals[displaces]])
    order = values.abs().argsort(descending=True, stable=True)[:k]

    merged = Eigenpairs(
        values=torch.cat([values[order], found.values[k:]]),
        vectors=torch.cat([vectors[order], found.vectors[k:]]),
        residuals=torch.cat([residuals[order], found.residuals[k:]]),
        products=products,
        converged=True,
        multiplicity_known=False,
    )
    return merged, False


def largest_eigenvalue(
    operator: Operator, *, tolerance: float, max_products: int, generator: torch.Generator
) -> float:
    """The largest eigenvalue with its sign, not the largest by magnitude.

    Its error is of the order of the squared residual, so that a coarse tolerance is enough.
    """
    like = torch.empty(operator.size, dtype=operator.dtype, device=operator.device)
    turned = Operator(lambda vector: -operator(vector), like)
    found = eigenpairs(
        turned,
        k=1,
        tolerance=tolerance,
        max_products=max_products,
        generator=generator,
        repeated=False,
    )
    return -float(found.values[-1])


class _Krylov:
    """An orthonormal basis in which the operator is tridiagonal, one vector longer at a time."""

    def __init__(
        self,
        operator: Operator,
        most: int,
        generator: torch.Generator,
        start: Tensor | None = None,
        *,
        without: Float[Tensor, "some parameter"] | None = None,
    ) -> None:
        self._operator, self._generator = operator, generator
        self._without = without  # directions that are left out, orthonormal
        self.size = operator.size - (0 if without is None else len(without))
        self.basis = torch.empty(
            most + 1, operator.size, dtype=operator.dtype, device=operator.device
        )
        self._diagonal: list[float] = []
        self._couplings: list[float] = []
        self._last_break = 0
        self.basis[0] = (
            self._random() if start is None else self._unit(start.sum(dim=0), with_random=1e-3)
        )

    @property
    def steps(self) -> int:
        return len(self._diagonal)

    @property
    def room(self) -> bool:
        """Whether another vector fits."""
        return self.steps < len(self.basis) - 1

    @property
    def coupling(self) -> float:
        """What ties the basis to the vector after it; zero when the basis is invariant."""
        return self._couplings[-1]

    def settled(self, needed: int) -> bool:
        """Whether the complement of an invariant subspace was searched: repeated eigenvalues show
        only there.
        """
        return self._last_break == 0 or self.steps - self._last_break >= needed or not self.room

    def extend(self) -> None:
        """One product."""
        new = self._operator(self.basis[self.steps])
        known = self.basis[: self.steps + 1]

        self._diagonal.append(float(new @ known[-1]))
        new = new - self._diagonal[-1] * known[-1]
        if len(known) > 1:
            new = new - self._couplings[-1] * known[-2]

        coupling = float(new.norm())
        for _ in range(2):
            before, new = coupling, new - (known @ new) @ known
            coupling = float(new.norm())
            if coupling > 0.7 * before:  # nothing was lost to cancellation (Daniel et al. 1976)
                break

        scale = max(map(abs, (*self._diagonal, *self._couplings)), default=0.0)
        # What rounding leaves of an invariant basis grows with every small coupling that was
        # divided by before.
        growth = scale / min(filter(None, self._couplings), default=scale) if scale else 1.0
        if coupling <= 100 * torch.finfo(new.dtype).eps * scale * growth * self.steps**0.5:
            coupling, self._last_break = 0.0, self.steps
            new = self._random()
            for _ in range(2):
                new = new - (known @ new) @ known

        self._couplings.append(coupling)
        if self.steps < self.size:
            self.basis[self.steps] = new / new.norm()

    def ritz(self) -> tuple[Float[np.ndarray, " ritz"], Float[np.ndarray, "step ritz"]]:
        """Eigenvalues of the tridiagonal matrix, ascending, and their coordinates in the basis."""
        values, coordinates = eigh_tridiagonal(
            np.array(self._diagonal), np.array(self._couplings[:-1])
        )
        return np.asarray(values), np.asarray(coordinates)

    def _random(self) -> Tensor:
        vector = torch.randn(self._operator.size, generator=self._generator, dtype=torch.float64)

        if self._without is not None:
            left_out = self._without.double().cpu()
            for _ in range(2):
                vector = vector - (left_out @ vector) @ left_out

        return (vector / vector.norm()).to(self.basis)

    def _unit(self, vector: Tensor, *, with_random: float) -> Tensor:
        """Never quite orthogonal to anything."""
        mixed = vector.to(self.basis) / vector.norm() + with_random * self._random()
        return mixed / mixed.norm()


@dataclass(frozen=True)
class Density:
    """A spectrum as point masses: weights of total mass one at Ritz values."""

    nodes: Float[np.ndarray, " node"]
    weights: Float[np.ndarray, " node"]

    def on_grid(
        self, grid: Float[np.ndarray, " point"], *, width: float
    ) -> Float[np.ndarray, " point"]:
        """Density per unit of eigenvalue, each mass a Gaussian of standard deviation `width`."""
        bells = np.exp(-0.5 * ((grid[:, None] - self.nodes) / width) ** 2)
        return bells @ self.weights / (width * np.sqrt(2 * np.pi))


@torch.no_grad()
def density(operator: Operator, *, probes: int, steps: int, generator: torch.Generator) -> Density:
    """Stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017; Ghorbani et al. 2019): `probes`
    random starts, `steps` products each. Moments up to 2 steps - 1 are unbiased estimates of
    trace(H^j) / p.
    """
    nodes, weights = [], []

    for _ in range(probes):
        krylov = _Krylov(operator, min(steps, operator.size), generator)
        while krylov.room and (krylov.steps == 0 or krylov.coupling > 0):
            krylov.extend()

        # A Ritz value weighs what the start vector has of it.
        values, coordinates = krylov.ritz()
        nodes.append(values)
        weights.append(coordinates[0] ** 2 / probes)
    return Density(np.concatenate(nodes), np.concatenate(weights))


@dataclass(frozen=True)
class Trace:
    """An unbiased estimate and its standard error."""

    value: float
    error: float


@torch.no_grad()
def trace(operator: Operator, *, products: int, generator: torch.Generator) -> Trace:
    """Hutch++ (Meyer et al. 2021): a third of the products finds a subspace, a third takes its
    trace exactly, a third estimates the rest with random signs. Exact, with error zero, for ranks
    up to a third of the products.
    """
    third = min(max(1, products // 3), operator.size)
    kind = {"dtype": operator.dtype, "device": operator.device}

    def signs() -> Tensor:
        return (torch.randint(2, (third, operator.size), generator=generator) * 2 - 1).to(**kind)

    # The subspace in which most of the trace lies, and then only what is left by chance.
    found = torch.linalg.qr(torch.stack([operator(row) for row in signs()], dim=1)).Q
    inside = math.fsum(float(column @ operator(column)) for column in found.T)

    outside = signs()
    outside = outside - (outside @ found) @ found.T
    samples = np.array([float(row @ operator(row)) for row in outside])
    error = samples.std(ddof=1) / np.sqrt(third) if third > 1 else float("nan")
    return Trace(inside + float(samples.mean()), float(error))


def mass_by_block(
    model: nn.Module, vectors: Float[Tensor, "k parameter"], *, n_heads: int
) -> tuple[list[str], Float[np.ndarray, "k block"]]:
    """Share of each vector's squared length in each block of parameters; the shares of a vector sum
    to one.

    Blocks: embed, unembed, norms, and per layer `L0H1 QK`, `L0H1 OV`, `L0 MLP`. Names as in
    model.Transformer.
    """
    squares = vectors.double().square().cpu().numpy()
    squares = squares / squares.sum(axis=1, keepdims=True)
    shares: dict[str, np.ndarray] = {}
    start = 0
    for name, parameter in model.named_parameters():
        part = squares[:, start : start + parameter.numel()].reshape(len(squares), *parameter.shape)
        start += parameter.numel()
        for block, mass in _blocks_of(name, part, n_heads):
            shares[block] = shares.get(block, np.zeros(len(squares))) + mass
    return list(shares), np.stack(list(shares.values()), axis=1)


def _blocks_of(
    name: str, part: Float[np.ndarray, "k ..."], n_heads: int
) -> Sequence[tuple[str, Float[np.ndarray, " k"]]]:
    words = name.split(".")
    if "attention" in words:
        layer, kind = int(words[1]), words[3]
        parts = np.split(part, n_heads, axis=2 if kind == "o" else 1)
        circuit = "QK" if kind in ("q", "k") else "OV"
        heads = [f"{Head(layer, number)} {circuit}" for number in range(n_heads)]
        return [(head, share.sum(axis=(1, 2))) for head, share in zip(heads, parts, strict=True)]

    total = part.reshape(len(part), -1).sum(axis=1)
    if "norm" in words:
        return [("norms", total)]
    return [(f"L{words[1]} MLP" if "mlp" in words else words[0], total)]
