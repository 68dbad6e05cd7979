"""One training loop for every language model here: one process, several GPUs or several machines,
same code.

The global batch of step i comes from a function of i alone, so a training that was killed ends with
the same bytes as one that was not, and several processes compute what one would.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, reduce
from jaxtyping import Int
from torch import Tensor, nn

from interp_core.errors import InputError, StateSavedError
from interp_core.progress import Bar, training_bar
from interp_core.training.batches import IGNORED, BatchSource, Inputs
from interp_core.training.checkpoints import Resumed, Scratch, checkpoint_steps
from interp_core.training.history import History, Row
from interp_core.training.live_run import Run
from interp_core.training.recipe import Recipe

LOG_EVERY = 10  # steps between two points of the live curves; shapes no result


@dataclass(frozen=True)
class Moment:
    """A training between two updates, as an evaluation sees it: to look at, not to change."""

    step: int  # updates so far
    model: nn.Module  # the bare model, in eval mode
    optimizer: Any  # AdamW (or accelerate's wrapping of it)
    rate: float  # learning rate of the next update
    run: Run = field(default_factory=Run)  # takes what says more than a history's row


Evaluation = Callable[[Moment], Mapping[str, float]]


class Diverged(InputError):
    """The loss is no longer finite. Carries the rows up to there."""

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history


def train(
    model: nn.Module,
    batch: BatchSource,
    evaluate: Evaluation,
    recipe: Recipe,
    *,
    scratch: Scratch | None,
    run: Run,
    label: str,
    position: int = 0,
    keep: Callable[[History], bool] = lambda _: True,
    inputs: Inputs = lambda _: {},
    accumulation: int = 1,
) -> History:
    """Train `model` in place and return its history: one row at each checkpoint step.

    A row has `step` (updates so far), `loss` (mean over the batches since the last row, each before
    its update, nats a token), `learning_rate` and what `evaluate` returns. With a scratch (needed
    on the main process alone) the training resumes from it, and the weights of those rows are kept
    there for which `keep`, given the history so far, says so. A batch is computed in `accumulation`
    parts, one after the other: less memory, the same mean over its labels. Diverged when the loss
    stops being finite; on Ctrl-C StateSavedError, or KeyboardInterrupt without a scratch.
    """
    torch.set_num_threads(recipe.threads)
    accelerator = Accelerator(
        mixed_precision="bf16" if recipe.precision == "bf16" else "no", cpu=recipe.device == "cpu"
    )
    _check_world(accelerator, label)
    trainer = _Trainer.start(accelerator, model, recipe, scratch, accumulation)
    rows = set(
        checkpoint_steps(recipe.steps, every=recipe.checkpoint_every, also=recipe.checkpoint_also)
    )
    with (
        _interruptions() as interrupted,
        training_bar(recipe.steps, label, trainer.step, position) as bar,
    ):
        speed = _Speed(trainer.step)
        while trainer.step <= recipe.steps:
            ids, labels = batch(trainer.step)
            loss = trainer.forward(ids, labels, inputs(trainer.step))
            if trainer.step in rows:
                row = trainer.note_row(evaluate, keep, run)
                run.log(row, trainer.step)
                bar.show({name: row[name] for name in row if name != "step"})
            if trainer.step == recipe.steps:
                break
            trainer.update(loss)
            bar.advance()
            speed.note(trainer, ids.numel(), run, bar)
            trainer.save_if_due(interrupted.is_set())
            if trainer.agree(interrupted.is_set()):
                raise KeyboardInterrupt if scratch is None else StateSavedError
    return trainer.history


def _check_world(accelerator: Accelerator, label: str) -> None:
    """Launchers differ in what they start: say how many processes train, and refuse fewer than were
    asked for.
    """
    world, asked = accelerator.num_processes, int(os.environ.get("WORLD_SIZE", "1"))
    if world != asked:
        raise InputError(
            f"{label}: WORLD_SIZE is {asked}, but {world} process trains; start it with torchrun"
        )
    if world > 1 and accelerator.is_main_process:
        print(f"{label}: trained by a world of {world} processes", file=sys.stderr, flush=True)


@dataclass
class _Trainer:
    """Model, optimiser and memory of a training in progress."""

    accelerator: Accelerator
    module: nn.Module  # the bare model
    wrapped: nn.Module  # the model as accelerate runs it
    optimizer: Any
    recipe: Recipe
    scratch: Scratch | None
    accumulation: int  # parts of a batch
    step: int  # updates so far
    history: History
    losses: list[float]  # since the last row
    last_saved: float

    @classmethod
    def start(
        cls,
        accelerator: Accelerator,
        model: nn.Module,
        recipe: Recipe,
        scratch: Scratch | None,
        accumulation: int,
    ) -> "_Trainer":
        """Fresh, or from the main process's saved state."""
        model.train()
        model.to(accelerator.device)
        optimizer = torch.optim.AdamW(
            parameter_groups(model, recipe.weight_decay),
            lr=recipe.learning_rate,
            betas=recipe.betas,
            fused=True,
        )
        resumed = scratch.load() if scratch is not None and accelerator.is_main_process else None
        step = _spread(model, optimizer, resumed, accelerator)
        wrapped, prepared = accelerator.prepare(model, optimizer)
        memory = resumed.memory if resumed else {"history": [], "losses": []}
        return cls(
            accelerator,
            model,
            wrapped,
            prepared,
            recipe,
            scratch if accelerator.is_main_process else None,
            accumulation,
            step,
            memory["history"],
            memory["losses"],
            time.monotonic(),
        )

    def forward(
        self,
        ids: Int[Tensor, "row position"],
        labels: Int[Tensor, "row position"],
        inputs: Mapping[str, Tensor],
    ) -> Tensor:
        """This process's part of the loss, scaled so that the mean over processes is the mean over
        all labels. Of a batch in several parts it is the last part's: the gradients of the others
        are there already.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        mine = slice(rank * len(ids) // world, (rank + 1) * len(ids) // world)
        scale = world / int((labels[:, 1:] != IGNORED).sum())
        parts = min(self.accumulation, mine.stop - mine.start)
        ends = [mine.start + (mine.stop - mine.start) * part // parts for part in range(parts + 1)]
        value = 0.0
        for first, last in pairwise(ends):
            loss = self._sum_of_losses(slice(first, last), ids, labels, inputs) * scale
            value += self._reduced(loss.detach(), "mean")
            if not math.isfinite(value):
                raise Diverged(self._diverged(value), self.history)
            if last < mine.stop:
                self.accelerator.backward(loss)
        self.losses.append(value)
        return loss  # pyright: ignore[reportUnboundVariable]  # there is at least one part

    def _sum_of_losses(
        self,
        rows: slice,
        ids: Int[Tensor, "row position"],
        labels: Int[Tensor, "row position"],
        inputs: Mapping[str, Tensor],
    ) -> Tensor:
        device = self.accelerator.device
        with self.accelerator.autocast():
            more = {name: tensor[rows].to(device) for name, tensor in inputs.items()}
            logits = self.wrapped(input_ids=ids[rows].to(device), use_cache=False, **more).logits
        predicted, target = (
            logits[:, :-1].float().flatten(0, 1),
            labels[rows, 1:].flatten().to(device),
        )
        return nn.functional.cross_entropy(predicted, target, ignore_index=IGNORED, reduction="sum")

    def update(self, loss: Tensor) -> None:
        """One step of AdamW."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1

    def note_row(self, evaluate: Evaluation, keep: Callable[[History], bool], run: Run) -> Row:
        """Evaluate on the main process, extend the history, keep the weights."""
        row: Row = {"step": self.step, "loss": math.fsum(self.losses) / len(self.losses)}
        rate = self.recipe.rate(self.step)
        if self.accelerator.is_main_process:
            self.module.eval()
            row |= evaluate(Moment(self.step, self.module, self.optimizer, rate, run))
            self.module.train()
        row["learning_rate"] = rate
        self.losses.clear()
        self.history.append(row)
        if self.scratch is not None and keep(self.history):
            self.scratch.keep(self.step, self.module)
        self.accelerator.wait_for_everyone()
        return row

    def save_if_due(self, now: bool) -> None:
        """Save the state when the interval is over, or now."""
        if self.scratch is None or not (
            now or time.monotonic() - self.last_saved >= self.recipe.save_seconds
        ):
            return
        memory = {"history": self.history, "losses": self.losses}
        self.scratch.save(self.step, _state(self.module, self.optimizer), memory)
        self.last_saved = time.monotonic()

    def agree(self, stop: bool) -> bool:
        """Whether any process wants to stop."""
        return self._reduced(torch.tensor(float(stop), device=self.accelerator.device), "sum") > 0

    def _reduced(self, value: Tensor, how: str) -> float:
        """A number's sum or mean over processes."""
        if self.accelerator.num_processes == 1:
            return value.item()
        together = reduce(value, how)
        assert isinstance(together, Tensor)
        return together.item()

    def _diverged(self, value: float) -> str:
        message = (
            f"training diverged: the loss is {value} at step {self.step}; lower learning_rate or "
            "raise warmup"
        )
        if self.scratch is None:
            return message
        return (
            f"{message} (weights up to the last good checkpoint are in {self.scratch.checkpoints})"
        )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay for the matrices of linear maps and embeddings; none for vectors, convolutions and
    Mamba's A_log and D.
    """
    decayed, free = [], []
    for name, parameter in model.named_parameters():
        (decayed if parameter.ndim == 2 and name.endswith("weight") else free).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


_SLOTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW remembers of each parameter


def _state(model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Weights and optimiser memory under flat names.

    Tied weights appear once (named_parameters leaves repeats out).
    """
    tensors = {f"model/{name}": tensor for name, tensor in model.named_parameters()}
    tensors |= {f"buffer/{name}": tensor for name, tensor in model.named_buffers()}
    memory = getattr(optimizer, "optimizer", optimizer).state
    for name, parameter in model.named_parameters():
        tensors |= {
            f"{slot}/{name}": memory[parameter][slot] for slot in _SLOTS if parameter in memory
        }
    return tensors


@torch.no_grad()
def _spread(
    model: nn.Module, optimizer: Any, resumed: Resumed | None, accelerator: Accelerator
) -> int:
    """Put the main process's saved state into every process; its step, 0 for a fresh start."""
    device = accelerator.device
    step = torch.tensor(resumed.step if resumed else 0, device=device)
    step = int(broadcast(step) if accelerator.num_processes > 1 else step)  # pyright: ignore[reportArgumentType]
    if step == 0:
        return 0
    for parameter in model.parameters():
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    for name, tensor in _state(model, optimizer).items():
        if resumed:
            tensor.copy_(resumed.tensors[name])
        if accelerator.num_processes > 1:
            tensor.copy_(broadcast(tensor))  # pyright: ignore[reportArgumentType]
    return step


@dataclass
class _Speed:
    """Tokens a second since the last point; for the live curves and the bar only."""

    step: int
    started: float = 0.0
    tokens: int = 0

    def note(self, trainer: _Trainer, tokens: int, run: Run, bar: Bar) -> None:
        """Count a step; every LOG_EVERY steps send the point."""
        if self.started == 0.0:
            self.started = time.monotonic()
            return
        self.tokens += tokens
        if trainer.step % LOG_EVERY == 0 and trainer.losses:
            rate = self.tokens / (time.monotonic() - self.started)
            live = {"batch_loss": trainer.losses[-1], "tokens_per_second": rate}
            run.log(live | {"batch_learning_rate": trainer.recipe.rate(trainer.step)}, trainer.step)
            bar.show({"loss": trainer.losses[-1], "tokens/s": rate})
            self.started, self.tokens = time.monotonic(), 0


@contextmanager
def _interruptions() -> Iterator[threading.Event]:
    """Inside the block Ctrl-C and SIGTERM only set the event: no update is cut in half."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda *_: event.set())
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
