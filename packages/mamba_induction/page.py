"""The study's part of the page, and the same page of a user's own Mamba."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from interp_core.files.artifacts import load_arrays, load_json
from interp_core.files.params import project_root
from interp_core.mamba.subject import MambaSubject
from interp_core.page import views
from interp_core.page.columns import read_columns
from interp_core.page.document import say, write_own
from interp_core.page.packed import lower, numbers
from interp_core.page.study_page import Caption, Part, Words, there
from interp_core.page.texts import (
    DEFAULT,
    LONGEST,
    WINDOW,
    WINDOWS,
    Shown,
    held_out_text,
    shown,
    words,
)
from interp_core.page.views import View
from interp_core.page.watch import hidden_maps
from interp_core.stimuli.corpus import Documents, read_documents
from mamba_induction.model import load_mamba, no_tokenizer
from mamba_induction.study import Induction, models, names, prepare, tuned

Arrays = Mapping[str, np.ndarray]
Report = Mapping[str, Any]

WORDS = Words(
    place=2,
    question=(
        "Where and how does a Mamba do induction, and why is detecting a pattern not predicting it?"
    ),
    verdict=(
        "Five trainings need one read: accuracy {published.change_without_best_read:interval} "
        "without it, another {published.change_without_other_read:interval}."
    ),
    not_found=(
        "An advantage from context in real text: the Mamba was trained on short rows and is out "
        "of its depth beyond.",
        "A clean copy at every lag: pairs spaced among fillers stay far below the transformer "
        "twin's.",
        "A gap between recognising and predicting beyond what independence gives, in any of the "
        "models.",
        "An effect of layers that is specific to copying by ablation alone: both layers are "
        "needed.",
    ),
    captions={
        "behaviour.png": Caption(
            "Loss by repetition, accuracy by period and lag, on pairs and text, and loss along "
            "the context.",
            "Prompts whose earlier occurrence was replaced; the transformer twin on the same "
            "batches.",
        ),
        "causal.png": Caption(
            "Change of accuracy when layers, single reads, convolution taps and states are "
            "changed.",
            "As many random reads, taps or states, in the last columns of each map.",
        ),
        "fine_tuning.png": Caption(
            "Perplexity and induction over the updates, and paired differences after less before.",
            "The same model before the first update.",
        ),
        "layer_wise_induction.png": Caption(
            "Excess of the offset profile, and prefix matching, copying and hidden similarity by "
            "layer.",
            "The control is subtracted; random weights are grey.",
        ),
        "sufficient.png": Caption(
            "Accuracy on second copies when the queries keep a single read, some taps, or both.",
            "The whole model, and other reads and taps kept instead.",
        ),
        "prediction_gap.png": Caption(
            "Probability and rank of the target by depth, parts of its logit, and what is missed.",
            "First occurrences, and prompts whose antecedent was replaced.",
        ),
    },
)


def reads(name: str, arrays: Arrays, analysis: Report, causal: Report, hidden: View | None) -> View:
    """What each layer reads around an earlier occurrence, and what cutting one read costs."""
    offsets = [f"{offset:+d}" for offset in analysis["offsets"]]
    layers = []

    for layer in range(len(arrays["offset_profile"])):
        value, low, high = (arrays[f"offset_profile{end}"][layer] for end in ("", "_low", "_high"))
        control = value - arrays["offset_profile_excess"][layer]
        profile = [
            {"offset": offset, **_row(*map(float, ends))}
            for offset, *ends in zip(offsets, value, low, high, control, strict=True)
        ]

        cut = causal["reads"].get(f"L{layer}", {})
        cuts = [_cut(offset, cut[offset]) for offset in offsets if offset in cut]
        layers.append({"name": f"L{layer}", "profile": profile, "cuts": cuts})

    read = analysis["scores"]["offset_profile"]["n"]
    return {
        "kind": "offsets",
        "title": f"{name}: what is read, and what a cut costs",
        "says": (
            "Offset +1 is the token after the earlier occurrence: induction. Bars have 95 % "
            f"intervals over prompts of repeated random tokens: {read} of what is read, "
            f"{causal['n']} of the cuts."
        ),
        "layers": layers,
        "hidden": hidden,
    }


def _row(value: float, low: float, high: float, control: float | None) -> View:
    return numbers_of({"value": value, "low": low, "high": high, "control": control})


def _cut(offset: str, found: Report) -> View:
    accuracy = found["accuracy"]
    random = found["random"]["accuracy"]["random"]["value"]
    return {"offset": offset, **_row(accuracy["value"], accuracy["low"], accuracy["high"], random)}


def numbers_of(row: Mapping[str, Any]) -> View:
    """Every value with four digits."""
    return {key: None if value is None else numbers(float(value)) for key, value in row.items()}


def hidden_view(mamba: MambaSubject, text: Shown) -> View:
    """Hidden attention of every layer over a text and its control, channels averaged, rows summing
    to 1.
    """
    maps = hidden_maps(mamba, np.stack([text.ids, text.control]))
    pairs = text.pairs

    return {
        "names": [f"layer {layer}" for layer in range(maps.shape[1])],
        "says": (
            f"{text.title.capitalize()}. Mean over channels of |alpha|, each row as shares."
            " Rows look at columns; outlined is the token after the earlier occurrence."
        ),
        "tokens": words(mamba, text.ids),
        "control": words(mamba, text.control),
        "pairs": np.stack([pairs.query, pairs.induction_key], axis=1).tolist(),
        "attention": lower(maps),
    }


def model_card(
    name: str, analysis: Report, history: Arrays | None, *, fine_tuned: bool = False
) -> View:
    """Sizes and training curve of the Mamba, of its fine-tuned version or of its twin."""
    panels: list[View] = []
    formed: list[str] = []

    if history is not None and fine_tuned:
        panels = _fine_tuning(history)
    elif history is not None:
        periods = [column for column in history if column.startswith("accuracy_period_")]
        panels, formed = _training(history, periods), _formed(history, periods)

    return views.card(
        name,
        {"architecture": analysis["architecture"], "layers": analysis["layers"],
         "parameters": f"{analysis['parameters']:,}"},
        steps=[] if history is None else history["step"],
        panels=panels,
        formed=formed,
    )  # fmt: skip


def _training(history: Arrays, periods: list[str]) -> list[View]:
    """The two panels of a training here."""
    colours = ("copying", "induction", "previous", "duplicate")

    return [
        views.panel("Loss", "nats a token", [
            views.line("training", history["loss"], colour="null"),
            views.line("held-out text", history["validation_loss"], colour="ink"),
        ]),
        views.panel("Copying", "accuracy", [
            views.line(
                column.removeprefix("accuracy_").replace("_", " "), history[column], colour=colour
            )
            for column, colour in zip(periods, colours, strict=False)
        ]),
    ]  # fmt: skip


def _fine_tuning(history: Arrays) -> list[View]:
    """The two panels of the fine-tuning, from the model before it on."""
    return [
        views.panel("Loss in the fine-tuning", "nats a token", [
            views.line("training", history["loss"], colour="null"),
            views.line("held-out text", history["held_out_loss"], colour="ink"),
        ]),
        views.panel("Copying", "share", [
            views.line("accuracy on second copies", history["repeat_accuracy"], colour="copying"),
            views.line("prefix matching", history["prefix_matching"], colour="induction"),
        ]),
    ]  # fmt: skip


def _formed(history: Arrays, periods: list[str]) -> list[str]:
    """When half of the copied tokens were right for the first time; no interval, as it is one
    training.
    """
    sentences = []
    for column in periods:
        right = np.flatnonzero(history[column] >= 0.5)
        what = column.removeprefix("accuracy_").replace("_", " ")
        when = f"by step {history['step'][right[0]]:.0f}" if len(right) else "not in this training"
        sentences.append(f"half of copies right at {what}: {when}")

    return sentences


def page(run: Induction, text: str | None, *, command: str) -> None:
    """One self-contained page of an experiment's Mamba, from the records in its folder; `command`
    is what was typed.
    """
    mamba = load_mamba(run.params.model, run.known, run.params)
    path = run.folder / f"page_{mamba.name}.html"

    _own_page(run, mamba, text, path, command=command)
    say(path)


def _own_page(
    run: Induction, mamba: MambaSubject, text: str | None, path: Path, *, command: str
) -> None:
    title = "your text" if text is not None else "a text that repeats itself"
    hidden = None

    if mamba.tokenizer is not None or text is not None:
        one = shown(
            mamba,
            DEFAULT if text is None else text,
            longest=LONGEST,
            title=title,
            seed=run.params.seed,
        )
        hidden = hidden_view(mamba, one)

    arrays, analysis = run.load("analyse", f"analysis_{mamba.name}", scores=f"scores_{mamba.name}")
    causal = load_json(run.file("metrics", "causal", f"causal_{mamba.name}"))
    write_own(
        path,
        [reads(mamba.name, arrays, analysis, causal, hidden)],
        title=f"Induction in {mamba.name}",
        lead=(
            f"A {analysis['architecture']} of {analysis['layers']} layers and "
            f"{analysis['parameters']:,} parameters."
            f" It copies {causal['clean_accuracy']:.2f} of repeated random tokens before anything "
            "is cut."
        ),
        made={
            "command": command,
            "weights (SHA-256)": analysis["model_hash"],
            "prompts": causal["n"],
            "seed": run.params.seed,
        },
    )


def of_the_run() -> Part:
    """The study's part of the page of the run: what its files allow."""
    run = prepare(None, None)
    maps, cards = [], []
    documents = None  # read once, when a model can read them

    for model, name in zip(models(run), names(run), strict=True):
        analysis = load_json(run.file("metrics", "analyse", f"analysis_{name}"))
        causal = load_json(run.file("metrics", "causal", f"causal_{name}"))
        scores = run.file("scores", "analyse", f"scores_{name}")

        if analysis["architecture"] == "mamba" and there([scores]):
            hidden = None

            if _is_here(run, model):
                documents = documents or read_documents(run.params.dataset)
                mamba = load_mamba(model, run.known, run.params)
                hidden = hidden_view(mamba, _held_out(mamba, documents, seed=run.params.seed))

            maps.append(reads(name, load_arrays(scores), analysis, causal, hidden))

        fine_tuned = model == str(tuned(run))
        file = _history_of(run, name, fine_tuned=fine_tuned)
        history = read_columns(file) if file.is_file() else None
        cards.append(model_card(name, analysis, history, fine_tuned=fine_tuned))

    return Part(WORDS, maps, cards)


def _history_of(run: Induction, name: str, *, fine_tuned: bool) -> Path:
    """Where a training's history lies: the fine-tuning's in the study's own folder."""
    if fine_tuned:
        return run.folder / "training" / "fine_tune.csv"

    return project_root() / "data" / "mamba_training" / f"{name}.csv"


def _is_here(run: Induction, model: str) -> bool:
    """Whether a model's weights are on this machine."""
    # A name of the profile, or the folder of the fine-tuned model.
    folder = run.known[model].path if model in run.known else Path(model)
    return folder is not None and there([folder])


def _held_out(mamba: MambaSubject, documents: Documents, *, seed: int) -> Shown:
    """Held-out text of the study's data set in the model's own tokens."""
    if mamba.tokenizer is None:
        raise no_tokenizer(mamba)

    tokenizer: Any = mamba.tokenizer
    ids: list[int] = []

    for document in documents.validation:
        # All of it would take minutes, and one window is shown.
        if len(ids) > WINDOWS * WINDOW:
            break
        ids += tokenizer.encode(document, add_special_tokens=False)

    return held_out_text(mamba, np.array(ids), seed=seed)
