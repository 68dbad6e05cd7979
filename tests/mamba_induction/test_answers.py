"""The numbers of the study, from planted reports."""

from pathlib import Path

from interp_core.console.answers import Answer
from mamba_induction.answers import answers
from planted_answers import planted, save


def by_name(folder: Path, content: dict[str, object] | None = None) -> dict[str, Answer]:
    found = answers(save(folder, content or planted("mamba_induction")))
    return {answer.name: answer for answer in found}


def test_the_needed_read_stands_beside_the_costliest_other(tmp_path: Path) -> None:
    found = by_name(tmp_path)
    best, other = found["change_without_best_read"], found["change_without_other_read"]

    assert (best.value, other.value) == (-0.93, -0.06)
    assert "L1 at +1" in best.says
    assert "12 cuts together" in other.says


def test_what_little_suffices_is_told_from_most_kept_to_least(tmp_path: Path) -> None:
    found = by_name(tmp_path)

    names = ("accuracy_with_one_read", "accuracy_with_circuit", "accuracy_circuit_alone")
    assert [found[name].value for name in names] == [0.98, 0.97, 0.76]

    tuned = found["accuracy_one_read_tuned"]
    assert tuned.value == 0.91
    assert tuned.says.endswith(", 0.48 with all reads")


def test_a_model_that_needs_no_read_gives_none_and_says_why(tmp_path: Path) -> None:
    content = planted("mamba_induction")
    causal = content["causal/causal_snake.json"]
    causal["verdict"] |= {"best": None, "other": None, "says": "does not copy: nothing to explain"}
    causal["kept"] = content["causal/causal_snake-tuned.json"]["kept"] = None

    found = by_name(tmp_path, content)

    assert found["change_without_best_read"].value is None
    assert "does not copy" in found["change_without_best_read"].says
    assert found["accuracy_circuit_alone"].value is None
    assert found["accuracy_one_read_tuned"].value is None
    assert set(found) == set(by_name(tmp_path))  # other trainings answer the same questions


def test_no_name_and_no_first_phrase_tells_the_place_of_one_training(tmp_path: Path) -> None:
    for name, answer in by_name(tmp_path).items():
        assert "L1" not in name + answer.says.split(",")[0], name


def test_tuning_is_told_on_text_and_on_repeats(tmp_path: Path) -> None:
    found = by_name(tmp_path)
    ratio = found["perplexity_ratio"]

    assert (ratio.value, ratio.low, ratio.high) == (0.35, 0.33, 0.37)
    assert ratio.n == 96  # texts of the losses whose ratio it is

    assert found["missed_before_tuning"].value == 0.025
    assert found["missed_after_tuning"].value == 0.215
    assert round(found["excess_missed_after"].value or 0, 3) == -0.04

    recipes = ("after", "at_5e-05", "mixed")
    assert [found[f"second_copies_{recipe}"].value for recipe in recipes] == [
        0.48,
        0.9,
        0.93,
    ]
