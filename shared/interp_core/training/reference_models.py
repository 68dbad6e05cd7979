"""The reference models: one family, one recipe, trained here; only the size differs between its
members.
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from os import environ
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from interp_core.errors import InputError
from interp_core.files.artifacts import (
    array_sha256,
    file_sha256,
    replacing,
    save_json,
    save_weights,
)
from interp_core.files.finished import keep, put_back
from interp_core.files.folders import check_replaceable, check_same_settings, replacing_folder
from interp_core.files.params import FileName, Params
from interp_core.files.vouching import check_ours, replacing_ours
from interp_core.measures import scores
from interp_core.pipeline.import_closure import code_of
from interp_core.stimuli import prompts as stimuli
from interp_core.stimuli.corpus import END_OF_TEXT, Corpus
from interp_core.stimuli.prompts import Prompts, Vocabulary
from interp_core.training.batches import BatchSource
from interp_core.training.checkpoints import Scratch, clear_scratch, fingerprint, scratch
from interp_core.training.curves import by_head
from interp_core.training.history import History, history_csv
from interp_core.training.loop import Evaluation, Moment, train
from interp_core.training.recipe import Recipe
from interp_core.training.repeat_mixture import Mixture, MixtureSource
from interp_core.training.streams import STREAMS
from interp_core.training.tracking import About, announce, tracked_run
from interp_core.training.watching import (
    HeldOut,
    check_held_out,
    in_training,
    pieces_of,
)
from interp_core.training.workers import Task, run_in_processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STAGE = "reference_models"
RECORD = "training.json"  # of a finished model: its settings, and what became of it


class Shape(Params):
    """The size of one member of the family."""

    layers: PositiveInt
    heads: PositiveInt  # attention heads a layer
    width: PositiveInt  # of the residual stream

    @model_validator(mode="after")
    def _divides(self) -> "Shape":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class Architecture(Params):
    """What all members share: Pythia's architecture (Biderman et al. 2023), parallel residual and
    rotary positions.
    """

    context: PositiveInt  # longest sequence, tokens
    mlp_ratio: PositiveInt  # hidden units of the MLP per unit of width
    rotary_share: float = Field(gt=0, le=1)  # share of each head's dimensions that carries position
    initializer_range: PositiveFloat  # standard deviation of all weights at step 0


class Watched(Params):
    """What is measured at every checkpoint, on stimuli drawn once."""

    prompts: PositiveInt
    period: int = Field(ge=2)  # tokens in one copy
    validation_rows: PositiveInt  # pieces of held-out text, as long as a training row


class ReferenceModels(Params):
    """Section `reference_models` of a profile."""

    seed: NonNegativeInt
    # models trained at once, each in a process of its own; the bytes do not depend on it
    processes: PositiveInt
    models: dict[FileName, Shape]  # by name
    architecture: Architecture
    mixture: Mixture
    recipe: Recipe
    watched: Watched

    @model_validator(mode="after")
    def _fits(self) -> "ReferenceModels":
        longest = max(self.mixture.length, 2 * self.watched.period + 1)
        if longest > self.architecture.context:
            raise ValueError(
                f"architecture.context is {self.architecture.context}, but rows are {longest} "
                "tokens long"
            )
        return self


@dataclass(frozen=True)
class Places:
    """Where a training reads and writes."""

    corpus: Path
    models: Path
    history: Path
    # whether finished trainings are kept, and put back instead of being made again
    kept: bool = False

    def history_of(self, name: str) -> Path:
        """The file of a training's history."""
        return self.history / f"{name}.csv"

    def check(self, name: str, *, stage: str) -> None:
        """InputError where something else is in a training's place, or in its history's.

        The pipeline's own histories are in git, and no record lists them.
        """
        check_replaceable(self.models / name, kind=stage, name=name)
        if not self.kept:
            check_ours(self.history_of(name))


def train_all(params: ReferenceModels, places: Places, *, only: Sequence[str] = ()) -> None:
    """Train every model of the section, or `only` some, the largest first.

    InputError for a name it does not have.
    """
    if unknown := [name for name in only if name not in params.models]:
        raise InputError(
            f"no reference model {unknown[0]} in the profile; it has "
            f"{', '.join(params.models) or 'none'}"
        )
    chosen = [name for name in params.models if name in only or not only]
    chosen.sort(key=lambda name: -params.models[name].layers * params.models[name].width ** 2)
    for name in chosen:
        places.check(name, stage=STAGE)
    train_several(
        [(train_reference_model, (name, params, places), {}) for name in chosen],
        params.processes,
        places,
    )


def train_several(tasks: list[Task], processes: int, places: Places) -> None:
    """Run trainings, several at once."""
    for folder in (places.models, places.history):
        folder.mkdir(parents=True, exist_ok=True)
    announce()
    alone = "WORLD_SIZE" in environ  # under torchrun the processes share one model
    run_in_processes(tasks, processes=1 if alone else processes)


def train_reference_model(
    name: str, params: ReferenceModels, places: Places, *, position: int = 0
) -> None:
    """Train one member and write its folder and its history.

    Resumes; same params, corpus and threads, same bytes.
    """
    corpus = Corpus.load(places.corpus)
    settings = {"name": name, **params.model_dump(mode="json", exclude={"models", "processes"})}
    settings["shape"] = params.models[name].model_dump()
    settings["corpus_sha256"] = array_sha256(corpus.train, corpus.validation)
    torch.set_num_threads(params.recipe.threads)
    model = new_model(
        params.models[name], params.architecture, len(corpus.counts), seed=params.seed
    )
    content = np.arange(
        1, len(corpus.counts)
    )  # all but the end of text, bytes that the text lacks included
    source = MixtureSource(params.mixture, corpus.train, content, bos=0, seed=params.seed)
    training = Training(
        STAGE, name, model, source, Watch.of(params, corpus), params.recipe, settings
    )
    train_into(training, corpus, places, code=code_of(__name__), position=position)


@dataclass(frozen=True)
class Training:
    """A model with all that its training takes."""

    stage: str  # folder under .scratch, and the group of its run
    name: str
    model: "PreTrainedModel"
    source: BatchSource
    watch: Evaluation
    recipe: Recipe
    settings: dict[
        str, Any
    ]  # with its seed; goes into training.json; with the code, what the bytes depend on


def train_into(
    training: Training, corpus: Corpus, places: Places, *, code: Sequence[Path], position: int = 0
) -> None:
    """Train, and write the model's folder and its history.

    Resumes; same settings, code and threads, same bytes. What was finished before with the same
    settings and code is put back where the places say so.
    """
    name, settings = training.name, training.settings
    place, told = places.models / name, places.history_of(name)
    places.check(name, stage=training.stage)

    # The pipeline's own follow its profile; in a folder of a user's the first training stays.
    if not places.kept:
        check_same_settings(place / RECORD, settings)

    mark = fingerprint(settings, code=code)
    finished = {"stage": training.stage, "name": name, "mark": mark}
    if places.kept and put_back([place, told], **finished):
        if _is_main():
            clear_scratch(training.stage, f"{name}-{mark}", beside=places.models)
        click.echo(f"{name}: trained before with these settings and this code, put back")
        return

    about = About(
        training.stage,
        name,
        job="train",
        seed=settings["seed"],
        architecture=training.model.config.model_type,
        settings=settings,
    )
    with (
        _main_process_scratch(training.stage, f"{name}-{mark}", places.models) as held,
        tracked_run(about, held and held.folder) as run,
    ):
        history = train(
            training.model,
            training.source,
            training.watch,
            training.recipe,
            scratch=held,
            run=run,
            label=name,
            position=position,
        )
        if held is not None:
            with replacing_folder(place, kind=training.stage, name=name) as part:
                _write(training.model, history, settings, held, corpus, part)
            writing = replacing if places.kept else replacing_ours
            with writing(told) as written:
                written.write_text(history_csv(history))
            if places.kept:
                keep([place, told], **finished)


def new_model(
    shape: Shape, architecture: Architecture, vocabulary: int, *, seed: int
) -> "PreTrainedModel":
    """A GPT-NeoX of this shape with random weights."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    rotary = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": architecture.rotary_share,
    }
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=architecture.mlp_ratio * shape.width,
        max_position_embeddings=architecture.context,
        initializer_range=architecture.initializer_range,
        use_parallel_residual=True,
        rope_parameters=rotary,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPTNeoXForCausalLM(config)


@dataclass(frozen=True)
class Watch:
    """The numbers of a history row, measured on fixed stimuli."""

    random: Prompts  # repeated random tokens
    text: Prompts  # pieces of held-out text, twice
    validation: HeldOut

    @classmethod
    def of(cls, params: ReferenceModels, corpus: Corpus) -> "Watch":
        """Draw the stimuli. InputError when the held-out text is too short."""
        watched, length = params.watched, params.mixture.length
        check_held_out(corpus, longest=max(length, watched.period))
        rng = STREAMS.rng("watched", params.seed)
        vocabulary = Vocabulary.of(len(corpus.counts), bos=0, pad=0)
        random = stimuli.repeated_tokens(
            vocabulary, period=watched.period, n_prompts=watched.prompts, rng=rng
        )
        pieces = pieces_of(corpus.validation, watched.period, watched.prompts, rng)
        tokens = stimuli.begin(vocabulary, np.tile(pieces, (1, 2)))
        pairs = stimuli.pairs_of(
            tokens, batch=random.pairs.batch, query=random.pairs.query, distance=watched.period
        )
        text = Prompts("repeated_text", tokens, random.control, pairs, random.lengths)
        return cls(random, text, HeldOut.drawn(corpus, length, watched.validation_rows, rng))

    @torch.no_grad()
    def __call__(self, moment: Moment) -> Mapping[str, float]:
        """Accuracy on second copies (random ids, held-out text), best head's prefix matching,
        held-out loss in nats.
        """
        keys = {"prefix_matching": self.random.pairs.induction_key}

        with in_training(moment) as subject:
            random = scores.score_heads(
                subject, self.random.tokens, self.random.pairs, keys, behaviour=True
            )
            accuracy, _ = scores.copy_behaviour(subject, self.text)
            loss = self.validation.loss(subject)

        matching = random.heads["prefix_matching"].mean(axis=0, dtype=np.float64)
        moment.run.log(by_head("prefix_matching", matching.tolist()), moment.step)

        return {
            "validation_loss": loss,
            "repeat_accuracy": float(random.accuracy.mean()),
            "repeated_text_accuracy": float(accuracy.mean()),
            "best_prefix_matching": float(matching.max()),
        }


def _untied(model: "PreTrainedModel") -> dict[str, torch.Tensor]:
    """The weights, each tensor once: Hugging Face ties the unembedding to the embedding again when
    it loads them.
    """
    shared = (
        set(getattr(model, "_tied_weights_keys", None) or ())
        if model.config.tie_word_embeddings
        else set()
    )
    return {name: tensor for name, tensor in model.state_dict().items() if name not in shared}


def _main_process_scratch(stage: str, mark: str, beside: Path) -> Any:
    """The locked scratch folder on the process of rank 0, nothing on the others."""
    return scratch(stage, mark, beside=beside) if _is_main() else nullcontext()


def _is_main() -> bool:
    return environ.get("RANK", "0") == "0"


def _write(
    model: "PreTrainedModel",
    history: History,
    settings: dict[str, Any],
    held: Scratch,
    corpus: Corpus,
    folder: Path,
) -> None:
    """The finished model's files."""
    from transformers import PreTrainedTokenizerFast

    model.config.architectures = [type(model).__name__]
    model.config.dtype = "float32"
    model.config.save_pretrained(folder)
    save_weights(folder / "model.safetensors", _untied(model), {"format": "pt"})
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(corpus.tokenizer_file), **special)
    if (context := getattr(model.config, "max_position_embeddings", None)) is not None:
        tokenizer.model_max_length = context
    tokenizer.save_pretrained(folder)
    held.check()
    shutil.copytree(held.checkpoints, folder / "checkpoints")
    record = {
        **settings,
        "parameters": sum(p.numel() for p in model.parameters()),
        "final": history[-1],
        "checkpoints": [int(row["step"]) for row in history],
        "weights_sha256": file_sha256(folder / "model.safetensors"),
    }
    save_json(folder / RECORD, record)
