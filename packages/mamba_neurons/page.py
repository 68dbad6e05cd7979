"""The study's part of the page, and the same page of a user's own Mamba."""

from collections.abc import Mapping
from typing import Any

import click
import numpy as np

from interp_core.files.artifacts import load_arrays, load_json
from interp_core.models.spec import short_name
from interp_core.page import views
from interp_core.page.document import views_of, write
from interp_core.page.packed import numbers
from interp_core.page.study_page import Caption, Words, save
from interp_core.page.views import View
from mamba_neurons.study import Run

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
    question="Which neurons of a Mamba are delta-sensitive, causal, attention-like; how sparse is it?",
    verdict=(
        "Spread thin: best channel moves predictions {kl_of_best_channel} nats;"
        " along the best ranking {channels_that_must_stay} suffice."
    ),
    not_found=(
        "One answer to “sparser than the transformer?”: it depends on the measure and on the layer.",
        "A use of percentile sparsity: it is one half by construction, in every layer of both models.",
        "Channels that matter because their step differs between texts: most of that variance is within texts.",
    ),
    captions={
        "compare.png": Caption(
            "Both models over relative depth: how the residual stream moves, and how sparse neurons are.",
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
        "half_lives_*.png": Caption(
            "Memory half-life of every state of every channel, sorted by the longest.",
            "The other layer: half-lives are read from weights and text, nothing is ablated.",
        ),
        "influence_*.png": Caption(
            "How far the best channels of a layer move later ones, directly and in all.",
            "Random channels of the same layer.",
        ),
        "inter_layer_*.png": Caption(
            "KL when the same residual dimension is ablated after each layer.",
            "The other dimensions of the same layer.",
        ),
        "lorenz.png": Caption(
            "Share of the activation that the lowest units of a token hold.",
            "The transformer twin; the diagonal is equal shares.",
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
    columns = (effects["kl"], effects["loss"], longest, delta["mean_dt"], delta["share"])

    rows = [
        [f"L{layer}C{channel}", *(numbers(float(column[layer, channel])) for column in columns)]
        for layer, channel in np.ndindex(effects["kl"].shape)
    ]

    return {
        "kind": "channels",
        "title": f"Channels of {name}",
        "says": (
            "Mean ablation of one channel at a time, and how long its states remember. Tap a heading to sort."
            f" {causal['whole_model']['exact_channels']} of {causal['whole_model']['channels']} effects are exact,"
            " the others are calibrated estimates."
        ),
        "columns": list(COLUMNS),
        "rows": rows,
        "cloud": [HALF_LIFE, KL],
        "cloudTitle": "Effect against memory",
        **_together(causal),
    }


def _together(causal: Report) -> View:
    """The best channels ablated together, beside random sets of the same size."""
    sets = causal["together"]
    lines = [
        views.line(
            "the best", sets["kl"], colour="ablated", low=sets["kl_low"], high=sets["kl_high"]
        ),
        views.line(
            f"{sets['random_sets']} random sets",
            sets["random_mean"],
            colour="null",
            low=sets["random_low"],
            high=sets["random_high"],
        ),
        views.line("sum of single effects", sets["sum_of_single"], colour="ink"),
    ]
    title = f"Ablated together, layer {causal['layer']['layer']}"
    return {"sizes": sets["k"], "panel": views.panel(title, "KL, nats", lines, logarithmic=True)}


def page(run: Run) -> None:
    """A stage: the study's part of the page of the run.

    Else one self-contained page of the Mamba.
    """
    name = short_name(run.params.model)
    causal = load_json(run.place("metrics", "causal") / f"causal_{name}.json")
    effects = load_arrays(run.place("scores", "causal") / f"causal_{name}.npz")
    delta = load_arrays(run.place("scores", "delta") / f"delta_{name}.npz")
    view = channels(name, causal, effects, delta)

    if run.out is None:
        save("mamba_neurons", WORDS, views=[view], cards=[])
        return

    path = run.out / f"page_{name}.html"
    best = causal["whole_model"]["top"][0]
    low, high = best["kl_ci"]
    write(
        path,
        "model.html.jinja",
        title=f"Channels of {name}",
        lead=f"The best of {causal['whole_model']['channels']} channels, {best['neuron']}, moves the predictions by"
        f" {best['kl']:.3g} nats [{low:.3g}, {high:.3g}].",
        views=views_of([view]),
        made={
            "command": f"mamba-neurons page --model {name}",
            "weights (SHA-256)": causal["model_hash"],
            "texts (SHA-256)": causal["sha256"],
            "scored positions": causal["scored_positions"],
            "seed": run.params.seed,
        },
    )
    click.echo(f"{path}: open it in a browser, it needs no network")
