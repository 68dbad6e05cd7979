"""What a call of one of this study's commands is.

A study lives in one folder: runs, control_runs, scores, metrics, figures. Called bare, a command is
a stage of the pipeline and the folder is data/eigen_phase; with --profile or --out it is an
experiment and the folder is --out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eigen_phase.params import EigenPhase, Training
from eigen_phase.streams import STREAMS
from interp_core.console import call
from interp_core.console.call import Call
from interp_core.errors import InputError
from interp_core.files.params import check, read_section

Eigen = Call[EigenPhase]


def prepare(
    profile: str | None, out: Path | None, runs: Sequence[Path] = (), **given: Any
) -> Eigen:
    """Settings of a profile and the folder they belong to; run directories of the user's, and
    settings given, make an experiment.
    """
    params = read_section("eigen_phase", EigenPhase, profile, **given)
    return call.start(
        "eigen_phase",
        params,
        profile=profile,
        out=out,
        given=bool(given),
        subjects=[str(run) for run in runs],
        streams=STREAMS,
        flat=False,
    )


def one_training(study: Eigen, condition: str | None, **given: Any) -> tuple[str, Training]:
    """A single run's name and settings: a condition of the profile (the first one unless named)
    with some options.
    """
    known = study.params.conditions | study.params.controls.conditions
    chosen = condition or next(iter(study.params.conditions))
    if chosen not in known:
        raise InputError(f"--condition: no condition {chosen}; known here: {', '.join(known)}")
    base = (
        study.params.training.model_dump()
        | known[chosen].changes
        | {"seed": known[chosen].seeds[0]}
    )
    training = check(Training, base | given, where=f"condition {chosen}", options=tuple(given))
    return f"{chosen}-s{training.seed}", training
