"""The study's part of the page, and the same page of a user's own Mamba."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from interp_core.files.artifacts import load_json
from interp_core.models.spec import short_name
from interp_core.page import views
from interp_core.page.document import say, write_own
from interp_core.page.packed import numbers
from interp_core.page.study_page import Caption, Part, Words, there
from interp_core.page.views import View
from mamba_neurons.study import Neurons, prepare

Arrays = Mapping[str, np.ndarray]
Report = Mapping[str, Any]

COLUMNS = (
    {"label": "channel", "says": "layer and channel"},
    {"label": "KL", "says": "KL of the predictions without it, nats"},
    {"label": "loss", "says": "rise of the loss without it, nats"},
    {"label": "half-life", "says": "longest memory half-life of its states, tokens"},
    {"label": "step", "says": "mean step dt"},
    {"label": "between texts", "says": "share of the step's variance between texts"},
)
KL, HALF_LIFE = 1, 3

WORDS = Words(
    place=3,
    question=(
        "Which neurons of a Mamba are delta-sensitive, causal, attention-like; how sparse is it?"
    ),
    verdict=(
        "Thin-spread: best channel {published.kl_of_best_channel:interval} nats; "
        "{published.share_needed_together:interval} of channels suffice within 1%."
    ),
    not_found=(
        "A channel, or a handful, that carries copying.",
        "Channels whose step size marks a text: none differs between texts beyond chance, but "
        "small shares may be missed.",
        "A use for attention rollout as a ranking of channels.",
        "A joint ranking that gets by with fewer units than ranking them one by one, at 1 % of "
        "the loss.",
        "One answer to “sparser than the transformer?”: it depends on the measure and on the "
        "layer.",
    ),
    captions={
        "compare.png": Caption(
            "Both models over relative depth: how the residual stream moves, and how sparse "
            "neurons are.",
            "The transformer twin, trained on the same batches.",
        ),
        "delta_*.png": Caption(
            "Channels ranked by how much their step differs between texts, and by kind of token.",
            "The family-wise threshold when texts are shuffled.",
        ),
        "efficiency.png": Caption(
            "Rise of the loss when only the strongest neurons are kept.",
            "Random sets of the same size.",
        ),
        "estimates_*.png": Caption(
            "Estimated against exact effects of channels, by layer.",
            "The line on which both agree; a random sample, not the best.",
        ),
        "faithfulness_*.png": Caption(
            "Deletion and insertion curves of each method's ranking.",
            "Random orders of the channels.",
        ),
        "influence_*.png": Caption(
            "How far the best channels of a layer move later ones, directly and in all.",
            "Random channels of the same layer.",
        ),
        "inter_layer_*.png": Caption(
            "KL when the same residual dimension is ablated after each layer.",
            "The other dimensions of the same layer.",
        ),
        "ranked_effects_*.png": Caption(
            "Every channel ranked by KL in three ways of ablating, and the best ones together.",
            "Random sets of the same size, and the sum of single effects.",
        ),
        "sparsity.png": Caption(
            "Population and lifetime measures of sparsity, by layer and model.",
            "The transformer twin, and the residual stream of both.",
        ),
    },
)


def channels(name: str, causal: Report, effects: Arrays, delta: Arrays) -> View:
    """Every channel with its effect and its memory."""
    longest = delta["half_life"].max(axis=-1)
    n_channels = effects["kl"].shape[1]
    by_step = (longest, delta["mean_dt"], delta["share"])
    of_steps = [_by_channel(found, n_channels) for found in by_step]
    columns = (effects["kl"], effects["loss"], *of_steps)

    rows = [
        [f"L{layer}C{channel}", *(numbers(float(column[layer, channel])) for column in columns)]
        for layer, channel in np.ndindex(effects["kl"].shape)
    ]

    return {
        "kind": "channels",
        "title": f"Channels of {name}",
        "says": (
            "Mean ablation of one channel at a time, and how long its states remember. Tap a "
            "heading to sort."
            f" {_exact(causal['whole_model'])}"
        ),
        "columns": list(COLUMNS),
        "rows": rows,
        "cloud": [HALF_LIFE, KL],
        "cloudTitle": "Effect against memory",
        **_together(causal),
    }


def _by_channel(
    found: Float[np.ndarray, "layer step"], n_channels: int
) -> Float[np.ndarray, "layer channel"]:
    """Of every channel what its step has: a Mamba-2's head has one for all its channels."""
    return found.repeat(n_channels // found.shape[1], axis=1)


def _exact(whole: Report) -> str:
    """How many of the effects were computed, and not estimated."""
    exact, every = whole["exact_channels"], whole["channels"]

    if exact == every:
        return f"All {every} effects are exact."

    return f"{exact} of {every} effects are exact, the others are calibrated estimates."


def _together(causal: Report) -> View:
    """The best channels ablated together, beside random sets of the same size."""
    doses = causal["together"]["doses"]
    best = [dose["kl"] for dose in doses]
    random = [dose["against_random"]["random"] for dose in doses]
    single = [dose["sum_of_single"] for dose in doses]

    lines = [
        _curve("the best", best, colour="ablated"),
        _curve(f"{random[0]['n']} random sets", random, colour="null"),
        views.line("sum of single effects", single, colour="ink"),
    ]
    title = f"Ablated together, layer {causal['together']['layer']}"
    panel = views.panel(title, "KL, nats", lines, logarithmic=True)
    return {"sizes": [dose["k"] for dose in doses], "panel": panel}


def _curve(label: str, intervals: Sequence[Report], *, colour: str) -> View:
    value, low, high = ([one[end] for one in intervals] for end in ("value", "low", "high"))
    return views.line(label, value, colour=colour, low=low, high=high)


def of_the_run() -> Part:
    """The study's part of the page of the run: its channels, where the arrays are there."""
    run = prepare(None, None)
    name = short_name(run.params.model)
    arrays = [run.file("scores", command, f"{command}_{name}") for command in ("causal", "delta")]

    return Part(WORDS, [_channels(run, name)] if there(arrays) else [])


def _channels(run: Neurons, name: str) -> View:
    effects, causal = run.load("causal", f"causal_{name}")
    delta, _ = run.load("delta", f"delta_{name}")
    return channels(name, causal, effects, delta)


def page(run: Neurons, *, command: str) -> None:
    """One self-contained page of an experiment's Mamba, from the records in its folder; `command`
    is what was typed.
    """
    name = short_name(run.params.model)
    path = run.folder / f"page_{name}.html"
    causal = load_json(run.file("metrics", "causal", f"causal_{name}"))

    best = causal["whole_model"]["top"][0]
    kl = best["kl"]
    write_own(
        path,
        [_channels(run, name)],
        title=f"Channels of {name}",
        lead=(
            f"Mean-ablated, the best of {causal['whole_model']['channels']} channels, "
            f"{best['neuron']}, moves the predictions by {kl['value']:.3g} nats "
            f"[{kl['low']:.3g}, {kl['high']:.3g}]."
        ),
        made={
            "command": command,
            "weights (SHA-256)": causal["model_hash"],
            "texts (SHA-256)": causal["sha256"],
            "scored positions": causal["scored_positions"],
        },
    )
    say(path)
