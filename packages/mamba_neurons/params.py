"""Every knob of the study.

A profile gives the values; each option of a command overrides the field of its name.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from interp_core.files.params import Params
from interp_core.models.spec import Dtype

Method = Literal["attention_weighted", "gradient_guided", "rollout"]


class MambaNeurons(Params):
    """The section `mamba_neurons` of a profile."""

    model: str  # a Mamba: a name of the profile's `models`, a directory, or a hub id
    transformer: str  # what compare sets beside it, named in the same ways; another Mamba will do
    # compare models with different tokenizers all the same, each on its own tokens
    own_tokens: bool = False
    device: str = "cpu"  # where it runs: cpu, cuda, cuda:N or mps
    bos: str | int = "own"  # what prompts begin with: own, a token, or its id
    dtype: Dtype = "float32"  # of the model's numbers
    threads: PositiveInt  # CPU threads of torch

    # texts in one forward pass; resampling takes from another text of the batch
    batch_size: int = Field(ge=2)
    stack: PositiveInt  # ablated units in one re-run of a suffix
    seed: NonNegativeInt  # of every random choice

    # Texts

    # a UTF-8 file (texts between blank lines) or a folder; null: held-out documents of data/corpus
    texts: Path | None = None
    text_limit: PositiveInt  # texts that are read
    text_length: PositiveInt = Field(ge=8)  # tokens of a text, BOS included; longer ones are cut
    repeats: NonNegativeInt  # rows of repeated random tokens beside the texts
    period: PositiveInt = Field(ge=2)  # tokens in one copy of the repeated random tokens

    # What is looked at

    layer: NonNegativeInt  # the layer whose channels are all ablated exactly, in three ways
    top_k: PositiveInt  # units of a ranking that are named
    enable_attention: bool  # `run` includes the attention neurons
    attention_methods: tuple[Method, ...] = Field(min_length=1)  # how attention neurons are found

    # Causal effects

    # random channels of a layer that estimates are compared with exactly
    calibration_channels: int = Field(ge=8)
    # rank correlation below which a layer is computed exactly
    least_agreement: float = Field(ge=0, le=1)
    label_draws: PositiveInt  # labels drawn from the model's predictions for the Fisher estimate
    # channels of the best estimates whose effects are exact, times top_k
    candidates: PositiveFloat = Field(ge=1)
    dose_k: tuple[PositiveInt, ...] = Field(min_length=1)  # best channels ablated together
    random_sets: PositiveInt  # distinct random sets of as many channels of the layer
    null_units: PositiveInt  # random channels a layer whose influence is the null of the top_k's

    # Sparsity

    # layers whose sparsity is measured
    sparsity_layers: tuple[NonNegativeInt, ...] = Field(min_length=1)
    # share of a layer's root mean square below which an activation counts as near zero
    near_zero: PositiveFloat
    mamba_threshold: PositiveFloat  # the seed's fixed threshold on |activation|
    transformer_threshold: PositiveFloat  # the same of the transformer's
    percentiles: tuple[float, ...] = Field(min_length=1)  # percentiles of the neurons' variances
    target_sparsity: float = Field(gt=0, lt=1)  # what the optimal threshold aims at
    text_groups: int = Field(ge=4)  # blocks of texts that lifetime measures are resampled by
    lifetime_draws: PositiveInt = Field(ge=20)  # bootstrap draws of these blocks, each costly
    # share of the layer's median root mean square below which a neuron is dead
    dead_share: PositiveFloat
    # share of variance: a token detector's by the token, a positional's by place
    explained_share: float = Field(gt=0, lt=1)

    # Curves

    # shares of every layer's channels that are deleted or inserted
    fractions: tuple[float, ...] = Field(min_length=2)
    random_orders: PositiveInt  # random orders of the units; a test needs 20
    loss_tolerance: PositiveFloat  # relative rise of the loss that a kept set of units may cost
    joint_rounds: PositiveInt  # rounds of backward elimination, as many units leaving in each
    # halvings of the number of units: 3 draws the curve at eighths of it
    loss_halvings: PositiveInt

    # Statistics

    bootstrap_resamples: PositiveInt = Field(ge=100)  # bootstrap draws
    permutation_draws: PositiveInt = Field(ge=19)  # draws of randomisation tests
    # share of the variance of a mean that cutting a series into blocks may take
    block_left_out: float = Field(gt=0, lt=1)
    splits: PositiveInt  # random halves of the texts
    alpha: float = Field(gt=0, lt=0.5)  # family-wise level of tests over units

    @model_validator(mode="after")
    def _repeats_fit(self) -> "MambaNeurons":
        if self.repeats and 2 * self.period + 1 > self.text_length:
            raise ValueError(
                f"period: two copies of {self.period} tokens and BOS are longer than "
                f"text_length {self.text_length}"
            )
        return self
