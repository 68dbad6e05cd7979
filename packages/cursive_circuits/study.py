"""What a call of one of this study's commands is.

A study lives in one folder: bank, runs, scores, metrics, figures. An experiment that has no bank or
no runs of its own reads those of its profile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cursive_circuits.params import CursiveCircuits, Sampling
from cursive_circuits.streams import STREAMS
from interp_core.console import call
from interp_core.console.call import Call
from interp_core.errors import InputError
from interp_core.files.params import check, read_section

Cursive = Call[CursiveCircuits]


def prepare(
    profile: str | None,
    out: Path | None,
    *,
    model: Path | None = None,
    bank_file: Path | None = None,
    sampled: Mapping[str, Any] | None = None,
    asks: bool = False,
    **given: Any,
) -> Cursive:
    """Settings of a profile and the folder they belong to; any option makes it an experiment.

    `model` is one of the user's instead of the study's two, `bank_file` handwriting instead of the
    profile's, `sampled` what was given of the part `sampling`; `asks` is whether a command was
    asked anything else. InputError for a bank that is not there, and for settings that do not fit.
    """
    params = read_section("cursive_circuits", CursiveCircuits, profile, **given)
    if bank_file is not None:
        params = params.model_copy(update={"bank": params.bank.of_file(bank_file)})

    if sampled:
        values = params.sampling.model_dump() | dict(sampled)
        where, options = "cursive_circuits.sampling", tuple(sampled)
        checked = check(Sampling, values, where=where, options=options)
        params = params.model_copy(update={"sampling": checked})

    run = call.start(
        "cursive_circuits",
        params,
        profile=profile,
        out=out,
        given=bool(given or sampled or asks),
        subjects=[str(one) for one in (model, bank_file) if one is not None],
        streams=STREAMS,
        flat=False,
    )
    # A bank has a part in the folder's name, so that two never share one; it is no model.
    return replace(run, models=() if model is None else (str(model),))


def bank(run: Cursive) -> Path:
    """The handwriting that is read."""
    return run.at_home("bank/bank.zip")


def ids_of(tokens: str | None, words: Sequence[str], text: str | None) -> list[int]:
    """Token ids as they were typed. InputError for what are none, for words beside them, and for a
    text without them.
    """
    if tokens is None:
        if text is not None:
            raise InputError("--text is what is read beside --tokens: name these too")
        return []

    if words:
        raise InputError("--tokens and --word: name one of them")

    parts = tokens.replace(",", " ").split()
    if not parts or not all(part.isdecimal() for part in parts):
        raise InputError(
            f"--tokens: ids must be whole numbers with commas between, got {tokens[:60]!r}"
        )
    return [int(part) for part in parts]
