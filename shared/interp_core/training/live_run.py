"""A run as W&B shows it: curves by section over one axis, tables, pictures, a summary."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp_core.errors import all_lines
from interp_core.training import account
from interp_core.training.curves import AXIS, Cell, Curve, cell_of, curve_of
from interp_core.training.journal import Entry, Journal


@dataclass
class Run:
    """A tracked run, or nothing at all (`Run()`), with the same face."""

    _run: Any = None  # wandb's
    _journal: Journal | None = None
    _sent_before: int = 0  # steps below it have been on the server since an earlier part
    _last: int = 0  # the latest step: nothing can be sent for an earlier one
    _tables: "dict[str, _Table]" = field(default_factory=dict, repr=False)
    _says: dict[str, str] = field(default_factory=dict, repr=False)  # of every curve so far
    _stopped: set[str] = field(default_factory=set, repr=False)  # kinds that failed

    def log(self, values: Mapping[str, int | float], step: int) -> None:
        """Send numbers at a training step, by the names that a history gives them."""
        if self._run is None:
            return

        # After a kill a training takes the steps since its last saved state again.
        known = self._journal.seen.get(step, set()) if self._journal else set()
        new = {name: value for name, value in values.items() if name not in known | {AXIS}}
        if not new:
            return

        entry = {"step": step, "values": new}
        if self._journal:
            self._journal.note(entry)
        self._send(entry)

    def image(self, name: str, path: Path, step: int) -> None:
        """Send a picture at a training step."""
        if self._run is None:
            return
        if self._journal is None:
            self._send({"step": step, "picture": name, "file": str(path)})
        elif name not in self._journal.seen.get(step, ()):
            self._send(self._journal.keep_picture(name, path, step))

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Put values into the summary as they are."""
        if self._run is not None:
            self._try(lambda run: run.summary.update(dict(values)))

    def send_again(self) -> None:
        """Everything that the parts before this one logged."""
        for entry in self._journal.earlier if self._journal else ():
            self._send(entry)

    def send_tables(self) -> None:
        """Every table with all of its rows.

        wandb asks the server first, and waits for as long as it takes: so we ask before it does.
        """
        if not self._tables or not (self._run.offline or account.answers()):
            return

        filled = {name: table.filled() for name, table in self._tables.items()}
        self._try(lambda run: run.log({AXIS: self._last, **filled}, step=self._last), "tables")

    def _send(self, entry: Entry) -> None:
        step = entry["step"]
        self._last = max(self._last, step)
        is_new = step >= self._sent_before

        if "picture" in entry:
            if is_new:
                picture = {entry["picture"]: self._picture(entry["file"])}
                self._try(lambda run: run.log({AXIS: step, **picture}, step=step))
            return

        curves = {
            curve_of(column): value
            for column, value in entry["values"].items()
            if cell_of(column) is None
        }
        self._declare([curve for curve in curves if curve.name not in self._says])

        if is_new and curves:
            values = {curve.name: value for curve, value in curves.items()}
            self._try(lambda run: run.log({AXIS: step, **values}, step=step))

        # Rows of earlier parts too: a table goes whole.
        due = self._put_into_tables(entry["values"], step)
        if is_new and due:
            self.send_tables()

    def _put_into_tables(self, values: Mapping[str, int | float], step: int) -> bool:
        """Whether a table is due after taking these numbers in."""
        cells = [(cell, value) for name, value in values.items() if (cell := cell_of(name))]

        for cell, value in cells:
            self._tables.setdefault(cell.table, _Table()).put(cell, step, value)

        return any(self._tables[cell.table].is_due() for cell, _ in cells)

    def _declare(self, curves: list[Curve]) -> None:
        """Axis, summary and description of curves that come for the first time."""
        for curve in curves:
            self._says[curve.name] = curve.says
            how = {"step_metric": AXIS, "summary": f"{curve.best},last" if curve.best else "last"}
            self._try(lambda run, name=curve.name, how=how: run.define_metric(name, **how))

        if curves:
            says = {"curves": dict(self._says)}
            self._try(lambda run: run.config.update(says, allow_val_change=True))

    def _picture(self, file: str) -> Any:
        import wandb

        return wandb.Image(
            str(Path(file) if self._journal is None else self._journal.folder / file)
        )

    def _try(self, act: Callable[[Any], Any], kind: str = "curves") -> None:
        """Do something with wandb's run; where it fails, say so once, and send none of its kind."""
        if kind in self._stopped:
            return
        try:
            act(self._run)
        except failures() as problem:
            self._stopped.add(kind)
            say(f"logging of {kind} stopped ({line(problem)}); the training goes on")


@dataclass
class _Table:
    """Numbers of many heads, or pairs, or eigenpairs: a row for each at each step."""

    columns: dict[str, None] = field(default_factory=dict)  # in the order in which they came
    rows: dict[tuple[int, str], dict[str, int | float]] = field(default_factory=dict)
    steps: set[int] = field(default_factory=set)

    def put(self, cell: Cell, step: int, value: int | float) -> None:
        """Take one number in."""
        self.columns.setdefault(cell.column)
        self.rows.setdefault((step, cell.row), {})[cell.column] = value
        self.steps.add(step)

    def is_due(self) -> bool:
        """Whether to send it on the way: at one, two, four ... steps, because it goes whole."""
        return len(self.steps) & (len(self.steps) - 1) == 0

    def filled(self) -> Any:
        """As W&B takes it."""
        import wandb

        names = list(self.columns)
        data: list[Any] = [
            [step, row, *(values.get(name) for name in names)]
            for (step, row), values in self.rows.items()
        ]
        return wandb.Table(columns=[AXIS, "of", *names], data=data)


def failures() -> tuple[type[Exception], ...]:
    """What wandb raises when its account, its network, its service or its disk fail."""
    import wandb
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    of_its_service = (HandleAbandonedError, MailboxClosedError)
    return (wandb.Error, OSError, TimeoutError, RuntimeError, ValueError, *of_its_service)


def line(problem: Exception) -> str:
    """An error in one line."""
    return all_lines(problem)


def say(text: str) -> None:
    """One line for the user."""
    print(f"W&B: {text}", file=sys.stderr, flush=True)
