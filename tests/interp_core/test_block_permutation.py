"""Texts of one autocorrelated series do not differ; texts that differ are found."""

import numpy as np
import pytest

from interp_core.errors import InputError
from interp_core.statistics.block_permutation import (
    block_length,
    block_order,
    texts_differ,
)

EQUAL = np.repeat(np.arange(16), 96)
UNEQUAL = np.repeat(np.arange(16), np.arange(16) * 12 + 6)  # 6 to 186 tokens


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def autocorrelated(rng: np.random.Generator, n: int, *, r: float, units: int) -> np.ndarray:
    """AR(1) of lag-one correlation r and variance 1."""
    noise = rng.normal(size=(n, units))
    for t in range(1, n):
        noise[t] = r * noise[t - 1] + np.sqrt(1 - r**2) * noise[t]
    return noise


def errors(
    texts: np.ndarray, *, block: int | None, units: int, samples: int, r: float = 0.41
) -> float:
    """Share of samples without any effect in which some unit is called different."""
    rng, found = _rng(5), []
    for _ in range(samples):
        values = autocorrelated(rng, len(texts), r=r, units=units)
        size = block_length(values, texts) if block is None else block
        found.append(
            texts_differ(values, texts, rng, block=size, draws=99, alpha=0.05).p.min() <= 0.05
        )
    return float(np.mean(found))


@pytest.mark.parametrize("texts", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("units", [1, 12])
def test_texts_without_a_difference_are_called_different_at_the_stated_rate(
    texts: np.ndarray, units: int
) -> None:
    assert (
        errors(texts, block=None, units=units, samples=200) <= 0.095
    )  # .05 and three standard errors


def test_single_tokens_would_call_nearly_every_sample_different() -> None:
    assert errors(EQUAL, block=1, units=12, samples=40) > 0.8


def test_texts_that_differ_are_found() -> None:
    rng = _rng(6)
    values = autocorrelated(rng, len(EQUAL), r=0.41, units=8)
    values[:, 0] += rng.normal(size=16)[EQUAL]
    found = texts_differ(
        values, EQUAL, rng, block=block_length(values, EQUAL), draws=199, alpha=0.05
    )
    assert found.p[0] == 1 / 200
    assert found.p[1:].min() > 0.05


@pytest.mark.parametrize("r", [0.0, 0.41, 0.7])
def test_blocks_are_as_long_as_autocorrelation_asks(r: float) -> None:
    values = autocorrelated(_rng(2), 20_000, r=r, units=4)
    texts = np.repeat(np.arange(20), 1000)
    expected = max(4.0, 2 * r / ((1 - r**2) * 0.03))
    assert block_length(values, texts) == pytest.approx(expected, rel=0.15, abs=1.5)


def test_what_cannot_be_tested_is_an_error() -> None:
    values = _rng().normal(size=(20, 1))
    texts = np.repeat([0, 1], 10)
    with pytest.raises(InputError, match="too few for blocks of 8"):
        texts_differ(values, texts, _rng(), block=8, draws=19, alpha=0.05)
    with pytest.raises(InputError, match="stand together"):
        block_length(values, np.tile([0, 1], 10))


def test_dealt_blocks_hold_every_token_once_and_its_neighbours_but_at_cuts() -> None:
    order = block_order(100, 20, _rng())

    assert sorted(order) == list(range(100))
    neighbours = (np.diff(order) % 100 == 1).sum()
    assert 95 <= neighbours < 99  # five blocks leave four cuts at most
    assert (block_order(100, 20, _rng(1)) != order).any()
