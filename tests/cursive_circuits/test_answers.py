"""The headline numbers, from planted reports."""

from pathlib import Path

from cursive_circuits.answers import answers
from planted_answers import planted, save


def test_what_is_said_of_all_families_holds_for_the_largest(tmp_path: Path) -> None:
    found = answers(save(tmp_path, planted("cursive_circuits")))
    gain, writing, control, path, samples, ink = found

    assert (gain.value, gain.low, gain.high, gain.n) == (0.064, 0.054, 0.074, 63)
    assert (writing.value, control.value) == (0.0034, 0.7)
    assert writing.says == "L3H1 to what followed the earlier occurrence, family synthetic"
    assert (path.value, path.n) == (-0.46, 31)
    assert (samples.n, samples.unit, ink.n, ink.unit) == (96, "samples", 30, "words")
