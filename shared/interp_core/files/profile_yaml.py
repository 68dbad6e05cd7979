"""YAML as profiles are written: plain values, each key once.

What PyYAML reads besides is refused, with its line: a second value for a key, which would take the
place of the first without a word; aliases that grow to millions of values, or hold themselves.
"""

from collections.abc import Hashable
from copy import deepcopy
from functools import lru_cache
from typing import Any

import yaml

from interp_core.errors import all_lines, first_line

_LARGEST = 100_000  # values of a profile, each alias counted as what it stands for
_DEEPEST = 50  # brackets inside each other


class NotAProfile(ValueError):
    """What is wrong with a text that should be a profile."""


def parse(text: str) -> dict[str, Any]:
    """The sections of a profile, the caller's own. NotAProfile, in one line, for anything else."""
    return deepcopy(_parsed(text))


# A command asks for several sections of one profile, and reading takes a fifth of a second.
@lru_cache(maxsize=4)
def _parsed(text: str) -> dict[str, Any]:
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _check_size(node)
        content = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, NotAProfile) as problem:
        raise NotAProfile(f"not valid YAML: {all_lines(problem)}") from None
    except RecursionError:
        raise NotAProfile("not valid YAML: too many brackets inside each other") from None
    except (ValueError, OverflowError, AttributeError, TypeError, KeyError) as problem:
        # A date of month 13, a number of 5,000 digits, a word marked as a date.
        raise NotAProfile(f"holds a value that cannot be: {first_line(problem)}") from None
    finally:
        if loader is not None:
            loader.dispose()

    if not isinstance(content, dict):
        raise NotAProfile("holds no sections")
    if other := [key for key in content if not isinstance(key, str)]:
        raise NotAProfile(f"`{str(other[0])[:80]}` is no name of a section")
    return content


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, to which a key that stands twice and endless brackets are errors."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # Counted while it is read: PyYAML looks at all open brackets anew for each further one.
        self.depth += 1
        if self.depth > _DEEPEST:
            raise NotAProfile("too many brackets inside each other")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                line = key.start_mark.line + 1
                raise NotAProfile(f"`{key.value[:80]}` stands twice (line {line})")
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)


def _check_size(root: yaml.Node) -> None:
    """NotAProfile for what becomes too large, or has no end, when its aliases are followed."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) in open_nodes:
            raise NotAProfile(f"an alias holds itself (line {node.start_mark.line + 1})")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            inner = [part for entry in node.value for part in _parts(entry)]
            sizes[id(node)] = 1 + sum(size(part) for part in inner)
            open_nodes.remove(id(node))
        return sizes[id(node)]

    if (total := size(root)) > _LARGEST:
        raise NotAProfile(f"its aliases stand for {total:,} values, more than {_LARGEST:,}")


def _parts(entry: Any) -> tuple[yaml.Node, ...]:
    """The nodes of a list's entry, or of a mapping's key and value."""
    return entry if isinstance(entry, tuple) else (entry,)
