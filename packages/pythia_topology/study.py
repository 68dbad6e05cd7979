"""One call of a command: its settings, its models and where its files go.

Called bare, a command is a stage of the pipeline: it takes the profile's models and writes
data/pythia_topology. With any option of its own it is an experiment: it writes flat into `out`, and
what it needs and does not find there it computes first.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interp_core.errors import InputError
from interp_core.files.artifacts import save_arrays, save_json
from interp_core.files.params import project_root, read_section
from interp_core.models.spec import ModelSpec, catalogue, short_name
from pythia_topology.params import PythiaTopology

Arrays = dict[str, np.ndarray]
Report = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One call of a command: its settings, the models it may name, and where it writes."""

    params: PythiaTopology
    known: dict[str, ModelSpec]
    out: Path | None  # None: a stage of the pipeline

    def place(self, kind: str, command: str) -> Path:
        """The folder for a command's `scores`, `metrics` or `figures`."""
        return self.out or project_root() / "data" / "pythia_topology" / kind / command

    @property
    def names(self) -> list[str]:
        """Short names of the models, as in file names."""
        return [short_name(model) for model in self.params.models]

    def save(self, command: str, model: str, report: Report, arrays: Arrays) -> None:
        """Arrays as .npz, metrics as JSON."""
        save_arrays(self.place("scores", command) / f"{command}_{model}.npz", arrays)
        save_json(self.place("metrics", command) / f"{command}_{model}.json", report)

    def rng(self, purpose: int) -> np.random.Generator:
        """A generator for one purpose."""
        return np.random.default_rng([self.params.seed, purpose])


def prepare(profile: str | None, out: Path | None, **overrides: Any) -> Run:
    """Settings from the profile and the options given; any option makes it an experiment."""
    given = {key: value for key, value in overrides.items() if value not in (None, ())}
    if out is None and (given or profile is not None):
        out = Path("outputs") / "pythia_topology"
    params = read_section("pythia_topology", PythiaTopology, profile, **given)
    run = Run(params, catalogue(profile), out)
    if again := sorted({name for name in run.names if run.names.count(name) > 1}):
        raise InputError(
            f"two models would write files of the name {again[0]}: rename a folder, or use two "
            "--out"
        )
    return run
