"""The numbers of the study, from planted reports."""

from pathlib import Path

from eigen_phase.answers import answers
from interp_core.console.answers import Answer
from planted_answers import planted, save


def by_name(found: list[Answer]) -> dict[str, Answer]:
    return {answer.name: answer for answer in found}


def test_the_free_condition_is_the_one_that_the_controls_are_compared_with(tmp_path: Path) -> None:
    found = by_name(answers(save(tmp_path, planted("eigen_phase"))))
    step, rise = found["transition_step"], found["eigenvalue_rise_over_step"]
    clamped, peak = found["clamped_over_free_step"], found["peak_over_step"]

    assert (step.value, step.low, step.high, step.n) == (288, 262, 318, 5)
    assert (peak.value, peak.low, peak.high, peak.n) == (1.07, 1.03, 1.11, 5)
    assert (rise.value, rise.low, rise.high, rise.n) == (1.02, 0.9, 1.16, 5)
    assert (clamped.value, clamped.high, clamped.n) == (0.7, 0.76, 5)

    own = found["own_matching_over_step"]
    assert (own.value, own.low, own.high, own.n) == (0.65, 0.6, 0.7, 5)


def test_a_metric_that_some_training_does_not_date_has_no_number(tmp_path: Path) -> None:
    found = by_name(answers(save(tmp_path, planted("eigen_phase"))))
    matching, control = found["matching_over_step"], found["clamped_over_itself_step"]

    assert matching.value is None
    assert "dated in 4 of 5 trainings" in matching.says
    assert control.value is None


def test_what_rests_on_one_training_has_no_interval_and_says_so(tmp_path: Path) -> None:
    found = by_name(answers(save(tmp_path, planted("eigen_phase"))))
    inside, outside = found["loss_change_inside"], found["loss_change_outside"]

    for one in (inside, outside, found["loss_change_short"]):
        assert (one.low, one.high, one.n) == (None, None, 1)
        assert one.says.endswith("one training, so no interval")

    # of the run that got farthest inside the subspace, both
    assert (inside.value, outside.value) == (-0.002, -1.37)


def test_trainings_that_do_not_turn_leave_no_number(tmp_path: Path) -> None:
    reports = planted("eigen_phase")
    tiled = {"midpoint": None, "peak_over_step": None, "runs": 5, "lags": {}}
    reports["transition/transition.json"]["conditions"]["tiled"] = tiled
    nothing = {"ratio": None, "dated": 0, "seeds": [0, 1]}
    reports["controls/clamped.json"]["over_free"] = {"clamped": nothing}
    reports = {name: report for name, report in reports.items() if "subspace" not in name}

    found = answers(save(tmp_path, reports))
    assert {one.value for one in found} == {None}
    assert {one.n for one in found} == {0}
    assert "dated in 0 of 2 pairs" in by_name(found)["clamped_over_free_step"].says
