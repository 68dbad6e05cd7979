"""The headline numbers of the study, from its metrics files alone."""

from pathlib import Path
from typing import Any

from interp_core.console.answers import Answer, ends
from interp_core.files.artifacts import load_json

Report = dict[str, Any]


def answers(metrics: Path) -> list[Answer]:
    """What a repeat is worth, whether a head looks for it, and whether the writing is legible."""
    writing = load_json(metrics / "heads" / "handwriting.json")
    control = load_json(metrics / "heads" / "control.json")
    paths = load_json(metrics / "composition" / "control.json")["paths"]
    read = load_json(metrics / "sample" / "handwriting.json")

    return [
        _gain(writing),
        _excess("largest_excess_writing", writing),
        _excess("largest_excess_control", control),
        _without_writer(paths),
        _read("samples_read", read["samples"], "samples", "share of samples read right"),
        _read("true_ink_read", read["true_ink"], "words", "share of other writers' ink read right"),
    ]


def _gain(writing: Report) -> Answer:
    """Under another text, where only strokes can tell that the word comes again."""
    excess = writing["gain"]["mismatched"]["excess"]["loss"]

    return Answer(
        "gain_of_a_repeat",
        excess["value"],
        *ends(excess["ci"]),
        n=writing["gain"]["n"],
        unit="prompts",
        says="nats a token that a word is cheaper after itself than after another",
    )


def _excess(name: str, heads: Report) -> Answer:
    """Of all families of repeats the largest: what is said of it holds for every one."""
    family = max(heads["families"], key=lambda family: heads["families"][family]["best_excess"])
    found = heads["families"][family]

    return Answer(
        name,
        found["best_excess"],
        *ends(found["best_excess_ci"]),
        n=found["n"],
        unit="prompts",
        says=f"{found['best']} to what followed the earlier occurrence, family {family}",
    )


def _without_writer(paths: Report) -> Answer:
    """The strongest K-composition by weights, confirmed or refuted by path patching."""
    path = paths["k"]["by_weights"]

    return Answer(
        "change_without_writer",
        path["effect"],
        *ends(path["ci"]),
        n=paths["n"],
        unit="prompts",
        says=f"attention of {path['reader']} without {path['writer']} in its keys, control",
    )


def _read(name: str, found: Report, unit: str, says: str) -> Answer:
    return Answer(name, found["value"], *ends(found["ci"]), n=found["n"], unit=unit, says=says)
