"""Every knob of the study."""

from pydantic import Field, NonNegativeInt, PositiveInt

from interp_core.files.params import Params


class SixthStudy(Params):
    """Section `sixth_study` of a profile."""

    models: tuple[str, ...] = Field(min_length=1)  # names of the profile, directories, hub ids
    seed: NonNegativeInt  # of every random choice
    batch_size: PositiveInt  # prompts in one forward pass
    n_prompts: PositiveInt  # prompts that heads are scored on
    period: int = Field(ge=2)  # tokens in one copy of the repeated random tokens
    resamples: PositiveInt  # bootstrap draws
