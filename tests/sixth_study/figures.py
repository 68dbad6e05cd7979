"""Figures from files: no model is loaded, no score computed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import Normalize

from interp_core.plotting import PREVIOUS_TOKEN, drawing, interval_text, note, shades
from interp_core.plotting_maps import map_of_heads


def draw(arrays: Mapping[str, np.ndarray], report: Mapping[str, Any], path: Path) -> None:
    """Attention to the token before: layers by heads, the best head in a frame."""
    means = arrays["previous_token"].mean(axis=0, dtype=np.float64)
    found = report["attention"]

    with drawing(path, width=5.5, height=4.5) as figure:
        axes = figure.subplots()
        image = map_of_heads(
            axes,
            means,
            scale=Normalize(0, 1),
            colours=shades(PREVIOUS_TOKEN),
            marked=means == means.max(),
        )
        axes.set(xlabel="head", ylabel="layer", title=f"{report['name']}: attention one token back")
        figure.colorbar(image, ax=axes, label="mean attention")

        best = interval_text(found["value"], (found["low"], found["high"]))
        note(figure, f"{report['best']}: {best}; chance {report['chance']:.2f}; n = {found['n']}")
