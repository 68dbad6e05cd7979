"""Types in annotations, checked as jaxtyping's import hook asks, in a third of the time.

jaxtyping binds the arguments of every call, to remember axes: ten times what the check itself
costs. Where no annotation says a shape, beartype alone checks. And what a function defines anew
in every call is checked by what was made for the first.
"""

import inspect
import threading
from collections.abc import Callable, Hashable
from functools import wraps
from types import CodeType, FunctionType
from typing import Any, ForwardRef, get_args

import jaxtyping
from jaxtyping import AbstractArray, AbstractDtype

_with_shapes = jaxtyping.jaxtyped
_of_inner: dict[Hashable, Callable[..., Any]] = {}


def jaxtyped(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """As jaxtyping's own, for what its import hook decorates."""

    def decorated(code: Any) -> Any:
        if not isinstance(code, FunctionType):
            return _with_shapes(typechecker=typechecker)(code)
        if "<locals>" not in code.__qualname__:
            return _checked(code, typechecker)

        key = (code.__code__, *code.__annotations__.items())
        if key not in _of_inner:
            _of_inner[key] = _checked(_stand_in(code), typechecker)
        return _through(_of_inner[key], code)

    return decorated


class _Called(threading.local):
    """Functions whose arguments are being checked, innermost last."""

    def __init__(self) -> None:
        self.functions: list[FunctionType] = []


_called = _Called()


def _stand_in(function: FunctionType) -> Any:
    """Looks like the function, and calls the one that was called."""

    @wraps(function)
    def stand_in(*arguments: Any, **named: Any) -> Any:
        __tracebackhide__ = True
        return _called.functions.pop()(*arguments, **named)

    return stand_in


def _through(checked: Callable[..., Any], function: FunctionType) -> Any:
    @wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        __tracebackhide__ = True
        _called.functions.append(function)
        depth = len(_called.functions)
        try:
            return checked(*arguments, **named)
        finally:
            del _called.functions[depth - 1 :]  # refused, and never called

    return called


def _checked(function: FunctionType, typechecker: Callable[[Any], Any]) -> Any:
    if _may_say_a_shape(inspect.unwrap(function)):
        return _with_shapes(typechecker=typechecker)(function)
    if not function.__annotations__:
        return function

    checking = typechecker(function)

    @wraps(function)
    def checked(*arguments: Any, **named: Any) -> Any:
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable:
            return function(*arguments, **named)
        return checking(*arguments, **named)

    return checked


def _may_say_a_shape(function: FunctionType) -> bool:
    """Whether axes have names in it, or could: in words that are not read yet, or later."""
    if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
        return True

    # A shape may be asked for in the body, too.
    names = _names_in(function.__code__)
    named = [function.__globals__.get(name) for name in names]
    written = function.__annotations__.values()
    unread = any(isinstance(one, str) for one in written)
    return unread or any(map(_holds_a_shape, [*written, *named]))


def _holds_a_shape(value: Any) -> bool:
    kind = inspect.isclass(value) and issubclass(value, AbstractArray | AbstractDtype)
    unread = isinstance(value, ForwardRef)
    return kind or unread or any(map(_holds_a_shape, get_args(value)))


def _names_in(code: CodeType) -> set[str]:
    """Those that it and what is defined in it look up."""
    inner = (one for one in code.co_consts if isinstance(one, CodeType))
    return {*code.co_names}.union(*map(_names_in, inner))


# For all modules that the import hook decorates from now on.
jaxtyping.jaxtyped = jaxtyped
