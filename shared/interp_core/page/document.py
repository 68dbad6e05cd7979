"""From a template and views to one file of HTML that asks for nothing outside itself.

What a page shows may come from anywhere: names of models, tokens, a user's text. Jinja escapes all
of it, JSON is spelled without `<`, and the page's own policy runs no script but the one that is
built in.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import click
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from interp_core.files.artifacts import replacing
from interp_core.files.vouching import replacing_ours

_HERE = Path(__file__).parent

# In the order in which they run: what all views use, the views, what finds and starts them.
_LIBRARY = ("vendor/d3.min.js", "vendor/plot.min.js")
_WITH_CURVES = {"channels", "curves", "offsets"}  # views that the library draws
SCRIPTS = (
    "arrays",
    "elements",
    "grid",
    "attention",
    "without",
    "heads",
    "curves",
    "clock",
    "offsets",
    "channels",
    "ink",
    "strokes",
    "start",
)


def render(template: str, *, scripts: tuple[str, ...] = SCRIPTS, **content: Any) -> str:
    """The page as text.

    Every value is escaped by the template; `content["views"]` becomes its data.
    """
    library = _LIBRARY if _WITH_CURVES & set(scripts) else ()
    script = _script(library, scripts)
    policy = [
        "default-src 'none'",
        f"script-src '{_digest(script)}'",
        "style-src 'unsafe-inline'",
        "img-src 'self' file: data:",
        # Of the live page alone: its own server answers.
        "connect-src 'self'" if "explore" in scripts else "connect-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    ]

    return (
        _environment()
        .get_template(template)
        .render(
            policy="; ".join(policy),
            script=Markup(script),
            style=Markup(_style(scripts)),
            curves=bool(library),
            **content,
        )
    )


def write(path: Path, template: str, **content: Any) -> None:
    """Render into a file, whole or not at all."""
    text = render(template, **content)

    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_own(
    path: Path, views: Sequence[Mapping[str, Any]], *, title: str, lead: str, made: dict[str, Any]
) -> None:
    """The page of what a user brought: its views, and from what they were made.

    InputError where a file of that name is there that is none of ours.
    """
    with replacing_ours(path) as part:
        write(part, "model.html.jinja", title=title, lead=lead, views=views_of(views), made=made)


def say(path: Path) -> None:
    """That a page is there, and what to do with it."""
    click.echo(f"{path}: open it in a browser, it needs no network")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("interp_core.page", "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["params"] = lambda value: json.dumps(value, indent=1, sort_keys=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


@cache
def _script(library: tuple[str, ...], scripts: tuple[str, ...]) -> str:
    """The library and our files, one after the other; a script element may not hold its own end."""
    files = [*library, *(f"script/{name}.js" for name in scripts)]
    text = "\n".join(["", *((_HERE / file).read_text() for file in files), ""])

    assert "</script" not in text.lower()
    return text


def _style(scripts: tuple[str, ...]) -> str:
    """The look of all pages, and on paper what pages with attention have in them."""
    files = ("page", "paper") if "attention" in scripts else ("page",)
    return "".join((_HERE / "style" / f"{name}.css").read_text() for name in files)


def _digest(script: str) -> str:
    """How a policy names the one script that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def views_of(views: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Views with the ids that their elements have on the page."""
    return [{**view, "id": f"view-{i}"} for i, view in enumerate(views)]
