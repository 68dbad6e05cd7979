"""Eigenpairs, densities and traces against dense linear algebra."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from eigen_phase.measure_curvature import Operator, next_token_hessian
from eigen_phase.measure_spectrum import (
    Eigenpairs,
    density,
    eigenpairs,
    largest_eigenvalue,
    mass_by_block,
    trace,
)
from eigen_phase.model import Transformer
from interp_core.errors import InputError
from tiny_transformer import Products, dense, some_batch, tiny

DOUBLE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def symmetric(values: Tensor, seed: int = 5) -> tuple[Operator, Tensor]:
    """An operator with these eigenvalues and random eigenvectors (columns)."""
    basis = torch.linalg.qr(
        torch.randn(len(values), len(values), dtype=DOUBLE, generator=generator(seed))
    ).Q
    matrix = basis @ torch.diag(values.double()) @ basis.T
    return Operator(lambda v: matrix @ v, values.double()), basis


def find(operator: Operator, k: int, tolerance: float = 1e-6, **more: object) -> Eigenpairs:
    settings = {"max_products": operator.size, "generator": generator()} | more
    return eigenpairs(operator, k=k, tolerance=tolerance, **settings)  # pyright: ignore[reportArgumentType]


def true_residuals(operator: Operator, pairs: Eigenpairs) -> Tensor:
    applied = torch.stack([operator(v) for v in pairs.vectors])
    return (applied - pairs.values[:, None].to(applied) * pairs.vectors).norm(
        dim=1
    ) / pairs.values.abs()


def test_all_eigenvalues_of_a_tiny_network_with_both_signs() -> None:
    model, batch = tiny(), some_batch()
    with model.explicit_attention():
        operator = next_token_hessian(model, *batch, micro_batch=6)
        expected = torch.linalg.eigvalsh(dense(operator))
        found = find(operator, operator.size, 1e-12)
    torch.testing.assert_close(found.values[:-1].sort().values, expected, rtol=0, atol=1e-8)
    assert found.values[-1] == pytest.approx(float(expected[0]), abs=1e-8)
    magnitudes = found.values[:-1].abs()
    assert (magnitudes[1:] <= magnitudes[:-1] + 1e-9).all()


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-6])
def test_the_stated_residual_is_the_true_one(tolerance: float) -> None:
    model, batch = tiny(), some_batch()
    with model.explicit_attention():
        operator = next_token_hessian(model, *batch, micro_batch=6)
        found = find(operator, 5, tolerance)
        true = true_residuals(operator, found)
    assert found.converged
    assert (true <= tolerance * 1.01).all()
    torch.testing.assert_close(true, found.residuals, rtol=1e-4, atol=1e-10)
    assert found.products < operator.size


def test_another_librarys_lanczos_finds_the_same_pairs() -> None:
    model, batch = tiny(mlp_ratio=2), some_batch()
    with model.explicit_attention():
        operator = next_token_hessian(model, *batch, micro_batch=6)
        found = find(operator, 6, 1e-8)
        values, vectors = eigsh(Products(operator), k=6, which="LM")
    order = np.argsort(-np.abs(values))
    np.testing.assert_allclose(found.values[:6], values[order], atol=1e-8)
    overlaps = np.abs((found.vectors[:6].numpy() * vectors.T[order]).sum(axis=1))
    np.testing.assert_allclose(overlaps, 1.0, atol=1e-6)


def test_micro_batches_give_the_same_eigenpairs() -> None:
    model, batch = tiny(), some_batch()
    with model.explicit_attention():
        whole = find(next_token_hessian(model, *batch, micro_batch=6), 4)
        parts = find(next_token_hessian(model, *batch, micro_batch=2), 4)
    torch.testing.assert_close(parts.values, whole.values, rtol=0, atol=1e-8)


def test_signs_are_kept_and_the_most_negative_comes_last() -> None:
    operator, _ = symmetric(
        torch.cat([torch.tensor([9.0, -8.0, 7.0, -0.5]), torch.linspace(-0.2, 0.2, 60)])
    )
    found = find(operator, 3)
    torch.testing.assert_close(found.values, torch.tensor([9.0, -8.0, 7.0, -8.0], dtype=DOUBLE))
    found = find(operator, 1)
    torch.testing.assert_close(found.values, torch.tensor([9.0, -8.0], dtype=DOUBLE))


def test_a_repeated_eigenvalue_is_found_as_often_as_it_is_there() -> None:
    operator, _ = symmetric(torch.tensor([5.0, 5.0, 5.0, 2.0, 1.0, 0.0, 0.0, 0.0, -1.0, -1.0]))
    found = find(operator, 4)
    torch.testing.assert_close(
        found.values, torch.tensor([5.0, 5.0, 5.0, 2.0, -1.0], dtype=DOUBLE), atol=1e-8, rtol=0
    )
    products = found.vectors[:4] @ found.vectors[:4].T
    torch.testing.assert_close(products, torch.eye(4, dtype=DOUBLE), atol=1e-8, rtol=0)


@pytest.mark.parametrize("tolerance", [0.03, 0.1])
def test_what_the_complement_adds_is_orthogonal_however_coarse_the_search_was(
    tolerance: float,
) -> None:
    """What coarse eigenvectors leave of themselves in an image is taken out of it."""
    values = torch.cat([torch.tensor([5.0, 5.0, 5.0, 4.9]), torch.linspace(-4, 4, 60)])
    operator, _ = symmetric(values)
    found = find(operator, 4, tolerance)
    assert found.multiplicity_known
    assert float(found.residuals.max()) > tolerance / 10

    products = found.vectors[:4] @ found.vectors[:4].T
    torch.testing.assert_close(products, torch.eye(4, dtype=DOUBLE), atol=1e-10, rtol=0)


def two_halves() -> Operator:
    """The Hessian of a network of two equal halves that share nothing: eigenvalues in pairs."""
    inputs = torch.randn(40, 8, dtype=DOUBLE, generator=generator(3))
    targets = torch.randn(40, 6, dtype=DOUBLE, generator=generator(4))
    half = torch.randn(6, 8, dtype=DOUBLE, generator=generator(5)).flatten()

    def loss(weights: Tensor) -> Tensor:
        one, other = weights.view(2, 6, 8)
        errors = [torch.tanh(inputs @ part.T) - targets for part in (one, other)]
        return sum(error.square().mean() for error in errors)  # pyright: ignore[reportReturnType]

    matrix = torch.autograd.functional.hessian(loss, torch.cat([half, half]))
    assert isinstance(matrix, Tensor)
    return Operator(lambda v: matrix @ v, matrix[0])


def test_equal_eigenvalues_of_two_equal_networks_come_twice_or_it_says_they_may() -> None:
    operator = two_halves()
    expected = torch.linalg.eigvalsh(dense(operator))
    expected = expected[expected.abs().argsort(descending=True)]

    found = find(operator, 6, 1e-4, max_products=120)
    assert found.multiplicity_known
    torch.testing.assert_close(found.values[:6], expected[:6], rtol=1e-5, atol=0)
    products = found.vectors[:6] @ found.vectors[:6].T
    torch.testing.assert_close(products, torch.eye(6, dtype=DOUBLE), atol=1e-4, rtol=0)

    for changes in ({"max_products": 45}, {"repeated": False}):
        once = find(operator, 6, 1e-4, **({"max_products": 90} | changes))
        assert once.converged
        assert not once.multiplicity_known


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(20),
        torch.tensor([3.0] + [0.0] * 39),
        torch.ones(30),
        torch.tensor([2.0]),
        torch.cat([torch.zeros(15), torch.linspace(1, 4, 10)]),
        torch.linalg.eigvalsh(torch.cov(torch.randn(100, 300, generator=generator(9)))),
    ],
    ids=["zero", "rank one", "identity", "one parameter", "nullity 15", "wishart 100"],
)
def test_spectra_that_break_iterations_are_right(values: Tensor) -> None:
    operator, _ = symmetric(values)
    k = min(5, len(values))
    found = find(operator, k, 1e-6, max_products=3 * len(values))
    expected = values.double()[values.abs().argsort(descending=True)][:k]

    torch.testing.assert_close(found.values[:k], expected, atol=1e-7, rtol=0)
    assert found.converged
    assert found.multiplicity_known


def test_the_largest_is_not_the_largest_by_magnitude() -> None:
    values = torch.cat([torch.tensor([-9.0, 4.0]), torch.linspace(-1, 1, 80)])
    operator, _ = symmetric(values)
    found = largest_eigenvalue(operator, tolerance=0.01, max_products=60, generator=generator())
    assert found == pytest.approx(4.0, rel=1e-3)


def test_the_start_changes_the_way_and_not_the_answer() -> None:
    operator, basis = symmetric(
        torch.cat([torch.tensor([10.0, 9.0, -7.0]), torch.linspace(-1, 1, 200)])
    )
    fresh = find(operator, 3)
    warm = find(operator, 3, start=basis.T[:3])
    torch.testing.assert_close(fresh.values, warm.values, atol=1e-6, rtol=0)
    assert warm.products <= fresh.products
    orthogonal = find(
        operator, 3, start=basis.T[100:102]
    )  # a start that lacks what is wanted does not hide it
    torch.testing.assert_close(fresh.values, orthogonal.values, atol=1e-6, rtol=0)


def test_running_out_of_products_is_said() -> None:
    operator, _ = symmetric(torch.linspace(0.9, 1.0, 300))
    found = find(operator, 10, 1e-6, max_products=15)
    assert not found.converged
    assert found.products == 15
    assert found.residuals.max() > 1e-6


def test_more_eigenvalues_than_parameters_are_refused() -> None:
    operator, _ = symmetric(torch.arange(4.0))
    with pytest.raises(InputError, match="5 eigenvalues, but there are 4 parameters"):
        find(operator, 5)


def test_single_precision_reaches_the_residual_too() -> None:
    model, batch = tiny().float(), some_batch()
    with model.explicit_attention():
        operator = next_token_hessian(model, *batch, micro_batch=6)
        found = find(operator, 4, 1e-3)
        assert found.converged
        assert (true_residuals(operator, found) < 1.1e-3).all()
        precise = find(next_token_hessian(model.double(), *batch, micro_batch=6), 4, 1e-8)
    torch.testing.assert_close(found.values, precise.values, rtol=1e-4, atol=0)


def test_density_has_mass_one_and_the_moments_of_the_spectrum() -> None:
    values = torch.cat([torch.tensor([6.0, -3.0]), torch.linspace(-0.5, 1.0, 98)])
    operator, _ = symmetric(values)
    found = density(operator, probes=400, steps=6, generator=generator())
    assert found.weights.sum() == pytest.approx(1.0, abs=1e-10)
    for power in (1, 2, 3, 4):
        samples = (found.weights * found.nodes**power).reshape(400, 6).sum(axis=1) * 400
        error = samples.std(ddof=1) / 20
        assert abs(samples.mean() - float((values.double() ** power).mean())) < 4 * error, power


def test_density_of_few_distinct_values_is_exact() -> None:
    operator, _ = symmetric(torch.tensor([2.0] * 50 + [-1.0] * 50))
    found = density(operator, probes=3, steps=10, generator=generator())
    assert set(found.nodes.round(8)) == {2.0, -1.0}


def test_a_density_on_a_grid_is_of_mass_one_and_around_its_values() -> None:
    operator, _ = symmetric(torch.tensor([2.0] * 50 + [-1.0] * 50))
    found = density(operator, probes=3, steps=10, generator=generator())

    grid = np.linspace(-3, 4, 7001)
    values = found.on_grid(grid, width=0.1)
    assert np.trapezoid(values, grid) == pytest.approx(1.0, abs=1e-6)
    assert np.trapezoid(values * grid, grid) == pytest.approx(found.weights @ found.nodes)
    assert values[np.abs(grid - 0.5) < 0.5].max() < 1e-3


def test_the_trace_is_exact_for_low_rank_and_unbiased_otherwise() -> None:
    low, _ = symmetric(torch.tensor([5.0, -2.0, 1.0] + [0.0] * 57))
    found = trace(low, products=30, generator=generator())
    assert found.value == pytest.approx(4.0, abs=1e-9)
    assert found.error == pytest.approx(0.0, abs=1e-9)
    full, _ = symmetric(torch.linspace(-1, 2, 60))
    draws = [trace(full, products=12, generator=generator(seed)) for seed in range(400)]
    values = np.array([draw.value for draw in draws])
    assert abs(values.mean() - 30.0) < 4 * values.std(ddof=1) / 20
    spread = np.sqrt(np.mean([draw.error**2 for draw in draws]))
    assert spread == pytest.approx(values.std(ddof=1), rel=0.1)  # 0.87 of it without ddof = 1
    assert full.products == 400 * 12


def test_mass_lies_where_it_was_put() -> None:
    model: Transformer = tiny(mlp_ratio=2)
    one = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    one["layers.1.attention.o.weight"][:, 2:] = 1.0  # the columns of head 1
    two = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    two["layers.0.attention.k.weight"][:2] = 3.0  # the rows of head 0
    two["embed.weight"][:] = 1.0
    vectors = torch.stack(
        [torch.cat([p.reshape(-1) for p in each.values()]) for each in (one, two)]
    )
    blocks, shares = mass_by_block(model, vectors, n_heads=2)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    assert shares[0, blocks.index("L1H1 OV")] == pytest.approx(1.0)
    assert shares[1, blocks.index("L0H0 QK")] == pytest.approx(9 * 8 / (9 * 8 + 20))
    assert shares[1, blocks.index("embed")] == pytest.approx(20 / (9 * 8 + 20))
    assert {"norms", "unembed", "L0 MLP", "L1 MLP"} <= set(blocks)
