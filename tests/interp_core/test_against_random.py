"""Observed against random: p by counting, uniform under the null, and no test where none can be."""

import json

import numpy as np
import pytest

from interp_core.errors import InputError
from interp_core.statistics.against_random import FEWEST_DISTINCT, AgainstRandom, against_random


@pytest.mark.parametrize(
    ("observed", "direction", "hits"),
    [(25.0, "above", 5), (29.5, "above", 0), (0.0, "below", 1), (-1, "below", 0)],
)
def test_p_counts_sets_at_least_as_extreme(observed: float, direction: str, hits: int) -> None:
    found = against_random(float(observed), np.arange(30.0), direction=direction)  # pyright: ignore[reportArgumentType]
    assert found.p == (1 + hits) / 31
    assert found.mean == 14.5
    assert (found.low, found.high) == tuple(np.quantile(np.arange(30.0), [0.025, 0.975]))


def test_a_tie_in_the_last_digit_is_a_hit() -> None:
    assert against_random(0.1 + 0.2, [0.3] * 20, direction="above").p == 1.0
    assert against_random(0.3, [0.1 + 0.2] * 20, direction="below").p == 1.0


@pytest.mark.parametrize("n", [0, 1, FEWEST_DISTINCT - 1])
def test_few_sets_allow_no_test_and_say_so(n: int) -> None:
    found = against_random(1.0, np.zeros(n), direction="above")
    assert found.p is None
    assert not found.possible
    assert not found.beats(0.99)
    assert found.says == f"no test possible: {n} distinct random sets, fewer than {FEWEST_DISTINCT}"


def test_the_fewest_sets_that_allow_a_test_can_reach_five_percent() -> None:
    found = against_random(1.0, np.zeros(FEWEST_DISTINCT), direction="above")
    assert found.p is not None
    assert found.p < 0.05
    assert found.beats(0.05)
    assert found.says == "p = 0.0476, 20 distinct random sets"


def test_errors_come_at_the_stated_rate_when_the_observed_set_is_one_of_them() -> None:
    values = np.random.default_rng(0).normal(size=(4000, 40))
    p = [against_random(row[0], row[1:], direction="below").p for row in values]
    share = np.mean([one is not None and one <= 0.05 for one in p])
    assert 0.04 <= share <= 0.06


@pytest.mark.parametrize("n", [0, 5, 25])
def test_json_reads_back(n: int) -> None:
    found = against_random(0.5, np.linspace(0, 1, n), direction="above")
    entry = json.loads(json.dumps(found.to_json()))
    assert AgainstRandom.from_json(entry) == found
    assert set(entry["random"]) == {"value", "low", "high", "n", "unit"}

    del entry["random"]["low"]
    with pytest.raises(InputError, match="lacks 'low'"):
        AgainstRandom.from_json(entry)


def test_values_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(InputError, match="not finite"):
        against_random(0.5, [np.nan] * 30, direction="above")
