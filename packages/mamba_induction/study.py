"""One call of a command: its settings, its models and where its files go.

Called bare, a command is a stage of the pipeline: it takes the profile's models and writes
data/mamba_induction. With any option of its own it is an experiment: it writes flat into `out` and
takes the one model that was named, its fine-tuned version where `fine-tune` has put one into `out`,
and a twin only where one was named.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp_core.errors import InputError
from interp_core.files.artifacts import check_writable
from interp_core.files.params import project_root, read_section
from interp_core.models.spec import ModelSpec, catalogue, short_name
from mamba_induction.params import MambaInduction, dataset_of


@dataclass(frozen=True)
class Run:
    """One call of a command: its settings, the models it may name, and where it writes."""

    params: MambaInduction
    known: dict[str, ModelSpec]
    out: Path | None  # None: a stage of the pipeline

    def place(self, kind: str, command: str) -> Path:
        """The folder for a command's `scores`, `metrics` or `figures`."""
        return self.out or self.home / kind / command

    @property
    def home(self) -> Path:
        """The folder of everything."""
        return self.out or project_root() / "data" / "mamba_induction"

    @property
    def tuned(self) -> Path:
        """Where the fine-tuned model is, or will be."""
        return (self.out or self.home / "models") / f"{short_name(self.params.model)}-tuned"

    @property
    def models(self) -> list[str]:
        """What is analysed: the Mamba, fine-tuned, and its twin."""
        tuned = [str(self.tuned)] if self.out is None or self.tuned.is_dir() else []
        return [
            self.params.model,
            *tuned,
            *([] if self.params.twin is None else [self.params.twin]),
        ]

    @property
    def names(self) -> list[str]:
        """Short names of the models, as in file names."""
        return [short_name(model) for model in self.models]

    @property
    def main(self) -> str:
        """The model whose single sequences are drawn: the fine-tuned one where there is one."""
        return self.models[1] if self.models[1:2] == [str(self.tuned)] else self.models[0]


def prepare(
    profile: str | None, out: Path | None, *, dataset: str | None = None, **overrides: Any
) -> Run:
    """Settings from the profile and the options given; any option makes it an experiment."""
    given = {key: value for key, value in overrides.items() if value is not None}
    known = catalogue(profile)
    params = read_section("mamba_induction", MambaInduction, profile)
    if dataset is not None:
        given["dataset"] = dataset_of(dataset, params.dataset)
    if out is None and (given or profile is not None):
        out = Path("outputs") / "mamba_induction"
    if "model" in given:
        given.setdefault("twin", "")
    params = read_section("mamba_induction", MambaInduction, profile, **given)
    if params.twin == "":
        params = params.model_copy(update={"twin": None})
    run = Run(params, known, out)
    if again := sorted({name for name in run.names if run.names.count(name) > 1}):
        raise InputError(f"two models would write files of the name {again[0]}: rename a folder")
    return run


def check_request(run: Run) -> None:
    """InputError where an experiment cannot write, before anything is computed."""
    if run.out is not None:
        check_writable(run.out)
