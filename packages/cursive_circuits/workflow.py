"""What each command does, from settings to files. Heavy rooms are imported where they are needed.

Each function imports its rooms itself: `make stages` reads from that what a stage depends on.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from cursive_circuits.study import Cursive, bank
from interp_core.console.call import Arrays, Report
from interp_core.console.made_from import MADE_FROM, Source
from interp_core.errors import InputError
from interp_core.files.artifacts import file_sha256, load_arrays, load_json, save_arrays, save_json
from interp_core.files.vouching import check_ours, replacing_ours, vouching

if TYPE_CHECKING:
    from cursive_circuits.data import Words
    from cursive_circuits.data_stimuli import Stimuli
    from cursive_circuits.model import Head
    from cursive_circuits.run_directory import Trained
    from interp_core.training.workers import Task

NAMES = ("handwriting", "control")


def prepare(run: Cursive) -> None:
    """Write the default bank, or take the words of one of the user's, and say what is in it."""
    from cursive_circuits.data_bank import fetch, load_bank, read_bank, save_bank
    from cursive_circuits.data_script import write_bank
    from cursive_circuits.data_taken import take
    from cursive_circuits.measure_bank import bank_report

    params = run.params
    settings = params.bank
    shape = params.configurations[params.handwriting.configuration]
    context = shape.context
    place = _own_bank(run)
    taken = None

    if settings.source is None:
        with vouching(place):
            save_bank(place, write_bank(settings.script))
    else:
        path = fetch(settings.source, place.parent)
        taken = take(
            read_bank(path, sha256=settings.source.sha256),
            alphabet=settings.alphabet,
            tokens=params.tokens,
            context=context,
            characters=shape.characters,
            published=settings.published,
            name=str(path),
        )
        with vouching(place):
            save_bank(place, taken.items)

    report = bank_report(load_bank(place, alphabet=settings.alphabet), params.tokens, context)

    if taken is not None:
        report |= {"taken": taken.report}

    run.save("prepare", "bank", report, made=_made_bank(run))

    for line in [] if taken is None else taken.told:
        click.echo(line)

    click.echo(report["verdict"])


def ensure_bank(run: Cursive) -> None:
    """Take the words of the bank that an experiment names, unless its folder has them, taken so."""
    record = run.file("metrics", "prepare", "bank")
    if record.is_file() and load_json(record).get(MADE_FROM) == _made_bank(run):
        return
    prepare(run)


def _own_bank(run: Cursive) -> Path:
    """Where a call puts the words that it writes or takes."""
    return run.folder / "bank" / "bank.zip"


def _made_bank(run: Cursive) -> Report:
    """What the words of a bank are made from: the bank, tokens, and the context they must fit."""
    read = {"bank", "tokens", "configurations", "handwriting"}
    unread = set(type(run.params).model_fields) - read
    return run.made_from({}, unread=unread, read=[_own_bank(run)])


def train(run: Cursive, *, only: str | None = None) -> None:
    """Both models at once, each in a process of its own; a training that was stopped goes on where
    it was.
    """
    from cursive_circuits.train import train_control, train_handwriting
    from interp_core.training.tracking import announce
    from interp_core.training.workers import run_in_processes

    runs = run.folder / "runs"
    names = NAMES if only is None else (only,)

    check_trainings(run, names)
    announce()
    tasks: list[Task] = [
        (train_handwriting, (run.params, bank(run), runs / "handwriting"), {}),
        (train_control, (run.params, runs / "control"), {}),
    ]
    chosen = [task for name, task in zip(NAMES, tasks, strict=True) if name in names]
    run_in_processes(chosen, processes=run.params.processes)

    for name in names:
        last = load_json(runs / name / "history.json")["rows"][-1]
        config = load_json(runs / name / "config.json")
        report = {"parameters": config["parameters"], "last": last}
        run.save("train", name, report, made=_made(run, name, run.folder / "runs" / name))
        click.echo(
            f"{name}: {last['step']} steps, held-out loss {last['held_out_loss']:.3f} nats a token"
        )


def check_trainings(run: Cursive, names: Collection[str] = NAMES) -> None:
    """InputError where something else is in a training's place, or one of other settings."""
    from cursive_circuits.run_directory import CONFIG, KIND
    from cursive_circuits.train import settings_of
    from interp_core.files.folders import check_replaceable, check_same_settings

    for name in names:
        place = run.folder / "runs" / name
        check_replaceable(place, kind=KIND, name=name)

        if not run.is_stage:  # the pipeline's own follow its profile
            model, training = settings_of(name, run.params)
            check_same_settings(place / CONFIG, training, part="settings")
            check_same_settings(place / CONFIG, model)


def sample(run: Cursive, *, text: str | None = None) -> None:
    """Words that the model writes, read back; or one text of the user's, drawn."""
    from cursive_circuits.figures_ink import words_on_page
    from cursive_circuits.measure_samples import sample_report, written

    path = run.folder / "sample.png"
    if text is not None:
        if not text.strip():
            raise InputError("--text is empty: name the word to write")
        check_ours(path)

    trained, source = _writer(run)
    _, held_out = _words(run, trained)
    settings = run.params.sampling

    if text is not None:
        (points,) = written(trained, held_out, [text], settings)
        with replacing_ours(path) as part:
            words_on_page({text: points}, part)
        click.echo(str(path))
        return

    arrays, report = sample_report(trained, held_out, settings)
    run.save("sample", trained.name, report, arrays, made=_made(run, trained.name, source))
    click.echo(report["verdict"])


def attention(run: Cursive) -> None:
    """Where cross-attention reads, against the letter that is written."""
    from cursive_circuits.measure_alignment import alignment, alignment_report

    trained, source = _writer(run)
    _, held_out = _words(run, trained)
    params = run.params
    found = alignment(
        trained,
        held_out,
        n=params.stimuli.prompts,
        seed=params.stimuli.seed,
        batch_size=params.batch_size,
    )
    rng = run.rng("attention", seed=params.stimuli.seed)
    arrays, report = alignment_report(found, params.tests, rng)
    run.save("attention", trained.name, report, arrays, made=_made(run, trained.name, source))
    error = f", error {report['error']['value']:.2f} letters" if "error" in report else ""
    click.echo(f"{trained.name}: {report['best']} aligns best{error}")


def heads(run: Cursive) -> None:
    """Pair-level scores on every family, and what a repeat is worth."""
    from cursive_circuits.measure_gain import gain_report, gains
    from cursive_circuits.measure_heads import attention_scores, head_report

    params = run.params

    for trained, source in _models(run):
        _, held_out = _words(run, trained)
        arrays, report = {}, {"families": {}}

        for number, (name, stimuli) in enumerate(_families(run, trained, held_out).items()):
            scores = attention_scores(trained, stimuli, batch_size=params.batch_size)
            rng = run.rng("heads", number, seed=params.stimuli.seed)
            found, report["families"][name] = head_report(scores, params.tests, rng)
            arrays |= {f"{name}/{key}": values for key, values in found.items()}

        if trained.writes:
            n, seed = params.stimuli.prompts, params.stimuli.seed
            lost = gains(trained, held_out, n=n, seed=seed, batch_size=params.batch_size)
            report["gain"] = gain_report(lost, params.tests, run.rng("gain", seed=seed))
            arrays |= {f"gain/{key}": values for key, values in lost.items()}
            click.echo(f"{trained.name}: {report['gain']['verdict']}")

        run.save("heads", trained.name, report, arrays, made=_made_heads(run, trained.name, source))

        for name, family in report["families"].items():
            found = ", ".join(family["induction_heads"]) or "none"
            relays = ", ".join(family["relays"]) or "none"
            best = f"{family['best']} {family['best_excess']['value']:.3f}"
            click.echo(
                f"{trained.name}, {name}: best {best}; induction heads: {found}; relays: {relays}"
            )


def circuits(run: Cursive) -> None:
    """QK and OV circuits on token bases."""
    from cursive_circuits.measure_circuits import token_circuits

    for trained, source in _models(run):
        arrays, report = token_circuits(trained, run.params.circuits.distances)
        click.echo(f"{trained.name}: strongest angular tuning {report['tuned']}")
        run.save("circuits", trained.name, report, arrays, made=_made(run, trained.name, source))


def composition(run: Cursive) -> None:
    """Q-, K- and V-composition from weights, and path patching."""
    from cursive_circuits.intervene import ranked
    from cursive_circuits.intervene_paths import path_effects, path_report
    from cursive_circuits.intervene_values import value_accuracy, value_report
    from cursive_circuits.measure_composition import compositions
    from cursive_circuits.model import KINDS, Head

    params = run.params

    for trained, source in _models(run):
        settings = params.circuits
        arrays, report = compositions(
            trained.model, distances=settings.distances, draws=settings.draws, seed=settings.seed
        )
        stimuli, excess, offset = _copying(run, trained, params.interventions.path_prompts)
        later = [head for head in ranked(excess) if head.layer > 0][: params.interventions.readers]

        # The strongest pair by weights is patched too, whether or not its reader looks.
        pairs = [report[f"{kind}_k"][0] for kind in KINDS]
        strongest = max(pairs, key=lambda pair: pair["z"])
        readers = dict.fromkeys([*later, Head.read(strongest["reader"])])

        effects = path_effects(
            trained,
            stimuli,
            {head: int(offset[head.layer, head.number]) for head in readers},
            batch_size=params.batch_size,
        )
        rng = run.rng("paths", seed=settings.seed)
        paths, report["paths"] = path_report(effects, arrays, params.tests, rng)

        copying = _matching(run, trained, stimuli.prompts.family) or later
        right = value_accuracy(trained, stimuli, copying, batch_size=params.batch_size)
        report["values"] = value_report(right, copying)
        arrays |= {f"paths/{key}": values for key, values in paths.items()}
        run.save("composition", trained.name, report, arrays, made=_made(run, trained.name, source))
        click.echo(f"{trained.name}: {report['paths']['verdict']}")


def ablate(run: Cursive) -> None:
    """Ablations against matched random heads, the verdict, and the handwriting before and after."""
    from cursive_circuits.intervene import ablation_report, copying_verdict

    params = run.params

    for trained, source in _models(run):
        stimuli, excess, _ = _copying(run, trained, params.interventions.prompts)
        arrays, report = ablation_report(
            trained,
            stimuli,
            excess,
            params.interventions,
            params.tests,
            matching=_matching(run, trained, stimuli.prompts.family),
            batch_size=params.batch_size,
        )
        family = load_json(run.file("metrics", "heads", trained.name))["families"][
            stimuli.prompts.family
        ]
        report |= {
            "family": stimuli.prompts.family,
            **copying_verdict(family, report, params.tests),
        }
        arrays |= _redrawn(run, trained, stimuli, excess, arrays["alone"])
        run.save("ablate", trained.name, report, arrays, made=_made(run, trained.name, source))
        click.echo(f"{trained.name}: {report['verdict']}")


def draw(
    run: Cursive, *, words: Sequence[str] = (), ids: Sequence[int] = (), text: str = ""
) -> None:
    """Attention over the ink of a word written twice, and for the control over random strokes:
    arrays for figures; for a row of the user's, pictures too.
    """
    from cursive_circuits.measure_drawings import (
        as_page,
        attention_over_ink,
        of_strokes,
        of_tokens,
        of_words,
    )

    # The control reads no words: it is shown random strokes, beside the model that writes.
    for trained, source in [_writer(run)] if words or ids else _models(run):
        sides = _words(run, trained) if trained.writes else None

        if sides is None:
            pairs, seed = run.params.stimuli.synthetic_pairs, run.params.drawings.seed
            chosen = of_strokes(trained, pairs=pairs, seed=seed)
        elif ids:
            chosen = of_tokens(trained, ids, text)
        else:
            spelt = words or [run.params.drawings.word]
            chosen = of_words(trained, sides, spelt, run.params.sampling)

        arrays = attention_over_ink(trained, None if sides is None else sides[1], chosen)
        place = run.file("scores", "draw", trained.name)
        page = place.with_suffix(".json")
        made = {} if run.is_stage else {MADE_FROM: _made(run, trained.name, source)}
        with vouching(place, page):
            save_arrays(place, arrays)
            save_json(page, as_page(arrays) | made)

    if words or ids:
        from cursive_circuits.figures import draw_ink

        for path in draw_ink(run.folder, run.folder / "figures"):
            click.echo(str(path))


def figures(run: Cursive, *, only: str | None = None) -> None:
    """All figures of the study, or those of one command, from its files alone."""
    from cursive_circuits.figures import draw_all

    draw_all(run.folder, only=only)


def ensure(run: Cursive, *, writes: bool) -> None:
    """Measure what an intervention of an experiment reads and its folder lacks for these models and
    settings: scores of heads, and where it also `writes`, words of the model that writes. A stage's
    are an earlier stage's.
    """
    if run.is_stage:
        return

    for trained, source in _models(run):
        name = trained.name
        if not run.is_made("heads", name, _made_heads(run, name, source)):
            click.echo(f"{name}: heads first")
            heads(run)
            break

    for trained, source in _models(run):
        if (
            writes
            and trained.writes
            and not run.is_of("sample", trained.name, {trained.name: _source(run, source)})
        ):
            click.echo(f"{trained.name}: words first")
            sample(run)


def _models(run: Cursive) -> "list[tuple[Trained, Path]]":
    """The study's two models, or the user's, each with where it is."""
    from cursive_circuits.model_checkpoint import open_trained
    from cursive_circuits.run_directory import open_run

    _use(run)

    if not run.models:
        places = [run.at_home(f"runs/{name}") for name in NAMES]
        return [(_ready(run, open_run(place), place), place) for place in places]

    path = Path(run.models[0])

    return [(_ready(run, open_trained(path, run.params), path), path)]


def _ready(run: Cursive, trained: "Trained", place: Path) -> "Trained":
    """A model on the device. InputError where its name is another model's in the folder."""
    import torch

    run.check_names({trained.name: run.place_of(place)})
    trained.model.to("cuda" if run.params.device == "auto" and torch.cuda.is_available() else "cpu")
    return trained


def _use(run: Cursive) -> None:
    from interp_core.training.threads import use_threads

    use_threads(run.params.threads)


def _writer(run: Cursive) -> "tuple[Trained, Path]":
    """The model that writes, and where it is."""
    from cursive_circuits.run_directory import open_run

    if run.models:
        return _models(run)[0]
    _use(run)
    place = run.at_home(f"runs/{NAMES[0]}")
    return _ready(run, open_run(place), place), place


def _source(run: Cursive, place: Path) -> Source:
    """A model as a record names it: a run's config.json, which has the hash of its weights, or a
    checkpoint's file.
    """
    return Source(
        run.place_of(place), file_sha256(place / "config.json" if place.is_dir() else place)
    )


def _made(
    run: Cursive, name: str | None = None, place: Path | None = None, unread: Collection[str] = ()
) -> Report:
    """What a record is made from: a model, the bank, and settings."""
    if run.is_stage:
        return {}
    sources = {} if name is None or place is None else {name: _source(run, place)}
    return run.made_from(sources, unread=unread, read=[bank(run)])


def _made_heads(run: Cursive, name: str, place: Path) -> Report:
    """What scores of heads are made from: not how a model was trained, nor what is asked later."""
    later = {"sampling", "interventions", "circuits", "drawings"}
    return _made(run, name, place, unread={*later, "handwriting", "control", "watched"})


def _words(run: Cursive, trained: "Trained") -> "tuple[Words, Words]":
    """Training and held-out words of the bank, in a model's tokens."""
    from cursive_circuits.data import Words
    from cursive_circuits.data_bank import load_bank
    from cursive_circuits.data_taken import fitting

    items = load_bank(bank(run), alphabet=trained.alphabet)

    if run.models:  # `prepare` has seen to it for the study's own
        shape = trained.model.shape
        items = fitting(items, trained.tokens, shape.context, shape.characters)

    return Words.split(items, trained.tokens, trained.alphabet, run.params.bank.split)


def _families(
    run: Cursive, trained: "Trained", words: "Words", n: int | None = None
) -> "dict[str, Stimuli]":
    """The families that a model is asked about: all, or the synthetic one for a model that never
    saw handwriting.
    """
    from cursive_circuits.data_stimuli import FamilySettings, family, written_families

    chosen = run.params.stimuli
    shape = trained.model.shape
    sizes = FamilySettings(
        chosen.synthetic_pairs,
        chosen.natural_words,
        chosen.natural_pairs,
        shape.context,
        shape.characters,
    )
    names = written_families(words) if trained.writes else ("synthetic",)

    return {
        name: family(name, words, n=n or chosen.prompts, seed=chosen.seed, settings=sizes)
        for name in names
    }


def _copying(run: Cursive, trained: "Trained", n: int) -> "tuple[Stimuli, np.ndarray, np.ndarray]":
    """The family in which copying is separate from reading, every head's largest excess there after
    the earlier occurrence, and at which offset: induction heads and relays alike are worth an
    intervention.
    """
    from cursive_circuits.measure_heads import AFTER

    name = "mismatched_text" if trained.writes else "synthetic"
    by_offset = load_arrays(run.file("scores", "heads", trained.name))[f"{name}/by_offset"]
    _, held_out = _words(run, trained)
    stimuli = _families(run, trained, held_out, n)[name]

    return stimuli, by_offset.max(axis=0), np.array(AFTER)[by_offset.argmax(axis=0)]


def _matching(run: Cursive, trained: "Trained", family: str) -> "list[Head]":
    """Induction heads and relays of a family, as the scores of heads have them."""
    from cursive_circuits.model import Head

    scores = load_arrays(run.file("scores", "heads", trained.name))
    marked = scores[f"{family}/induction"].astype(bool) | scores[f"{family}/relay"].astype(bool)
    return [Head(int(layer), "self", int(head)) for layer, head in np.argwhere(marked)]


def _redrawn(
    run: Cursive, trained: "Trained", stimuli: "Stimuli", excess: np.ndarray, alone: np.ndarray
) -> Arrays:
    from cursive_circuits.intervene import mean_outputs, ranked
    from cursive_circuits.intervene_redraw import continued, redrawn_words
    from cursive_circuits.model import Head
    from interp_core.statistics.random_sets import matched_sets

    params = run.params
    means = mean_outputs(trained, stimuli, batch_size=params.batch_size)
    top = ranked(excess)[: params.interventions.top]
    rng = run.rng("redrawn", seed=params.interventions.seed)
    own = [head for head in trained.model.heads if head.kind == "self"]
    (random,) = matched_sets(top, own, rng, draws=1, without=top).sets
    without = {"nothing": [], "top": top, "random": list(random)}

    if not trained.writes:
        sizes = {"pairs": params.stimuli.synthetic_pairs, "seed": params.sampling.seed}
        return continued(trained, without, means, **sizes, temperature=params.sampling.temperature)

    layer, head = np.unravel_index(alone[:, 1, :, 1].argmax(), alone[:, 1, :, 1].shape)
    without["cross"] = [Head(int(layer), "cross", int(head))]
    spelt = load_json(run.file("metrics", "sample", trained.name))["shown"][:6]
    _, held_out = _words(run, trained)

    return redrawn_words(trained, held_out, spelt, without, means, params.sampling)
