"""The study's part of the page: ink of the writer and of its control, and what a stroke reads."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cursive_circuits.figures_page import strokes
from cursive_circuits.study import Cursive, prepare
from interp_core.files.artifacts import load_arrays, load_json
from interp_core.page import views
from interp_core.page.document import say, write_own
from interp_core.page.study_page import Caption, Part, Words, there
from interp_core.page.views import View

Arrays = Mapping[str, np.ndarray]
Report = Mapping[str, Any]

WORDS = Words(
    place=5,
    question="Does a transformer that writes cursive use induction circuits?",
    verdict=(
        "Not by writing alone: excess {largest_excess_writing:interval}; "
        "taught to copy first {published.excess_on_words:interval}."
    ),
    not_found=(
        "Induction in handwriting that nobody taught, on any family of repeats.",
        "Copying of another writer's word, in either model.",
        "Which of the control's seven heads are needed one by one: the verdict is about three "
        "together.",
        "More than one training of the model that writes alone: its intervals are over prompts or "
        "words of one run.",
    ),
    captions={
        "ablation.png": Caption(
            "Rise of the loss without the top heads: copied tokens, control, and their difference.",
            "Tokens that copy nothing, and random sets of heads.",
        ),
        "alignment_*.png": Caption(
            "Cross-attention: error in letters, monotonicity, share of right letters, lead.",
            "A head that attends evenly.",
        ),
        "composition_*.png": Caption(
            "z of every pair of heads: keys, queries and values against earlier heads of both "
            "kinds.",
            "Random matrices of the same sizes.",
        ),
        "excess.png": Caption(
            "Largest excess attention of every head after the earlier occurrence, by family.",
            "The same places in prompts without an earlier occurrence, subtracted.",
        ),
        "gain_*.png": Caption(
            "What a second occurrence of a word is worth, under each text.",
            "Another word in the first place.",
        ),
        "offsets.png": Caption(
            "Attention of each model's best head around the earlier occurrence.",
            "The model that was trained to copy, beside the one that writes.",
        ),
        "ov_*.png": Caption(
            "What attending to a direction adds to the logits of directions, every head.",
            "White is what changes nothing.",
        ),
        "paths.png": Caption(
            "K-composition by weights against what path patching shows.",
            "The other writers of the same readers.",
        ),
        "qk_*.png": Caption(
            "Scores of query directions against key directions, every head.",
            "White is what changes nothing.",
        ),
        "samples_*.png": Caption(
            "Held-out words as the model writes them, and whether they are read right.",
            "The same words by a writer of the bank.",
        ),
        "scores.png": Caption(
            "Every other score of every head of both models.",
            "Plain shares; the control is subtracted in the figure of excess.",
        ),
    },
)


def ink(found: Mapping[str, Arrays], samples: tuple[Report, Arrays] | None) -> View:
    """Words by the writer and strokes by the control, whole and without heads."""
    groups = [] if samples is None else [_samples(*samples)]

    for name, arrays in found.items():
        groups += _redrawn(name, arrays)

    return {"kind": "ink", "title": "Ink", "groups": groups}


def _samples(report: Report, arrays: Arrays) -> View:
    drawings = []

    for i, word in enumerate(report["shown"][:10]):
        drawings.append(_drawing(f"{word}, the model", arrays[f"shown/{i}"], "copying"))
        drawings.append(_drawing(f"{word}, a writer", arrays[f"true/{i}"], "null"))

    return {
        "name": "ten held-out words",
        "says": (
            "Each word by the model and, in grey, by a writer of the bank. "
            f"{report['verdict'].capitalize()}."
        ),
        "drawings": drawings,
    }


def _redrawn(name: str, arrays: Arrays) -> list[View]:
    """Every drawing that an ablation left: words of the writer, strokes of the control."""
    labels = {
        "nothing": ("whole model", "ink"),
        "top": ("without the top heads", "ablated"),
        "random": ("without random heads", "null"),
        "cross": ("without a cross head", "previous"),
    }
    words = list(dict.fromkeys(key.split("/")[2] for key in arrays if key.startswith("redrawn/")))
    groups = [
        {
            "name": f"{word}, without heads",
            "says": (
                "Mean ablation; every drawing is from the same random numbers. "
                "Random heads are the control."
            ),
            "drawings": [
                _drawing(label, arrays[f"redrawn/{kind}/{word}"], colour)
                for kind, (label, colour) in labels.items()
                if f"redrawn/{kind}/{word}" in arrays
            ],
        }
        for word in words
    ]

    continued = [
        _drawing(
            f"{label}: {float(arrays[f'continued/copied/{kind}']):.0%} copied",
            arrays[f"continued/{kind}"],
            colour,
        )
        for kind, (label, colour) in labels.items()
        if f"continued/{kind}" in arrays
    ]
    if continued:
        groups.append({
            "name": f"strokes of the {name}",
            "says": "Random strokes, given once, and what the copying model writes after them.",
            "drawings": continued,
        })  # fmt: skip

    return groups


def _drawing(label: str, points: np.ndarray, colour: str) -> View:
    return {"label": label, "colour": colour, "points": np.round(points, 3).tolist()}


def model_card(name: str, config: Report, rows: list[Report]) -> View:
    """Sizes and training curve."""
    steps = [row["step"] for row in rows]
    lines = [("training", "loss", "null"), ("held-out", "held_out_loss", "ink")]

    return views.card(
        name,
        {
            "layers": config["shape"]["layers"],
            "heads a layer": config["shape"]["heads"],
            "width": config["shape"]["d_model"],
            "parameters": f"{config['parameters']:,}",
        },
        steps=steps,
        panels=[
            views.panel("Training", "nats a token", [
                views.line(label, [row.get(column) for row in rows], colour=colour)
                for label, column, colour in lines
                if column in rows[0]
            ]),
        ],
        formed=[],
    )  # fmt: skip


def of_the_run() -> Part:
    """The study's part of the page of the run: what its files allow."""
    run = prepare(None, None)
    cards = []

    for folder in sorted((run.folder / "runs").glob("*"), reverse=True):
        files = folder / "config.json", folder / "history.json"

        if there(files):
            config, history = (load_json(file) for file in files)
            cards.append(model_card(folder.name, config, history["rows"]))

    return Part(WORDS, _views(run), cards)


def own_page(run: Cursive, *, command: str) -> None:
    """One self-contained page of what an experiment's folder holds; `command` is what was typed."""
    path = run.folder / "page.html"
    write_own(
        path,
        _views(run),
        title="What a stroke reads",
        lead="A transformer that writes cursive, its ink, and where its heads look as it writes.",
        made={"command": command},
    )
    say(path)


def _views(run: Cursive) -> list[View]:
    """What has run: ink where there are samples or ablations, strokes where some were drawn."""
    found: list[View] = []
    scores = run.folder / "scores"
    redrawn = {
        place.stem: load_arrays(place)
        for place in sorted((scores / "ablate").glob("*.npz"), reverse=True)
    }
    sampled = sorted((scores / "sample").glob("*.npz"))
    samples = None

    if sampled:
        report = run.file("metrics", "sample", sampled[0].stem)
        samples = (load_json(report), load_arrays(sampled[0]))

    if redrawn or samples:
        found.append(ink(redrawn, samples))

    # The model that writes comes before its control.
    found += [
        strokes(place.stem, load_json(place.with_suffix(".json")))
        for place in sorted((scores / "draw").glob("*.npz"), reverse=True)
    ]
    return found
