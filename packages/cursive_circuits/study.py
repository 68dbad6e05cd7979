"""What a call of one of this study's commands is.

A study lives in one folder: bank, runs, scores, metrics, figures. An experiment that has no bank or
no runs of its own reads those of its profile.
"""

from pathlib import Path
from typing import Any

from cursive_circuits.params import CursiveCircuits, Sampling
from interp_core.console import call
from interp_core.console.call import Call
from interp_core.files.params import check, read_section

Cursive = Call[CursiveCircuits]

STREAMS = {"heads": 21, "gain": 22, "attention": 31, "paths": 41, "redrawn": 61}


def prepare(
    profile: str | None,
    out: Path | None,
    *,
    model: Path | None = None,
    temperature: float | None = None,
    **asked: Any,
) -> Cursive:
    """Settings of a profile and the folder they belong to; any option makes it an experiment.

    `model` is one of the user's instead of the study's two; `asked` is what else a command was
    asked. InputError for a temperature that is not above zero.
    """
    params = read_section("cursive_circuits", CursiveCircuits, profile)
    if temperature is not None:
        given = params.sampling.model_dump() | {"temperature": temperature}
        where, options = "cursive_circuits.sampling", ("temperature",)
        sampling = check(Sampling, given, where=where, options=options)
        params = params.model_copy(update={"sampling": sampling})

    return call.start(
        "cursive_circuits",
        params,
        profile=profile,
        out=out,
        given=any(value is not None for value in (temperature, *asked.values())),
        subjects=[] if model is None else [str(model)],
        streams=STREAMS,
        flat=False,
    )


def bank(run: Cursive) -> Path:
    """The handwriting that is read."""
    return run.at_home("bank/bank.zip")
