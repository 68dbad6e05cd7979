"""What the transformer of this study is, as parameters: read without torch."""

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from interp_core.files.params import Params


class Shape(Params):
    """What the model is. Keys of a run's config.json."""

    vocab_size: int
    seq_length: PositiveInt  # tokens in a row; also the longest input
    n_layers: PositiveInt
    n_heads: PositiveInt  # attention heads a layer
    d_model: PositiveInt  # width of the residual stream
    mlp_ratio: NonNegativeInt  # hidden units of the MLP per unit of width; 0: attention only
    rotary_base: PositiveFloat  # of the wavelengths of rotary positions (Su et al. 2021)
    initializer_range: PositiveFloat  # standard deviation of all weights at step 0
    # tokens back that head L0H0 looks, whatever its weights say: 0 itself, 1 the previous token;
    # null: its weights decide
    clamp_to: NonNegativeInt | None

    @model_validator(mode="after")
    def _divides(self) -> "Shape":
        if self.d_model % (2 * self.n_heads):
            raise ValueError(
                f"d_model ({self.d_model}) must be n_heads ({self.n_heads})"
                " times an even width of a head"
            )

        if self.clamp_to is not None and self.clamp_to >= self.seq_length:
            raise ValueError(
                f"clamp_to ({self.clamp_to}) must be below seq_length ({self.seq_length})"
            )

        return self
