"""What each command does, from settings to files. Heavy rooms are imported where they are needed.

Each function imports its rooms itself: `make stages` reads from that what a stage depends on.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from interp_core.files.artifacts import save_arrays, save_json
from interp_core.models.spec import short_name
from mamba_induction.study import Run

if TYPE_CHECKING:
    from interp_core.models.subject import Subject
    from mamba_induction.data import Stimuli, Texts

Arrays = dict[str, np.ndarray]
Report = dict[str, Any]


def fine_tune(run: Run) -> Report:
    """Fine-tune the Mamba on the data set: a Hugging Face directory, its history, and a report of
    first and last.
    """
    from interp_core.stimuli.corpus import read_documents
    from mamba_induction.data import build_stimuli, texts_of
    from mamba_induction.model import load_mamba, no_tokenizer
    from mamba_induction.train import fine_tune as tune
    from mamba_induction.train import save_history

    params = run.params.model_copy(update={"dtype": "float32"})
    subject = load_mamba(params.model, run.known, params)
    if subject.tokenizer is None:
        raise no_tokenizer(subject)
    texts = texts_of(read_documents(params.dataset), subject.tokenizer, subject.bos, params)
    history = tune(subject, build_stimuli(subject, params, texts), texts, params, run.tuned)
    save_history(history, run.place("training", "") / "fine_tune.csv")
    report = {
        "name": run.tuned.name,
        "documents": len(texts.train),
        "tokens": int(sum(len(row) - 1 for row in texts.train)),
        "updates": int(history[-1]["step"]),
        "before": history[0],
        "after": history[-1],
    }
    save_json(run.place("metrics", "fine_tune") / "fine_tune.json", report)
    before, after = (row["held_out_perplexity"] for row in (history[0], history[-1]))
    click.echo(
        f"{run.tuned.name}: held-out perplexity {before:.1f} -> {after:.1f} in {report['updates']} "
        "updates"
    )
    return report


def analyse(run: Run) -> None:
    """Every score of each model, single sequences of the main one, and what fine-tuning changed."""
    from mamba_induction.measure import analyse as measure
    from mamba_induction.measure import change
    from mamba_induction.measure_sequences import sequence_arrays

    arrays: dict[str, Arrays] = {}
    for model, (subject, stimuli, _) in zip(run.models, _asked(run), strict=True):
        arrays[model], report = measure(subject, stimuli, run.params)
        save_arrays(run.place("scores", "analyse") / f"scores_{subject.name}.npz", arrays[model])
        save_json(run.place("metrics", "analyse") / f"analysis_{subject.name}.json", report)
        click.echo(_sentence(report))
        if model == run.main:
            sequences = sequence_arrays(subject, stimuli, run.params)
            save_arrays(run.place("scores", "analyse") / f"sequences_{subject.name}.npz", sequences)
    if run.main != run.models[0]:
        report = {"before": short_name(run.models[0]), "after": short_name(run.main)}
        report |= change(arrays[run.models[0]], arrays[run.main], run.params)
        save_json(run.place("metrics", "analyse") / "change.json", report)


def gap(run: Run) -> None:
    """Recognition against prediction: by layer, by rival and by path, for every family of stimuli."""
    from mamba_induction.data import Bigrams
    from mamba_induction.measure import described, summarise
    from mamba_induction.measure_gap import gap_of_family

    for subject, stimuli, texts in _asked(run):
        bigrams = None if texts is None else Bigrams.of(texts.train, subject.vocab_size)
        saved: Arrays = {}
        report: Report = {"name": subject.name, "quantile": run.params.recognised_quantile}
        for family, prompts in stimuli.families.items():
            found, described_as = gap_of_family(subject, prompts, bigrams, run.params)
            saved |= {
                f"{family}/{name}": values.astype(np.float32) for name, values in found.items()
            }
            summaries = summarise(found, run.params)
            scores = {
                name: described(interval, len(found[name])) for name, interval in summaries.items()
            }
            report[family] = described_as | {"scores": scores}
        save_arrays(run.place("scores", "gap") / f"gap_{subject.name}.npz", saved)
        save_json(run.place("metrics", "gap") / f"gap_{subject.name}.json", report)
        repeated = report["repeated"]["scores"]
        rates = [repeated[f"{name}/attention"]["value"] for name in ("recognised", "not_predicted")]
        click.echo(
            f"{subject.name}: recognised {rates[0]:.2f} of repeats, recognised but not predicted "
            f"{rates[1]:.3f}"
        )


def causal(run: Run) -> None:
    """Layers, taps, reads and states changed while the model copies, with random controls."""
    from mamba_induction.intervene_causal import causal as cause

    for subject, stimuli, _ in _asked(run):
        report, arrays = cause(subject, stimuli, run.params)
        save_arrays(run.place("scores", "causal") / f"causal_{subject.name}.npz", arrays)
        save_json(run.place("metrics", "causal") / f"causal_{subject.name}.json", report)
        reads = report["reads"]["all"]
        worst = min(
            reads,
            key=lambda offset: reads[offset]["accuracy"]["value"] if offset != "prefix" else 0,
        )
        cost = reads[worst]["accuracy"]["value"]
        click.echo(
            f"{subject.name}: copying needs most what is read at offset {worst} ({cost:+.2f} "
            "accuracy without)"
        )


def figures(run: Run) -> None:
    """Every figure of what has run, from files."""
    from mamba_induction.figures import draw_all

    written = draw_all(run.names, short_name(run.main), run.place)
    click.echo(f"{len(written)} figures in {run.place('figures', '')}")


def summary(run: Run) -> None:
    """analysis_summary.txt: every number of the reports, in sections."""
    from mamba_induction.figures_summary import summary_text, write_text

    text = summary_text(run.names, short_name(run.main), run.place)
    path = run.place("summary", "") / "analysis_summary.txt"
    write_text(path, text)
    click.echo(f"{path}: {len(text.splitlines())} lines")


def run_all(run: Run) -> None:
    """All commands in turn, as an experiment."""
    fine_tune(run)
    for command in (analyse, gap, causal, figures, summary):
        command(run)


def _asked(run: Run) -> "Iterator[tuple[Subject, Stimuli, Texts | None]]":
    """Each model with its stimuli; without a tokenizer there is no real text, which is said."""
    from interp_core.stimuli.corpus import read_documents
    from mamba_induction.data import build_stimuli, texts_of
    from mamba_induction.model import load

    documents = None  # read once, when a model can read them
    for model in run.models:
        subject = load(model, run.known, run.params)
        texts = None
        if subject.tokenizer is not None:
            documents = documents or read_documents(run.params.dataset)
            texts = texts_of(documents, subject.tokenizer, subject.bos, run.params)
        else:
            click.echo(f"{subject.name}: has no tokenizer, real text is left out", err=True)
        yield subject, build_stimuli(subject, run.params, texts), texts


def _sentence(report: Report) -> str:
    error = report["reconstruction_error"]
    checked = "" if error is None else f"alpha x + D x is the model's own to {error:.1e}; "
    layers = report["null"]["trained"]["induction_layers"]
    peaks = ", ".join(
        f"L{layer} at offset {report['peak_offset'][layer]['offset']}" for layer in layers
    )
    accuracy = report["scores"]["accuracy_by_period"]["value"][0]
    found = f"induction in {peaks}" if layers else "no layer matches prefixes above its null"
    return (
        f"{report['name']}: {checked}{found}; accuracy {accuracy:.2f} at period "
        f"{report['periods'][0]}"
    )
