"""Profiles as differences: an overlay holds what differs from the base, and becomes a whole file.

A mapping is merged key by key; anything else replaces what the base has. Two tags say what that
cannot: `KEY: !replace {...}` takes the place of the base's whole mapping, and `KEY: !new VALUE` is
a key that the base lacks (without the tag it is a misspelling).
"""

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, TaggedScalar
from ruamel.yaml.error import YAMLError

from interp_core.errors import InputError, all_lines
from interp_core.files.params import nearest

BASE = "laptop"
NEW, REPLACE = "!new", "!replace"


def overlays(profiles: Path) -> dict[str, Path]:
    """The overlays in a folder of profiles, by the name of the profile that each becomes."""
    return {path.stem: path for path in sorted((profiles / "overlays").glob("*.yaml"))}


def composed(profiles: Path, overlay: Path) -> str:
    """The whole profile that an overlay over the base makes, as text, with the base's comments.

    InputError names a key that the base lacks and that is not marked as new.
    """
    base_file = profiles / f"{BASE}.yaml"
    base, changes = _read(base_file), _read(overlay)
    _merge(base, changes, (), where=f"{overlay}", base_file=base_file)

    written = _Text()
    _yaml().dump(base, written)

    # The base's first lines speak of the base.
    body = re.sub(r"\A(#.*\n|\n)+", "", written.text)
    # Blank lines belong to the value before them, which may have gone: one before every section.
    body = re.sub(r"\n+", "\n", body)
    body = re.sub(r"\n(?=[^\s#])", "\n\n", body)
    made_from = (
        f"# Written by `make stages` from {BASE}.yaml and overlays/{overlay.name}: edit those."
    )
    return f"{made_from}\n{_first_comment(overlay)}{body}"


def _merge(
    base: CommentedMap,
    changes: CommentedMap,
    place: tuple[str, ...],
    *,
    where: str,
    base_file: Path,
) -> None:
    """Put the changes into the base, in place."""
    for key, given in changes.items():
        here = (*place, str(key))
        value, tag = _untagged(given)

        if key not in base and tag != NEW:
            known = nearest(str(key), [str(name) for name in base])
            raise InputError(
                f"{where}: `{'.'.join(here)}` is not in {base_file.name}{known} "
                f"(a key that it should lack is marked: `{key}: {NEW} ...`)"
            )

        if key in base and tag == NEW:
            raise InputError(
                f"{where}: `{'.'.join(here)}` is marked {NEW}, but {base_file.name} has it"
            )

        merges = isinstance(value, CommentedMap) and isinstance(base.get(key), CommentedMap)
        if merges and tag is None:
            _merge(base[key], value, here, where=where, base_file=base_file)
        else:
            _replace(base, key, value)


def _replace(base: CommentedMap, key: Any, value: Any) -> None:
    """Another value under a key. The comment that follows a list in brackets hangs on the list."""
    before = base.get(key)

    if hasattr(before, "ca") and hasattr(value, "ca") and not isinstance(before, CommentedMap):
        value.ca.comment = before.ca.comment

    base[key] = value


def _untagged(given: Any) -> tuple[Any, str | None]:
    """A value of an overlay without its tag, and the tag."""
    tag = given.tag.value if isinstance(given, CommentedMap | TaggedScalar) else None

    if isinstance(given, TaggedScalar):
        return _yaml().load(given.value), tag

    if tag is not None:
        plain = CommentedMap(given)
        if given.fa.flow_style():
            plain.fa.set_flow_style()
        return plain, tag

    return given, None


class _Text:
    """What ruamel writes into."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, part: bytes | str) -> None:
        self.text += part.decode() if isinstance(part, bytes) else part


def _first_comment(path: Path) -> str:
    """The lines of comment at the head of a file."""
    found = re.match(r"(#.*\n)*", path.read_text())
    assert found is not None
    return found[0]


def _yaml() -> YAML:
    """A reader and writer that keeps comments, quotes, brackets and the spelling of numbers."""
    yaml = YAML()
    yaml.width = 4096  # a line of the base stays one line
    yaml.preserve_quotes = True
    # `null` is written out, as in the base.
    yaml.representer.add_representer(
        type(None), lambda writer, _: writer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def _read(path: Path) -> CommentedMap:
    try:
        content = _yaml().load(path)
    except YAMLError as problem:
        raise InputError(f"{path}: not valid YAML: {all_lines(problem)}") from None

    if not isinstance(content, CommentedMap):
        raise InputError(f"{path}: holds no sections")
    return content
