"""Attention over strokes as one HTML file without network: point at one to see what it reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp_core.page.document import views_of, write

Report = Mapping[str, Any]

# The view of strokes and what it is drawn with; it has no curves.
SCRIPTS = ("arrays", "elements", "grid", "ink", "strokes", "start")
_SHOWN = ("strokes", "position", "letters", "recurs", "matching", "best", "self", "cross")


def strokes(name: str, drawn: Report) -> dict[str, Any]:
    """A row of ink: which strokes and characters each head reads while it is written."""
    what = "Words" if drawn["letters"] else "Random strokes"
    reads = ", orange the characters that cross-attention reads" if drawn["letters"] else ""
    control = (
        "The first copy is the control: it has nothing to repeat."
        if drawn["recurs"]
        else "Nothing in this row comes again: the map has the most that a head gives to one place."
    )

    return {
        "kind": "strokes",
        "title": f"What a stroke reads, {name}",
        "says": (
            f"{what} in a row. Point at a stroke: blue are the strokes that the chosen head "
            f"attends to{reads}. {control}"
        ),
        **{key: drawn[key] for key in _SHOWN},
    }


def write_page(models: Mapping[str, Report], path: Path) -> None:
    """Write the page of every model by name; the drawings' numbers are inside it."""
    views = [strokes(name, drawn) for name, drawn in models.items()]
    write(
        path,
        "model.html.jinja",
        scripts=SCRIPTS,
        title="What a stroke reads",
        lead="The same strokes twice: a word for a model that writes, random ones for the control.",
        views=views_of(views),
        made={"command": "cursive-circuits draw"},
    )
