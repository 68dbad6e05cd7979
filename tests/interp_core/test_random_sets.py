"""Matched sets: their number by brute force, each as likely, never twice."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp_core.errors import InputError
from interp_core.statistics.heads import Channel, Head
from interp_core.statistics.random_sets import RandomSets, matched_sets


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def heads_of(layers: int, heads: int) -> list[Head]:
    return [Head(layer, head) for layer in range(layers) for head in range(heads)]


def are_distinct(found: RandomSets[Head]) -> bool:
    return len({frozenset(one) for one in found.sets}) == len(found.sets)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), draws=st.integers(1, 60), apart=st.booleans())
def test_sets_with_enough_heads_of_each_layer_are_those_of_brute_force(
    data: st.DataObject, draws: int, apart: bool
) -> None:
    heads = heads_of(3, 4)
    chosen = data.draw(st.lists(st.sampled_from(heads), min_size=1, max_size=4, unique=True))
    layers = Counter(head.layer for head in chosen)
    if apart and max(layers.values()) > 2:
        return

    pool = [head for head in heads if not apart or head not in chosen]
    expected = {
        frozenset(one)
        for one in combinations(pool, len(chosen))
        if Counter(head.layer for head in one) == layers and set(one) != set(chosen)
    }
    found = matched_sets(chosen, heads, _rng(), draws=draws, without=chosen if apart else ())

    assert found.distinct == len(expected)
    assert are_distinct(found)
    assert {frozenset(one) for one in found.sets} <= expected
    assert len(found.sets) == min(draws, len(expected))
    assert found.complete == (len(expected) <= draws)
    assert found.moved == 0


def test_a_layer_without_heads_left_takes_its_partners_from_the_nearest() -> None:
    """Layer 1 is used up: its two partners come from layers 0 and 2, either or both."""
    chosen = [Head(1, 0), Head(1, 1)]
    pool = heads_of(4, 2)
    found = matched_sets(chosen, pool, _rng(), draws=100, without=chosen)

    assert found.distinct == 6
    assert {frozenset(one) for one in found.sets} == {
        frozenset(one) for one in combinations([*pool[:2], *pool[4:6]], 2)
    }
    assert found.moved == 2
    assert found.layers == [0, 2]
    expected = "all 6 distinct random sets, from L0 and L2, 2 a set from another layer than its own"
    assert found.words == expected


def test_one_layers_lack_takes_no_others_partners() -> None:
    """Layer 1 has none left and layer 2 one, which stands for layer 2's own, not for layer 1's."""
    pool = [Head(0, 0), Head(2, 1), *(Head(3, head) for head in range(4))]
    found = matched_sets([Head(1, 0), Head(2, 0)], pool, _rng(), draws=100)

    assert found.sets == [(Head(0, 0), Head(2, 1))]
    assert found.moved == 1


def test_heads_that_are_left_out_are_in_no_set() -> None:
    """A top of three heads, its layer's fourth, and their writers: none of them is a control."""
    chosen, neighbour, writers = (
        [Head(1, 0), Head(1, 1), Head(1, 2)],
        Head(1, 3),
        [Head(0, 1), Head(0, 3)],
    )
    without = [*chosen, neighbour, *writers]
    found = matched_sets(chosen, heads_of(4, 4), _rng(), draws=1000, without=without)

    assert not set(without) & {head for one in found.sets for head in one}
    assert found.distinct == math.comb(2 + 4, 3)  # two left in layer 0, four in layer 2


@pytest.mark.parametrize("draws", [20, 90])  # by rejection, and out of all of them
def test_every_set_is_as_likely(draws: int) -> None:
    """Kinds of other counts have 2 to 60 sets each: a kind must not count as one."""
    chosen = [Head(1, head) for head in range(3)]
    pool = [head for head in heads_of(3, 6) if head.layer != 1 and (head.layer, head.head) < (2, 4)]
    total = math.comb(10, 3)
    rng, seen = _rng(3), Counter[frozenset[Head]]()

    for _ in range(400):
        found = matched_sets(chosen, pool, rng, draws=draws)
        assert found.distinct == total
        assert len(found.sets) == draws
        assert are_distinct(found)
        seen.update(frozenset(one) for one in found.sets)

    share = np.array([seen[frozenset(one)] for one in combinations(pool, 3)]) / 400
    p = draws / total
    chi_squared = ((share - p) ** 2).sum() * 400 / (p * (1 - p))
    assert abs(chi_squared - total) < 5 * np.sqrt(2 * total)


def test_the_same_generator_draws_the_same_sets() -> None:
    draw = [
        matched_sets([Head(0, 0)] * 1, heads_of(2, 300), _rng(5), draws=9).sets for _ in range(2)
    ]
    assert draw[0] == draw[1]


def test_another_size_goes_through_the_chosen_layers_again() -> None:
    found = matched_sets([Head(0, 0), Head(2, 0)], heads_of(3, 8), _rng(), draws=5, size=5)
    assert all(Counter(head.layer for head in one) == {0: 3, 2: 2} for one in found.sets)


def test_a_pool_that_is_too_small_has_no_sets() -> None:
    found = matched_sets(
        [Head(0, 0), Head(0, 1)], heads_of(1, 3), _rng(), draws=5, without=[Head(0, 0)]
    )
    assert found.distinct == 1

    nothing = matched_sets([Head(0, 0)], [Head(0, 0)], _rng(), draws=5)
    assert (nothing.distinct, nothing.sets) == (0, [])
    assert (
        matched_sets([Head(0, 0)] * 1, [], _rng(), draws=5).words
        == "all 0 distinct random sets, from no layer"
    )


def test_channels_of_one_layer_are_drawn_by_the_thousand() -> None:
    channels = [Channel(2, channel) for channel in range(1024)]
    found = matched_sets(channels[:100], channels, _rng(), draws=50)
    assert found.distinct == math.comb(1024, 100) - 1
    assert len(found.sets) == 50


def test_no_draws_are_an_error() -> None:
    with pytest.raises(InputError, match="1 or more"):
        matched_sets([Head(0, 0)], heads_of(1, 2), _rng(), draws=0)


def test_more_sets_than_anyone_counts_are_told_by_their_magnitude() -> None:
    pool = [Head(0, head) for head in range(256)]
    found = matched_sets(pool[:64], pool, _rng(), draws=3)
    assert found.words == "3 of 1.9e+61 distinct random sets, from L0"
