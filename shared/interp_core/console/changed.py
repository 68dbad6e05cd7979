"""`--set KEY=VALUE`: any setting of a study's section, at any depth, checked as the profile is."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from interp_core.errors import InputError
from interp_core.files.params import check, profile_path, read_section, read_yaml
from interp_core.files.profile_yaml import NotAProfile, parse

OPTION = "--set"


def changed(
    said: Sequence[str], *, package: str, section: str, schema: str, profile: str | None
) -> dict[str, Any]:
    """Whole keys of the section for its reader, with what `said` changes in them.

    InputError in one line for what is no KEY=VALUE, for a key that the schema does not have, with
    the nearest that it has, and for a value that it does not take.
    """
    params = getattr(import_module(f"{package}.params"), schema)
    # What is wrong without any change is the profile's, and named so.
    read_section(section, params, profile)
    content = read_yaml(profile_path(profile))[section]

    given = dict(map(_pair, said))
    if len(given) < len(said):
        raise InputError(f"{OPTION}: one key stands there twice")

    for key, text in given.items():
        _put(content, key, _value(key, text))
    check(params, content, where=OPTION)

    return {top: content[top] for top in (key.partition(".")[0] for key in given)}


def _pair(word: str) -> tuple[str, str]:
    key, equals, text = word.partition("=")
    if not equals or not all(key.split(".")):
        raise InputError(f"{OPTION} takes KEY=VALUE, such as part.key=3; got {word[:80]!r}")
    return key, text


def _value(key: str, text: str) -> Any:
    """The value as a profile would say it."""
    try:
        content = parse(f"value: {text}")
    except NotAProfile as problem:
        raise InputError(f"{OPTION} {key}: {problem}") from None

    if content.keys() != {"value"}:
        raise InputError(f"{OPTION} {key}: takes one value, got {text[:80]!r}")
    return content["value"]


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    """Change one key. A part that the profile leaves out is begun: its schema says what it has."""
    *parts, last = key.split(".")

    for depth, part in enumerate(parts, start=1):
        content = content.setdefault(part, {})
        if not isinstance(content, dict):
            above = ".".join(parts[:depth])
            raise InputError(f"{OPTION} {key}: `{above}` is a value, and holds no keys")

    content[last] = value
