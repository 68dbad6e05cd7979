"""The numbers of the study, from planted reports."""

from pathlib import Path

import pytest

from interp_core.console.answers import Answer, headline
from planted_answers import planted, save
from pythia_topology.answers import answers


def test_claims_about_all_sizes_rest_on_the_weakest(tmp_path: Path) -> None:
    found = answers(save(tmp_path, planted("pythia_topology")))
    centres, (difference, harm) = found[:3], found[3:]

    assert [one.name for one in centres] == [
        "centre_of_short",
        "centre_of_tall",
        "centre_of_taller",
    ]
    assert [one.value for one in centres] == [0.41, 0.46, 0.39]

    says = "taller minus short, relative depth"
    assert (difference.name, difference.value) == ("centre_difference", -0.042)
    assert (difference.low, difference.high) == pytest.approx((-0.052, -0.032))
    assert difference.says == says

    says = "accuracy, top 3 heads ablated, tall: the least of all"
    assert (harm.value, harm.n, harm.says) == (-0.53, 12, says)


def test_the_pair_that_is_compared_is_the_same_in_every_training(tmp_path: Path) -> None:
    """Were it the pair farthest apart, its mean over trainings would be of other pairs each
    time."""
    reports = planted("pythia_topology")
    pairs = reports["multisize/multi_size.json"]["pairs"]
    pairs[0]["centre_of_mass"]["difference"]["value"] = 0.4

    *_, difference, _ = answers(save(tmp_path, reports))
    assert difference.value == -0.042


def test_a_model_without_induction_heads_has_no_centre_and_says_so(tmp_path: Path) -> None:
    reports = planted("pythia_topology")
    none = {"centre_of_mass": None, "verdict": "no induction heads"}
    reports["profile/profile_tall.json"] |= none

    for pair in reports["multisize/multi_size.json"]["pairs"]:
        pair |= {"centre_of_mass": None, "verdict": "not decided: no induction heads in tall"}

    _, centre, _, difference, _ = answers(save(tmp_path, reports))
    says = "no centre: no induction heads"
    assert centre == headline(Answer("centre_of_tall", None, None, None, 24, "prompts", says))
    assert (difference.value, difference.says) == (None, "not decided: no induction heads in tall")
