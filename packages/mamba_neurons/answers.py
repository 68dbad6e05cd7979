"""The numbers of the study and which are headlines, from its metrics files alone."""

from pathlib import Path
from typing import Any

from interp_core.console.answers import Answer, headline, only_file
from interp_core.files.artifacts import load_json

Report = dict[str, Any]


def answers(metrics: Path) -> list[Answer]:
    """What the best channels are worth, how few units are enough in both models, whether the Mamba
    is the sparser.
    """
    compare = load_json(only_file(metrics / "compare", "compare_*.json"))
    mamba, twin = compare["first"], compare["second"]

    causal = load_json(metrics / "causal" / f"causal_{mamba}.json")
    few = {
        name: load_json(metrics / "efficiency" / f"efficiency_{name}.json")["functional"]
        for name in (mamba, twin)
    }

    return [
        headline(_best_channel(causal)),
        _best_set(causal),
        # Of each model along the ranking that gets by with fewer units.
        _enough("share_needed_alone", "single", few[mamba]),
        headline(_enough("share_needed_together", "joint", few[mamba])),
        headline(_enough("twin_needed_alone", "single", few[twin])),
        _enough("twin_needed_together", "joint", few[twin]),
        headline(_sparser("gini", compare)),
        headline(_sparser("treves_rolls", compare)),
    ]


def _answer(name: str, interval: Report, says: str) -> Answer:
    """From an interval of a report, which has the fields that an answer has."""
    return Answer(name, **interval, says=says)


def _best_channel(causal: Report) -> Answer:
    whole = causal["whole_model"]
    best = whole["top"][0]
    says = f"nats by mean-ablating the best of {whole['channels']} channels, {best['neuron']}"

    return _answer("kl_of_best_channel", best["kl"], says)


def _best_set(causal: Report) -> Answer:
    """The largest set of the dose curve, judged on the texts that did not rank the channels."""
    together = causal["together"]
    dose = together["doses"][-1]
    where = f"best {dose['k']} channels of layer {together['layer']} together"

    random = dose["against_random"]["random"]["value"]
    beside = "no random sets" if random is None else f"random ones {random:.2f}"
    says = f"nats for the {where}, {beside}"

    return _answer("kl_of_best_set", dose["kl"], says)


def _enough(name: str, ranking: str, few: Report) -> Answer:
    """The fewest units of one ranking, as a share, with the loss within the tolerance."""
    found = few["rankings"][ranking]
    ranked = {"single": "ranked one by one", "joint": "ranked in what is left"}[ranking]
    says = (
        f"of {few['units']} units {ranked} keep the loss within {few['tolerance']:.0%}, "
        f"that is {found['enough']['value']:.0f}"
    )

    return _answer(name, found["enough_share"], says)


def _sparser(measure: str, compare: Report) -> Answer:
    found = compare["sparsity"][measure]["difference"]
    says = f"{compare['first']} minus {compare['second']}; larger is sparser"

    return _answer(f"{measure}_difference", found, says)
