"""Figures have fixed bytes, colours that can be told apart, and maps whose white is zero."""

from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from interp_core import plotting

MEANINGS = {
    name: getattr(plotting, name)
    for name in (
        "INDUCTION",
        "DUPLICATE_TOKEN",
        "PREVIOUS_TOKEN",
        "COPYING",
        "ABLATED",
        "NULL",
        "INK",
    )
}


def _draw(path: Path) -> bytes:
    with plotting.drawing(path, width=4.0, height=3.0) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], label="a line")
        axes.set(xlabel="relative depth", ylabel="share of attention")
        plotting.heading(figure, axes, "A title", columns=1)
        plotting.note(figure, "n = 3")
    return path.read_bytes()


def test_equal_drawings_have_equal_bytes(tmp_path: Path) -> None:
    assert _draw(tmp_path / "one.png") == _draw(tmp_path / "two.png")


def test_a_users_settings_change_nothing(tmp_path: Path) -> None:
    before = _draw(tmp_path / "one.png")
    with matplotlib.rc_context(
        {"font.size": 30, "lines.linewidth": 9, "axes.facecolor": "red", "savefig.dpi": 30}
    ):
        assert _draw(tmp_path / "two.png") == before


@pytest.mark.parametrize("height", [3.0, 3.004, 3.26, 4.02])
def test_a_figure_is_drawn_as_by_matplotlibs_own_renderer(
    height: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(path: Path) -> bytes:
        with plotting.drawing(path, width=4.0, height=height) as figure:
            figure.add_subplot().set(xlabel="é → β\nsecond line", title="n = 3")
        return path.read_bytes()

    ours = draw(tmp_path / "ours.png")
    monkeypatch.setattr(plotting, "_Canvas", FigureCanvasAgg)
    assert ours == draw(tmp_path / "own.png")


def _named(path: Path, name: str) -> bytes:
    with plotting.drawing(path, width=4.0, height=3.0) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], label=name)
        axes.set_xticks([0, 1], [name, "β"])
        axes.set(ylabel=name, title=name)
        axes.text(0.5, 0.5, name)
        plotting.heading(figure, axes, name, columns=1)
    return path.read_bytes()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["模型-\U00020bb7", "é → β"])
def test_what_the_font_lacks_is_drawn_as_an_escape(name: str, tmp_path: Path) -> None:
    drawn = _named(tmp_path / "one.png", name)
    typed = name.replace("模型", "\\u6a21\\u578b").replace("\U00020bb7", "\\U00020bb7")
    assert drawn == _named(tmp_path / "two.png", typed)
    assert drawn != _named(tmp_path / "three.png", "model")


def test_no_software_and_no_date_is_written_into_the_file(tmp_path: Path) -> None:
    written = _draw(tmp_path / "one.png")
    assert b"Software" not in written
    assert b"tEXt" not in written


def test_a_drawing_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        plotting.drawing(tmp_path / "one.png", width=4.0, height=3.0),
    ):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "values", [[[0.1, 0.9]], [[-0.3, 0.02]], [[0.0, 0.0]], [[np.nan, -2.0]], [[np.nan, np.nan]]]
)
def test_a_diverging_map_is_white_at_zero_and_holds_all_values(values: list[list[float]]) -> None:
    array = np.array(values)
    scale = plotting.centred(array)
    assert scale.vmin is not None
    assert scale.vmax is not None
    assert scale.vmin == -scale.vmax < 0
    assert np.nanmax(np.abs(array), initial=0.0) <= scale.vmax
    assert matplotlib.colormaps[plotting.DIVERGING](scale(0.0))[:3] == pytest.approx(
        (0.97, 0.97, 0.97), abs=0.01
    )


def test_noise_does_not_fill_a_map_that_has_a_least_range() -> None:
    assert plotting.centred(np.array([1e-3]), least=0.5).vmax == 0.5
    assert plotting.centred(np.array([0.7]), least=0.5).vmax == pytest.approx(0.7)


def _dichromat(colour: str, missing: str) -> np.ndarray:
    """Linear RGB as a dichromat sees it (Vienot, Brettel and Mollon 1999)."""
    linear = np.array(
        [
            ((part + 0.055) / 1.055) ** 2.4 if part > 0.04045 else part / 12.92
            for part in to_rgb(colour)
        ]
    )
    to_lms = np.array(
        [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]]
    )
    protan = np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]])
    deutan = np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]])
    sees = {"red": protan, "green": deutan}[missing]
    return np.linalg.inv(to_lms) @ sees @ to_lms @ linear


@pytest.mark.parametrize("missing", ["red", "green"])
def test_colours_with_a_meaning_stay_apart_for_colour_blind_readers(missing: str) -> None:
    seen = {name: _dichromat(colour, missing) for name, colour in MEANINGS.items()}
    for first, second in combinations(seen, 2):
        assert np.linalg.norm(seen[first] - seen[second]) > 0.06, (first, second)


@pytest.mark.parametrize("n", [1, 3, 5, 8])
def test_models_differ_by_colour_and_by_marker(n: int) -> None:
    styles = plotting.model_styles([f"model {i}" for i in range(n)])
    assert len({look.color for look in styles.values()}) == n
    assert len({look.marker for look in styles.values()}) == n


def test_larger_models_are_darker() -> None:
    styles = plotting.model_styles(["small", "middle", "large"])
    brightness = [np.dot([0.2126, 0.7152, 0.0722], to_rgb(look.color)) for look in styles.values()]
    assert brightness == sorted(brightness, reverse=True)


def test_a_share_is_white_at_zero() -> None:
    assert plotting.shades(plotting.INDUCTION)(0.0)[:3] == (1.0, 1.0, 1.0)
    assert plotting.shades(plotting.INDUCTION)(0.5)[:3] == pytest.approx(
        to_rgb(plotting.INDUCTION), abs=0.01
    )


def test_intervals_are_written_after_their_value() -> None:
    assert plotting.interval_text(0.5239, [0.494, 0.55]) == "0.52 [0.49, 0.55]"
