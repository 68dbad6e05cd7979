"""A page as a browser's parser sees it: its data, its scripts, and what it would fetch."""

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import numpy as np

from interp_core.page import views
from interp_core.page.document import render, views_of
from interp_core.page.explore import SCRIPTS as LIVE
from interp_core.page.packed import lower, shares

# What a name must not be able to do.
HOSTILE = (
    "</script><script>window.hurt=1</script>",
    "<img src=x onerror=window.hurt=1>",
    '"><svg onload=window.hurt=1>',
    "<!--<script>",
    "javascript:window.hurt=1",
    "{{ 7 * 7 }}",
    "\u2028 ]]> &lt;script&gt; \\u003cscript\\u003e",
)

# Attributes that make a browser fetch, or run what they hold.
FETCHING = {"src", "srcset", "href", "action", "data", "poster", "formaction", "background"}


@dataclass
class Page:
    """What the elements of a page say."""

    data: dict[str, Any] = field(default_factory=dict)  # views, by the id of their element
    scripts: list[str] = field(default_factory=list)  # those that run
    styles: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)  # addresses beyond the page and its folder
    handlers: list[str] = field(default_factory=list)  # attributes that hold code
    text: str = ""

    @classmethod
    def of(cls, content: str) -> "Page":
        """Parse a page."""
        reader = _Reader()
        reader.feed(content)
        reader.close()
        return reader.page

    def view(self, kind: str) -> dict[str, Any]:
        """The first view of a kind."""
        return next(view for view in self.data.values() if view["kind"] == kind)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self.inside: tuple[str, dict[str, str | None]] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = (tag, dict(attrs)) if tag in ("script", "style") else None

        for name, value in attrs:
            if name.startswith("on"):
                self.page.handlers.append(name)
            if name in FETCHING and value is not None and not _is_beside(value):
                self.page.fetched.append(value)

    def handle_endtag(self, tag: str) -> None:
        self.inside = None

    def handle_data(self, data: str) -> None:
        if self.inside is None:
            self.page.text += data
            return

        tag, attributes = self.inside

        if tag == "style":
            self.page.styles.append(data)
        elif attributes.get("type") == "application/json":
            name = (attributes["id"] or "").removesuffix("-data")
            self.page.data[name] = json.loads(data)
        else:
            self.page.scripts.append(data)


def _is_beside(address: str) -> bool:
    """A place on the page, or a file of its folder; the empty icon keeps browsers from asking for
    one.
    """
    if address == "data:,":
        return True

    return address.startswith("#") or (
        "//" not in address and ":" not in address and not address.startswith("/")
    )


def hostile_page(name: str) -> str:
    """A page of every kind of view, on which all that comes from outside is the same text."""
    found = [_heads(name), _clock(name), _card(name), _offsets(name), _channels(name), _ink(name)]

    return render(
        "model.html.jinja",
        title=name,
        lead=name,
        views=views_of([*found, _strokes(name)]),
        made={name: name, "path": name},
    )


def hostile_live_page(name: str) -> str:
    """The page of `induct explore` for a model of that name."""
    view = {
        "id": "view-0", "kind": "explore", "title": name, "model": name, "layers": 1, "heads": 2,
        "unit": "head", "text": name, "longest": 9,
    }  # fmt: skip
    return render("explore.html.jinja", scripts=LIVE, title=name, views=[view])


def _heads(name: str) -> views.View:
    patterns = np.full((2, 1, 2, 4, 4), 0.25)
    text = {
        "title": name,
        "tokens": [name] * 4,
        "control": [name] * 4,
        "pairs": [[2, 1]],
        "attention": lower(patterns),
        "without": {
            "sizes": [1], "ranked": [name],
            "random": [{"count": 1, "where": name, "first": [name]}],
            "loss": [[1.0] * 3] * 5, "words": [name], "top": [[[0]] * 3] * 5,
            "probability": shares(np.full((5, 3, 1), 0.5)),
        },
    }  # fmt: skip
    score = views.score(name, name, np.full((1, 2), 0.5), colour="induction")

    return {
        "kind": "heads", "title": name, "model": name, "layers": 1, "heads": 2, "n": name,
        "found": [name], "scores": [score], "texts": [text],
    }  # fmt: skip


def _panel(name: str) -> views.View:
    several = views.line(name, [[1.0, 2.0], [3.0, 4.0]], colour="null")
    return views.panel(name, name, [views.line(name, [0.0, 1.0], colour="ink")], dots=several)


def _clock(name: str) -> views.View:
    maps = {name: (np.full((2, 1, 2), 0.5), "induction")}
    return views.clock(name, [0, 1], [_panel(name)], maps, says=name, events={name: 1.0})


def _card(name: str) -> views.View:
    card = views.card(name, {name: name}, steps=[0, 1], panels=[_panel(name)], formed=[name])
    return {**card, "title": name}


def _offsets(name: str) -> views.View:
    row = {"offset": name, "value": 0.5, "low": 0.4, "high": 0.6, "control": 0.1}
    hidden = {
        "names": [name], "says": name, "tokens": [name] * 4, "control": [name] * 4,
        "pairs": [[2, 1]], "attention": lower(np.full((2, 1, 4, 4), 0.25)),
    }  # fmt: skip
    layer = {"name": name, "profile": [row], "cuts": [row]}
    return {"kind": "offsets", "title": name, "says": name, "layers": [layer], "hidden": hidden}


def _channels(name: str) -> views.View:
    columns = [{"label": name, "says": name} for _ in range(3)]
    return {
        "kind": "channels", "title": name, "says": name, "columns": columns, "cloud": [1, 2],
        "cloudTitle": name, "rows": [[name, 1.0, 2.0]], "sizes": [1, 2], "panel": _panel(name),
    }  # fmt: skip


def _ink(name: str) -> views.View:
    drawing = {"label": name, "colour": "ink", "points": [[0, 0, 1], [1, 1, 1]]}
    group = {"name": name, "says": name, "drawings": [drawing]}
    return {"kind": "ink", "title": name, "groups": [group]}


def _strokes(name: str) -> views.View:
    reads = [[[[0, 50], [1, 50]]] * 4]
    return {
        "kind": "strokes", "title": name, "says": name, "strokes": [[0, 0, 1], [1, 1, 1]],
        "position": [1, 3], "letters": [name], "recurs": True, "best": [0, 0],
        "self": [reads], "cross": [reads],
        "matching": [[0.5]],
    }  # fmt: skip
