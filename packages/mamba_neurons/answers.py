"""The headline numbers of the study, from its metrics files alone."""

from pathlib import Path
from typing import Any

from interp_core.console.answers import Answer, ends, only_file
from interp_core.files.artifacts import load_json

Report = dict[str, Any]


def answers(metrics: Path) -> list[Answer]:
    """What the best channels are worth, how few are enough, whether the Mamba is the sparser."""
    compare = load_json(only_file(metrics / "compare", "compare_*.json"))
    mamba = compare["first"]

    causal = load_json(metrics / "causal" / f"causal_{mamba}.json")
    efficiency = load_json(metrics / "efficiency" / f"efficiency_{mamba}.json")

    return [
        _best_channel(causal),
        _best_set(causal),
        _enough(efficiency),
        _sparser("gini", "larger is sparser", compare),
        _sparser("treves_rolls", "larger is sparser", compare),
    ]


def _best_channel(causal: Report) -> Answer:
    best = causal["whole_model"]["top"][0]

    return Answer(
        "kl_of_best_channel",
        best["kl"],
        *ends(best["kl_ci"]),
        n=causal["texts"] + causal["repeated_rows"],  # a row of repeats is a text to the bootstrap
        unit="texts",
        says=f"nats, {best['neuron']} of {causal['whole_model']['channels']} channels mean-ablated",
    )


def _best_set(causal: Report) -> Answer:
    """The largest set of the dose curve, judged on the texts that did not rank the channels."""
    together = causal["together"]

    return Answer(
        "kl_of_best_set",
        together["kl"][-1],
        together["kl_low"][-1],
        together["kl_high"][-1],
        n=together["n"],
        unit="texts",
        says=(
            f"nats, best {together['k'][-1]} channels of layer {causal['layer']['layer']} together;"
            f" random ones {together['random_mean'][-1]:.2f}"
        ),
    )


def _enough(efficiency: Report) -> Answer:
    found = efficiency["functional"]

    return Answer(
        "channels_that_must_stay",
        found["enough"],
        *ends(found["enough_ci"]),
        n=found["n"],
        unit="texts",
        says=f"of {found['neurons']}, for the loss to stay within {found['tolerance']:.0%}",
    )


def _sparser(measure: str, direction: str, compare: Report) -> Answer:
    found = compare["sparsity"][measure]

    return Answer(
        f"{measure}_difference",
        found["difference"]["value"],
        *ends(found["difference"]["ci"]),
        n=found["n"],
        unit="texts",
        says=f"{compare['first']} minus {compare['second']}; {direction}",
    )
