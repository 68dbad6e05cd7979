"""One call of a command: its settings and its folder.

A study lives in one folder: runs, control_runs, scores, metrics, figures. Called bare, a command is
a stage of the pipeline and the folder is data/eigen_phase; with --profile or --out it is an
experiment and the folder is --out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eigen_phase.params import EigenPhase, Training
from eigen_phase.run_directory import RunDirectory
from interp_core.errors import InputError
from interp_core.files.params import check, profile_name, project_root, read_section


@dataclass(frozen=True)
class Study:
    """One call of a command: its settings and its folder."""

    params: EigenPhase
    folder: Path

    @property
    def runs(self) -> list[RunDirectory]:
        """The profile's runs, opened. InputError when one is missing or half-written."""
        return [RunDirectory.open(self.folder / "runs" / name) for name in self.params.runs]

    @property
    def control_runs(self) -> list[RunDirectory]:
        """The profile's control runs, opened."""
        return [
            RunDirectory.open(self.folder / "control_runs" / name)
            for name in self.params.control_runs
        ]


def prepare(profile: str | None, out: Path | None) -> Study:
    """Settings of a profile and the folder they belong to."""
    if out is None and profile is not None:
        out = Path("outputs") / "eigen_phase" / profile_name(profile)
    params = read_section("eigen_phase", EigenPhase, profile)
    return Study(params, out or project_root() / "data" / "eigen_phase")


def one_training(study: Study, condition: str | None, **overrides: Any) -> tuple[str, Training]:
    """A single run's name and settings: a condition of the profile (the first one unless named)
    with some options.
    """
    known = study.params.conditions | study.params.controls.conditions
    chosen = condition or next(iter(study.params.conditions))
    if chosen not in known:
        raise InputError(f"--condition: no condition {chosen}; known here: {', '.join(known)}")
    given = {key: value for key, value in overrides.items() if value is not None}
    base = (
        study.params.training.model_dump()
        | known[chosen].changes
        | {"seed": known[chosen].seeds[0]}
    )
    training = check(Training, base | given, where=f"condition {chosen}", options=tuple(given))
    return f"{chosen}-s{training.seed}", training
