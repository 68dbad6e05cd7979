"""Answers over trainings: a study run once for every seed, each in a copy of the project.

One training is one draw. What a study says about *models* is said over several of them: the same
pipeline, the same stimuli, other seeds of weights and batches. The profile says which seeds, and
which of its keys they replace; what the runs give together lies in `published/STUDY`, with
`made.json`: the profile, the seeds and the commit that made it.
"""

import copy
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import yaml
from pydantic import NonNegativeInt, model_validator

from interp_core.errors import InputError
from interp_core.files.artifacts import save_json
from interp_core.files.locks import locked_file
from interp_core.files.params import (
    FileName,
    Params,
    file_name,
    profile_path,
    project_root,
    read_section,
    read_yaml,
)
from interp_core.files.way_out import origin_of
from interp_core.pipeline.reproduce import DVC

FOLDER = "published"
ANSWERS = "answers.json"  # in each study's folder of data/
MADE = "made.json"  # beside answers over trainings: what they were made from


class Repeats(Params):
    """The trainings of one study; without seeds, one run whose own conditions hold them."""

    seeds: tuple[NonNegativeInt, ...] = ()
    # keys of the profile that each seed replaces, dots between their parts
    vary: tuple[str, ...] = ()
    # what sets the trainings apart, where they are not those of the laptop with other seeds
    says: str = ""
    # of one run whose conditions hold the trainings: files of data/STUDY that are published too
    keeps: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _keeps_files_of_the_run(self) -> "Repeats":
        for path in self.keeps:
            for part in path.split("/"):
                file_name(part, where="`keeps`")

        names = [Path(path).name for path in (ANSWERS, MADE, *self.keeps)]
        if len(set(names)) < len(names):
            raise ValueError(f"`keeps` names a file twice, or one of {ANSWERS} and {MADE}")

        if self.keeps and self.seeds:
            raise ValueError("`keeps` is of one run: with `seeds` each run has its own files")
        return self

    @model_validator(mode="after")
    def _seeds_replace_something(self) -> "Repeats":
        if bool(self.seeds) != bool(self.vary):
            raise ValueError("`seeds` and `vary` belong together: give both or neither")
        return self


class Published(Params):
    """Section `published` of a profile."""

    studies: dict[FileName, Repeats]


def publish(study: str, profile: str) -> Path:
    """Run a study once a seed and put the answers over trainings into `published/STUDY`.

    Resumes: what a seed's copy has measured is not measured again. InputError for a study that the
    profile does not repeat, and for code that is not committed.
    """
    root = project_root()
    studies = read_section("published", Published, profile).studies
    if study not in studies:
        known = ", ".join(studies) or "none"
        raise InputError(f"profile {profile} repeats no study {study}; known here: {known}")

    lock = root / ".scratch" / FOLDER / f"{profile}-{study}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with locked_file(lock, patience=0.0) as held:
        if held is None:
            raise InputError(f"{study} is being published already: wait until that ends ({lock})")
        out = _publish(study, studies[study], profile, root)
        lock.unlink()
    return out


def _publish(study: str, repeats: Repeats, profile: str, root: Path) -> Path:
    content = read_yaml(profile_path(profile))
    stage, program = _answers_of(study, root)
    stages = [stage, *(_writer_of(f"data/{study}/{kept}", root) for kept in repeats.keeps)]
    _check_committed(root)

    out = root / FOLDER / study
    revision = _revision(root)

    if not repeats.seeds:
        ran = _run_in_a_copy(f"{profile}-{study}", root, content, stages)
        out.mkdir(parents=True, exist_ok=True)
        for kept in (ANSWERS, *repeats.keeps):
            shutil.copyfile(ran / "data" / study / kept, out / Path(kept).name)
        record(out, profile, repeats, revision)
        return out

    folders = []
    for seed in repeats.seeds:
        changed = with_seed(content, repeats.vary, seed)
        ran = _run_in_a_copy(f"{profile}-{study}-s{seed}", root, changed, stages)
        folders.append(ran / "data" / study)

    _run([program, "answers", *_each("--trainings", folders), "--out", str(out)], root)
    record(out, profile, repeats, revision)
    return out


def record(out: Path, profile: str, repeats: Repeats, revision: str) -> None:
    """What the answers in a folder of `published/` were made from, beside them."""
    made = {
        "profile": profile,
        "seeds": list(repeats.seeds),
        "replaced": list(repeats.vary),
        "says": repeats.says,
        "revision": revision,
    }
    save_json(out / MADE, made)


def _run_in_a_copy(name: str, root: Path, content: Mapping[str, Any], stages: list[str]) -> Path:
    """Up to these stages, by a profile's content, in the copy of the project that has this name."""
    place = root / ".scratch" / FOLDER / name
    _lay(place, root, content)
    click.echo(f"{name}: {place}")
    _run([*DVC, "repro", *dict.fromkeys(stages)], place)
    return place


def with_seed(content: Mapping[str, Any], keys: tuple[str, ...], seed: int) -> dict[str, Any]:
    """A profile with one seed in place of what these keys hold. InputError for a key it lacks."""
    changed = copy.deepcopy(dict(content))

    for key in keys:
        *way, last = key.split(".")
        place: Any = changed

        for part in way:
            place = place.get(part) if isinstance(place, dict) else None

        if not isinstance(place, dict) or last not in place:
            raise InputError(f"published: the profile has no key `{key}` for a seed to replace")
        place[last] = seed

    return changed


def _answers_of(study: str, root: Path) -> tuple[str, str]:
    """The stage that writes a study's answers, and the program that it calls."""
    stage = _writer_of(f"data/{study}/{ANSWERS}", root)
    return stage, read_yaml(root / "dvc.yaml")["stages"][stage]["cmd"].split()[0]


def _writer_of(path: str, root: Path) -> str:
    """The stage that writes a file of data/, alone or in a folder. InputError where none does: a
    copy would have the file of its commit, and that is the laptop's.
    """
    if (origin := origin_of(root / path)) is None:
        raise InputError(f"{root / 'dvc.yaml'}: no stage writes {path}")
    return origin.stage


def _check_committed(root: Path) -> None:
    """What is published must be what a commit gives."""
    told = _output(["git", "status", "--porcelain", "shared", "packages", "profiles"], root)
    if told:
        first = told.splitlines()[0][3:]
        raise InputError(f"{first} is not committed: what is published must be what a commit gives")


def _lay(place: Path, root: Path, content: Mapping[str, Any]) -> None:
    """A copy of the last commit with a profile of its own; one that is there goes on."""
    revision = _revision(root)

    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        _run(["git", "clone", "--quiet", "--shared", str(root), str(place)], root)
        cache = str(root / ".dvc" / "cache")
        _run([*DVC, "cache", "dir", "--local", cache], place)

    if _revision(place) != revision:
        _move(place, revision)

    written = yaml.safe_dump(dict(content), sort_keys=False)
    (place / "profiles" / f"{FOLDER}.yaml").write_text(written)
    (place / "params.yaml").write_text(f"profile: {FOLDER}\n")


def _move(place: Path, revision: str) -> None:
    """Put a copy on another commit of the project, but for what its own runs have written.

    DVC then sees which of its stages that commit changes. With the commit's data/ and dvc.lock all
    of them would be new.
    """
    _run(["git", "fetch", "--quiet", "origin", revision], place)

    # Its files are copies of commits and what the pipeline wrote: nothing of a person's. The commit
    # is the copy's only when all is there, so that who is killed in between begins again.
    code = [".", ":(exclude)data", ":(exclude)dvc.lock"]
    _run(["git", "checkout", "--quiet", "--no-overlay", revision, "--", *code], place)
    _run(["git", "reset", "--quiet", revision], place)


def _revision(folder: Path) -> str:
    return _output(["git", "rev-parse", "HEAD"], folder)


def _run(command: list[str], folder: Path) -> None:
    """Run a program in a folder, on that folder's own code. InputError when it fails."""
    code = os.pathsep.join(str(folder / home) for home in ("shared", "packages"))
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": code}, check=False)

    if done.returncode:
        raise InputError(f"{' '.join(command)} failed in {folder}: what it printed is above")


def _output(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    if done.returncode:
        raise InputError(f"{' '.join(command)} failed in {folder}: {done.stderr.strip()}")
    return done.stdout.strip("\n")


def _each(option: str, folders: list[Path]) -> list[str]:
    return [part for folder in folders for part in (option, str(folder))]
