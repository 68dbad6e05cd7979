"""The page of a run: a folder that is opened from disk, built from what the pipeline left in data/.

A clone has the answers and the figures. The views need arrays and models too, which a run makes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from interp_core.console.answers import Answer, of_studies
from interp_core.console.answers_table import published, shown
from interp_core.console.holding import hold
from interp_core.errors import InputError
from interp_core.files.artifacts import replacing
from interp_core.files.folders import check_replaceable, replacing_folder
from interp_core.page.document import views_of, write
from interp_core.page.provenance import Made, Provenance
from interp_core.page.study_page import Caption, Part

MOST_WORDS = 15  # of a verdict
REPORT = {"kind": "report", "name": "report"}  # what the folder records itself as
LARGEST = 15_000_000  # bytes of the whole folder
OVER = "published."  # before the name of an answer over trainings
NAMED = re.compile(r"\{([\w.-]+)(?::(size|interval))?\}")  # an answer in a verdict


@dataclass(frozen=True)
class Figure:
    """A kept figure on the page."""

    name: str
    source: str  # its path inside the report
    width: int  # pixels
    height: int
    shows: str
    control: str
    made: Made


def parts_of(studies: Sequence[str]) -> dict[str, Part]:
    """Every study's part, made now; a study without the room `page` has none."""
    # By name, because the core knows no study.
    rooms = {study: f"{study}.page" for study in studies if find_spec(f"{study}.page") is not None}
    return {study: import_module(room).of_the_run() for study, room in rooms.items()}


def build(root: Path, out: Path, parts: Mapping[str, Part] | None = None) -> Path:
    """Write out/index.html and the figures beside it; returns the page.

    `parts` are the studies', made now unless given. An older report is replaced whole. InputError
    names what is missing, and a folder that holds anything else.
    """
    check_replaceable(out, **REPORT)
    hold(out)
    found = parts_of(list(of_studies(root / "data"))) if parts is None else parts

    with replacing_folder(out, **REPORT) as folder:
        _write(root, found, folder)

    return out / "index.html"


def _write(root: Path, parts: Mapping[str, Part], folder: Path) -> None:
    provenance = Provenance(root)
    studies = [
        _study(root, name, part, _answers(root, name), provenance, folder)
        for name, part in parts.items()
    ]
    studies.sort(key=lambda study: study["place"])

    views = views_of([view for study in studies for view in [*study["views"], *study["cards"]]])
    ids = iter(views)
    for study in studies:
        study["views"] = [next(ids) for _ in study["views"]]
        study["cards"] = [next(ids) for _ in study["cards"]]

    write(folder / "index.html", "report.html.jinja", studies=studies, views=views)
    _check_size(folder)


def _study(
    root: Path,
    name: str,
    part: Part,
    answers: Mapping[str, Answer],
    provenance: Provenance,
    out: Path,
) -> dict[str, Any]:
    captions = part.words.captions
    rows = {one: _row(one, answers) for one in answers}
    of_the_run = [row for one, row in rows.items() if not one.startswith(OVER)]

    return {
        **asdict(part.words),
        "study": name,
        "views": list(part.views),
        "cards": list(part.cards),
        "verdict": verdict(part.words.verdict, answers, where=f"{name}.page"),
        # A verdict may say no more than these, with their intervals.
        "behind": [rows[match[1]] for match in NAMED.finditer(part.words.verdict)],
        "answers": of_the_run,
        "trainings": len(of_the_run) < len(rows),
        "figures": [
            _figure(path, shown, captions, provenance, out / "figures" / name)
            for path, shown in figures_of(root, name).items()
        ],
    }


def verdict(template: str, answers: Mapping[str, Answer], *, where: str) -> str:
    """The sentence with its numbers: `{name}` the value, `{name:size}` without its sign,
    `{name:interval}` with its interval.

    Names of answers over trainings begin with `published.`.
    """

    def fill(match: re.Match[str]) -> str:
        if (answer := answers.get(match[1])) is None:
            raise InputError(
                f"{where}: the verdict names {match[1]}, which is none of the study's answers"
            )

        value = shown(answer, interval=match[2] == "interval")
        return value.removeprefix("-") if match[2] == "size" else value

    sentence = NAMED.sub(fill, template)

    if (count := len(sentence.split())) > MOST_WORDS:
        raise InputError(f"{where}: a verdict of {count} words, at most {MOST_WORDS} are read")

    return sentence


def _answers(root: Path, study: str) -> dict[str, Answer]:
    """The run's answers by name, and those over trainings where some are published."""
    run = of_studies(root / "data")[study]
    trainings = published(root / "published", [study]).get(study, [])

    return {one.name: one for one in run} | {f"{OVER}{one.name}": one for one in trainings}


def _row(name: str, answers: Mapping[str, Answer]) -> dict[str, Any]:
    answer = answers[name]
    trainings = answers.get(OVER + name)
    over = "" if trainings is None else f"{shown(trainings, interval=True)}, {_n(trainings)}"

    return {
        "name": answer.name.replace("_", " "),
        "value": shown(answer, interval=True),
        "n": _n(answer),
        "says": answer.says,
        "over": over,
    }


def _n(answer: Answer) -> str:
    return f"{answer.n} {answer.unit}{', ' if answer.kind else ''}{answer.kind}"


def figures_of(root: Path, study: str) -> dict[Path, str]:
    """Every figure that is kept, and its name on the page: of the run, of folders within the
    study's (`pretrained_dose.png`), and over trainings (`published_sizes.png`).
    """
    home, over = root / "data" / study, root / "published" / study
    found = {}

    for path in sorted(home.rglob("figures/*.png")):
        within = path.parent.parent.relative_to(home).parts
        found[path] = "_".join([*within, path.name])

    return found | {path: f"published_{path.name}" for path in sorted(over.glob("*.png"))}


def _figure(
    path: Path, name: str, captions: Mapping[str, Caption], provenance: Provenance, out: Path
) -> Figure:
    """A figure with its caption and how it was made; its picture in `out`."""
    matching = [one for pattern, one in captions.items() if fnmatch(name, pattern)]
    # Figures within a study's folder show what those of the same name beside them do.
    matching += [one for pattern, one in captions.items() if fnmatch(path.name, pattern)]
    made = provenance.of(path) or provenance.of_published(path)

    if not matching:
        raise InputError(f"{path} has no caption: add one to the study's page.py")
    if made is None:
        raise InputError(
            f"{path} is written by no stage of dvc.lock: run the pipeline, or remove it"
        )

    width, height = _shrink(path, out / name)
    source = f"figures/{out.name}/{name}"
    caption = matching[0]
    return Figure(Path(name).stem, source, width, height, caption.shows, caption.control, made)


def _shrink(path: Path, out: Path) -> tuple[int, int]:
    """The figure in 256 colours, a third of its bytes; returns its width and height."""
    from PIL import Image

    with Image.open(path) as image:
        # An octree is twice as fast as the median cut, and smaller on the flat colours of figures.
        method = Image.Quantize.FASTOCTREE
        reduced = image.convert("RGB").quantize(256, method=method, dither=Image.Dither.NONE)

        with replacing(out) as part:
            reduced.save(part, format="PNG")

        return image.width, image.height


def _check_size(folder: Path) -> None:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    if size > LARGEST:
        raise InputError(
            f"the report would have {size:,} bytes, more than {LARGEST:,}: keep fewer figures in "
            "data/STUDY/figures"
        )
