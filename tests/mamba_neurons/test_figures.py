"""Every figure stays on its page and is legible at half size, from the files of a whole run alone."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from interp_core.errors import InputError
from mamba_neurons import figures

NAMES = ["tiny-mamba", "tiny-twin"]


@pytest.fixture
def folder(whole: tuple[Path, Path]) -> Path:
    """The files of every part."""
    return whole[0]


@pytest.fixture
def texts_drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Figure, Text, Bbox]]:
    """Every visible text of every figure that is saved, with its place in pixels."""
    seen: list[tuple[str, Figure, Text, Bbox]] = []
    save, draw = Figure.savefig, Text.draw

    def remember(figure: Figure, path: Path, **settings: Any) -> None:
        texts: dict[int, tuple[Text, Bbox]] = {}  # the layout draws too: what is drawn last is on the page

        def listen(text: Text, renderer: RendererBase) -> None:
            draw(text, renderer)
            if text.get_visible() and text.get_text().strip():
                texts[id(text)] = (text, text.get_window_extent(renderer))

        with monkeypatch.context() as patch:
            patch.setattr(Text, "draw", listen)
            save(figure, path, **settings)
        seen.extend((path.name, figure, text, box) for text, box in texts.values())

    monkeypatch.setattr(Figure, "savefig", remember)
    return seen


def test_every_text_is_on_the_page_legible_at_half_size_and_no_formula(
    folder: Path, texts_drawn: list[tuple[str, Figure, Text, Bbox]], tmp_path: Path
) -> None:
    written = [path for c in figures.COMMANDS for path in figures.draw(c, NAMES, lambda *_: folder, tmp_path)]
    assert len(written) == 11
    for name, figure, text, box in texts_drawn:
        page = figure.bbox
        assert "$" not in text.get_text(), (name, text)
        assert float(text.get_fontsize()) * figure.dpi / 72 / 2 >= 7, (name, text)
        assert page.x0 - 2 < box.x0 < box.x1 < page.x1 + 2, (name, text)
        assert page.y0 - 2 < box.y0 < box.y1 < page.y1 + 2, (name, text)


def test_figures_need_no_model_library_and_name_a_missing_file(folder: Path, tmp_path: Path) -> None:
    code = "import sys, mamba_neurons.figures; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(InputError, match=r"delta_tiny-mamba\.npz is missing"):
        figures.draw("delta", NAMES, lambda *_: tmp_path, tmp_path)
