"""The numbers of the studies: what a reader takes home, each with its interval and n.

A study's room `answers` reads its metrics files and names its numbers, and which of them are
headlines. `write` puts all beside the metrics; `merge` takes the headlines' values into one flat
file, DVC's only metrics.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import click

from interp_core.console.holding import hold
from interp_core.errors import InputError
from interp_core.files.artifacts import load_json, save_json
from interp_core.files.params import project_root
from interp_core.files.way_out import way_out

FILE = "answers.json"
EACH = "by_training.json"  # beside answers over trainings: those of every training, in order


@dataclass(frozen=True)
class Answer:
    """One number, as its metrics file has it. Without a value or an interval `says` tells why."""

    name: str  # words joined by underscores; a model's name may follow
    value: int | float | None
    low: int | float | None  # ends of the interval, 95 % unless `says` has another level
    high: int | float | None
    n: int  # how many units the interval is over
    unit: str  # texts, prompts, trainings ...
    says: str  # what the number is, in one phrase
    headline: bool = False  # whether the study's verdict rests on it
    # which trainings, where not the run's own with other seeds; made.json says it, no answers.json
    kind: str = ""


def headline(answer: Answer) -> Answer:
    """The answer as one that its study's verdict rests on: about five a study are."""
    return replace(answer, headline=True)


def ends(interval: Sequence[float] | None) -> tuple[float | None, float | None]:
    """Both ends of an interval, or two Nones where a report has none."""
    return (None, None) if interval is None else (interval[0], interval[1])


def only_file(folder: Path, pattern: str) -> Path:
    """The one file of a stage, found without its models' names. InputError when it is not one."""
    found = sorted(folder.glob(pattern))

    if not found:
        told = f"{folder / pattern} is missing: run the command that writes it first"
        raise InputError(f"{told}{way_out(folder / pattern, 'writes')}")

    if len(found) > 1:
        names = " and ".join(file.name for file in found[:2])
        raise InputError(f"{folder} holds {names}: delete the one of another run")

    return found[0]


def write(
    study: str,
    read: Callable[[Path], list[Answer]],
    out: Path | None,
    trainings: Sequence[Path] = (),
) -> None:
    """A study's answers, read from its metrics, into `answers.json` of its folder.

    With `trainings`, the folders that its runs left, one a training: the answers over them, into
    `out`, and beside them those of each. InputError when `out` is not named.
    """
    if trainings:
        if out is None:
            raise InputError("--trainings needs --out, a folder for the answers over them")

        hold(out)
        each = [read(folder / "metrics") for folder in trainings]
        answers = over_trainings(each)
        save_json(out / EACH, {"trainings": [to_json(one) for one in each]})
        told = f"{study}, {len(answers)} answers over {len(trainings)} trainings"
        place = out / FILE
    else:
        folder = out or project_root() / "data" / study
        hold(folder, shared=out is None)
        answers = read(folder / "metrics")
        told = f"{len(answers)} answers"
        place = folder / FILE

    content = to_json(answers)
    save_json(place, content)
    click.echo(f"{place}: {told}")

    # Half a second for wandb, which merging and comparing need not wait for.
    from interp_core.training.tracking import track_evaluation

    track_evaluation(study, content, {"trainings": len(trainings) or 1})


def over_trainings(by_training: Sequence[list[Answer]]) -> list[Answer]:
    """Each number's mean over trainings, with Student's 95 % interval; its n counts trainings.

    A number that some training does not have (a transition that did not come) is averaged over
    those that have it, and its words say how many they are. InputError when the trainings do not
    answer the same questions.
    """
    names = [[answer.name for answer in answers] for answers in by_training]
    if any(other != names[0] for other in names):
        raise InputError("the trainings answer different questions: run them with one profile")

    return [_together(same) for same in zip(*by_training, strict=True)]


def _together(same: Sequence[Answer]) -> Answer:
    # A third of a second, which answers of one run need not wait.
    from interp_core.statistics.interval import student

    if len(same) > 1 and same[0].value is not None and all(one == same[0] for one in same):
        # No training has a part in it: an interval over copies of one number would be empty.
        return replace(same[0], says=f"{same[0].says}; the same in all {len(same)} trainings")

    values = [float(answer.value) for answer in same if answer.value is not None]
    says = _in_common([answer.says for answer in same])

    if len(values) < len(same):
        says = f"{says}; {len(same) - len(values)} of {len(same)} trainings have none"
    if not values:
        return replace(same[0], value=None, low=None, high=None, n=0, unit="trainings", says=says)

    found = student(values, unit="trainings")
    return replace(
        same[0],
        value=found.value,
        low=found.low,
        high=found.high,
        n=found.n,
        unit=found.unit,
        says=says,
    )


def _in_common(words: Sequence[str]) -> str:
    """What the trainings' words begin with alike; their ends name one training's heads and sets.

    The level of one training's interval is left out: the one over trainings has 95 %.
    """
    parts = [re.split(r"(?=[,;] )", re.sub(r", interval at .*", "", one)) for one in words]
    alike = takewhile(lambda of_each: len({*of_each}) == 1, zip(*parts, strict=False))
    return "".join(part for part, *_ in alike) or parts[0][0]


def merge(data: Path) -> None:
    """The values of every study's headlines by name, into `answers.json` of the data folder.

    Intervals and all other answers stay in the studies' own files: as metrics they filled screens.
    """
    values = {
        study: {one.name: one.value for one in answers if one.headline}
        for study, answers in of_studies(data).items()
    }

    save_json(data / FILE, values)
    click.echo(f"{data / FILE}: {sum(map(len, values.values()))} headlines")


def of_studies(data: Path) -> dict[str, list[Answer]]:
    """Every study's answers, by the names of their folders. InputError where there are none."""
    studies = sorted(folder.parent for folder in data.glob("*/metrics"))

    if not studies:
        raise InputError(f"no study has metrics in {data}: run the pipeline first (`dvc repro`)")

    return {study.name: from_json(load_json(study / FILE)) for study in studies}


def to_json(answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """By name, in order; of `headline` only that it is one."""
    entries = {answer.name: asdict(answer) for answer in answers}

    for entry in entries.values():
        del entry["name"], entry["kind"]
        if not entry["headline"]:
            del entry["headline"]

    return entries


def from_json(content: Mapping[str, Mapping[str, Any]]) -> list[Answer]:
    """The inverse of to_json."""
    return [Answer(name, **entry) for name, entry in content.items()]
