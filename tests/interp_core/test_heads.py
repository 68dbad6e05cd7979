"""Names of heads and channels: read as they are printed, and nothing else is read."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp_core.errors import InputError
from interp_core.statistics.heads import Channel, Head, read_name

numbers = st.integers(0, 10_000)


@given(layer=numbers, number=numbers)
def test_a_name_reads_as_it_prints(layer: int, number: int) -> None:
    assert Head.read(str(Head(layer, number))) == Head(layer, number)
    assert Channel.read(str(Channel(layer, number))) == Channel(layer, number)
    assert Head.read(json.loads(json.dumps(str(Head(layer, number))))) == (layer, number)


def test_names_are_those_that_the_figures_print() -> None:
    assert str(Head(5, 1)) == "L5H1"
    assert str(Channel(5, 17)) == "L5C17"
    assert read_name("L1X3", kinds="HX", example="L5H1") == (1, "X", 3)


@pytest.mark.parametrize(
    "name",
    ["", "L5", "5H1", "l5h1", "L5H1 ", " L5H1", "L05H1", "L5H-1", "L5H1\n", "L5C1", "L5H٣", "LxH1"],
)
def test_other_names_are_an_error_of_one_line(name: str) -> None:
    with pytest.raises(InputError, match="write layer and number as L5H1") as error:
        Head.read(name)
    assert "\n" not in str(error.value)


def test_heads_order_by_layer_and_index_an_array() -> None:
    heads = [Head(1, 0), Head(0, 11), Head(0, 2)]
    assert sorted(heads) == [Head(0, 2), Head(0, 11), Head(1, 0)]
    assert len({Head(1, 0), Head(1, 0)}) == 1

    assert np.arange(24).reshape(2, 12)[Head(1, 3)] == 15
