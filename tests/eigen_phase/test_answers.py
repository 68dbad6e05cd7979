"""The headline numbers, from planted reports."""

from pathlib import Path

from eigen_phase.answers import answers
from planted_answers import planted, save


def test_the_free_condition_is_the_one_that_the_controls_are_compared_with(tmp_path: Path) -> None:
    step, rise, *_, clamped = answers(save(tmp_path, planted("eigen_phase")))

    assert (step.value, step.low, step.high, step.n) == (288, 262, 318, 5)
    assert (rise.value, rise.n) == (1.02, 4)
    assert (clamped.value, clamped.n) == (0.7, 3)


def test_what_rests_on_one_training_has_no_interval_and_says_so(tmp_path: Path) -> None:
    _, _, matching, inside, outside, _ = answers(save(tmp_path, planted("eigen_phase")))

    for one in (matching, inside, outside):
        assert (one.low, one.high, one.n) == (None, None, 1)
        assert one.says.endswith("one training, so no interval")

    # of the run that got farthest inside the subspace, both
    assert (inside.value, outside.value) == (-0.002, -1.37)


def test_trainings_that_do_not_turn_leave_no_number(tmp_path: Path) -> None:
    reports = planted("eigen_phase")
    reports["transition/transition.json"]["conditions"]["tiled"] = {"midpoint": None, "lags": {}}
    reports["controls/clamped.json"] |= {"ratio": None, "ci": None, "seeds": []}
    reports = {name: report for name, report in reports.items() if "subspace" not in name}

    found = answers(save(tmp_path, reports))
    assert [one.value for one in found] == [None] * 6
    assert [one.n for one in found] == [0] * 6
    assert found[-1].says == "earlier"  # whatever the verdict
