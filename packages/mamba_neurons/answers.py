"""The headline numbers of the study, from its metrics files alone."""

from pathlib import Path
from typing import Any

from interp_core.console.answers import Answer, only_file
from interp_core.files.artifacts import load_json
from interp_core.statistics.interval import Interval

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
        _best_channel(causal),
        _best_set(causal),
        _enough("share_that_must_stay", "single", few[mamba]),
        _enough("share_that_must_stay_joint", "joint", few[mamba]),
        _enough("share_that_must_stay_twin", "single", few[twin]),
        _enough("share_that_must_stay_twin_joint", "joint", few[twin]),
        _sparser("gini", compare),
        _sparser("treves_rolls", compare),
    ]


def _answer(name: str, found: Interval, says: str) -> Answer:
    return Answer(name, found.value, found.low, found.high, n=found.n, unit=found.unit, says=says)


def _best_channel(causal: Report) -> Answer:
    whole = causal["whole_model"]
    best = whole["top"][0]
    says = f"nats by mean-ablating the best of {whole['channels']} channels, {best['neuron']}"

    return _answer("kl_of_best_channel", Interval.from_json(best["kl"]), says)


def _best_set(causal: Report) -> Answer:
    """The largest set of the dose curve, judged on the texts that did not rank the channels."""
    together = causal["together"]
    dose = together["doses"][-1]
    where = f"best {dose['k']} channels of layer {together['layer']} together"

    random = dose["against_random"]["random"]["value"]
    beside = "no random sets" if random is None else f"random ones {random:.2f}"
    says = f"nats for the {where}, {beside}"

    return _answer("kl_of_best_set", Interval.from_json(dose["kl"]), says)


def _enough(name: str, ranking: str, few: Report) -> Answer:
    """The fewest units of one ranking, as a share, with the loss within the tolerance."""
    found = few["rankings"][ranking]
    ranked = {"single": "ranked one by one", "joint": "ranked in what is left"}[ranking]
    says = (
        f"of {few['units']} units {ranked} keep the loss within {few['tolerance']:.0%}, "
        f"that is {found['enough']['value']:.0f}"
    )

    return _answer(name, Interval.from_json(found["enough_share"]), says)


def _sparser(measure: str, compare: Report) -> Answer:
    found = Interval.from_json(compare["sparsity"][measure]["difference"])
    says = f"{compare['first']} minus {compare['second']}; larger is sparser"

    return _answer(f"{measure}_difference", found, says)
