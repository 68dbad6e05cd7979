"""Where a training stands, on disk: the state it resumes from, and the weights at chosen steps.

No pickle.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from interp_core import processor
from interp_core.errors import InputError
from interp_core.files.artifacts import load_weights, remove_unfinished, save_weights
from interp_core.files.locks import locked_file
from interp_core.files.sums import SUMS, check_all, listed_in
from interp_core.files.unfinished import scratch_folder
from interp_core.files.vouching import vouching


def checkpoint_steps(steps: int, *, every: int, also: Iterable[int] = ()) -> list[int]:
    """Steps at which weights are kept: 0, the powers of two, multiples of `every`, those in `also`,
    the last one.
    """
    powers = [1 << n for n in range(steps.bit_length()) if 1 << n <= steps]
    return sorted(
        {
            0,
            *powers,
            *range(every, steps + 1, every),
            *(step for step in also if step <= steps),
            steps,
        }
    )


def checkpoint_name(step: int) -> str:
    """File name of the weights after `step` updates."""
    return f"step-{step:06d}.safetensors"


def fingerprint(*parts: Any, code: Iterable[Path]) -> str:
    """Hex digest of params, data hashes, source files and instructions: whoever changes one of them
    starts afresh.
    """
    ground = [torch.__version__, processor.instructions()]
    digest = hashlib.sha256(json.dumps([*parts, *ground], sort_keys=True, default=str).encode())
    for path in code:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Resumed:
    """A saved training: tensors of model and optimiser after `step` updates, and what else the loop
    must remember.
    """

    step: int
    tensors: dict[str, Tensor]
    memory: dict[str, Any]


@dataclass(frozen=True)
class Scratch:
    """The folder of one unfinished training, held by one process."""

    folder: Path

    @property
    def checkpoints(self) -> Path:
        """Weights kept so far."""
        return self.folder / "checkpoints"

    def save(self, step: int, tensors: Mapping[str, Tensor], memory: Mapping[str, Any]) -> None:
        """Replace the saved state: whole or not at all, even if the machine stops here."""
        # The state vouches for itself: two files cannot be replaced at one moment.
        note = {"step": str(step), "memory": json.dumps(memory)}
        save_weights(self._state, dict(tensors), note | {"sha256": _state_sha256(note, tensors)})

    def load(self) -> Resumed | None:
        """The saved state, or None before the first save.

        InputError when it, or anything kept beside it, is damaged: nothing damaged becomes a model.
        """
        if not self._state.exists():
            return None
        tensors = load_weights(self._state)
        with safe_open(self._state, framework="pt") as opened:
            note = opened.metadata() or {}

        said = {name: note.get(name, "") for name in ("step", "memory")}
        if note.get("sha256") != _state_sha256(said, tensors):
            raise InputError(f"{self._state} is damaged: its SHA-256 differs; {self._afresh}")

        if (record := self.folder / SUMS).is_file():
            check_all(record, again=self._afresh)
        return Resumed(int(note["step"]), tensors, json.loads(note["memory"]))

    def keep(self, step: int, model: nn.Module) -> None:
        """Keep the weights after `step` updates."""
        # Tied weights share memory, which safetensors refuses: copies.
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.save_weights(self.checkpoints / checkpoint_name(step), weights)

    def save_weights(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Tensors into a file of this folder, which its record vouches for."""
        with vouching(path, folder=self.folder):
            save_weights(path, tensors)

    def check(self) -> None:
        """InputError unless every file kept here is as it was written, and was written here.

        Call it before they become part of a finished model, whose record vouches for them.
        """
        if (record := self.folder / SUMS).is_file():
            check_all(record, again=self._afresh)

        listed = listed_in(record) if record.is_file() else {}
        for file in sorted(self.folder.glob("*/*")):
            if file.relative_to(self.folder).as_posix() not in listed:
                raise InputError(f"{file} was not written here; {self._afresh}")

    def remove(self) -> None:
        """Delete the folder: the training is finished and its results are in place."""
        # The state first. Whoever is killed here leaves no state whose other files are gone, or
        # have lost the record that vouches for them.
        self._state.unlink(missing_ok=True)
        shutil.rmtree(self.folder)

    @property
    def _state(self) -> Path:
        return self.folder / "state.safetensors"

    @property
    def _afresh(self) -> str:
        return f"delete {self.folder}, and the same command trains afresh"


def _state_sha256(note: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """One digest of what a state holds: the note, and each tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(sorted(note.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(plain.numpy().data)
    return digest.hexdigest()


@contextmanager
def scratch(stage: str, mark: str, *, beside: Path, patience: float = 3.0) -> Iterator[Scratch]:
    """The folder .scratch/<stage>/<mark>, locked against a second one at the same thing.

    In the project; in `beside`, where results go, if the project cannot be written.
    A killed trainer's lock is gone with it; `patience` (seconds) covers one that is just ending.
    What it was writing when it was killed is deleted. InputError when another process holds the
    lock. Removed when the block ends without an error.
    """
    folder = scratch_folder(stage, beside=beside) / mark
    folder.mkdir(parents=True, exist_ok=True)
    # Beside the folder, so that removing the folder does not remove a lock that someone waits for.
    # The whole name and then some: `with_suffix` would cut tiny-1.4b and tiny-1.7b to one lock.
    lock = folder.with_name(f"{folder.name}.lock")
    with locked_file(lock, patience=patience) as held:
        if held is None:
            owner = lock.read_text().strip() or "unknown"
            raise InputError(
                f"process {owner} is already working on this (lock {lock}): wait until it ends, "
                "or stop it first"
            )
        folder.mkdir(exist_ok=True)
        remove_unfinished(folder)
        held.truncate(0)
        held.write(str(os.getpid()))
        held.flush()
        yield (found := Scratch(folder))
        found.remove()
        lock.unlink()


def clear_scratch(stage: str, mark: str, *, beside: Path) -> None:
    """Delete what a trainer that was killed at its very end left of a training that is finished.

    InputError when another process holds it.
    """
    folder = scratch_folder(stage, beside=beside) / mark
    if folder.exists() or folder.with_name(f"{folder.name}.lock").exists():
        with scratch(stage, mark, beside=beside):
            pass
