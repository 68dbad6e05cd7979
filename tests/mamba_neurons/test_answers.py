"""The headline numbers, from planted reports."""

from pathlib import Path

import pytest

from interp_core.errors import InputError
from mamba_neurons.answers import answers
from planted_answers import planted, save


def test_the_best_the_largest_set_and_what_is_enough_are_of_the_mamba(tmp_path: Path) -> None:
    best, together, enough, gini, treves = answers(save(tmp_path, planted("mamba_neurons")))

    assert (best.value, best.n) == (0.027, 55)  # 44 texts and 11 rows of repeats
    assert (together.value, together.low, together.high, together.n) == (0.82, 0.75, 0.91, 27)
    assert together.says == "nats, best 8 channels of layer 1 together; random ones 0.40"
    assert (enough.value, enough.low, enough.high) == (412, 376, 421)
    assert (gini.value, treves.value) == (0.011, -0.016)
    assert gini.says == "snake minus twin; larger is sparser"


@pytest.mark.parametrize("files", [0, 2])
def test_a_comparison_that_is_not_one_is_an_error(tmp_path: Path, files: int) -> None:
    reports = planted("mamba_neurons")
    compare = reports.pop("compare/compare_snake_twin.json")
    reports |= {f"compare/compare_{i}.json": compare for i in range(files)}

    wrong = r"compare_\*.json is missing" if files == 0 else "compare_1.json"
    with pytest.raises(InputError, match=wrong):
        answers(save(tmp_path, reports))
