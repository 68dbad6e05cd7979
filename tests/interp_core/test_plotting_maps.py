"""Maps of heads: layer 0 on top, numbers that can be read on every shade."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure

from interp_core.plotting import INDUCTION, shades
from interp_core.plotting_maps import MOST_NUMBERS, map_of_heads


def _map(values: np.ndarray, **given: np.ndarray) -> Axes:
    axes = Figure().add_subplot()
    map_of_heads(axes, values, scale=Normalize(0, 1), colours=shades(INDUCTION), **given)
    return axes


def test_layer_zero_is_on_top_and_marked_heads_are_framed() -> None:
    values = np.linspace(0, 1, 6).reshape(3, 2)
    axes = _map(values, marked=values == values[1, 1])

    bottom, top = axes.get_ylim()
    assert bottom > top
    (frame,) = axes.patches
    box = frame.get_extents().transformed(axes.transData.inverted())
    assert sorted(box.intervalx) == pytest.approx([0.5, 1.5])
    assert sorted(box.intervaly) == pytest.approx([0.5, 1.5])


def test_a_small_map_has_its_numbers_and_they_are_told_from_their_cells() -> None:
    values = np.linspace(0, 1, 12).reshape(4, 3) - 1e-9
    texts = _map(values).texts

    assert [text.get_text() for text in texts] == [
        f"{value:.2f}".replace("-", "") for value in values.ravel()
    ]
    for text, value in zip(texts, values.ravel(), strict=True):
        written = np.mean(to_rgb(str(text.get_color())))
        assert abs(written - np.mean(shades(INDUCTION)(value)[:3])) > 0.3


def test_a_large_map_has_no_numbers() -> None:
    assert len(_map(np.zeros((8, MOST_NUMBERS // 8))).texts) == MOST_NUMBERS
    assert not _map(np.zeros((8, MOST_NUMBERS // 8 + 1))).texts
