"""One call of a command: its settings and its folder, with the places of its files.

A study lives in one folder: bank, runs, scores, metrics, figures. Called bare, a command is a stage
of the pipeline and the folder is data/cursive_circuits; with --profile or --out it is an experiment
and the folder is --out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cursive_circuits.params import CursiveCircuits, Sampling
from interp_core.errors import InputError
from interp_core.files.artifacts import save_arrays, save_json
from interp_core.files.params import check, profile_name, project_root, read_section

Report = dict[str, Any]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Study:
    """One call of a command: its settings, its folder, and a model of the user's instead of the
    study's two.
    """

    params: CursiveCircuits
    folder: Path
    model: Path | None = None

    @property
    def bank(self) -> Path:
        """Where `prepare` puts the handwriting."""
        return self.folder / "bank" / "bank.zip"

    def place(self, kind: str, command: str, name: str) -> Path:
        """A file of scores or metrics."""
        return self.folder / kind / command / f"{name}.{'npz' if kind == 'scores' else 'json'}"

    def save(self, command: str, name: str, report: Report, arrays: Arrays | None = None) -> None:
        """Metrics, and arrays where there are some."""
        save_json(self.place("metrics", command, name), report)
        if arrays is not None:
            save_arrays(self.place("scores", command, name), arrays)


def prepare_study(
    profile: str | None, out: Path | None, model: Path | None = None, bank: Path | None = None
) -> Study:
    """Settings of a profile and the folder they belong to."""
    if out is None and (profile is not None or model is not None or bank is not None):
        out = (
            Path("outputs")
            / "cursive_circuits"
            / ("model" if profile is None else profile_name(profile))
        )
    params = read_section("cursive_circuits", CursiveCircuits, profile)
    if bank is not None:
        params = params.model_copy(update={"bank": params.bank.of_file(bank)})
    return Study(params, out or project_root() / "data" / "cursive_circuits", model)


def at_temperature(study: Study, temperature: float | None) -> Study:
    """The study with another temperature of sampling. InputError when it is not above zero."""
    given = {} if temperature is None else {"temperature": temperature}
    sampling = check(
        Sampling,
        study.params.sampling.model_dump() | given,
        where="cursive_circuits.sampling",
        options=tuple(given),
    )
    return replace(study, params=study.params.model_copy(update={"sampling": sampling}))


def ids_of(tokens: str | None, words: Sequence[str]) -> list[int]:
    """Token ids as they were typed. InputError for what are none, or for words beside them."""
    if tokens is None:
        return []
    if words:
        raise InputError("--tokens and --word: name one of them")
    parts = tokens.replace(",", " ").split()
    if not parts or not all(part.isdecimal() for part in parts):
        raise InputError(
            f"--tokens: ids must be whole numbers with commas between, got {tokens[:60]!r}"
        )
    return [int(part) for part in parts]
