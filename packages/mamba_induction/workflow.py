"""What each command does, from settings to files. Heavy rooms are imported where they are needed.

Each function imports its rooms itself: `make stages` reads from that what a stage depends on.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click
import numpy as np

from interp_core.console.call import Arrays, Report
from interp_core.models.spec import short_name
from mamba_induction.study import Induction, main_model, models, names, tuned

if TYPE_CHECKING:
    from interp_core.mamba.subject import MambaSubject
    from interp_core.models.subject import Subject
    from mamba_induction.data import Stimuli, Texts
    from mamba_induction.params import MambaInduction


def fine_tune(run: Induction) -> Report:
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
    _say_opening(subject)

    texts = texts_of(read_documents(params.dataset), subject.tokenizer, subject.bos, params)
    stimuli = build_stimuli(subject, params, texts)
    history = tune(subject, stimuli, texts, params, tuned(run), replaces=run.is_stage)
    save_history(history, run.place("training", "") / "fine_tune.csv")

    report = {
        "name": tuned(run).name,
        "documents": len(texts.train),
        "tokens": int(sum(len(row) - 1 for row in texts.train)),
        "updates": int(history[-1]["step"]),
        "before": history[0],
        "after": history[-1],
        **_begun(run, subject),
    }

    made = _made(run, run.params.model)
    run.save("fine_tune", "fine_tune", report, made=made)
    run.save("fine_tune", "arms", _arms(run, subject, params, texts), made=made)

    before, after = (row["held_out_perplexity"] for row in (history[0], history[-1]))
    click.echo(
        f"{tuned(run).name}: held-out perplexity {before:.1f} -> {after:.1f} "
        f"in {report['updates']} updates"
    )
    return report


def _arms(
    run: Induction, after: "MambaSubject", params: "MambaInduction", texts: "Texts"
) -> Report:
    """What the fine-tuned model is, and what it would be at other rates and with repeats."""
    from mamba_induction.data import build_stimuli
    from mamba_induction.model import load_mamba
    from mamba_induction.train import padded
    from mamba_induction.train_arms import Arm, arms_of, outcome, tune_arm

    held_out = padded(texts.held_out[: params.watched_documents])
    base = load_mamba(params.model, run.known, params)
    stimuli = build_stimuli(base, params, texts)

    report: Report = {
        "name": base.name,
        "documents": len(texts.train),
        "watched_documents": len(held_out[0]),
        "before": outcome(base, stimuli, held_out, params),
        "arms": {},
    }

    for arm in (own := Arm(params.lr, 0.0), *arms_of(params)):
        subject = after if arm == own else load_mamba(params.model, run.known, params)
        if arm != own:
            tune_arm(subject, texts, params, arm, beside=run.folder)

        measured = outcome(subject, stimuli, held_out, params)
        recipe = {"rate": arm.rate, "repeats": arm.repeats}
        report["arms"][arm.name] = recipe | measured

    return report


def analyse(run: Induction) -> None:
    """Every score of each model, single sequences of the main one, and what fine-tuning changed."""
    from mamba_induction.measure import analyse as measure
    from mamba_induction.measure import change
    from mamba_induction.measure_sequences import sequence_arrays

    arrays: dict[str, Arrays] = {}
    for model, (subject, stimuli, _) in zip(models(run), _asked(run), strict=True):
        arrays[model], report = measure(subject, stimuli, run.params)
        name = subject.name
        report |= _begun(run, subject)
        run.save(
            "analyse",
            f"analysis_{name}",
            report,
            arrays[model],
            made=_made(run, model),
            scores=f"scores_{name}",
        )
        click.echo(_sentence(report))
        if model == main_model(run):
            sequences = sequence_arrays(subject, stimuli, run.params)
            place = run.place("scores", "analyse") / f"sequences_{subject.name}.npz"
            run.save_arrays(place, sequences)
    if main_model(run) != models(run)[0]:
        report = {"before": short_name(models(run)[0]), "after": short_name(main_model(run))}
        report |= change(arrays[models(run)[0]], arrays[main_model(run)], run.params)
        run.save("analyse", "change", report, made=_made(run, *models(run)[:2]))


def gap(run: Induction) -> None:
    """Recognition against prediction: by layer, by rival and by path, for every family."""
    from interp_core.statistics.interval import array_json
    from mamba_induction.data import Bigrams
    from mamba_induction.measure import summarise
    from mamba_induction.measure_gap import gap_of_family

    for model, (subject, stimuli, texts) in zip(models(run), _asked(run), strict=True):
        bigrams = None if texts is None else Bigrams.of(texts.train, subject.vocab_size)
        saved: Arrays = {}
        report: Report = {"name": subject.name, "quantile": run.params.recognised_quantile}
        report |= _begun(run, subject)

        for family, prompts in stimuli.families.items():
            found, described_as = gap_of_family(subject, prompts, bigrams, run.params)
            saved |= {
                f"{family}/{name}": values.astype(np.float32) for name, values in found.items()
            }
            summaries = summarise(found, run.params)
            scores = {
                name: array_json(interval, n=len(found[name]), unit="prompts")
                for name, interval in summaries.items()
            }
            report[family] = described_as | {"scores": scores}

        run.save("gap", f"gap_{subject.name}", report, saved, made=_made(run, model))

        repeated = report["repeated"]["scores"]
        rates = [repeated[f"{name}/attention"]["value"] for name in ("recognised", "not_predicted")]
        independent = report["repeated"]["recognition"]["attention"]["independent"]["value"]
        click.echo(
            f"{subject.name}: recognised {rates[0]:.2f} of repeats, recognised but not predicted "
            f"{rates[1]:.3f} ({independent:.3f} if recognising told nothing)"
        )


def causal(run: Induction) -> None:
    """Layers, taps, reads and states changed while the model copies, with random controls."""
    from mamba_induction.intervene_causal import causal as cause

    for model, (subject, stimuli, _) in zip(models(run), _asked(run), strict=True):
        report, arrays = cause(subject, stimuli, run.params)
        report |= _begun(run, subject)
        run.save("causal", f"causal_{subject.name}", report, arrays, made=_made(run, model))
        click.echo(f"{subject.name}: {report['verdict']['says']}")


def figures(run: Induction) -> None:
    """Every figure of what has run, from files."""
    from mamba_induction.figures import draw_all

    written = draw_all(names(run), short_name(main_model(run)), run.place)
    click.echo(f"{len(written)} figures in {run.place('figures', '')}")


def summary(run: Induction) -> None:
    """analysis_summary.txt: every number of the reports, in sections."""
    from mamba_induction.figures_summary import summary_text, write_text

    text = summary_text(names(run), short_name(main_model(run)), run.place)
    path = run.place("summary", "") / "analysis_summary.txt"
    write_text(path, text)
    click.echo(f"{path}: {len(text.splitlines())} lines")


def run_all(run: Induction) -> None:
    """All commands in turn; figures are drawn as soon as there is something to draw."""
    fine_tune(run)
    for command in (analyse, gap, causal):
        command(run)
        figures(run)
    summary(run)


def _say_opening(subject: "Subject") -> None:
    from interp_core.loading import begins_with

    click.echo(f"{subject.name}: prompts begin with {begins_with(subject)}")


def _begun(run: Induction, subject: "Subject") -> Report:
    """What prompts began with; a stage's models are the project's own, and begin with their BOS."""
    from interp_core.loading import begun_with

    return {} if run.is_stage else begun_with(subject)


def _made(run: Induction, *about: str) -> Report:
    """What a record of these models is made from."""
    return run.made_from(run.sources(about), unread={"model", "twin"})


def _asked(run: Induction) -> "Iterator[tuple[Subject, Stimuli, Texts | None]]":
    """Each model with its stimuli; without a tokenizer there is no real text, which is said."""
    from interp_core.stimuli.corpus import read_documents
    from mamba_induction.data import build_stimuli, texts_of
    from mamba_induction.model import load

    documents = None  # read once, when a model can read them
    for model in models(run):
        subject = load(model, run.known, run.params)
        _say_opening(subject)
        texts = None
        if subject.tokenizer is not None:
            documents = documents or read_documents(run.params.dataset)
            texts = texts_of(documents, subject.tokenizer, subject.bos, run.params)
        else:
            click.echo(f"{subject.name}: has no tokenizer, real text is left out", err=True)
        yield subject, build_stimuli(subject, run.params, texts), texts


def _sentence(report: Report) -> str:
    error, name = report["reconstruction_error"], report["name"]
    checked = "" if error is None else f"alpha x + D x is the model's own to {error:.1e}; "
    layers = report["null"]["trained"]["induction_layers"]
    peaks = ", ".join(
        f"L{layer} at offset {report['peak_offset'][layer]['offset']}" for layer in layers
    )
    accuracy = report["scores"]["accuracy_by_period"]["value"][0]
    found = f"induction in {peaks}" if layers else "no layer matches prefixes above its null"
    return f"{name}: {checked}{found}; accuracy {accuracy:.2f} at period {report['periods'][0]}"
