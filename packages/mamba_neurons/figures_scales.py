"""Logarithmic axes with plain numbers: the house style draws no mathematics."""

from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter


def logarithmic(axes: Axes, *names: Literal["x", "y"]) -> None:
    """Make these axes logarithmic, with at most five labels: 0.01, 1, 100."""
    for name in names:
        getattr(axes, f"set_{name}scale")("log")
        axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(LogLocator(base=10, numticks=5))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
