"""A Mamba trained here, and its transformer twin: same batches, same number of tokens, another
architecture.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from interp_core.errors import InputError
from interp_core.files.artifacts import array_sha256
from interp_core.files.params import FileName, Params
from interp_core.mamba.selective_scan import fast_scan
from interp_core.measures import scores
from interp_core.pipeline.import_closure import code_of
from interp_core.stimuli import prompts as stimuli
from interp_core.stimuli import text as text_stimuli
from interp_core.stimuli.corpus import Corpus
from interp_core.stimuli.prompts import Prompts, Vocabulary
from interp_core.training.loop import Moment
from interp_core.training.recall_mixture import RecallMixture, RecallSource
from interp_core.training.recipe import Recipe
from interp_core.training.reference_models import (
    Architecture,
    Places,
    Shape,
    Training,
    new_model,
    train_into,
    train_several,
)
from interp_core.training.streams import STREAMS
from interp_core.training.watching import HeldOut, check_held_out, in_training

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STAGE = "mamba_models"


class MambaShape(Params):
    """Mamba-1 (Gu & Dao 2023) with the stock initialisation of A and dt."""

    kind: Literal["mamba"]
    layers: PositiveInt
    width: PositiveInt  # of the residual stream
    state: PositiveInt  # states of a channel
    expand: PositiveInt  # channels per unit of width
    taps: PositiveInt  # of the short convolution
    initializer_range: PositiveFloat  # standard deviation of embeddings and projections at step 0
    learning_rate: PositiveFloat  # at the end of the warm-up


class TwinShape(Shape):
    """The transformer twin: Pythia's architecture."""

    kind: Literal["gpt_neox"]
    architecture: Architecture
    learning_rate: PositiveFloat  # at the end of the warm-up; each architecture wants its own


class WatchedRecall(Params):
    """What is measured at every checkpoint, on stimuli drawn once."""

    prompts: PositiveInt
    periods: tuple[PositiveInt, ...] = Field(
        min_length=1
    )  # tokens in one copy of the repeated random tokens
    text_period: PositiveInt  # tokens in one copy of the repeated text
    pairs: PositiveInt  # pairs in a prompt of shuffled pairs
    validation_rows: PositiveInt  # pieces of held-out text, as long as the longest row


class MambaModels(Params):
    """Section `mamba_models` of a profile.

    The recipe's learning rate is replaced by each model's own.
    """

    seed: NonNegativeInt
    # models trained at once, each in a process of its own; the bytes do not depend on it
    processes: PositiveInt
    models: dict[
        FileName, Annotated[MambaShape | TwinShape, Field(discriminator="kind")]
    ]  # by name
    mixture: RecallMixture
    recipe: Recipe
    watched: WatchedRecall


def train_all(params: MambaModels, places: Places, *, only: Sequence[str] = ()) -> None:
    """Train every model of the section, or `only` some. InputError for a name it does not have."""
    if unknown := [name for name in only if name not in params.models]:
        raise InputError(
            f"no model {unknown[0]} in `mamba_models` of the profile; it has "
            f"{', '.join(params.models)}"
        )
    chosen = [name for name in params.models if name in only or not only]
    for name in chosen:
        places.check(name, stage=STAGE)
    train_several(
        [(train_mamba_model, (name, params, places), {}) for name in chosen],
        params.processes,
        places,
    )


def train_mamba_model(name: str, params: MambaModels, places: Places, *, position: int = 0) -> None:
    """Train one of them and write its folder and its history.

    Resumes; same params, corpus and threads, same bytes.
    """
    corpus = Corpus.load(places.corpus)
    shape = params.models[name]
    recipe = params.recipe.model_copy(update={"learning_rate": shape.learning_rate})
    settings = {
        "name": name,
        **params.model_dump(mode="json", exclude={"models", "processes", "recipe"}),
    }
    settings |= {"recipe": recipe.model_dump(mode="json"), "shape": shape.model_dump(mode="json")}
    settings["corpus_sha256"] = array_sha256(corpus.train, corpus.validation)
    torch.set_num_threads(recipe.threads)
    vocabulary = len(corpus.counts)
    content = np.arange(
        1, vocabulary
    )  # all but the end of text, bytes that the text lacks included
    source = RecallSource(
        params.mixture, recipe.steps, corpus.train, content, bos=0, seed=params.seed
    )
    model = build(shape, vocabulary, seed=params.seed)
    training = Training(
        STAGE, name, model, source, RecallWatch.of(params, corpus), recipe, settings
    )
    with fast_scan(model) if shape.kind == "mamba" else nullcontext():
        train_into(training, corpus, places, code=code_of(__name__), position=position)


def build(shape: MambaShape | TwinShape, vocabulary: int, *, seed: int) -> "PreTrainedModel":
    """A model of this shape with random weights."""
    if isinstance(shape, TwinShape):
        return new_model(shape, shape.architecture, vocabulary, seed=seed)
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.width,
        state_size=shape.state,
        num_hidden_layers=shape.layers,
        expand=shape.expand,
        conv_kernel=shape.taps,
        initializer_range=shape.initializer_range,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MambaForCausalLM(config)


@dataclass(frozen=True)
class RecallWatch:
    """The numbers of a history row, measured on fixed stimuli."""

    stimuli: Mapping[str, Prompts]  # by the name of their accuracy in the history
    validation: HeldOut

    @classmethod
    def of(cls, params: MambaModels, corpus: Corpus) -> "RecallWatch":
        """Draw the stimuli. InputError when the held-out text is too short."""
        watched = params.watched
        length = params.mixture.length
        check_held_out(corpus, longest=max(length, watched.text_period))
        rng = STREAMS.rng("watched", params.seed)
        vocabulary = Vocabulary.of(len(corpus.counts), bos=0, pad=0)
        found = {
            f"accuracy_period_{period}": stimuli.repeated_tokens(
                vocabulary, period=period, n_prompts=watched.prompts, rng=rng
            )
            for period in watched.periods
        }
        found["pairs_accuracy"] = stimuli.shuffled_pairs(
            vocabulary, n_pairs=watched.pairs, n_prompts=watched.prompts, rng=rng
        )
        found["repeated_text_accuracy"] = text_stimuli.repeated_text(
            vocabulary,
            corpus.validation,
            period=watched.text_period,
            n_prompts=watched.prompts,
            rng=rng,
        )
        return cls(found, HeldOut.drawn(corpus, length, watched.validation_rows, rng))

    @torch.no_grad()
    def __call__(self, moment: Moment) -> Mapping[str, float]:
        """Accuracy on every second copy, and held-out loss in nats."""
        with in_training(moment) as subject:
            found = {
                name: scores.copy_behaviour(subject, prompts)[0]
                for name, prompts in self.stimuli.items()
            }
            loss = self.validation.loss(subject)

        return {
            "validation_loss": loss,
            **{name: float(accuracy.mean()) for name, accuracy in found.items()},
        }
