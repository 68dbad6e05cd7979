"""One call of a command: its settings, its models, its folder, and what its files were made from.

A bare call is a stage of the pipeline: it writes data/STUDY, and dvc.lock says what its files were
made from. With any option it is an experiment in a folder of its own. There every record carries
`made_from`: the models by name, and hashes of weights, of other files read, of settings and of
code. A record made from anything else is not read, and a name means one model in a folder.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from interp_core.console import made_from
from interp_core.console.holding import guard, hold
from interp_core.console.made_from import MADE_FROM, Source, made_in, sha256_of
from interp_core.errors import InputError
from interp_core.files.artifacts import (
    check_writable,
    load_arrays,
    load_json,
    save_arrays,
    save_json,
)
from interp_core.files.params import Params, profile_path, project_root, settings_root
from interp_core.files.vouching import check_ours, vouching
from interp_core.models.folder import folder_of, weight_files
from interp_core.models.spec import ModelSpec, short_name, spec_of
from interp_core.streams import Streams

P = TypeVar("P", bound=Params)
Arrays = dict[str, np.ndarray]
Report = dict[str, Any]


@dataclass(frozen=True)
class Call(Generic[P]):
    """One call of a command."""

    study: str
    params: P
    known: Mapping[str, ModelSpec]  # the profile's models
    folder: Path
    home: Path  # where the profile's own runs are: what an experiment reads and has not made itself
    is_stage: bool
    flat: bool  # an experiment's files lie side by side, not by kind and command
    models: tuple[str, ...]  # that it is about
    streams: Streams  # the study's
    asked: frozenset[str] = frozenset()  # settings that were given by options
    figures: Path | None = None  # a folder for them, where it is another one
    _sources: dict[str, Source] = field(default_factory=dict, compare=False, repr=False)
    _names: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def names(self) -> list[str]:
        """Short names of the models, as in file names."""
        return [short_name(model) for model in self.models]

    def place(self, kind: str, command: str) -> Path:
        """The folder of a command's `scores`, `metrics` or `figures`."""
        if kind == "figures" and self.figures is not None:
            return self.figures
        if self.flat and not self.is_stage:
            return self.folder
        return self.folder / kind / command

    def file(self, kind: str, command: str, stem: str) -> Path:
        """A file of `scores` (.npz) or `metrics` (.json)."""
        return self.place(kind, command) / f"{stem}.{'npz' if kind == 'scores' else 'json'}"

    def at_home(self, name: str) -> Path:
        """A file or folder of this call's folder, or the profile's own where only that is there."""
        mine, own = self.folder / name, self.home / name
        return own if own.exists() and not mine.exists() else mine

    def place_of(self, path: Path) -> str:
        """A path as a record names it: from this call's folder, or the project's, where it is in
        one, so that either can be moved."""
        path = path.resolve()
        for above in (self.folder.resolve(), project_root().resolve()):
            if path.is_relative_to(above):
                return str(path.relative_to(above))
        return str(path)

    def rng(self, purpose: str, *parts: int | str, seed: int | None = None) -> np.random.Generator:
        """The generator of a purpose, from params.seed unless another seed is given."""
        root: int = self.params.seed if seed is None else seed  # pyright: ignore[reportAttributeAccessIssue]
        return self.streams.rng(purpose, root, *parts)

    def source(self, model: str) -> Source:
        """What a model's name means, with a hash of its files now. InputError for no model."""
        if model not in self._sources:
            spec = spec_of(model, self.known)
            self._sources[model] = Source(self._origin(spec), made_from.files_sha256(spec))
        return self._sources[model]

    def sources(self, models: Iterable[str]) -> dict[str, Source]:
        """The same of several, by their names in files; a stage asks for none."""
        return {} if self.is_stage else {short_name(model): self.source(model) for model in models}

    def made_from(
        self,
        sources: Mapping[str, Source],
        *,
        unread: Collection[str] = (),
        read: Iterable[Path | str] = (),
    ) -> Report:
        """What a record is made from; a stage's is in dvc.lock. `unread`: settings that it does not
        depend on; `read`: files, or hashes, of what is read beside the models."""
        if self.is_stage:
            return {}
        return made_from.mark(self.study, sources, self.params, unread=unread, read=read)

    def save(
        self,
        command: str,
        stem: str,
        report: Report,
        arrays: Mapping[str, np.ndarray] | None = None,
        *,
        made: Report,
        scores: str | None = None,
    ) -> None:
        """Metrics as JSON, and arrays as .npz; `scores` is their stem where it is another one.

        The record goes first and comes last: an old one never vouches for new arrays.
        """
        record = self.file("metrics", command, stem)
        of_arrays = self.file("scores", command, scores or stem)
        written = [record] if arrays is None else [record, of_arrays]

        with vouching(*written):
            record.unlink(missing_ok=True)
            if arrays is not None:
                save_arrays(of_arrays, arrays)
            save_json(record, report if self.is_stage else report | {MADE_FROM: made})

    def save_arrays(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        """Arrays without a record of their own, vouched for as all others."""
        with vouching(path):
            save_arrays(path, arrays)

    def load(self, command: str, stem: str, *, scores: str | None = None) -> tuple[Arrays, Report]:
        """Arrays and record of an earlier command. InputError says what is missing.

        An experiment asks `is_made` before, and measures again where it is not.
        """
        arrays = load_arrays(self.file("scores", command, scores or stem))
        return arrays, load_json(self.file("metrics", command, stem))

    def is_made(self, command: str, stem: str, made: Report, *, scores: str | None = None) -> bool:
        """Whether an earlier command's files are there, made from the same as now."""
        record = self.file("metrics", command, stem)
        if not record.is_file() or not self.file("scores", command, scores or stem).is_file():
            return False
        return load_json(record).get(MADE_FROM) == made

    def is_of(self, command: str, stem: str, sources: Mapping[str, Source]) -> bool:
        """Whether an earlier command's record is there, of these models as they are now, whatever
        its settings were."""
        record = self.file("metrics", command, stem)
        models = made_in(load_json(record)).get("models") if record.is_file() else None
        found = models if isinstance(models, dict) else {}
        return all(found.get(name) == vars(source) for name, source in sources.items())

    def check_folder(self) -> None:
        """InputError where an experiment cannot write, or another command does, or where a file of
        somebody else's has a record's name; before anything is computed."""
        if not self.is_stage:
            check_writable(self.folder)
        hold(self.folder, shared=self.is_stage)
        self._guard()
        self._check_theirs()
        if self.figures is not None:
            is_elsewhere = not self.figures.is_relative_to(self.folder)
            # In its own folder it is made when there is something to draw.
            if is_elsewhere or self.figures.exists():
                check_writable(self.figures)
            if is_elsewhere:
                hold(self.figures)

        # Again: who was in the folder until now may have put something there.
        self.check_names(self._names)

    def _guard(self) -> None:
        """Until the command ends, replace in folders that somebody named only what is ours."""
        # In `outputs` and `data` of the project there are only its own.
        own = [project_root() / name for name in ("data", "outputs")]
        places = [self.folder, *([] if self.figures is None else [self.figures])]

        for place in places:
            if not any(place.resolve().is_relative_to(one.resolve()) for one in own):
                guard(place)

    def _check_theirs(self) -> None:
        """InputError for a file where a model's record would be, and that none of ours lists.

        All other files of somebody else's are looked at when they would be replaced.
        """
        endings = tuple(f"_{name}.{kind}" for name in self._names for kind in ("json", "npz"))
        if self.flat and not self.is_stage and self.folder.is_dir():
            for file in sorted(self.folder.iterdir()):
                if file.name.endswith(endings) and file.name[0] != ".":
                    check_ours(file)

    def check_names(self, sources: Mapping[str, str]) -> None:
        """InputError where a file name stands for another model in the folder already: the second
        would take the first one's place, or be read as it."""
        if self.is_stage:
            return

        records = self.folder.glob("*.json" if self.flat else "[ms]*/*/*.json")  # metrics, scores
        # What a writer left unfinished begins with a dot.
        for record in sorted(one for one in records if one.is_file() and one.name[0] != "."):
            for name, there in made_from.models_of(record).items():
                if sources.get(name, there) != there:
                    raise InputError(
                        f"{record} is of {there}, and {sources[name]} has the same name {name}: "
                        "name another folder (--out)"
                    )

    def check_models(self, models: Iterable[str], *, loaded: bool = True) -> None:
        """InputError where two models would write files of one name, in this call or since an
        earlier one, where a model's directory holds none, and where a hub does not give it; before
        anything is computed. Not `loaded` are models of which only files are drawn: no hub is
        asked for them."""
        found: dict[str, str] = {}
        specs = [(model, spec_of(model, self.known)) for model in models]

        for model, spec in specs:
            name = short_name(model)
            if name in found:
                raise InputError(
                    f"two models would write files of the name {name}: rename a folder, or use two "
                    "--out"
                )
            found[name] = self._origin(spec)
        self.check_names(found)

        for _, spec in specs:
            looked_at = spec.path is not None or (loaded and spec.source == "hub")
            if looked_at and not self.is_stage:
                weight_files(folder_of(spec))
        self._names.update(found)

    def _origin(self, spec: ModelSpec) -> str:
        """Where a model is from, in words."""
        if spec.path is not None:
            return self.place_of(spec.path)
        if spec.repo is not None:
            return f"{spec.repo}@{spec.revision}"
        return f"random weights {sha256_of(spec.model_dump(mode='json'))[:12]}"


def start(
    study: str,
    params: P,
    *,
    known: Mapping[str, ModelSpec] | None = None,
    profile: str | None = None,
    out: Path | None = None,
    given: bool = False,
    subjects: Sequence[str] = (),
    streams: Streams | None = None,
    flat: bool = True,
) -> Call[P]:
    """A call of a command. `given`: whether any option was; `subjects`: models that were named.

    The folder is data/STUDY for a bare call, `out` where it was given, and for any other experiment
    outputs/STUDY/PROFILE or outputs/STUDY/PROFILE/MODELS in the project: two profiles or two models
    never share it. What a user types starts at the working directory, all else at the project.
    """
    known = known or {}
    is_stage = out is None and profile is None and not given and not subjects

    if is_stage:
        home = folder = project_root() / "data" / study
    else:
        own = project_root() / "outputs" / study / profile_folder(profile)
        is_projects = profile_path(profile).resolve() == profile_path().resolve()
        home = project_root() / "data" / study if is_projects else own
        folder = out or own / _together([_distinct(model, known) for model in subjects])

    named = streams or Streams({})
    return Call(study, params, known, folder, home, is_stage, flat, tuple(subjects), named)


def profile_folder(profile: str | None) -> str:
    """The name of a profile of the project; that of any other file with a hash of its place."""
    path = profile_path(profile).resolve()
    ours = settings_root().resolve() / "profiles"
    return path.stem if path.parent == ours else f"{path.stem}-{sha256_of(str(path))[:8]}"


def _together(names: Sequence[str]) -> str:
    """One name of several, short enough for any file system."""
    joined = "+".join(names)
    return joined if len(joined) <= 100 else f"{names[0]}+{len(names) - 1}-{sha256_of(joined)[:8]}"


def _distinct(model: str, known: Mapping[str, ModelSpec]) -> str:
    """A model's name; with a hash of where it is, unless it is a name of the profile."""
    if model in known:
        return model
    place = str(Path(model).resolve()) if Path(model).exists() else model
    return f"{short_name(model)}-{sha256_of(place)[:8]}"
