"""Maps of heads as the field draws them: layer 0 on top, a number in each cell of a small one."""

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from interp_core.plotting import INK

MOST_NUMBERS = 64  # cells; smaller ones have no room for a number
_SIZE = 10.5  # points, of a number in its cell
_BRIGHTNESS = np.array([0.2126, 0.7152, 0.0722])  # of red, green and blue (Rec. 709)


def map_of_heads(
    axes: Axes,
    values: Float[np.ndarray, "layer head"],
    *,
    scale: Normalize,
    colours: str | Colormap,
    marked: Bool[np.ndarray, "layer head"] | None = None,
) -> AxesImage:
    """A cell for each head, layer 0 on top; marked heads have a frame."""
    image = axes.imshow(
        values, origin="upper", aspect="auto", cmap=colours, norm=scale, interpolation="nearest"
    )
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.spines[["top", "right"]].set_visible(True)

    if marked is not None:
        for layer, head in np.argwhere(marked):
            corner = (head - 0.5, layer - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=INK, linewidth=2.2))

    if values.size <= MOST_NUMBERS:
        _numbers(axes, image, values)

    return image


def _numbers(axes: Axes, image: AxesImage, values: Float[np.ndarray, "layer head"]) -> None:
    cells = np.asarray(image.cmap(image.norm(values)))  # [layer, head, 4]

    for (layer, head), value in np.ndenumerate(values):
        bright = float(cells[layer, head, :3] @ _BRIGHTNESS) > 0.5

        axes.text(
            head,
            layer,
            f"{value:.2f}".replace("-0.00", "0.00"),
            ha="center",
            va="center",
            fontsize=_SIZE,
            color=INK if bright else "white",
        )
