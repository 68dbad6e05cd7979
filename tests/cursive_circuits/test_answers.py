"""The numbers of the study, from planted reports."""

from pathlib import Path

from cursive_circuits.answers import answers
from planted_answers import planted, save


def test_what_is_said_of_all_families_holds_for_the_largest(tmp_path: Path) -> None:
    found = {one.name: one for one in answers(save(tmp_path, planted("cursive_circuits")))}

    gain = found["gain_of_a_repeat"]
    assert (gain.value, gain.low, gain.high, gain.n) == (0.064, 0.054, 0.074, 63)

    writing = found["largest_excess_writing"]
    assert (writing.value, found["largest_excess_control"].value) == (0.0034, 0.7)
    assert writing.says.endswith("earlier occurrence, family synthetic, L3H1")

    words = found["excess_on_words"]
    assert words.value == 0.0011
    assert words.says.endswith("earlier occurrence, family mismatched_text, L1H0")

    path = found["change_without_writer"]
    assert (path.value, path.n) == (-0.46, 31)
    assert path.says.endswith("L1H0 into L2H2, control")


def test_legibility_counts_words_not_inks(tmp_path: Path) -> None:
    found = {one.name: one for one in answers(save(tmp_path, planted("cursive_circuits")))}
    samples, ink = found["samples_read"], found["true_ink_read"]
    assert (samples.n, samples.unit, ink.n, ink.unit) == (32, "words", 30, "words")


def test_copy_specific_harm_comes_in_its_two_parts(tmp_path: Path) -> None:
    found = {one.name: one for one in answers(save(tmp_path, planted("cursive_circuits")))}
    assert found["harm_copied_control"].value == 2.5
    assert found["harm_control_control"].value == -0.6
    assert found["harm_copied_writing"].value == 0.01
    assert found["harm_copied_control"].says.endswith("p = 0.0167, 59 distinct random sets")
