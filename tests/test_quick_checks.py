"""Calls with wrong types are refused as by jaxtyping's own checks, of inner functions too."""

from collections.abc import Callable, Iterator
from types import ModuleType

import jaxtyping
import numpy as np
import pytest
from jaxtyping import install_import_hook

import quick_checks

SOURCE = """
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Row = Float[np.ndarray, " place"]


def plain(n: int, *, word: str = "") -> str:
    return word * n if n else n


def shaped(one: Row, two: Row) -> Row:
    return one if len(one) > 1 else one[None]


def inside(one: Row, two: np.ndarray) -> bool:
    return isinstance(two, Float[np.ndarray, "place"])


def counted(n: int) -> Iterator[int]:
    yield n


@dataclass
class Held:
    row: Row
    n: int


def maker(factor: int) -> tuple[Callable, Callable]:
    def inner(n: int) -> str:
        return "x" * n * factor if n else n

    def inner_shaped(one: Row, two: Row) -> int:
        return len(one) * factor

    return inner, inner_shaped


def deep(n: int) -> int:
    def again(left: int) -> int:
        return 0 if left == 0 else 1 + deep(left - 1)

    return again(n)
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """A module that the import hook decorates, as those of the project."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "typed_by_the_hook.py").write_text(SOURCE)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        with install_import_hook("typed_by_the_hook", "beartype.beartype"):
            import typed_by_the_hook  # pyright: ignore[reportMissingImports]
        yield typed_by_the_hook


def row(n: int) -> np.ndarray:
    return np.zeros(n)


CALLS: dict[str, tuple[Callable[[ModuleType], object], Callable[[ModuleType], object]]] = {
    "an argument": (lambda m: m.plain(2, word="a"), lambda m: m.plain("2")),
    "a named argument": (lambda m: m.plain(n=2), lambda m: m.plain(2, word=3)),
    "what is returned": (lambda m: m.plain(1), lambda m: m.plain(0)),
    "axes of one length": (lambda m: m.shaped(row(2), row(2)), lambda m: m.shaped(row(2), row(3))),
    "a returned shape": (lambda m: m.shaped(row(2), row(2)), lambda m: m.shaped(row(1), row(1))),
    "what is iterated": (lambda m: list(m.counted(1)), lambda m: list(m.counted("1"))),
    "a field": (lambda m: m.Held(row(2), 1), lambda m: m.Held(row(2), "1")),
    "a shape in a field": (lambda m: m.Held(row(2), 1), lambda m: m.Held(np.zeros((2, 2)), 1)),
    "an inner argument": (lambda m: m.maker(1)[0](1), lambda m: m.maker(1)[0]("1")),
    "an inner result": (lambda m: m.maker(1)[0](1), lambda m: m.maker(1)[0](0)),
    "inner axes": (
        lambda m: m.maker(1)[1](row(2), row(2)),
        lambda m: m.maker(1)[1](row(2), row(3)),
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_wrong_type_is_refused_every_time_and_a_right_one_never(
    case: str, code: ModuleType
) -> None:
    right, wrong = CALLS[case]

    for _ in range(3):  # of an inner function the second is checked by what the first made
        right(code)
        with pytest.raises(Exception, match=r"[Tt]ype|hint") as refusal:
            wrong(code)
        assert type(refusal.value).__module__.split(".")[0] in ("jaxtyping", "beartype")


def test_the_project_is_checked_so() -> None:
    assert jaxtyping.jaxtyped is quick_checks.jaxtyped


def test_a_shape_in_a_body_knows_the_axes_of_the_arguments(code: ModuleType) -> None:
    assert code.inside(row(2), row(2))
    assert not code.inside(row(2), row(3))


def test_each_inner_function_sees_what_its_own_call_was_given(code: ModuleType) -> None:
    one, three = code.maker(1), code.maker(3)

    assert (one[0](2), three[0](2)) == ("xx", "xxxxxx")
    assert (one[1](row(2), row(2)), three[1](row(2), row(2))) == (2, 6)
    assert code.deep(20) == 20


def test_where_checks_are_switched_off_nothing_is_refused(
    code: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    inner, inner_shaped = code.maker(1)

    assert code.plain(0) == inner(0) == 0
    assert inner_shaped(row(2), row(3)) == 2
