"""How a model is trained, as parameters."""

import math
from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from interp_core.files.params import Params

# Of AdamW's running means: at 1 nothing new would ever count.
Beta = Annotated[float, Field(ge=0, lt=1)]


class Recipe(Params):
    """How a model is trained, whatever it is trained on."""

    steps: PositiveInt  # updates
    learning_rate: PositiveFloat  # at the end of the warm-up
    final_share: float = Field(ge=0, le=1)  # of the learning rate, at the end of the cosine
    warmup: NonNegativeInt  # steps of linear rise
    betas: tuple[Beta, Beta]  # AdamW (Loshchilov & Hutter 2019)
    weight_decay: (
        NonNegativeFloat  # of matrices; vectors, convolutions and marked parameters have none
    )
    clip: PositiveFloat  # largest norm of the gradient
    precision: Literal["fp32", "bf16"]
    device: Literal["cpu", "auto"]  # auto: CUDA where there is one
    threads: (
        PositiveInt  # CPU threads of torch in one process; sums, and so the last bits, depend on it
    )
    checkpoint_every: PositiveInt  # steps between kept weights, beside the powers of two
    checkpoint_also: tuple[
        NonNegativeInt, ...
    ]  # more steps at which weights are kept: where the change is fast
    save_seconds: NonNegativeFloat  # between two saves of the state to resume from

    @model_validator(mode="after")
    def _warm_before_end(self) -> "Recipe":
        if self.warmup >= self.steps:
            raise ValueError(f"warmup ({self.warmup}) must be shorter than steps ({self.steps})")
        return self

    def rate(self, step: int) -> float:
        """Learning rate of the update after `step` updates: linear warm-up, then a cosine to
        final_share.
        """
        rising = min(1.0, (step + 1) / max(1, self.warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
        return self.learning_rate * rising * (self.final_share + (1 - self.final_share) * cosine)
