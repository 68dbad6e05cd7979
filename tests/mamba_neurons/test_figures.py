"""Every figure stays on its page and is legible at half size, from a whole run's files alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from drawn_figures import Drawn, figures_saved
from interp_core.errors import InputError
from mamba_neurons import figures
from mamba_neurons.figures import Place

NAMES = ["tiny-mamba", "tiny-twin"]


def in_folders(files: Path, plots: Path) -> Place:
    """Where an experiment has its files."""
    return lambda kind, _: plots if kind == "figures" else files


@pytest.fixture
def folder(whole: tuple[Path, Path]) -> Path:
    """The files of every part."""
    return whole[0]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Drawn]:
    """Figures by the stem of their file."""
    return figures_saved(monkeypatch)


def test_every_text_is_on_the_page_legible_at_half_size_and_no_formula(
    folder: Path, drawn: dict[str, Drawn], tmp_path: Path
) -> None:
    written = [
        path
        for c in figures.COMMANDS
        for path in figures.draw(c, NAMES, in_folders(folder, tmp_path))
    ]
    assert len(written) == 11
    assert len(drawn) == 11
    for name, seen in drawn.items():
        figure, page = seen.figure, seen.figure.bbox
        for text, box in seen.texts:
            assert "$" not in text.get_text(), (name, text)
            assert float(text.get_fontsize()) * figure.dpi / 72 / 2 >= 7, (name, text)
            assert page.x0 - 2 < box.x0 < box.x1 < page.x1 + 2, (name, text)
            assert page.y0 - 2 < box.y0 < box.y1 < page.y1 + 2, (name, text)


def test_figures_need_no_model_library_and_name_a_missing_file(
    folder: Path, tmp_path: Path
) -> None:
    heavy = "'torch' in sys.modules or 'transformers' in sys.modules"
    code = f"import sys, mamba_neurons.figures; sys.exit({heavy})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(InputError, match=r"delta_tiny-mamba\.npz is missing"):
        figures.draw("delta", NAMES, in_folders(tmp_path, tmp_path))
