"""What each command does, from settings to files. Heavy rooms are imported where they are needed.

Each function imports its rooms itself: `make stages` reads from that what a stage depends on.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
import numpy as np

from cursive_circuits.study import Arrays, Report, Study
from interp_core.errors import InputError
from interp_core.files.artifacts import load_arrays, load_json, save_arrays, save_json

if TYPE_CHECKING:
    from cursive_circuits.data import Words
    from cursive_circuits.data_stimuli import Stimuli
    from cursive_circuits.run_directory import Trained
    from interp_core.training.workers import Task

NAMES = ("handwriting", "control")


def prepare(study: Study) -> None:
    """Write the default bank, or take the words of one of the user's, and say what is in it."""
    from cursive_circuits.data_bank import fetch, load_bank, read_bank, save_bank
    from cursive_circuits.data_script import write_bank
    from cursive_circuits.data_taken import take
    from cursive_circuits.measure_bank import bank_report

    params = study.params
    context = params.configurations[params.handwriting.configuration].context
    taken = None
    if params.bank.source is None:
        save_bank(study.bank, write_bank(params.bank.script))
    else:
        path = fetch(params.bank.source, study.folder / "bank")
        taken = take(
            read_bank(path, sha256=params.bank.source.sha256),
            alphabet=params.bank.alphabet,
            tokens=params.tokens,
            context=context,
            published=params.bank.published,
            name=str(path),
        )
        save_bank(study.bank, taken.items)

    report = bank_report(
        load_bank(study.bank, alphabet=params.bank.alphabet), params.tokens, context
    )
    if taken is not None:
        report |= {"taken": taken.report, "made_from": _bank_settings(study)}
    study.save("prepare", "bank", report)
    for line in [] if taken is None else taken.told:
        click.echo(line)
    click.echo(report["verdict"])


def ensure_bank(study: Study) -> None:
    """Take the words of the bank that the call names, unless the folder holds them already, taken
    so.
    """
    record = study.place("metrics", "prepare", "bank")
    there = study.bank.is_file() and record.is_file()
    if study.params.bank.source is None or (
        there and load_json(record).get("made_from") == _bank_settings(study)
    ):
        return
    prepare(study)


def _bank_settings(study: Study) -> Report:
    """What decides the words that are taken of a bank."""
    params = study.params
    settings = params.bank.model_dump(mode="json", exclude={"script", "split"})
    shape = params.configurations[params.handwriting.configuration]
    return {**settings, "tokens": params.tokens.model_dump(mode="json"), "context": shape.context}


def train(study: Study, *, only: str | None = None) -> None:
    """Both models at once, each in a process of its own; a training that was stopped goes on where
    it was.
    """
    from cursive_circuits.run_directory import KIND
    from cursive_circuits.train import train_control, train_handwriting
    from interp_core.files.folders import check_replaceable
    from interp_core.training.tracking import announce
    from interp_core.training.workers import run_in_processes

    runs = study.folder / "runs"
    names = NAMES if only is None else (only,)
    for name in names:
        check_replaceable(runs / name, kind=KIND, name=name)
    announce()
    tasks: list[Task] = [
        (train_handwriting, (study.params, study.bank, runs / "handwriting"), {}),
        (train_control, (study.params, runs / "control"), {}),
    ]
    chosen = [task for name, task in zip(NAMES, tasks, strict=True) if name in names]
    run_in_processes(chosen, processes=study.params.processes)
    for name in names:
        last = load_json(runs / name / "history.json")["rows"][-1]
        config = load_json(runs / name / "config.json")
        study.save("train", name, {"parameters": config["parameters"], "last": last})
        click.echo(
            f"{name}: {last['step']} steps, held-out loss {last['held_out_loss']:.3f} nats a token"
        )


def sample(study: Study, *, text: str | None = None) -> None:
    """Words that the model writes, read back; or one text of the user's, drawn."""
    from cursive_circuits.figures_ink import words_on_page
    from cursive_circuits.measure_samples import sample_report, written

    trained = _writer(study)
    _, held_out = _words(study, trained)
    settings = study.params.sampling
    if text is not None:
        if not text.strip():
            raise InputError("--text is empty: name the word to write")
        path = study.folder / "sample.png"
        (points,) = written(trained, held_out, [text], settings)
        words_on_page({text: points}, path)
        click.echo(str(path))
        return
    arrays, report = sample_report(trained, held_out, settings, study.params.tests)
    study.save("sample", trained.name, report, arrays)
    click.echo(report["verdict"])


def attention(study: Study) -> None:
    """Where cross-attention reads, against the letter that is written."""
    from cursive_circuits.measure_alignment import alignment, alignment_report

    trained = _writer(study)
    _, held_out = _words(study, trained)
    params = study.params
    found = alignment(
        trained,
        held_out,
        n=params.stimuli.prompts,
        seed=params.stimuli.seed,
        batch_size=params.batch_size,
    )
    arrays, report = alignment_report(
        found, params.tests, np.random.default_rng([params.stimuli.seed, 31])
    )
    study.save("attention", trained.name, report, arrays)
    error = f", error {report['error']['value']:.2f} letters" if "error" in report else ""
    click.echo(f"{trained.name}: {report['best']} aligns best{error}")


def heads(study: Study) -> None:
    """Pair-level scores on every family, and what a repeat is worth."""
    from cursive_circuits.measure_gain import gain_report, gains
    from cursive_circuits.measure_heads import attention_scores, head_report

    params = study.params
    for trained in _models(study):
        _, held_out = _words(study, trained)
        arrays, report = {}, {"families": {}}
        for number, (name, stimuli) in enumerate(_families(study, trained, held_out).items()):
            scores = attention_scores(trained, stimuli, batch_size=params.batch_size)
            rng = np.random.default_rng([params.stimuli.seed, 21, number])
            found, report["families"][name] = head_report(scores, params.tests, rng)
            arrays |= {f"{name}/{key}": values for key, values in found.items()}
        if trained.writes:
            n, seed = params.stimuli.prompts, params.stimuli.seed
            lost = gains(trained, held_out, n=n, seed=seed, batch_size=params.batch_size)
            report["gain"] = gain_report(lost, params.tests, np.random.default_rng([seed, 22]))
            arrays |= {f"gain/{key}": values for key, values in lost.items()}
            click.echo(f"{trained.name}: {report['gain']['verdict']}")
        study.save("heads", trained.name, report, arrays)
        for name, family in report["families"].items():
            found = ", ".join(family["induction_heads"]) or "none"
            relays = ", ".join(family["relays"]) or "none"
            best = f"{family['best']} {family['best_excess']:.3f}"
            click.echo(
                f"{trained.name}, {name}: best {best}; induction heads: {found}; relays: {relays}"
            )


def circuits(study: Study) -> None:
    """QK and OV circuits on token bases."""
    from cursive_circuits.measure_circuits import token_circuits

    for trained in _models(study):
        arrays, report = token_circuits(trained, study.params.circuits.distances)
        click.echo(f"{trained.name}: strongest angular tuning {report['tuned']}")
        study.save("circuits", trained.name, report, arrays)


def composition(study: Study) -> None:
    """Q-, K- and V-composition from weights, and path patching."""
    from cursive_circuits.intervene import ranked
    from cursive_circuits.intervene_paths import path_effects, path_report
    from cursive_circuits.measure_composition import compositions

    params = study.params
    for trained in _models(study):
        settings = params.circuits
        arrays, report = compositions(
            trained.model, distances=settings.distances, draws=settings.draws, seed=settings.seed
        )
        stimuli, excess, offset = _copying(study, trained, params.interventions.path_prompts)
        later = [head for head in ranked(excess) if head.layer > 0][: params.interventions.readers]
        effects = path_effects(
            trained,
            stimuli,
            {h: int(offset[h.layer, h.number]) for h in later},
            batch_size=params.batch_size,
        )
        rng = np.random.default_rng([settings.seed, 41])
        paths, report["paths"] = path_report(effects, arrays, params.tests, rng)
        study.save(
            "composition",
            trained.name,
            report,
            arrays | {f"paths/{key}": v for key, v in paths.items()},
        )
        click.echo(f"{trained.name}: {report['paths']['verdict']}")


def ablate(study: Study) -> None:
    """Ablations against matched random heads, the verdict, and the handwriting before and after."""
    from cursive_circuits.intervene import ablation_report, copying_verdict

    params = study.params
    for trained in _models(study):
        stimuli, excess, _ = _copying(study, trained, params.interventions.prompts)
        arrays, report = ablation_report(
            trained,
            stimuli,
            excess,
            params.interventions,
            params.tests,
            batch_size=params.batch_size,
        )
        family = load_json(study.place("metrics", "heads", trained.name))["families"][
            stimuli.prompts.family
        ]
        report |= {
            "family": stimuli.prompts.family,
            **copying_verdict(family, report, params.tests),
        }
        study.save(
            "ablate",
            trained.name,
            report,
            arrays | _redrawn(study, trained, stimuli, excess, arrays["alone"]),
        )
        click.echo(f"{trained.name}: {report['verdict']}")


def draw(
    study: Study, *, words: Sequence[str] = (), ids: Sequence[int] = (), text: str = ""
) -> None:
    """Attention over the ink of a word written twice: arrays for figures; for a row of the user's,
    pictures too.
    """
    from cursive_circuits.measure_drawings import as_page, attention_over_ink, of_tokens, of_words

    trained = _writer(study)
    sides = _words(study, trained)
    if ids:
        chosen = of_tokens(trained, ids, text)
    else:
        chosen = of_words(
            trained, sides, words or [study.params.drawings.word], study.params.sampling
        )
    arrays = attention_over_ink(trained, sides[1], chosen)
    place = study.place("scores", "draw", trained.name)
    save_arrays(place, arrays)
    save_json(place.with_suffix(".json"), as_page(arrays))
    if words or ids:
        from cursive_circuits.figures import draw_ink

        for path in draw_ink(study.folder, study.folder / "figures"):
            click.echo(str(path))


def figures(study: Study) -> None:
    """All figures of the study, from its files alone."""
    from cursive_circuits.figures import draw_all

    draw_all(study.folder)


def _models(study: Study) -> "list[Trained]":
    """The study's two models, or the user's."""
    from cursive_circuits.model_checkpoint import open_trained
    from cursive_circuits.run_directory import open_run

    _use(study)
    if study.model is None:
        return [_on_device(study, open_run(study.folder / "runs" / name)) for name in NAMES]
    return [_on_device(study, open_trained(study.model, study.params))]


def _on_device(study: Study, trained: "Trained") -> "Trained":
    import torch

    trained.model.to(
        "cuda" if study.params.device == "auto" and torch.cuda.is_available() else "cpu"
    )
    return trained


def _use(study: Study) -> None:
    from interp_core.training.threads import use_threads

    use_threads(study.params.threads)


def _writer(study: Study) -> "Trained":
    """The model that writes."""
    from cursive_circuits.run_directory import open_run

    _use(study)
    return (
        _models(study)[0]
        if study.model
        else _on_device(study, open_run(study.folder / "runs" / NAMES[0]))
    )


def _words(study: Study, trained: "Trained") -> "tuple[Words, Words]":
    """Training and held-out words of the bank, in a model's tokens."""
    from cursive_circuits.data import Words
    from cursive_circuits.data_bank import load_bank
    from cursive_circuits.data_taken import fitting

    items = load_bank(study.bank, alphabet=trained.alphabet)
    if study.model is not None:  # `prepare` has seen to it for the study's own
        items = fitting(items, trained.tokens, trained.model.shape.context)
    return Words.split(items, trained.tokens, trained.alphabet, study.params.bank.split)


def _families(
    study: Study, trained: "Trained", words: "Words", n: int | None = None
) -> "dict[str, Stimuli]":
    """The families that a model is asked about: all, or the synthetic one for a model that never
    saw handwriting.
    """
    from cursive_circuits.data_stimuli import FamilySettings, family, written_families

    chosen = study.params.stimuli
    context = trained.model.shape.context
    sizes = FamilySettings(
        chosen.synthetic_pairs, chosen.natural_words, chosen.natural_pairs, context
    )
    names = written_families(words) if trained.writes else ("synthetic",)
    return {
        name: family(name, words, n=n or chosen.prompts, seed=chosen.seed, settings=sizes)
        for name in names
    }


def _copying(study: Study, trained: "Trained", n: int) -> "tuple[Stimuli, np.ndarray, np.ndarray]":
    """The family in which copying is separate from reading, every head's largest excess there after
    the earlier occurrence, and at which offset: induction heads and relays alike are worth an
    intervention.
    """
    from cursive_circuits.measure_heads import AFTER

    name = "mismatched_text" if trained.writes else "synthetic"
    by_offset = load_arrays(study.place("scores", "heads", trained.name))[f"{name}/by_offset"]
    _, held_out = _words(study, trained)
    stimuli = _families(study, trained, held_out, n)[name]
    return stimuli, by_offset.max(axis=0), np.array(AFTER)[by_offset.argmax(axis=0)]


def _redrawn(
    study: Study, trained: "Trained", stimuli: "Stimuli", excess: np.ndarray, alone: np.ndarray
) -> Arrays:
    from cursive_circuits.intervene import matched_sets, mean_outputs, ranked
    from cursive_circuits.intervene_redraw import continued, redrawn_words
    from cursive_circuits.model import Head

    params = study.params
    means = mean_outputs(trained, stimuli, batch_size=params.batch_size)
    top = ranked(excess)[: params.interventions.top]
    rng = np.random.default_rng([params.interventions.seed, 61])
    without = {
        "nothing": [],
        "top": top,
        "random": matched_sets(top, trained.model.heads, 1, rng)[0],
    }
    if not trained.writes:
        sizes = {"pairs": params.stimuli.synthetic_pairs, "seed": params.sampling.seed}
        return continued(trained, without, means, **sizes, temperature=params.sampling.temperature)
    layer, head = np.unravel_index(alone[:, 1, :, 1].argmax(), alone[:, 1, :, 1].shape)
    without["cross"] = [Head(int(layer), "cross", int(head))]
    spelt = load_json(study.place("metrics", "sample", trained.name))["shown"][:6]
    _, held_out = _words(study, trained)
    return redrawn_words(trained, held_out, spelt, without, means, params.sampling)
