"""What a call of one of this study's commands is, and the models that it is about.

A stage takes the profile's models. An experiment takes the one model that was named, its fine-tuned
version where `fine-tune` has put one into the folder, and a twin only where one was named.
"""

from pathlib import Path
from typing import Any

from interp_core.console import call
from interp_core.console.call import Call
from interp_core.errors import InputError
from interp_core.files.params import read_section
from interp_core.models.spec import catalogue, short_name
from mamba_induction.params import MambaInduction, dataset_of
from mamba_induction.streams import STREAMS

Induction = Call[MambaInduction]


def prepare(
    profile: str | None,
    out: Path | None,
    *,
    text: str | None = None,
    loads: bool = True,
    **given: Any,
) -> Induction:
    """Settings from the profile and the options given; any option makes it an experiment. `text`:
    what is read instead of the profile's. `loads`: whether it loads models, or draws from files
    alone.
    """
    params = read_section("mamba_induction", MambaInduction, profile)
    if text is not None:
        if "dataset" in given:
            raise InputError("--set dataset: --dataset replaces it; leave out one of the two")
        given["dataset"] = dataset_of(text, params.dataset)
    if "model" in given:
        given.setdefault("twin", "")
    params = read_section("mamba_induction", MambaInduction, profile, **given)
    if params.twin == "":
        params = params.model_copy(update={"twin": None})

    run = call.start(
        "mamba_induction",
        params,
        known=catalogue(profile),
        profile=profile,
        out=out,
        given=bool(given),
        subjects=[given["model"]] if "model" in given else [],
        streams=STREAMS,
    )
    named = [model for model in models(run) if model != str(tuned(run))]
    run.check_models(named, loaded=loads)
    run.check_folder()
    return run


def tuned(run: Induction) -> Path:
    """Where the fine-tuned model is, or will be."""
    folder = run.folder / "models" if run.is_stage else run.folder
    return folder / f"{short_name(run.params.model)}-tuned"


def models(run: Induction) -> list[str]:
    """What is analysed: the Mamba, fine-tuned, and its twin."""
    there = run.is_stage or tuned(run).is_dir()
    after = [str(tuned(run))] if there else []
    twin = [] if run.params.twin is None else [run.params.twin]
    return [run.params.model, *after, *twin]


def names(run: Induction) -> list[str]:
    """Short names of the models, as in file names."""
    return [short_name(model) for model in models(run)]


def main_model(run: Induction) -> str:
    """The model whose single sequences are drawn: the fine-tuned one where there is one."""
    found = models(run)
    return found[1] if found[1:2] == [str(tuned(run))] else found[0]


def check_tuned(run: Induction) -> None:
    """InputError where the fine-tuned model of an experiment is of other weights than the model
    now.
    """
    place = tuned(run)
    if run.is_stage or not place.is_dir():
        return

    before = run.params.model
    if not run.is_of("fine_tune", "fine_tune", run.sources([before])):
        raise InputError(
            f"{place} was not fine-tuned from {before} as it is now: move it away and run "
            "`mamba-induction fine-tune` again, or name another folder (--out)"
        )
