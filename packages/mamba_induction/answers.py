"""The headline numbers of the study, from its metrics files alone."""

from pathlib import Path
from typing import Any

from interp_core.console.answers import Answer, ends
from interp_core.files.artifacts import load_json

Report = dict[str, Any]


def answers(metrics: Path) -> list[Answer]:
    """Which read copying needs, and what fine-tuning does to text and to repeats."""
    change = load_json(metrics / "analyse" / "change.json")
    before, after = change["before"], change["after"]

    causal = load_json(metrics / "causal" / f"causal_{before}.json")
    gaps = {name: load_json(metrics / "gap" / f"gap_{name}.json") for name in (before, after)}

    return [
        *_reads(causal),
        _perplexity(change),
        _missed("missed_before_tuning", gaps[before]),
        _missed("missed_after_tuning", gaps[after]),
    ]


def _reads(causal: Report) -> list[Answer]:
    """The cut that costs most, and of all others the one that does: is it one read that matters?"""
    cuts = [
        (f"{layer} at {offset}", found["accuracy"])
        for layer, offsets in causal["reads"].items()
        for offset, found in offsets.items()
        if layer != "all" and offset != "prefix"  # those cut several reads at once
    ]
    worst, other = sorted(cuts, key=lambda cut: cut[1]["value"])[:2]

    named = {"change_without_best_read": worst, "change_without_other_read": other}

    return [
        Answer(
            name,
            accuracy["value"],
            accuracy["low"],
            accuracy["high"],
            n=causal["n"],
            unit="prompts",
            says=f"accuracy without what is read in {where} of the earlier occurrence",
        )
        for name, (where, accuracy) in named.items()
    ]


def _perplexity(change: Report) -> Answer:
    found = change["perplexity"]

    return Answer(
        "perplexity_ratio",
        found["ratio"],
        *ends(found["ratio_ci"]),
        n=change["text_loss"]["n"],  # the ratio is of these losses
        unit="texts",
        says=f"after fine-tuning over before: {found['after']:.1f} over {found['before']:.1f}",
    )


def _missed(name: str, gap: Report) -> Answer:
    share = gap["repeated"]["scores"]["not_predicted/attention"]

    return Answer(
        name,
        share["value"],
        share["low"],
        share["high"],
        n=share["n"],
        unit="prompts",
        says=f"share of repeats that {gap['name']} recognises and does not predict",
    )
