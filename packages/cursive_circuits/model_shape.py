"""What the cursive transformer is, as parameters: read without torch."""

from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from interp_core.files.params import Params

NO_CHARACTER = 0  # id that fills texts


class Shape(Params):
    """A configuration of the model; the vocabulary and the alphabet add their sizes."""

    layers: PositiveInt
    heads: PositiveInt  # of self-attention, and as many of cross-attention, in each layer
    d_model: PositiveInt
    context: PositiveInt  # longest row, tokens
    characters: PositiveInt  # longest text
    positions: Literal["learned", "rotary"]  # rotary: Su et al. 2021, all dimensions of a head
    rotary_base: PositiveFloat
    initializer_range: PositiveFloat  # standard deviation of all matrices at step 0
    # the same of the characters' embeddings, which no norm scales before they are read
    text_range: PositiveFloat
    gelu: Literal[
        "none", "tanh"
    ]  # approximation, as torch names it; tanh in public checkpoints, slower on a CPU
    # cross-attention does not see where the text has ended; public checkpoints were trained without
    mask_padding: bool

    @model_validator(mode="after")
    def _divides(self) -> "Shape":
        if self.d_model % (2 * self.heads):
            raise ValueError(
                f"d_model ({self.d_model}) must be heads ({self.heads}) times an even width "
                "of a head"
            )
        return self
