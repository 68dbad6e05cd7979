"""A trained model on disk: config.json, history.json, model.safetensors; or a public checkpoint
beside a profile.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cursive_circuits.data_tokens import Tokens, Vocabulary
from cursive_circuits.model import CursiveTransformer
from cursive_circuits.model_shape import Shape
from interp_core.errors import InputError
from interp_core.files.artifacts import (
    file_sha256,
    load_json,
    load_weights,
    save_json,
    save_weights,
)
from interp_core.files.folders import replacing_folder
from interp_core.files.params import check, file_name
from interp_core.files.sums import check_sum
from interp_core.files.way_out import way_out
from interp_core.training.history import History

VERSION = 1
KIND = "cursive_circuits"  # what a run's folder records itself as
CONFIG, HISTORY, WEIGHTS = "config.json", "history.json", "model.safetensors"


@dataclass(frozen=True, eq=False)
class Trained:
    """A model with what its tokens and its characters mean."""

    name: str
    model: CursiveTransformer
    tokens: Vocabulary
    alphabet: str

    @property
    def writes(self) -> bool:
        """Whether it was trained on handwriting; the control was not."""
        return self.name != "control"


def open_run(folder: Path) -> Trained:
    """The model in a run directory, in eval mode.

    InputError for a folder that is none, or is half-written.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{folder} is not a run directory: it has no {CONFIG}; `cursive-circuits train` "
            f"writes one{way_out(folder, 'trains')}"
        )
    config = load_json(folder / CONFIG)
    check_sum(folder / HISTORY, again="train it again")
    if config.get("version") != VERSION:
        raise InputError(
            f"{folder / CONFIG}: version {config.get('version')}, this program reads {VERSION}; "
            "train again"
        )
    if file_sha256(folder / WEIGHTS) != config.get("weights_sha256"):
        raise InputError(
            f"{folder / WEIGHTS} is not what was trained (its sha256 differs): train it again"
        )
    shape = check(Shape, config["shape"], where=str(folder / CONFIG))
    tokens = check(Tokens, config["tokens"], where=str(folder / CONFIG))
    model = CursiveTransformer(
        shape, vocabulary=tokens.size, alphabet=len(config["alphabet"]), seed=0
    )
    model.load_state_dict(load_weights(folder / WEIGHTS), strict=True)
    name = file_name(config["name"], where=f"{folder / CONFIG}: name")
    return Trained(name, model.eval(), tokens, config["alphabet"])


def save_run(place: Path, trained: Trained, history: History, settings: dict[str, Any]) -> None:
    """Put a finished training in its place.

    InputError when that holds what is not this training's.
    """
    with replacing_folder(place, kind=KIND, name=trained.name) as folder:
        _write(folder, trained, history, settings)


def _write(folder: Path, trained: Trained, history: History, settings: dict[str, Any]) -> None:
    save_weights(folder / WEIGHTS, trained.model.state_dict())
    save_json(folder / HISTORY, {"rows": history})
    record = {
        "version": VERSION,
        "name": trained.name,
        "shape": trained.model.shape.model_dump(mode="json"),
        "tokens": trained.tokens.model_dump(mode="json"),
        "alphabet": trained.alphabet,
        "parameters": sum(parameter.numel() for parameter in trained.model.parameters()),
        "settings": settings,
        "weights_sha256": file_sha256(folder / WEIGHTS),
    }
    save_json(folder / CONFIG, record)
