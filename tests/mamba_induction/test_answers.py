"""The headline numbers, from planted reports."""

from pathlib import Path

from mamba_induction.answers import answers
from planted_answers import planted, save


def test_the_costliest_read_stands_beside_the_next(tmp_path: Path) -> None:
    best, other, *_ = answers(save(tmp_path, planted("mamba_induction")))

    assert (best.value, other.value) == (-0.93, -0.06)
    assert "L1 at +1" in best.says
    assert "L0 at +0" in other.says


def test_tuning_is_told_on_text_and_on_repeats(tmp_path: Path) -> None:
    _, _, perplexity, before, after = answers(save(tmp_path, planted("mamba_induction")))

    assert (perplexity.value, perplexity.low, perplexity.high) == (0.35, 0.33, 0.37)
    assert perplexity.n == 96  # texts of the losses whose ratio it is
    assert (before.value, after.value) == (0.025, 0.215)
