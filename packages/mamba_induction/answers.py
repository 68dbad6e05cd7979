"""The numbers of the study and which are headlines, from its metrics files alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp_core.console.answers import Answer, ends, headline
from interp_core.files.artifacts import load_json

Report = dict[str, Any]


def answers(metrics: Path) -> list[Answer]:
    """Which read copying needs, whether little else suffices, and what fine-tuning does to text and
    to repeats.
    """
    change = load_json(metrics / "analyse" / "change.json")
    before, after = change["before"], change["after"]

    causal, tuned = (
        load_json(metrics / "causal" / f"causal_{name}.json") for name in (before, after)
    )
    gaps = {name: load_json(metrics / "gap" / f"gap_{name}.json") for name in (before, after)}

    one_read, *less = _kept(causal)
    missed, beyond_independence = _gap("after", gaps[after])
    untuned, committed, *other_recipes = _arms(load_json(metrics / "fine_tune" / "arms.json"))

    # A headline for each claim of the README, and beside it what it is to be compared with.
    return [
        *map(headline, _reads(causal["verdict"])),
        headline(one_read),
        *less,
        headline(_outvoted(tuned)),
        _perplexity(change),
        *_gap("before", gaps[before]),
        missed,
        headline(beyond_independence),
        untuned,
        headline(committed),
        *other_recipes,
    ]


def _reads(verdict: Report) -> list[Answer]:
    """The one read that copying needs, and of all others the one that costs most."""
    named = {
        "change_without_best_read": ("best", "accuracy without the one read that copying needs"),
        "change_without_other_read": ("other", "accuracy without any other single read, at most"),
    }
    found = []

    for name, (which, says) in named.items():
        cut = verdict[which]
        if cut is None:
            found.append(_missing(name, f"{says}; none: the model {verdict['says']}"))
            continue

        place = f"{cut['where']} at {cut['offset']:+d} of the earlier occurrence"
        level = f"interval at {100 * verdict['level']:.1f} %, for {verdict['cuts']} cuts together"
        found.append(_answer(name, cut["accuracy"], f"{says}, {place}, {level}"))

    return found


def _kept(causal: Report) -> list[Answer]:
    """Accuracy on second copies as it is, and with little left."""
    kept = causal["kept"]
    named = {
        "accuracy_with_one_read": "accuracy when the queries keep that read alone",
        "accuracy_with_circuit": "accuracy with that read and its taps alone",
        "accuracy_circuit_alone": (
            "accuracy when the other layers' scans also move nothing between positions"
        ),
    }

    if kept is None:
        return [_missing(name, f"{says}; no read is needed") for name, says in named.items()]

    # By place, not by name: names say which taps, and a training may need others.
    left = list(kept["circuit"].values())
    chosen = (left[0], left[2], left[3]) if len(left) > 3 else (left[0], left[0], left[-1])
    where = f"L{kept['layer']} at {kept['offset']:+d}"

    return [
        _answer(name, accuracy, f"{says}, {where}")
        for (name, says), accuracy in zip(named.items(), chosen, strict=True)
    ]


def _outvoted(tuned: Report) -> Answer:
    """What the fine-tuned model copies when its other reads are silent."""
    name, says = "accuracy_one_read_tuned", "accuracy when it keeps that read after fine-tuning"
    kept = tuned["kept"]

    if kept is None:
        return _missing(name, f"{says}; no read is needed")

    one = next(iter(kept["circuit"].values()))
    return _answer(name, one, f"{says}, {kept['clean']['value']:.2f} with all reads")


def _perplexity(change: Report) -> Answer:
    found = change["perplexity"]

    return Answer(
        "perplexity_ratio",
        found["ratio"],
        *ends(found["ratio_ci"]),
        n=change["text_loss"]["n"],  # the ratio is of these losses
        unit="texts",
        says=f"perplexity after fine-tuning over before, {found['after']:.1f} over "
        f"{found['before']:.1f}",
    )


def _gap(when: str, gap: Report) -> list[Answer]:
    """Recognised but not predicted, and how far that is from what independence gives."""
    family = gap["repeated"]
    share = family["scores"]["not_predicted/attention"]
    beyond = family["recognition"]["attention"]["above_independence"]

    return [
        _answer(
            f"missed_{when}_tuning",
            share,
            f"share of repeats recognised and not predicted {when} fine-tuning",
        ),
        _answer(
            f"excess_missed_{when}",
            beyond,
            "that share less the product of both rates; below zero: recognised repeats are "
            "predicted more often",
        ),
    ]


def _arms(arms: Report) -> list[Answer]:
    """Accuracy on second copies before fine-tuning, and after each recipe of it."""
    says = "accuracy on second copies"
    before = arms["before"]["repeat_accuracy"]
    found = [_answer("second_copies_before", before, f"{says} before fine-tuning")]

    # The first arm is the study's own fine-tuning.
    for number, (recipe, outcome) in enumerate(arms["arms"].items()):
        when = "after fine-tuning"

        if number == 0:
            name = "second_copies_after"
        elif outcome["repeats"]:
            name, when = "second_copies_mixed", f"{when} with repeats mixed in"
        else:
            name = f"second_copies_at_{outcome['rate']:g}"
            when = f"{when} at another rate"

        found.append(_answer(name, outcome["repeat_accuracy"], f"{says} {when}, {recipe}"))

    return found


def _answer(name: str, found: Mapping[str, Any], says: str) -> Answer:
    return Answer(
        name,
        found["value"],
        found["low"],
        found["high"],
        n=found["n"],
        unit=found["unit"],
        says=says,
    )


def _missing(name: str, says: str) -> Answer:
    return Answer(name, None, None, None, n=0, unit="prompts", says=says)
