"""Progress bars on standard error, shown once work has lasted three seconds, silent when that is no
terminal.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
DELAY = 3  # seconds of work before a bar appears


def progress(
    items: Iterable[T], label: str, *, unit: str = "step", total: int | None = None
) -> Iterator[T]:
    """Yield `items` under a bar with count and remaining time; `total` is for items that have no
    length.
    """
    yield from tqdm(
        items, desc=label, unit=unit, total=total, disable=None, delay=DELAY, leave=False
    )


@cache
def left_out(line: str) -> None:
    """Say once, on standard error, that something was not measured and why."""
    tqdm.write(f"note: {line}", file=sys.stderr)


@dataclass(frozen=True)
class Bar:
    """The bar of one training: steps, remaining time, and the last numbers shown."""

    _bar: tqdm
    _shown: dict[str, str] = field(default_factory=dict)

    def advance(self) -> None:
        """One more step."""
        self._bar.update()

    def show(self, numbers: Mapping[str, int | float]) -> None:
        """Numbers beside the bar, three digits each; the ones shown before stay."""
        self._shown.update({name: f"{value:.3g}" for name, value in numbers.items()})
        self._bar.set_postfix(self._shown, refresh=False)


@contextmanager
def training_bar(steps: int, label: str, done: int = 0, position: int = 0) -> Iterator[Bar]:
    """A bar over `steps`, of which `done` lie behind; `position` is its line below others that run
    at once.
    """
    bar = tqdm(
        desc=label,
        total=steps,
        initial=done,
        unit="step",
        position=position,
        disable=None,
        delay=DELAY,
        leave=True,
    )
    with bar:
        yield Bar(bar)
