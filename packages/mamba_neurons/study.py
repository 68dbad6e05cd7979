"""What a call of one of this study's commands is, and the models that it measures: the Mamba, and a
transformer beside it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from interp_core.console import call
from interp_core.console.call import Call
from interp_core.files.params import read_section
from interp_core.models.spec import catalogue
from interp_core.stimuli.corpus import place_of_text
from mamba_neurons.params import MambaNeurons
from mamba_neurons.streams import STREAMS

Neurons = Call[MambaNeurons]


def prepare(
    profile: str | None,
    out: Path | None,
    *,
    command: str = "",
    plots: Path | None = None,
    **given: Any,
) -> Neurons:
    """Settings from the profile and the options given; any option makes it an experiment, and `run`
    always is one.
    """
    of_profile = read_section("mamba_neurons", MambaNeurons, profile)
    params = read_section("mamba_neurons", MambaNeurons, profile, **given)

    run = call.start(
        "mamba_neurons",
        params,
        known=catalogue(profile),
        profile=profile,
        out=out,
        given=bool(given) or plots is not None or command == "run",
        subjects=[given["model"]] if "model" in given else [],
        streams=STREAMS,
    )

    # The profile's transformer is the twin of the profile's Mamba, and of no other unless it is
    # named.
    is_named = "transformer" in given or command == "compare"
    is_twin = command in ("run", "figures") and params.model == of_profile.model
    both = run.is_stage or is_named or is_twin

    models = (params.model, params.transformer) if both else (params.model,)
    figures = plots or (None if run.is_stage else run.folder / "plots")
    run = replace(run, models=models, figures=figures)
    run.check_models(models, loaded=command != "figures")
    if given.get("texts") is not None:
        place_of_text(given["texts"])
    run.check_folder()
    return run
