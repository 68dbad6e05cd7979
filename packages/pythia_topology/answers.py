"""The headline numbers of the study, from its metrics files alone."""

from pathlib import Path
from typing import Any

from interp_core.console.answers import Answer, ends
from interp_core.files.artifacts import load_json

Report = dict[str, Any]


def answers(metrics: Path) -> list[Answer]:
    """Where induction heads sit, how far two sizes are apart, what copying loses without them."""
    sizes = load_json(metrics / "multisize" / "multi_size.json")
    models = list(sizes["models"])

    profiles = [load_json(metrics / "profile" / f"profile_{model}.json") for model in models]
    ablations = [load_json(metrics / "causal" / f"causal_{model}.json") for model in models]

    return [
        *(_centre(profile) for profile in profiles),
        _largest_difference(sizes),
        _least_harm(ablations),
    ]


def _centre(profile: Report) -> Answer:
    name = f"centre_of_{profile['name']}"
    says = "centre of mass of excess prefix matching, relative depth"

    if profile["centre_of_mass"] is None:
        says = f"no centre: {profile['verdict']}"

    return Answer(
        name,
        profile["centre_of_mass"],
        *ends(profile["centre_of_mass_ci"]),
        n=profile["n"],
        unit="prompts",
        says=says,
    )


def _largest_difference(sizes: Report) -> Answer:
    """The pair that is farthest apart, with the interval that the equivalence test asks for."""
    name = "largest_centre_difference"
    n = next(iter(sizes["models"].values()))["n"]
    pairs = [pair for pair in sizes["pairs"] if pair["centre_of_mass"] is not None]

    if not pairs:
        return Answer(name, None, None, None, n, "prompts", sizes["pairs"][0]["verdict"])

    widest = max(pairs, key=lambda pair: abs(pair["centre_of_mass"]["difference"]))
    centre = widest["centre_of_mass"]
    first, second = widest["models"]
    level = 100 * (1 - 2 * sizes["equivalence_alpha"])

    return Answer(
        name,
        centre["difference"],
        *ends(centre["ci_equivalence"]),
        n=n,
        unit="prompts",
        says=f"{second} minus {first}, relative depth; {level:.0f} % interval",
    )


def _least_harm(ablations: list[Report]) -> Answer:
    """In the model where the best heads matter least: what is said of all must hold there."""
    least = max(ablations, key=lambda report: report["ablations"]["mean"]["accuracy"]["top"])
    accuracy = least["ablations"]["mean"]["accuracy"]

    return Answer(
        "change_without_top_heads",
        accuracy["top"],
        *ends(accuracy["top_ci"]),
        n=least["n"],
        unit="prompts",
        says=f"accuracy, top {least['top_k']} heads ablated, {least['name']}: the least of all",
    )
