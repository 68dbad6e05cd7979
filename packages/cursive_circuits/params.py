"""Every knob of the study. A profile gives the values; options of commands override some."""

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cursive_circuits.data import Mixture, Split
from cursive_circuits.data_bank import Source
from cursive_circuits.data_script import Script
from cursive_circuits.data_taken import Published
from cursive_circuits.data_tiled import Drill, Tiled
from cursive_circuits.data_tokens import Tokens
from cursive_circuits.model_shape import Shape
from interp_core.errors import InputError
from interp_core.files.artifacts import file_sha256
from interp_core.files.params import Params
from interp_core.training.recipe import Recipe


class Bank(Params):
    """The handwriting."""

    source: Source | None  # a bank of your own; none: the default one is written
    published: Published  # what is done with the words of a bank of your own
    alphabet: str = Field(
        min_length=2
    )  # characters of texts, in the order of their ids; holds the space
    script: Script  # the default bank
    split: Split

    def of_file(self, path: Path) -> "Bank":
        """The same with a bank on this machine. InputError where there is none."""
        if not path.is_file():
            raise InputError(f"--bank: no file {path}")
        return self.model_copy(update={"source": Source(path=str(path), sha256=file_sha256(path))})

    @model_validator(mode="after")
    def _spells(self) -> "Bank":
        if " " not in self.alphabet or len(set(self.alphabet)) != len(self.alphabet):
            raise ValueError("alphabet must hold the space, and every character once")
        if missing := sorted(set(self.script.alphabet) - set(self.alphabet)):
            raise ValueError(f"script.alphabet: {' '.join(missing)} is not in alphabet")
        return self


class Schedule(Recipe):
    """The core's recipe, its learning rate held for a while and then taken down linearly."""

    held: float = Field(ge=0, lt=1)  # share of the steps before the descent

    def rate(self, step: int) -> float:
        """Learning rate of the update after `step` updates: linear warm-up, level, linear to
        final_share.
        """
        rising = min(1.0, (step + 1) / max(1, self.warmup))
        descent = min(1.0, max(0.0, step / self.steps - self.held) / (1 - self.held))
        return self.learning_rate * rising * (1 - (1 - self.final_share) * descent)


class Handwriting(Params):
    """The training of the model that writes."""

    configuration: str  # a name of `configurations`
    rows: PositiveInt  # in a batch
    dealt: PositiveInt  # steps whose rows are drawn together and dealt by length
    mixture: Mixture
    drill: Drill  # on rows like the control's
    recipe: Schedule
    seed: NonNegativeInt


class Control(Params):
    """The training of the positive control."""

    configuration: str
    rows: PositiveInt
    tiled: Tiled
    recipe: Recipe
    seed: NonNegativeInt


class Watched(Params):
    """What is measured while a model trains."""

    rows: PositiveInt  # held-out rows
    sample_every: PositiveInt  # steps between two drawn samples in W&B; at rows of the history


class Sampling(Params):
    """Words that the model writes, and how they are read back."""

    # different held-out words, which are also the candidates of the retrieval
    words: PositiveInt = Field(ge=2)
    samples: PositiveInt  # samples of each word
    shown: PositiveInt  # words of the figure
    temperature: PositiveFloat  # of the sampled tokens; above 0
    longest: PositiveInt  # tokens of a sampled word, at most
    resampled: PositiveInt = Field(ge=8)  # points of a curve that is compared
    # difference of accuracy within which samples read as well as true ink
    margin: float = Field(gt=0, lt=1)
    seed: NonNegativeInt  # of the sampled tokens and of what is read back


class Stimuli(Params):
    """Prompts with known right answers."""

    prompts: PositiveInt = Field(ge=8)  # of each family
    synthetic_pairs: PositiveInt = Field(ge=3)  # pairs in one copy of the synthetic repeats
    natural_words: PositiveInt = Field(ge=2)  # words in a row of natural repeats
    natural_pairs: PositiveInt  # copy operations of a row of natural repeats, at most
    seed: NonNegativeInt


class Statistics(Params):
    """Intervals and tests."""

    resamples: PositiveInt = Field(ge=100)  # of the bootstrap over prompts
    draws: PositiveInt = Field(ge=100)  # of the sign flips
    level: float = Field(gt=0, lt=0.5)  # family-wise
    smallest_excess: float = Field(
        ge=0, lt=1
    )  # excess prefix matching that counts as an induction head
    smallest_loss: float = Field(ge=0)  # nats of copy-specific harm that count as a need
    needed_level: float = Field(gt=0, lt=0.5)  # of the test against sets of other heads


class Interventions(Params):
    """Ablations and paths."""

    prompts: PositiveInt = Field(ge=4)
    top: PositiveInt  # heads ablated together
    draws: PositiveInt = Field(ge=20)  # distinct sets of other heads, ablated directly, at most
    direct_prompts: PositiveInt = Field(ge=4)  # of `prompts`, for direct ablation
    dose: tuple[PositiveInt, ...] = Field(min_length=1)  # numbers of heads of the dose curve
    dose_draws: PositiveInt = Field(ge=2)  # distinct layer-matched random sets a dose, at most
    readers: PositiveInt  # heads whose inputs are patched, the best by excess; and one more:
    # the reader of the strongest K-composition
    path_prompts: PositiveInt = Field(ge=4)
    seed: NonNegativeInt


class Circuits(Params):
    """Weights on token bases, and composition."""

    distances: tuple[PositiveInt, ...] = Field(min_length=1)  # rotary distances, tokens
    draws: PositiveInt = Field(ge=10)  # random matrices of the z-scores
    seed: NonNegativeInt


class Drawings(Params):
    """What is drawn over the ink."""

    word: str  # written twice; letters of the alphabet
    seed: NonNegativeInt


class CursiveCircuits(Params):
    """The section `cursive_circuits` of a profile."""

    device: Literal["cpu", "auto"]  # where it runs: cpu, or auto (CUDA where there is one)
    threads: PositiveInt  # of torch in one process
    processes: PositiveInt  # trainings at once
    batch_size: PositiveInt  # prompts in a forward pass
    bank: Bank
    tokens: Tokens
    configurations: dict[str, Shape]
    handwriting: Handwriting
    control: Control
    watched: Watched
    sampling: Sampling
    stimuli: Stimuli
    tests: Statistics
    interventions: Interventions
    circuits: Circuits
    drawings: Drawings

    @model_validator(mode="after")
    def _known(self) -> "CursiveCircuits":
        for name in ("handwriting", "control"):
            if (chosen := getattr(self, name).configuration) not in self.configurations:
                raise ValueError(
                    f"{name}: no configuration {chosen}; known here: "
                    f"{', '.join(self.configurations)}"
                )
        if (1 + self.tests.draws) * self.tests.level < 1 - 1e-9:
            raise ValueError(
                f"tests.draws: {self.tests.draws} draws cannot reach level {self.tests.level}"
            )
        return self
