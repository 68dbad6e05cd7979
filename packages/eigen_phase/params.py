"""Every knob of the study.

A profile gives the values; options of `train` override the fields of Training.
"""

from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from eigen_phase.data import Data, Kind
from eigen_phase.model_shape import Shape
from interp_core.files.params import FileName, Params, check
from interp_core.training.recipe import Beta, Recipe

Pair = tuple[PositiveInt, PositiveInt]


class Training(Params):
    """One training run, whole: what config.json of its directory holds."""

    seed: NonNegativeInt  # of weights and data

    # Data

    data: Kind  # what the rows repeat, and where
    # what accuracy and heads are measured on, controls too
    test_data: Literal["tiled", "placed", "fixed_distance"]
    vocab_size: PositiveInt = Field(ge=2)  # tokens in the vocabulary
    seq_length: PositiveInt = Field(ge=4)  # tokens in a row
    pattern_length: Pair  # placed: shortest and longest pattern, tokens
    patterns: PositiveInt  # placed: different patterns in a row, or as many as fit
    placements: Pair  # placed: fewest and most copies of a pattern in a row
    period: Pair  # tiled: shortest and longest segment, tokens
    fixed_distance: PositiveInt  # the one distance of fixed_distance, tokens
    # the loss leaves out what induction could predict (arXiv 2511.05743)
    leave_out_predictable: bool

    # Model

    n_layers: PositiveInt  # layers
    n_heads: PositiveInt  # attention heads a layer
    d_model: PositiveInt  # width of the residual stream
    mlp_ratio: NonNegativeInt  # hidden units of the MLP per unit of width; 0: attention only
    rotary_base: PositiveFloat  # base of the rotary wavelengths
    initializer_range: PositiveFloat  # standard deviation of the weights at step 0
    # tokens back that L0H0 looks from step 0 (1: the previous token)
    clamp_to: NonNegativeInt | None

    # Optimisation

    num_steps: PositiveInt  # updates
    batch_size: PositiveInt  # rows of a batch
    learning_rate: PositiveFloat  # of AdamW, after the warm-up
    final_share: float = Field(ge=0, le=1)  # share of the learning rate at the end of the cosine
    warmup: NonNegativeInt  # steps of linear rise of the learning rate
    betas: tuple[Beta, Beta]  # of AdamW
    weight_decay: NonNegativeFloat  # of matrices
    clip: PositiveFloat  # largest norm of the gradient
    device: Literal["cpu", "auto"]  # where it runs: cpu, or auto (CUDA where there is one)
    threads: PositiveInt  # CPU threads
    save_seconds: NonNegativeFloat  # between two saves of the state to resume from

    # What is watched

    eval_interval: PositiveInt  # steps between two rows of the history
    held_out_sequences: PositiveInt  # rows that accuracy and head scores are measured on
    # copies after the first with an accuracy of their own; the last takes all later ones in
    copies: PositiveInt
    # rotary distances of K-composition, tokens
    composition_distances: tuple[PositiveInt, ...] = Field(min_length=1)
    # rotary distances of qk_matching, tokens: those at which the data repeats
    matching_distances: tuple[PositiveInt, ...] = Field(min_length=1)
    composition_draws: PositiveInt = Field(ge=2)  # random orientations of the z of K-composition
    checkpoint_interval: PositiveInt  # steps between kept weights
    # weights are kept too when pattern accuracy has moved this far
    checkpoint_change: float = Field(gt=0, le=1)
    eigen_interval: PositiveInt  # steps between two looks at the Hessian
    # eigenvalues largest by magnitude that are followed; 0: none
    track_top_k_eigenvalues: NonNegativeInt
    probe_sequences: PositiveInt  # rows that the Hessian is of; fixed, held out
    micro_batch: PositiveInt  # rows whose graph is in memory at once
    # relative residual |Hv - lambda v| / |lambda| of every eigenpair
    lanczos_tolerance: PositiveFloat
    max_products: PositiveInt  # Hessian-vector products that one evaluation may spend

    @model_validator(mode="after")
    def _consistent(self) -> "Training":
        check(Shape, self._part(Shape), where="training")
        check(Data, self._part(Data), where="training")
        check(Data, self._part(Data) | {"data": self.test_data}, where="training")
        if self.track_top_k_eigenvalues > self.n_parameters:
            raise ValueError(
                f"track_top_k_eigenvalues ({self.track_top_k_eigenvalues}) is more than the"
                f" model's {self.n_parameters} parameters"
            )
        if self.max_products <= self.track_top_k_eigenvalues:
            raise ValueError(
                f"max_products ({self.max_products}) must exceed track_top_k_eigenvalues"
                f" ({self.track_top_k_eigenvalues})"
            )
        if self.warmup >= self.num_steps:
            raise ValueError(
                f"warmup ({self.warmup}) must be shorter than num_steps ({self.num_steps})"
            )
        return self

    def _part(self, schema: type[Params]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in schema.model_fields}

    @property
    def shape(self) -> Shape:
        """The model's part."""
        return Shape.model_validate(self._part(Shape))

    @property
    def data_settings(self) -> Data:
        """The data's part."""
        return Data.model_validate(self._part(Data))

    @property
    def test_settings(self) -> Data:
        """What accuracy is measured on."""
        return Data.model_validate(self._part(Data) | {"data": self.test_data})

    @property
    def n_parameters(self) -> int:
        """Weights of the model: embedding, unembedding, attention, gains of the norms, MLPs."""
        width = self.d_model
        layer = (
            4 * width**2 + width + (2 * self.mlp_ratio * width**2 + width if self.mlp_ratio else 0)
        )
        return 2 * self.vocab_size * width + self.n_layers * layer + width

    @property
    def work(self) -> int:
        """How long the run takes, roughly, in updates; only for sharing runs out."""
        looks = self.num_steps // self.eigen_interval if self.track_top_k_eigenvalues else 0
        return self.num_steps * (1 + bool(self.mlp_ratio)) + 40 * looks

    @property
    def recipe(self) -> Recipe:
        """For the core's training loop; a row of the history at every interval's steps."""
        intervals = {self.eval_interval, self.checkpoint_interval, self.eigen_interval}
        also = {step for interval in intervals for step in range(0, self.num_steps + 1, interval)}
        return Recipe(
            steps=self.num_steps,
            learning_rate=self.learning_rate,
            final_share=self.final_share,
            warmup=self.warmup,
            betas=self.betas,
            weight_decay=self.weight_decay,
            clip=self.clip,
            precision="fp32",
            device=self.device,
            threads=self.threads,
            checkpoint_every=self.eval_interval,
            checkpoint_also=tuple(sorted(also)),
            save_seconds=self.save_seconds,
        )


class Condition(Params):
    """Runs that share everything but the seed."""

    seeds: tuple[NonNegativeInt, ...] = Field(min_length=1)
    changes: dict[str, Any]  # fields of Training that differ from the section's `training`


class Spectrum(Params):
    """The whole spectrum at a few checkpoints of some runs."""

    runs: tuple[FileName, ...]
    checkpoints: PositiveInt = Field(ge=2)  # a run; around the transition, the first and the last
    probe_runs: tuple[FileName, ...]  # of `runs`: those that also have the next two
    probe_sizes: tuple[PositiveInt, ...]  # rows of batches whose largest eigenvalue is compared
    probe_batches: PositiveInt = Field(ge=2)  # independent batches of each size: the interval
    # Every run of these conditions has its largest eigenvalue measured at every look, on so many
    # rows, to so coarse a relative residual (the value's error is of its square's order).
    largest_conditions: tuple[FileName, ...]
    largest_sequences: PositiveInt
    largest_tolerance: PositiveFloat
    density_probes: PositiveInt  # random start vectors of stochastic Lanczos quadrature
    density_steps: PositiveInt  # Lanczos steps of each
    trace_products: PositiveInt = Field(ge=3)  # Hessian-vector products of Hutch++


class Transition(Params):
    """Dates of the histories."""

    smallest_change: float = Field(gt=0, lt=1)  # of pattern accuracy, for a transition
    # step at 90 % of the rise over that at 10 %: below it the transition is abrupt
    abrupt_ratio: float = Field(gt=1)
    window: float = Field(gt=1)  # other metrics are dated from the transition's step over this on
    # What a step must be to be dated (interp_core.statistics.events)
    edge: float = Field(gt=0, lt=0.5)  # share of the window, in log steps, without dates
    widest: float = Field(gt=0, le=1)  # share of the window that 10 to 90 % may take
    noise: PositiveFloat  # least height, standard deviations outside the step
    family_error: float = Field(gt=0, lt=1)  # chance of any false lead or lag of one condition


class Controls(Params):
    """Runs that should not turn, or turn elsewhere, and interventions on those that did."""

    conditions: dict[FileName, Condition]  # no repeats, one distance, masked loss, clamped head
    # conditions compared with `free` seed by seed; the first is asked about, the others control it
    clamped: tuple[FileName, ...] = Field(min_length=2)
    free: FileName  # a condition of the section
    subspace_runs: tuple[FileName, ...]  # runs continued inside and outside dominant subspaces
    subspace_start: float = Field(gt=0, lt=1)  # pattern accuracy at whose checkpoint the arms part
    subspace_until: float = Field(gt=0, lt=1)  # of the free arm, at which all arms end
    subspace_steps: PositiveInt  # updates of each arm at most
    subspace_refresh: PositiveInt  # updates between two looks at the Hessian
    ablation_checkpoints: PositiveInt  # of each run, spread over pattern accuracy
    # of the best head's score, for a head to count as one of its kind
    head_share: float = Field(gt=0, lt=1)
    draws: PositiveInt = Field(ge=100)  # of the bootstrap over rows
    random_sets: PositiveInt  # distinct sets of other heads, at most


class EigenPhase(Params):
    """The section `eigen_phase` of a profile."""

    processes: (
        PositiveInt  # runs at once, each in a process of its own; the bytes do not depend on it
    )
    ceiling_draws: PositiveInt = Field(ge=100)  # of the bootstrap over rows of what no run can pass
    training: Training
    conditions: dict[FileName, Condition]
    spectrum: Spectrum
    transition: Transition
    controls: Controls

    @model_validator(mode="after")
    def _known(self) -> "EigenPhase":
        runs_of(self.training, self.conditions | self.controls.conditions)
        if self.controls.free not in self.conditions:
            raise ValueError(f"controls.free: no condition {self.controls.free}")
        for name in self.controls.clamped:
            if name not in self.controls.conditions:
                raise ValueError(f"controls.clamped: no condition {name} in controls.conditions")
        for name in self.spectrum.largest_conditions:
            if name not in self.conditions:
                raise ValueError(f"spectrum.largest_conditions: no condition {name}")
        if left := set(self.spectrum.probe_runs) - set(self.spectrum.runs):
            raise ValueError(f"spectrum.probe_runs: {min(left)} is not in spectrum.runs")
        for field, names in (
            ("controls.subspace_runs", self.controls.subspace_runs),
            ("spectrum.runs", self.spectrum.runs),
        ):
            if unknown := set(names) - set(self.runs):
                raise ValueError(f"{field}: no run {min(unknown)}; runs are {', '.join(self.runs)}")
        return self

    @property
    def runs(self) -> dict[str, Training]:
        """Every run of `conditions` by name."""
        return runs_of(self.training, self.conditions)

    @property
    def control_runs(self) -> dict[str, Training]:
        """Every run of `controls.conditions` by name."""
        return runs_of(self.training, self.controls.conditions)


def runs_of(training: Training, conditions: dict[str, Condition]) -> dict[str, Training]:
    """Runs by name, CONDITION-sSEED. InputError for changes that make no valid training."""
    base = training.model_dump()
    return {
        f"{name}-s{seed}": check(
            Training, base | condition.changes | {"seed": seed}, where=f"condition {name}"
        )
        for name, condition in conditions.items()
        for seed in condition.seeds
    }
