"""Sizes for pretrained models: they are deeper and wider than what is trained here."""

from typing import Any

from pydantic import PositiveInt

from interp_core.files.params import FileName, Params


class OwnSizes(Params):
    """What one pretrained model is measured with."""

    single_sequences: PositiveInt  # prompts on which every head is ablated alone
    settings: dict[str, Any]  # of the section pythia_topology, where this model has others


class PythiaPretrained(Params):
    """The section `pythia_pretrained` of a profile."""

    models: dict[FileName, OwnSizes]  # by their names in the section `pretrained`
