"""The numbers of the study and which are headlines, from its metrics files alone."""

from pathlib import Path
from typing import Any

from interp_core.console.answers import Answer, headline
from interp_core.files.artifacts import load_json

Report = dict[str, Any]


def answers(metrics: Path) -> list[Answer]:
    """What a repeat is worth, whether heads look for it and write it, whether words are legible."""
    writing = load_json(metrics / "heads" / "handwriting.json")
    control = load_json(metrics / "heads" / "control.json")
    paths = load_json(metrics / "composition" / "control.json")["paths"]
    read = load_json(metrics / "sample" / "handwriting.json")

    gain = writing["gain"]["mismatched"]["excess"]["loss"]
    gained = "nats a token that a word is cheaper after itself than after another"
    harm = {
        model: _direct(model, load_json(metrics / "ablate" / f"{name}.json"))
        for model, name in (("writing", "handwriting"), ("control", "control"))
    }

    return [
        # Under another text, where only strokes can tell that the word comes again.
        headline(_answer("gain_of_a_repeat", gain, gained)),
        # Of words, under another text: what copies random strokes need not copy words.
        headline(_excess("excess_on_words", writing, "mismatched_text")),
        headline(_excess("largest_excess_writing", writing)),
        headline(_excess("largest_excess_control", control)),
        _without_writer(paths),
        # Both parts: alone, what copied tokens lose would look like copying.
        *map(headline, harm["writing"]),
        *harm["control"],
        _answer("samples_read", read["samples"], "share of samples nearest to their own word"),
        _answer("true_ink_read", read["true_ink"], "the same share of other writers' ink"),
    ]


def _answer(name: str, entry: Report, says: str) -> Answer:
    value, low, high, n, unit = (entry[key] for key in ("value", "low", "high", "n", "unit"))
    return Answer(name, value, low, high, n, unit, says)


def _excess(name: str, heads: Report, family: str | None = None) -> Answer:
    """Of a family of repeats, or the largest of all: what it denies is denied of every one."""
    families = heads["families"]
    family = family or max(families, key=lambda one: families[one]["best_excess"]["value"])
    found = families[family]

    says = f"attention to what followed the earlier occurrence, family {family}, {found['best']}"
    return _answer(name, found["best_excess"], says)


def _without_writer(paths: Report) -> Answer:
    """The strongest K-composition by weights, confirmed or not by path patching."""
    path = paths["k"]["by_weights"]

    says = (
        "change of a reader's attention without its strongest writer in its keys, "
        f"{path['writer']} into {path['reader']}, control"
    )
    return _answer("change_without_writer", path, says)


def _direct(model: str, ablation: Report) -> list[Answer]:
    """Both parts of copy-specific harm: a difference alone hides which side moves."""
    direct = ablation["direct"]
    heads = f"{' '.join(ablation['top'])}; {direct['against']['says']}"
    what = {"copied": "copied tokens", "control": "the same tokens with nothing to copy"}

    return [
        _answer(
            f"harm_{part}_{model}",
            direct[part],
            f"nats that {tokens} lose without what the best heads write, {heads}",
        )
        for part, tokens in what.items()
    ]
