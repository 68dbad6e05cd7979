"""The study's part of the page, and the same page of a user's own model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_core.errors import InputError
from interp_core.files.artifacts import load_arrays, load_json
from interp_core.files.params import project_root
from interp_core.models.spec import spec_of
from interp_core.page import views
from interp_core.page.columns import read_columns
from interp_core.page.document import say, write_own
from interp_core.page.study_page import Caption, Part, Words, there
from interp_core.page.texts import DEFAULT, LONGEST, Shown, first_prompt, held_out_text, shown
from interp_core.page.views import View
from pythia_topology.data import load_corpus, stimuli
from pythia_topology.model import load
from pythia_topology.params import PythiaTopology
from pythia_topology.pretrained import Own, each
from pythia_topology.study import Induct, names, prepare

if TYPE_CHECKING:
    from interp_core.models.subject import Transformer

Arrays = Mapping[str, np.ndarray]
Report = Mapping[str, Any]

SCORES = (
    ("excess_prefix_matching", "excess prefix matching", "induction",
     "Attention to the token after the earlier occurrence, less the same place in the control."),
    ("prefix_matching", "prefix matching", "induction",
     "Attention to the token after the earlier occurrence."),
    ("previous_token", "previous token", "previous", "Attention to the token before."),
    ("duplicate_token", "duplicate token", "duplicate",
     "Attention to the earlier occurrence itself."),
)  # fmt: skip

WORDS = Words(
    place=1,
    question="Do induction heads sit at a stable relative depth across model sizes?",
    verdict=(
        "No: over five trainings, largest minus smallest model's centre is "
        "{published.centre_difference:interval}."
    ),
    not_found=(
        "One relative depth for all sizes: over five trainings the largest model's centre is the "
        "shallowest. Nor two sizes that surely agree within the margin.",
        "Equivalence of the layers with the most induction, even in one training.",
        "A difference of depth distributions with layers as units: with four to eight of them the "
        "test can hardly find one.",
        "An effect of one head alone in the models trained here: mean-ablated, the best costs "
        "copying next to nothing.",
    ),
    captions={
        "causal_delta.png": Caption(
            "Change of accuracy and loss on the second copy without the best heads, ablated in "
            "four ways.",
            "As many heads outside the circuit, and as many others of the same layers: their "
            "central 95 %.",
        ),
        "composition_*.png": Caption(
            "K-composition of every earlier head with every later one, and path patching of the "
            "strongest pairs.",
            "Random orientations for the z-scores, random pairs for path patching.",
        ),
        "multi_size_overlay.png": Caption(
            "Layer profiles of excess prefix matching over relative depth, and the test of equal "
            "centres.",
            "The margin within which two centres count as the same.",
        ),
        "dose.png": Caption(
            "Change of accuracy and loss against the number of best heads ablated.",
            "Distinct sets of as many heads outside the circuit, and a whole layer.",
        ),
        "emergence.png": Caption(
            "Copy accuracy and the best head of each kind over the training.",
            "The first steps, where nothing has formed.",
        ),
        "heatmap_*.png": Caption(
            "Excess prefix matching of every head; a frame marks heads that pass the family-wise "
            "test.",
            "The control prompt is subtracted: same position, same lag, no earlier occurrence.",
        ),
        "profile_*.png": Caption(
            "Excess prefix matching over depth: layers, their centre and their peak, with "
            "intervals.",
            "The threshold that no head passes by chance.",
        ),
        "published_sizes.png": Caption(
            "Centres of all trainings by size, and what three rules predict.",
            "The rival rules: one relative depth, one layer, so many layers after the "
            "previous-token heads.",
        ),
        "lag_profiles.png": Caption(
            "Layer profiles of copies over few tokens and over many.",
            "The control of each lag is subtracted.",
        ),
    },
)


def head_scores(arrays: Arrays) -> list[View]:
    """The scores of the head map, each with its interval where it was computed."""
    found = []

    for name, label, colour, says in SCORES:
        ends = [arrays.get(f"{name}_{end}") for end in ("low", "high")]
        found.append(views.score(label, says, arrays[name], *ends, colour=colour))

    return found


def heads_view(
    subject: "Transformer",
    arrays: Arrays,
    profile: Report,
    texts: Sequence[Shown],
    *,
    seed: int,
    predicts: bool = True,
) -> View:
    """The head map of one model, with texts behind it."""
    return views.heads(
        subject,
        head_scores(arrays),
        texts,
        n=_intervals_over(profile),
        found=profile["induction_heads"],
        seed=seed,
        predicts=predicts,
    )


def _intervals_over(profile: Report) -> str:
    return f"Brackets are 95 % intervals over {profile['n']} prompts of repeated random tokens"


def texts_of(subject: "Transformer", params: PythiaTopology) -> list[Shown]:
    """For a model of the pipeline: real text of its corpus that repeats something, and random
    tokens twice.
    """
    corpus = load_corpus(subject, params)

    if corpus is None:
        raise InputError(
            f"{subject.name}: its page shows real text: run `induction-lab corpus` first"
        )

    return [
        held_out_text(subject, corpus.validation, seed=params.seed),
        _random_tokens(subject, params),
    ]


def _random_tokens(subject: "Transformer", params: PythiaTopology) -> Shown:
    """A prompt of the scores of record."""
    few = params.model_copy(update={"task_types": (), "n_sequences": 8})
    prompts = stimuli(subject, few)["repeated_tokens"]
    return first_prompt(prompts, "random tokens, twice")


def _own_text(subject: "Transformer", text: str | None, params: PythiaTopology) -> Shown:
    """The user's text, else one that repeats itself; random tokens for a model without words."""
    if text is None and subject.tokenizer is None:
        return _random_tokens(subject, params)

    title = "your text" if text is not None else "a text that repeats itself"
    words = DEFAULT if text is None else text
    return shown(subject, words, longest=LONGEST, title=title, seed=params.seed)


def model_card(
    name: str, profile: Report, emergence: Report, composition: Report, history: Arrays
) -> View:
    """Sizes, training curve, when its heads formed, and what feeds the best of them."""
    steps = history["step"]
    onset = sorted(_onset(emergence).items(), key=lambda item: item[1]["value"])
    formed = [
        f"{what} at step {one['value']:.0f} [{one['low']:.0f}, {one['high']:.0f}]"
        for what, one in onset
    ]

    return views.card(
        name,
        {
            "layers": profile["n_layers"],
            "heads a layer": profile["n_heads"],
            "parameters": f"{profile['n_parameters']:,}",
            "induction heads": profile["n_induction_heads"],
        },
        steps=steps,
        panels=[
            views.panel("Loss", "nats a token", [
                views.line("training", history["loss"], colour="null"),
                views.line("held-out text", history["validation_loss"], colour="ink"),
            ]),
            views.panel("Copying", "share", [
                views.line("accuracy on repeats", history["repeat_accuracy"], colour="copying"),
                views.line(
                    "best head's prefix matching",
                    history["best_prefix_matching"],
                    colour="induction",
                ),
            ]),
        ],
        formed=[*(formed or ["nothing formed within this training"]), composition["verdict"]],
    )  # fmt: skip


def pretrained_card(name: str, found: Mapping[str, Report]) -> View:
    """A model that was not trained here: its sizes, and what its stages found, in sentences.

    `found` has the report of each command.
    """
    profile = found["profile"]
    copied = profile["behaviour"]["repeated_tokens"]["accuracy"]
    centre = profile["centre_of_mass"]

    return views.card(
        f"{name}, pretrained",
        {
            "layers": profile["n_layers"],
            "heads a layer": profile["n_heads"],
            "parameters": f"{profile['n_parameters']:,}",
            "induction heads": profile["n_induction_heads"],
        },
        steps=[],
        panels=[],
        formed=[
            f"it copies {_with_ends(copied)} of repeated random tokens",
            f"most induction in layer {profile['peak_layer']}, centre at relative depth "
            f"{_with_ends(centre)}",
            *_against_nulls(found["nulls"]),
            *_over_lags(found["lagbuckets"]),
            found["causal"]["verdict"],
            found["composition"]["verdict"],
        ],
    )


def _against_nulls(nulls: Report) -> list[str]:
    """Could its heads be chance, any repeated place, or the architecture? Three nulls, in words."""
    dealt, shuffled, untrained = (
        nulls[f"{null}_summary"] for null in ("permute", "shuffled", "untrained")
    )
    said = [
        f"the best {1 - dealt['q']:.0%} of its heads dealt to layers at random: "
        f"a layer as full with p = {dealt['p_max']:.2g}",
        f"a head's prefix matching is at most {shuffled['observed_max']:.2f}, and "
        f"{shuffled['null_max_hi']:.3f} with shuffled antecedents (97.5 % of draws)",
    ]

    if untrained is not None:
        said.append(f"before any training no head's excess is above {untrained['max']:.4f}")

    return said


def _over_lags(lags: Report) -> list[str]:
    shift = lags["centre_of_mass_shift"]
    if shift is None:
        return []

    moved = f"{shift['value']:+.3f} [{shift['low']:+.3f}, {shift['high']:+.3f}]"
    return [f"long lags less short ones move the centre by {moved}, p = {shift['p']:.2g}"]


def _with_ends(found: Report) -> str:
    value = f"{found['value']:.2f}"
    return value if found["low"] is None else f"{value} [{found['low']:.2f}, {found['high']:.2f}]"


def _of_pretrained(own: Own) -> tuple[list[View], View]:
    """A pretrained model's head map, as far as its files allow, and its card.

    What is lost without each head would take a forward pass a head: a minute and more.
    """
    run, name = own.run, own.name
    stems = {
        "profile": "profile",
        "nulls": "nulls",
        "lagbuckets": "lags",
        "causal": "causal",
        "composition": "composition",
    }
    found = {
        command: load_json(run.file("metrics", command, f"{stem}_{name}"))
        for command, stem in stems.items()
    }
    profile, card = found["profile"], pretrained_card(name, found)
    scores = run.file("scores", "profile", f"scores_{name}")

    if not there([scores]):
        return [], card

    arrays = load_arrays(scores)
    if not there([own.weights / "config.json"]):
        heads, n = profile["induction_heads"], _intervals_over(profile)
        plain = views.head_map(name, head_scores(arrays), n=n, found=heads)
        return [plain], card

    subject, seed = load(name, run.known, run.params), run.params.seed
    text = _own_text(subject, None, run.params)
    return [heads_view(subject, arrays, profile, [text], seed=seed, predicts=False)], card


def _onset(emergence: Report) -> dict[str, Report]:
    """The step of what emerged within the training, with its interval, by its words."""
    onset = emergence["onset"].items()
    return {what.replace("_", " "): one["step"] for what, one in onset if one is not None}


def clock(name: str, report: Report, arrays: Arrays) -> View:
    """A model's training on one clock: its checkpoints, where the head maps were measured."""
    return views.clock(
        f"{name}: its training on one clock",
        arrays["steps"],
        [
            views.panel(
                "Copying",
                "accuracy",
                [views.line("copied tokens", arrays["accuracy"], colour="copying")],
            ),
            views.panel(
                "Loss", "nats", [views.line("copied tokens", arrays["loss"], colour="ink")]
            ),
        ],
        {
            "previous token": (arrays["previous_token"], "previous"),
            "excess prefix matching": (arrays["excess_prefix_matching"], "induction"),
        },
        says=(
            f"Move the slider: head maps and curves show the same step. {report['n']} prompts a "
            "checkpoint."
        ),
        events={what: one["value"] for what, one in _onset(report).items()},
    )  # fmt: skip


def own_page(
    subject: "Transformer",
    arrays: Arrays,
    profile: Report,
    text: Shown,
    path: Path,
    *,
    command: str,
    seed: int,
) -> None:
    """One self-contained file about a model of the user's; `command` is what made it."""
    behaviour = profile["behaviour"]["repeated_tokens"]
    copied = behaviour["accuracy"]

    write_own(
        path,
        [heads_view(subject, arrays, profile, [text], seed=seed)],
        title=f"Induction in {subject.name}",
        lead=(
            f"{profile['verdict']}. It copies {copied['value']:.2f} "
            f"[{copied['low']:.2f}, {copied['high']:.2f}] of repeated random tokens; of the "
            f"control's, where nothing repeats, {behaviour['control_accuracy']:.2f}."
        ),
        made={
            "command": command,
            "weights (SHA-256)": profile["model_hash"],
            "prompts (SHA-256)": profile["prompts_hash"],
            "seed": profile["seed"],
            "prompts a family": profile["n"],
        },
    )


def page(run: Induct, text: str | None, *, command: str) -> None:
    """One self-contained page of each model of an experiment, from the scores in its folder;
    `command` is what was typed.
    """
    for model, name in zip(run.params.models, names(run), strict=True):
        arrays, profile = run.load("profile", f"profile_{name}", scores=f"scores_{name}")
        subject = load(model, run.known, run.params)
        path = run.folder / f"page_{name}.html"

        one = _own_text(subject, text, run.params)
        own_page(subject, arrays, profile, one, path, command=command, seed=run.params.seed)
        say(path)


def of_the_run() -> Part:
    """The study's part of the page of the run: what its files allow."""
    run = prepare(None, None)
    maps, clocks, cards = [], [], []

    for model, name in zip(run.params.models, names(run), strict=True):
        profile, emergence, composition = (
            load_json(run.file("metrics", command, f"{command}_{name}"))
            for command in ("profile", "emergence", "composition")
        )

        scores = run.file("scores", "profile", f"scores_{name}")
        over_training = run.file("scores", "emergence", f"emergence_{name}")
        weights = spec_of(model, run.known).path

        if weights is not None and there([scores, weights]):
            subject = load(model, run.known, run.params)
            texts, seed = texts_of(subject, run.params), run.params.seed
            maps.append(heads_view(subject, load_arrays(scores), profile, texts, seed=seed))

        if there([over_training]):
            clocks.append(clock(name, emergence, load_arrays(over_training)))

        history = read_columns(project_root() / "data" / "training" / f"{name}.csv")
        cards.append(model_card(name, profile, emergence, composition, history))

    for own in each():
        found, card = _of_pretrained(own)
        maps += found
        cards.append(card)

    return Part(WORDS, [*maps, *clocks], cards)
