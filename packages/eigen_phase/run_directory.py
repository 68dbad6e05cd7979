"""A finished run on disk: config.json, history.jsonl, history.npz, checkpoints, eigenvectors, the
final model.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from eigen_phase.params import Training
from interp_core.errors import InputError
from interp_core.files.artifacts import (
    file_sha256,
    load_arrays,
    load_json,
    load_weights,
    replacing,
    save_arrays,
    save_json,
    save_weights,
)
from interp_core.files.folders import replacing_folder
from interp_core.files.params import check, file_name
from interp_core.files.sums import check_sum
from interp_core.files.way_out import way_out
from interp_core.training.checkpoints import checkpoint_name
from interp_core.training.history import History

if TYPE_CHECKING:
    from eigen_phase.model import Transformer

VERSION = 2
KIND = "eigen_phase"  # what a run's folder records itself as
CONFIG, LINES, ARRAYS, FINAL = (
    "config.json",
    "history.jsonl",
    "history.npz",
    "model_final.safetensors",
)

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class RunDirectory:
    """An opened run. `open` has seen that it is whole."""

    folder: Path
    config: dict[str, Any]
    training: Training

    @classmethod
    def open(cls, folder: Path) -> "RunDirectory":
        """InputError for a folder that is none, half-written, damaged, or written by another
        version.
        """
        if not (folder / CONFIG).is_file():
            raise InputError(
                f"{folder} is not a run directory: it has no {CONFIG};"
                f" `eigen-phase train` writes one{way_out(folder, 'trains')}"
            )
        config = load_json(folder / CONFIG)
        if config.get("version") != VERSION:
            raise InputError(
                f"{folder / CONFIG}: version {config.get('version')}, but this program reads"
                f" version {VERSION}; train it again"
            )
        file_name(config.get("name"), where=f"{folder / CONFIG}: name")
        missing = [
            name
            for name in config.get("files", [LINES, ARRAYS, FINAL])
            if not (folder / name).is_file()
        ]
        if missing:
            raise InputError(f"{folder} is half-written: {missing[0]} is missing; train it again")
        for name in (LINES, FINAL):
            check_sum(folder / name, again="train it again")
        return cls(
            folder, config, check(Training, config.get("training", {}), where=str(folder / CONFIG))
        )

    @property
    def name(self) -> str:
        """CONDITION-sSEED, or what the user called it."""
        return self.config["name"]

    @property
    def condition(self) -> str:
        """What its name says before the seed."""
        return self.name.rsplit("-s", 1)[0]

    @property
    def diverged(self) -> str | None:
        """Where the loss stopped being finite, in words; None for a run that reached its end."""
        return self.config["diverged"]

    @cached_property
    def history(self) -> Arrays:
        """Columns over the rows: `step`, `loss`, ...; matrices such as `eigenvalues` [row, k] and
        `prefix_matching` [row, layer, head]. Not-a-number where a row lacks a number.
        """
        return load_arrays(self.folder / ARRAYS)

    def series(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of one column of numbers, where it was measured."""
        values = self.history[column]
        there = np.isfinite(values)
        return self.history["step"][there], values[there]

    @property
    def rows(self) -> History:
        """The history as it was written, one dict a row."""
        return [json.loads(line) for line in (self.folder / LINES).read_text().splitlines()]

    @cached_property
    def checkpoint_steps(self) -> list[int]:
        """Steps whose weights were kept."""
        return _steps_in(self.folder / "checkpoints")

    @cached_property
    def eigenvector_steps(self) -> list[int]:
        """Steps at which the Hessian was looked at."""
        return _steps_in(self.folder / "eigenvectors")

    def model(self, step: int | None = None) -> "Transformer":
        """The model at a kept step, or the final one; in eval mode.

        InputError when that step was not kept.
        """
        from eigen_phase.model import Transformer

        if step is not None and step not in self.checkpoint_steps:
            raise InputError(
                f"{self.folder}: no weights of step {step}; kept: {self.checkpoint_steps}"
            )
        file = self.folder / (FINAL if step is None else f"checkpoints/{checkpoint_name(step)}")
        model = Transformer(self.training.shape, seed=self.training.seed)
        model.load_state_dict(load_weights(file))
        return model.eval()

    def adam(self, step: int) -> tuple[Float[Tensor, " parameter"], Float[Tensor, " parameter"]]:
        """Adam's running means of gradients and of squared gradients at a step where the Hessian
        was looked at, before bias correction.
        """
        return self._look(step)["exp_avg"], self._look(step)["exp_avg_sq"]

    def eigenvectors(self, step: int) -> Float[Tensor, "k parameter"]:
        """Unit eigenvectors of the Hessian at a step, in the order of `eigenvalues`; the most
        negative one is last.
        """
        return self._look(step)["vectors"]

    def _look(self, step: int) -> dict[str, Tensor]:
        if step not in self.eigenvector_steps:
            raise InputError(
                f"{self.folder}: no eigenvectors of step {step};"
                f" there are: {self.eigenvector_steps}"
            )
        return load_weights(self.folder / "eigenvectors" / checkpoint_name(step))


def write_run(
    place: Path,
    name: str,
    training: Training,
    history: History,
    model: "Transformer | None",
    *,
    bounds: Mapping[str, float | bool],
    working: Path,
    diverged: str | None = None,
) -> None:
    """Put a finished (or diverged) run in its place: complete beside it first, then swapped in.

    `bounds` is what no model can do better than; `working` holds the folders checkpoints and
    eigenvectors. InputError when `place` holds what is not this run's.
    """
    with replacing_folder(place, kind=KIND, name=name) as part:
        _write(
            part, name, training, history, model, bounds=bounds, working=working, diverged=diverged
        )


def _write(
    part: Path,
    name: str,
    training: Training,
    history: History,
    model: "Transformer | None",
    *,
    bounds: Mapping[str, float | bool],
    working: Path,
    diverged: str | None,
) -> None:
    """The run's files, config.json last."""
    for folder in ("checkpoints", "eigenvectors"):
        if (working / folder).is_dir():
            shutil.copytree(working / folder, part / folder)
    with replacing(part / LINES) as lines:
        lines.write_text("".join(json.dumps(_rounded(row)) + "\n" for row in history))
    save_arrays(part / ARRAYS, history_arrays(history, training))
    if model is not None:
        save_weights(part / FINAL, model.state_dict(), {"format": "pt"})
    files = sorted(str(file.relative_to(part)) for file in part.rglob("*") if file.is_file())
    record = {
        "version": VERSION,
        "name": name,
        "training": training.model_dump(mode="json"),
        "n_parameters": training.n_parameters,
        "bounds": bounds,
        "diverged": diverged,
        "files": files,
        "weights_sha256": file_sha256(part / FINAL) if model is not None else None,
    }
    save_json(part / CONFIG, record)


def history_arrays(history: History, training: Training) -> Arrays:
    """The history by column.

    Keys `family/i` become a matrix [row, i], keys `family/L0H1` an array [row, layer, head], keys
    `family/L0H0>L1H1` a matrix [row, pair] with the pairs' names in `family_names`.
    """
    names = list(dict.fromkeys(name for row in history for name in row))
    columns: Arrays = {
        name: np.array([row.get(name, np.nan) for row in history], dtype=np.float64)
        for name in names
    }
    columns["step"] = columns["step"].astype(np.int64)
    families: dict[str, list[str]] = {}
    for name in names:
        if "/" in name:
            families.setdefault(name.split("/")[0], []).append(name)
    arrays = {name: column for name, column in columns.items() if "/" not in name}
    for family, members in families.items():
        arrays[family] = np.stack([columns[name] for name in members], axis=1)
        if ">" in members[0]:
            arrays[f"{family}_names"] = np.array([name.split("/")[1] for name in members])
        elif members[0].split("/")[1].startswith("L"):
            arrays[family] = arrays[family].reshape(
                len(history), training.n_layers, training.n_heads
            )
    return arrays


def head_key(family: str, layer: int, head: int) -> str:
    """The history's name for one head's number."""
    return f"{family}/L{layer}H{head}"


def _rounded(row: dict[str, int | float]) -> dict[str, int | float]:
    """Ten digits, as in every JSON file; what is not a finite number is left out."""
    return {
        name: value if isinstance(value, int) else float(f"{value:.10g}")
        for name, value in row.items()
        if np.isfinite(value)
    }


def _steps_in(folder: Path) -> list[int]:
    return sorted(
        int(file.stem.removeprefix("step-")) for file in folder.glob("step-*.safetensors")
    )
