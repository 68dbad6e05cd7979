"""Figures as they are saved: what stands on them, and where; and those that git keeps."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


@dataclass(frozen=True)
class Drawn:
    """A figure as it was written, and every text on it with its place, in pixels."""

    figure: Figure
    texts: list[tuple[Text, Bbox]]

    @property
    def words(self) -> str:
        return " | ".join(text.get_text() for text, _ in self.texts)


def committed_figures(root: Path) -> set[Path]:
    """Figures that git keeps, of the run and over trainings."""
    listed = subprocess.run(
        ["git", "ls-files", "data/*.png", "published/*.png"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    return {root / name for name in listed.stdout.split()}


def assert_legible(name: str, seen: Drawn) -> None:
    """At half size text is at least 7 pixels high; all of it is on the page, and none is markup."""
    figure, page = seen.figure, seen.figure.bbox

    for text, box in seen.texts:
        assert "$" not in text.get_text(), (name, text)
        assert float(text.get_fontsize()) * figure.dpi / 72 / 2 >= 7, (name, text)
        assert page.x0 - 2 < box.x0 < box.x1 < page.x1 + 2, (name, text)
        assert page.y0 - 2 < box.y0 < box.y1 < page.y1 + 2, (name, text)


def figures_saved(patch: pytest.MonkeyPatch) -> dict[str, Drawn]:
    """Fills with every figure that is saved from now on, by the stem of its file, while `patch`
    holds.
    """
    seen: dict[str, Drawn] = {}
    save, draw = Figure.savefig, Text.draw

    def remember(figure: Figure, path: Path, **settings: Any) -> None:
        texts: dict[
            int, tuple[Text, Bbox]
        ] = {}  # the layout draws too: what is drawn last is on the page

        def listen(text: Text, renderer: RendererBase) -> None:
            draw(text, renderer)
            if text.get_visible() and text.get_text().strip():
                texts[id(text)] = (text, text.get_window_extent(renderer))

        with patch.context() as inside:
            inside.setattr(Text, "draw", listen)
            save(figure, path, **settings)
        seen[path.name.removeprefix(".").split(".")[0]] = Drawn(figure, list(texts.values()))

    patch.setattr(Figure, "savefig", remember)
    return seen
