"""One call of a command: its settings, its models and where its files go.

Called bare, a command is a stage of the pipeline: it takes the profile's models and writes
data/mamba_neurons. With any option of its own it is an experiment: it writes flat into `out`, and
its figures into `plots`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interp_core.errors import InputError
from interp_core.files.artifacts import check_writable, save_arrays, save_json
from interp_core.files.params import project_root, read_section
from interp_core.models.spec import ModelSpec, catalogue, short_name
from mamba_neurons.params import MambaNeurons

Arrays = dict[str, np.ndarray]
Report = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One call of a command: its settings, the models it may name, and where it writes."""

    params: MambaNeurons
    known: dict[str, ModelSpec]
    out: Path | None  # None: a stage of the pipeline
    plots: Path
    both: bool  # measures of activity are of the transformer too

    def place(self, kind: str, command: str) -> Path:
        """The folder for a command's `scores` or `metrics`."""
        return self.out or project_root() / "data" / "mamba_neurons" / kind / command

    @property
    def names(self) -> list[str]:
        """Short names of the models that are measured, as in file names."""
        return [short_name(name) for name in self.models]

    @property
    def models(self) -> list[str]:
        """The Mamba, and where it is asked for the transformer."""
        return [self.params.model, self.params.transformer] if self.both else [self.params.model]

    def save(self, command: str, model: str, report: Report, arrays: Arrays) -> None:
        """Arrays as .npz, metrics as JSON."""
        stem = f"{command}_{model}"
        save_arrays(self.place("scores", command) / f"{stem}.npz", arrays)
        save_json(self.place("metrics", command) / f"{stem}.json", report)

    def rng(self, purpose: int) -> np.random.Generator:
        """A generator for one purpose."""
        return np.random.default_rng([self.params.seed, purpose])


def prepare(
    profile: str | None, out: Path | None, plots: Path | None = None, **overrides: Any
) -> Run:
    """Settings from the profile and the options given; any option makes it an experiment."""
    given = {key: value for key, value in overrides.items() if value not in (None, ())}
    if out is None and (given or profile is not None or plots is not None):
        out = Path("outputs") / "mamba_neurons"
    params = read_section("mamba_neurons", MambaNeurons, profile, **given)
    if short_name(params.model) == short_name(params.transformer):
        raise InputError(
            f"two models would write files of the name {short_name(params.model)}: rename a folder"
        )
    if out is not None:
        check_writable(out)
    figures = plots or (
        project_root() / "data" / "mamba_neurons" / "figures" if out is None else out / "plots"
    )
    return Run(params, catalogue(profile), out, figures, both=out is None or "transformer" in given)
