"""How every figure looks: colours with one meaning in all studies, sizes that stay readable at half
size, fixed bytes.

Colours are Okabe and Ito's (2008), told apart by colour-blind readers. Figures are made without
pyplot, so nothing depends on a display, on a user's matplotlibrc or on what was drawn before.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from interp_core.files.artifacts import replacing

# heads that look at the token after the earlier occurrence; positive on diverging maps
INDUCTION = "#0072B2"
DUPLICATE_TOKEN = "#CC79A7"  # heads that look at the earlier occurrence itself
PREVIOUS_TOKEN = "#E69F00"  # heads that look one token back
COPYING = "#009E73"  # behaviour of the whole model: accuracy and loss where it can copy
ABLATED = "#D55E00"  # what an intervention on chosen units does
NULL = "#7A7A7A"  # whatever chance or a control gives: nulls, random draws, untrained models
INK = "#222222"  # text, bounds, observed values that none of the above names
MASS = "#F0E442"  # background: where most of a distribution lies
GRID = "#DDDDDD"  # background: grid lines, margins of equivalence, cells that cannot be
STRIPE = "#F3F3F3"  # background: every second row
SHORT_LAG, LONG_LAG = "#56B4E9", "#003B66"  # induction over few and over many tokens

DIVERGING = "RdBu"  # red below zero, white at zero, blue above
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = (
    "-",
    (0.0, (5.0, 1.5)),
    (0.0, (1.5, 1.0)),
    (0.0, (5.0, 1.0, 1.0, 1.0)),
    (0.0, (3.0, 1.0, 1.0, 1.0, 1.0, 1.0)),
)
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "axes.titlesize": 12.5,
    "axes.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "figure.titlesize": 13.5,
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 2.0,
    "lines.markersize": 6.5,
    "text.parse_math": False,
    "text.hinting": "no_hinting",
}


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's own defaults with this project's sizes and fonts, whatever the user's settings
    are.
    """
    with style.context(["default", _STYLE]):
        yield


@contextmanager
def drawing(path: Path, *, width: float, height: float) -> Iterator[Figure]:
    """An empty figure, in inches, that is written to `path` as PNG when the block ends without an
    error.

    Equal drawings give equal bytes: no date and no version of the software is written.
    """
    with house_style():
        figure = Figure(figsize=(width, height), layout="constrained")
        _Canvas(figure)
        yield figure

        # Laid out here: savefig finds the same layout by drawing the whole figure once more, a
        # fifth of its time.
        layout = figure.get_layout_engine()
        assert layout is not None
        layout.execute(figure)
        figure.set_layout_engine("none")

        with replacing(path) as part:
            figure.savefig(part, format="png", metadata={"Software": None})


class _Renderer(RendererAgg):
    """Draws what the font lacks, in a model's name or its tokens, as an escape such as \\u6a21.

    A font of the machine's would give other bytes on every machine.
    """

    def draw_text(self, gc: Any, x: float, y: float, s: str, *rest: Any, **options: Any) -> None:
        """As Matplotlib's own."""
        super().draw_text(gc, x, y, _with_escapes(s), *rest, **options)

    def get_text_width_height_descent(self, s: str, *rest: Any, **options: Any) -> Any:
        """As Matplotlib's own, of what is drawn."""
        return super().get_text_width_height_descent(_with_escapes(s), *rest, **options)


class _Canvas(FigureCanvasAgg):
    """Matplotlib's own with that renderer."""

    _drawn_at: tuple[float, float, float] | None = None

    def get_renderer(self) -> RendererAgg:
        """One renderer for each size, as Matplotlib keeps it."""
        # In whole pixels, rounded as Matplotlib rounds them.
        width, height = self.get_width_height(physical=True)
        size = (width, height, self.figure.dpi)
        if size != self._drawn_at:
            self.renderer = _Renderer(width, height, self.figure.dpi)
            self._drawn_at = size
        return self.renderer


def _with_escapes(said: str) -> str:
    if said.isascii():
        return said

    known = _glyphs()
    return "".join(
        one if one.isspace() or ord(one) in known else one.encode("unicode_escape").decode()
        for one in said
    )


@cache
def _glyphs() -> frozenset[int]:
    """The characters of the one font of all figures, which comes with Matplotlib."""
    return frozenset(get_font(findfont(_STYLE["font.family"])).get_charmap())


@dataclass(frozen=True)
class LineStyle:
    """How one model is drawn wherever several share an axis: never by colour alone."""

    color: str
    marker: str
    linestyle: str | tuple[float, tuple[float, ...]]


def model_styles(names: Sequence[str]) -> dict[str, LineStyle]:
    """A style for each model; given from small to large, colours run from light to dark."""
    ramp = colormaps["viridis"]
    positions = np.linspace(0.75, 0.0, len(names)) if len(names) > 1 else np.array([0.25])
    return {
        name: LineStyle(
            color=to_hex(ramp(float(position))),
            marker=_MARKERS[index % len(_MARKERS)],
            linestyle=_DASHES[index % len(_DASHES)],
        )
        for index, (name, position) in enumerate(zip(names, positions, strict=True))
    }


def shades(colour: str) -> Colormap:
    """White at zero, `colour` in the middle, nearly black at the top: a share of something that has
    this colour.
    """
    dark = tuple(0.35 * part for part in to_rgb(colour))
    return LinearSegmentedColormap.from_list(f"white to {colour}", ["#FFFFFF", colour, dark])


def centred(values: Float[np.ndarray, "..."], *, least: float = 1e-9) -> Normalize:
    """The scale of a diverging map: the same distance below zero as above, reaching the largest
    finite magnitude, and `least` in any case, so that noise looks like noise.
    """
    limit = max(least, float(np.abs(values[np.isfinite(values)]).max(initial=0.0)))
    return Normalize(-limit, limit)


def band(
    axes: Axes,
    x: Sequence[float] | Float[np.ndarray, " point"],
    low: Sequence[float] | Float[np.ndarray, " point"],
    high: Sequence[float] | Float[np.ndarray, " point"],
    *,
    colour: str,
    label: str | None = None,
) -> None:
    """The range between two curves, light enough for lines on top."""
    axes.fill_between(x, low, high, color=colour, alpha=0.22, linewidth=0, label=label)


def whisker(
    axes: Axes, value: float, y: float, interval: Sequence[float], *, colour: str, marker: str = "o"
) -> None:
    """A point with its interval, lying on row y."""
    axes.plot(list(interval), [y, y], color=colour, linewidth=3, solid_capstyle="butt", alpha=0.55)
    axes.plot([value], [y], marker=marker, color=colour, linestyle="none", markersize=8)


def interval_text(value: float, interval: Sequence[float], digits: int = 2) -> str:
    """`0.52 [0.49, 0.55]`."""
    return f"{value:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def heading(figure: Figure, axes: Axes, title: str, *, columns: int) -> None:
    """The figure's title with the legend of `axes` below it, above all panels; entries in
    `columns`.
    """
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside upper center", title=title, ncols=columns)
    legend.get_title().set(fontsize=13.5, multialignment="center")


def note(figure: Figure, text: str) -> None:
    """What the figure says in words, with n and the kind of interval, below everything else."""
    figure.supxlabel(text, fontsize=11.5, x=0.01, ha="left")
