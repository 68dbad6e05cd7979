"""The numbers of the study and which are headlines, from its metrics files alone.

One training of each size: what they say of sizes is said over trainings (measure_sizes.py).
"""

from pathlib import Path
from typing import Any

from interp_core.console.answers import Answer, headline
from interp_core.files.artifacts import load_json

Report = dict[str, Any]


def answers(metrics: Path) -> list[Answer]:
    """Where induction heads sit, how far two sizes are apart, what copying loses without them."""
    sizes = load_json(metrics / "multisize" / "multi_size.json")
    models = list(sizes["models"])

    profiles = [load_json(metrics / "profile" / f"profile_{model}.json") for model in models]
    ablations = [load_json(metrics / "causal" / f"causal_{model}.json") for model in models]

    return [
        *(headline(_centre(profile)) for profile in profiles),
        headline(_largest_less_smallest(sizes)),
        headline(_least_harm(ablations)),
        *_pretrained(metrics.parent / "pretrained" / "metrics"),
    ]


def _pretrained(metrics: Path) -> list[Answer]:
    """The same of pretrained models, which are none of the family; none where they are left out."""
    found, listed = [], metrics / "models.json"
    # A run with other options has measured none, and a training of the family needs none.
    names = load_json(listed)["models"] if listed.is_file() else []

    for name in names:
        profile = load_json(metrics / "profile" / f"profile_{name}.json")
        causal = load_json(metrics / "causal" / f"causal_{name}.json")
        composition = load_json(metrics / "composition" / f"composition_{name}.json")

        found += [headline(_centre(profile)), _harm(causal), _path(composition)]

    return found


def _harm(causal: Report) -> Answer:
    name, top = causal["name"], causal["top_k"]
    change = causal["ablations"]["mean"]["accuracy"]["top"]
    says = f"accuracy, top {top} heads ablated, {name}"
    return _answer(f"change_without_top_heads_of_{name}", change, says)


def _path(composition: Report) -> Answer:
    """The path into an induction head's keys that it needs most."""
    name = f"strongest_path_of_{composition['name']}"
    paths = composition["pairs"]

    if not paths:
        return Answer(name, None, None, None, composition["n"], "prompts", composition["verdict"])

    pair = min(paths, key=lambda pair: pair["path_patching"]["value"])
    says = f"prefix matching of {pair['reader']} without {pair['writer']} in its keys"
    return _answer(name, pair["path_patching"], says)


def _centre(profile: Report) -> Answer:
    name = f"centre_of_{profile['name']}"
    centre = profile["centre_of_mass"]

    if centre is None:
        says = f"no centre: {profile['verdict']}"
        return Answer(name, None, None, None, profile["n"], "prompts", says)

    says = "centre of mass of excess prefix matching, relative depth"
    return _answer(name, centre, says)


def _largest_less_smallest(sizes: Report) -> Answer:
    """Always the same pair, so that trainings can be averaged."""
    name = "centre_difference"
    models = list(sizes["models"])
    (pair,) = [pair for pair in sizes["pairs"] if pair["models"] == [models[0], models[-1]]]

    if pair["centre_of_mass"] is None:
        n = sizes["models"][models[0]]["n"]
        return Answer(name, None, None, None, n, "prompts", pair["verdict"])

    says = f"{models[-1]} minus {models[0]}, relative depth"
    return _answer(name, pair["centre_of_mass"]["difference"], says)


def _least_harm(ablations: list[Report]) -> Answer:
    """In the model where the best heads matter least: what is said of all must hold there."""

    def change(report: Report) -> Report:
        return report["ablations"]["mean"]["accuracy"]["top"]

    least = max(ablations, key=lambda report: change(report)["value"])
    says = f"accuracy, top {least['top_k']} heads ablated, {least['name']}: the least of all"
    return _answer("change_without_top_heads", change(least), says)


def _answer(name: str, found: Report, says: str) -> Answer:
    ends = (found["low"], found["high"])
    return Answer(name, found["value"], *ends, found["n"], found["unit"], says)
