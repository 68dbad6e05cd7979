"""The numbers of the study, from planted reports."""

from pathlib import Path

import pytest

from interp_core.errors import InputError
from mamba_neurons.answers import answers
from planted_answers import planted, save


def test_the_best_the_largest_set_what_is_enough_and_what_is_sparser(tmp_path: Path) -> None:
    found = {one.name: one for one in answers(save(tmp_path, planted("mamba_neurons")))}
    best, together = found["kl_of_best_channel"], found["kl_of_best_set"]

    assert (best.value, best.n) == (0.027, 55)
    assert (together.value, together.low, together.high, together.n) == (0.82, 0.75, 0.91, 27)
    assert together.says == "nats for the best 8 channels of layer 1 together, random ones 0.40"

    assert found["gini_difference"].value == 0.011
    assert found["treves_rolls_difference"].value == -0.016
    assert found["gini_difference"].says == "snake minus twin; larger is sparser"


@pytest.mark.parametrize(
    ("name", "units", "enough"),
    [
        ("share_needed_alone", 512, 412),
        ("share_needed_together", 512, 399),
        ("twin_needed_alone", 1032, 833),
        ("twin_needed_together", 1032, 867),
    ],
)
def test_what_must_stay_is_a_share_of_each_models_own_units(
    name: str, units: int, enough: int, tmp_path: Path
) -> None:
    found = {one.name: one for one in answers(save(tmp_path, planted("mamba_neurons")))}[name]

    assert found.value == pytest.approx(enough / units)
    assert found.low == pytest.approx((enough - 20) / units)
    assert found.says.startswith(f"of {units} units")
    assert found.says.endswith(f"that is {enough}")


@pytest.mark.parametrize("files", [0, 2])
def test_a_comparison_that_is_not_one_is_an_error(tmp_path: Path, files: int) -> None:
    reports = planted("mamba_neurons")
    compare = reports.pop("compare/compare_snake_twin.json")
    reports |= {f"compare/compare_{i}.json": compare for i in range(files)}

    wrong = r"compare_\*.json is missing" if files == 0 else "compare_1.json"
    with pytest.raises(InputError, match=wrong):
        answers(save(tmp_path, reports))
