"""Scores at every training checkpoint of a model, each kept as soon as it is measured.

A call that is begun again measures what is not kept yet. On a cluster each checkpoint is a task.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from jaxtyping import Float

from interp_core.errors import InputError, StateSavedError
from interp_core.files.artifacts import file_sha256, load_arrays, load_weights, save_arrays
from interp_core.files.sums import SUMS, listed_in
from interp_core.files.vouching import vouching
from interp_core.loading import load_model
from interp_core.measures.scores import score_heads
from interp_core.models.folder import folder_of
from interp_core.models.spec import ModelSpec
from interp_core.models.subject import Transformer, as_transformer
from interp_core.progress import progress
from interp_core.stimuli.prompts import Prompts
from interp_core.training.threads import use_threads
from interp_core.training.workers import Task, run_in_processes, shares
from pythia_topology.params import PythiaTopology

Series = dict[str, Float[np.ndarray, "checkpoint prompt ..."]]


@dataclass(frozen=True)
class Checkpoint:
    """Weights after `step` training steps.

    A file beside a model trained here, or a branch of a hub model.
    """

    step: int
    weights: Path | str


def checkpoints(spec: ModelSpec, params: PythiaTopology) -> list[Checkpoint]:
    """All checkpoints of a model, in order. InputError when it has none."""
    if spec.source == "hub":
        found = [Checkpoint(_step_of(revision), revision) for revision in params.revisions]
        way_out = "name its branches in `revisions`, such as step1000"
    else:
        folder = (spec.path or Path()) / "checkpoints"
        found = [
            Checkpoint(_step_of(file.stem), file) for file in folder.glob("step-*.safetensors")
        ]
        way_out = f"{folder} holds no step-*.safetensors"

    if len(found) < 4:
        model = spec.repo or spec.path
        raise InputError(f"emergence needs at least 4 training checkpoints of {model}: {way_out}")

    return sorted(found, key=lambda checkpoint: checkpoint.step)


def scores_over_training(
    name: str, spec: ModelSpec, prompts: Prompts, params: PythiaTopology, *, kept: Path
) -> tuple[list[int], Series]:
    """Steps, and heads' scores, accuracy and loss at each, from the folder `kept` where they are.

    Two checkpoints with the same weights are an error, as on hubs where branches were never filled.
    """
    listed = checkpoints(spec, params)
    n = min(shares(1), len(listed))
    tasks: list[Task] = [
        (measure_checkpoints, (name, spec, listed[i::n], prompts, params), {"kept": kept})
        for i in range(n)
    ]
    run_in_processes(tasks, processes=1)

    found = [_Kept.at(kept, checkpoint.step) for checkpoint in listed]
    # Two that are measured at the same time do not see each other.
    for one in found:
        one.refuse_repeated(name)

    arrays = [load_arrays(one.file) for one in found]
    series = {key: np.stack([at_step[key] for at_step in arrays]) for key in arrays[0]}
    return [one.step for one in found], series


def measure_checkpoints(
    name: str,
    spec: ModelSpec,
    listed: Sequence[Checkpoint],
    prompts: Prompts,
    params: PythiaTopology,
    *,
    kept: Path,
    position: int = 0,
) -> None:
    """Measure those of the checkpoints that are not kept yet, and keep them one by one."""
    del position  # these bars are short
    use_threads(params.threads)
    waiting = [one for one in listed if not _is_kept(kept, one, spec)]

    subject = None
    try:
        for checkpoint in progress(waiting, f"{name}: checkpoints"):
            # A hub's one before goes first: two of them may not fit into memory.
            if not isinstance(checkpoint.weights, Path):
                subject = None
            subject, digest = _subject_at(checkpoint, subject, name, spec, params)

            place = _Kept(kept, checkpoint.step, _origin(checkpoint, spec), digest[:16])
            place.refuse_repeated(name)
            found = _scores(subject, prompts, params)

            with vouching(place.file):
                save_arrays(place.file, found)
    except KeyboardInterrupt:
        raise StateSavedError from None


@dataclass(frozen=True)
class _Kept:
    """Where the scores of one checkpoint are kept: a folder of its own, with a record of its own.

    So that no two machines write into one record.
    """

    folder: Path  # of all checkpoints
    step: int
    origin: str  # the start of the hash of what was asked for: a file, or a commit
    weights: str  # the start of the hash of its weights

    @property
    def file(self) -> Path:
        """The scores."""
        return self.folder / f"step-{self.step:06d}-{self.origin}-{self.weights}" / "scores.npz"

    @staticmethod
    def all_in(folder: Path, pattern: str) -> "list[_Kept]":
        """What is kept, by the name of its folder. What a kill left without a record is not."""
        found = []
        for record in sorted(folder.glob(f"{pattern}/{SUMS}")):
            _, step, origin, weights = record.parent.name.split("-")
            one = _Kept(folder, int(step), origin, weights)
            if one.file.is_file() and one.file.name in listed_in(record):
                found.append(one)
        return found

    @staticmethod
    def at(folder: Path, step: int) -> "_Kept":
        """The one of a step that was measured."""
        (found,) = _Kept.all_in(folder, f"step-{step:06d}-*")
        return found

    def remove(self) -> None:
        """No longer kept: the record goes first, and a folder without one is nothing."""
        (self.file.parent / SUMS).unlink(missing_ok=True)
        self.file.unlink(missing_ok=True)

    def refuse_repeated(self, name: str) -> None:
        """InputError where another step has the same weights.

        Neither stays: which of the two will be another when it is mended, nobody knows.
        """
        same = [
            other
            for other in _Kept.all_in(self.folder, f"step-*-*-{self.weights}")
            if other.step != self.step
        ]
        if not same:
            return

        first, last = sorted({self.step, same[0].step})
        for one in (self, *same):
            one.remove()
        raise InputError(
            f"{name}: the weights at step {last} are those of step {first}: not the training "
            "checkpoints of one run"
        )


def _is_kept(kept: Path, checkpoint: Checkpoint, spec: ModelSpec) -> bool:
    """Whether its scores are there; those of what the step was before are removed."""
    origin = _origin(checkpoint, spec)
    found = _Kept.all_in(kept, f"step-{checkpoint.step:06d}-*")

    for one in found:
        if one.origin != origin:
            one.remove()
    return any(one.origin == origin for one in found)


def _origin(checkpoint: Checkpoint, spec: ModelSpec) -> str:
    """What a step is now: a file's hash, or the commit of a branch, whose folder has its name."""
    if isinstance(checkpoint.weights, Path):
        return file_sha256(checkpoint.weights)[:16]

    folder = folder_of(spec.model_copy(update={"revision": checkpoint.weights}))
    return sha256(f"{spec.repo}@{folder.name}".encode()).hexdigest()[:16]


def _scores(
    subject: Transformer, prompts: Prompts, params: PythiaTopology
) -> dict[str, Float[np.ndarray, "prompt ..."]]:
    """Heads' scores and copying, at one checkpoint."""
    pairs = prompts.pairs
    keys = {"prefix_matching": pairs.induction_key, "previous_token": pairs.previous_key}
    scores = score_heads(
        subject, prompts.tokens, pairs, keys, batch_size=params.batch_size, behaviour=True
    )
    control = score_heads(
        subject,
        prompts.control,
        pairs,
        {"prefix_matching": pairs.induction_key},
        batch_size=params.batch_size,
    )

    found = dict(scores.heads) | {"accuracy": scores.accuracy, "loss": scores.loss}
    return found | {"prefix_matching_control": control.heads["prefix_matching"]}


def _subject_at(
    checkpoint: Checkpoint,
    subject: Transformer | None,
    name: str,
    spec: ModelSpec,
    params: PythiaTopology,
) -> tuple[Transformer, str]:
    """The model at a checkpoint, in the one that is loaded where files are put into it; and the
    hash of its weights."""
    if isinstance(checkpoint.weights, Path):
        subject = subject or _loaded(name, spec, params)
        _put(subject, checkpoint.weights)
        return subject, file_sha256(checkpoint.weights)

    revision = spec.model_copy(update={"revision": checkpoint.weights})
    subject = _loaded(name, revision, params)
    return subject, subject.hash


def _loaded(name: str, spec: ModelSpec, params: PythiaTopology) -> Transformer:
    found = load_model(spec, name=name, device=params.device, dtype=params.dtype, bos=params.bos)
    return as_transformer(found)


def _put(subject: Transformer, file: Path) -> None:
    """Give the subject the weights of a checkpoint, all of them."""
    if any(parameter.is_meta for parameter in subject.model.parameters()):
        raise InputError(
            f"{subject.name} lies partly on disk: checkpoints are put into memory only"
        )

    weights = load_weights(file)
    own = {name: tensor.shape for name, tensor in subject.model.state_dict().items()}

    for name in sorted(own.keys() ^ weights.keys()):
        raise InputError(f"{file} is no checkpoint of {subject.name}: only one of them has {name}")

    for name, tensor in weights.items():
        if tensor.shape != own[name]:
            raise InputError(f"{file} is no checkpoint of {subject.name}: {name} has another shape")

        if not bool(tensor.isfinite().all()):
            raise InputError(f"{file}: weight {name} holds numbers that are not finite")

    subject.model.load_state_dict(weights)


def _step_of(name: str) -> int:
    digits = name.lower().removeprefix("step").lstrip("-")
    if not digits.isdigit():
        raise InputError(f"{name!r} is not a checkpoint: write step1000")

    return int(digits)
