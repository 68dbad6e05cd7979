"""What each command does, from settings to files. Heavy rooms are imported where they are needed.

Each function imports its rooms itself: `make stages` reads from that what a stage depends on.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interp_core.console.call import Arrays, Report
from interp_core.errors import InputError
from interp_core.files.artifacts import load_arrays, load_json, save_json
from interp_core.models.spec import short_name
from interp_core.stimuli.corpus import corpus_folder
from pythia_topology.study import Induct, names

if TYPE_CHECKING:
    from interp_core.models.subject import Transformer
    from interp_core.stimuli.prompts import Prompts
    from pythia_topology.intervene_controls import Roles


def profile(run: Induct) -> dict[str, tuple[Arrays, Report]]:
    """Scores and layer profile of each model.

    Those that an experiment's folder already has are not measured again.
    """
    found = {}

    for model, name in _named(run):
        if _is_measured(run, model):
            click.echo(f"{name}: measured before, {_sentence(_profile(run, name))}")
        else:
            _measure(run, model)

        found[name] = run.load("profile", f"profile_{name}", scores=f"scores_{name}")

    return found


def ensure_scores(run: Induct) -> None:
    """Measure the models of an experiment whose scores are not in its folder.

    For these weights and settings. A stage's are an earlier stage's.
    """
    if run.is_stage:
        return

    for model in run.params.models:
        if not _is_measured(run, model):
            _measure(run, model)


def check_composed(run: Induct) -> None:
    """InputError for a model whose queries and keys cannot be read from its weights, before it is
    measured.
    """
    from pythia_topology.model import load

    if run.is_stage:
        return

    for model in run.params.models:
        if not _is_measured(run, model):
            subject = load(model, run.known, run.params)
            subject.rotated(subject.head_weights(0).W_Q, 1)


def check_request(run: Induct, command: str) -> None:
    """InputError for what a command cannot do with these settings, or where it cannot write.

    Before anything is measured.
    """
    if command == "crosssize" and not run.is_stage and len(run.params.models) != 2:
        n = len(run.params.models)
        raise InputError(f"crosssize compares two models, got {n}; multisize takes any number")

    if command == "lagbuckets" and "spaced_pairs" not in run.params.task_types:
        raise InputError("lagbuckets needs the family spaced_pairs: add it to --task-types")

    run.check_folder()


def nulls(run: Induct) -> dict[str, tuple[Arrays, Report]]:
    """Each model against permuted heads, shuffled antecedents and an untrained model."""
    from pythia_topology.measure_layer_profile import evidence
    from pythia_topology.measure_nulls import nulls_summary

    found = {}

    for model, name in zip(run.params.models, names(run), strict=True):
        arrays = _scores(run, model)
        heads = evidence(arrays, "repeated_tokens")
        untrained = arrays["untrained/excess_prefix_matching"]
        report = nulls_summary(heads, untrained, run.rng("nulls"), **_test_settings(run))
        report = {"name": name, "seed": run.params.seed, **report}

        run.save("nulls", f"nulls_{name}", report, made=_made(run, [model]))

        best = report["permute_summary"]["p_max"]
        denser = f"heads denser in one layer than dealt at random: p = {best:.3g}"
        click.echo(f"{name}: {report['verdict']}; {denser}")
        found[name] = (arrays, report)

    return found


def crosssize(run: Induct, *, several: bool = False) -> Report:
    """Depth profiles of two models (or several: any number), differences and equivalence."""
    from pythia_topology.measure_crosssize import crosssize_summary
    from pythia_topology.measure_layer_profile import evidence

    if not several and len(run.params.models) != 2:  # a stage: the smallest and the largest
        ends = (run.params.models[0], run.params.models[-1])
        run = replace(run, params=run.params.model_copy(update={"models": ends}))

    models = {
        name: _scores(run, model) for model, name in zip(run.params.models, names(run), strict=True)
    }
    report = crosssize_summary(
        {name: evidence(arrays, "repeated_tokens") for name, arrays in models.items()},
        run.rng("crosssize"),
        margin=run.params.equivalence_margin,
        equivalence_alpha=run.params.equivalence_alpha,
        grid_points=run.params.grid_points,
        **_test_settings(run),
    )

    command, stem = ("multisize", "multi_size") if several else ("crosssize", "cross_size")
    run.save(command, stem, {"seed": run.params.seed, **report}, made=_made(run, run.params.models))
    click.echo(
        f"relative depth of these trainings, centre: {report['verdict']}; "
        f"peak: {report['peak_verdict']}"
    )
    return report


def multisize(run: Induct) -> Report:
    """Depth profiles of any number of models, all pairs."""
    return crosssize(run, several=True)


def lagbuckets(run: Induct) -> dict[str, Report]:
    """Short against long lags of spaced pairs."""
    from pythia_topology.measure_lags import lags_summary
    from pythia_topology.measure_layer_profile import evidence

    reports = {}

    for model, name in zip(run.params.models, names(run), strict=True):
        arrays = _scores(run, model)
        report = lags_summary(
            evidence(arrays, "spaced_pairs"),
            arrays["prompts/spaced_pairs/lag"],
            run.rng("lagbuckets"),
            split=run.params.split_lag,
            **_test_settings(run),
        )
        reports[name] = {"name": name, "seed": run.params.seed, **report}

        run.save("lagbuckets", f"lags_{name}", reports[name], made=_made(run, [model]))
        click.echo(f"{name}: {_shift(report)}")

    return reports


def causal(run: Induct) -> dict[str, tuple[Arrays, Report]]:
    """The best heads of each model ablated, against heads of their layers and outside."""
    from interp_core.console.unfinished import dealt_out
    from pythia_topology import intervene

    def measure(model: str, name: str) -> None:
        subject, prompts = _repeated(run, model)
        roles = roles_of(run, model)

        with dealt_out(run, "pythia_causal", model, subject, unread={"models"}):
            report, arrays = intervene.causal(subject, prompts, roles, run.params)
            report |= _begun(run, subject)

            run.save("causal", f"causal_{name}", report, arrays, made=_made(run, [model]))

    return _each_once(run, "causal", measure)


def composition(run: Induct) -> dict[str, tuple[Arrays, Report, Arrays]]:
    """K-composition of earlier heads into the best induction heads, confirmed by path patching."""
    from pythia_topology.intervene_paths import composition as compose

    def measure(model: str, name: str) -> None:
        subject, prompts = _repeated(run, model)
        report, arrays = compose(subject, prompts, roles_of(run, model), run.params)
        report |= _begun(run, subject)

        run.save("composition", f"composition_{name}", report, arrays, made=_made(run, [model]))

    found = _each_once(run, "composition", measure)
    scores = {name: _scores(run, model) for model, name in _named(run)}
    return {name: (*both, scores[name]) for name, both in found.items()}


def emergence(run: Induct) -> dict[str, tuple[Arrays, Report]]:
    """When copying, induction heads and previous-token heads form, over training checkpoints."""
    from interp_core.console.unfinished import unfinished
    from interp_core.models.spec import spec_of
    from pythia_topology.data import first_prompts
    from pythia_topology.measure_checkpoints import scores_over_training
    from pythia_topology.measure_emergence import emergence as emerge
    from pythia_topology.model import READ_LATER

    def measure(model: str, name: str) -> None:
        subject, prompts = _repeated(run, model)
        used, begun = first_prompts(prompts, run.params.causal_sequences), _begun(run, subject)
        del subject  # whoever measures a checkpoint has it alone in memory

        unread, read = {"models", *READ_LATER}, [used.sha256]
        with unfinished(run, "pythia_emergence", model, unread=unread, read=read) as kept:
            spec = spec_of(model, run.known)
            steps, series = scores_over_training(name, spec, used, run.params, kept=kept)
            report, arrays = emerge(name, steps, series, run.params)
            report |= begun

            run.save("emergence", f"emergence_{name}", report, arrays, made=_made(run, [model]))

    return _each_once(run, "emergence", measure, reads_profile=False)


def figures(run: Induct) -> None:
    """All figures, from files alone.

    Of the pipeline's models, or of those that a folder has scores of.
    """
    from pythia_topology.figures import draw_all

    written = draw_all(names(run), run.place)
    if not run.is_stage:
        click.echo(f"{len(written)} figures in {run.folder}")


def sizes(trainings: Sequence[Path], out: Path) -> Report:
    """What several runs of the study say of sizes: sizes.json and sizes.png, in `out`.

    From their metrics alone; `trainings` are their folders, shaped as data/pythia_topology.
    """
    from pythia_topology.figures_sizes import sizes as draw
    from pythia_topology.measure_sizes import sizes_summary

    compared = load_json(trainings[0] / "metrics" / "multisize" / "multi_size.json")
    profiles = {
        name: [_of_training(folder / "metrics", name) for folder in trainings]
        for name in compared["models"]
    }

    margin, alpha = compared["margin"], compared["equivalence_alpha"]
    report = sizes_summary(profiles, margin=margin, alpha=alpha)

    save_json(out / "sizes.json", report)
    draw(report, out / "sizes.png")
    click.echo(f"{len(trainings)} trainings of each size: {report['verdict']}")
    return report


def _of_training(metrics: Path, name: str) -> Report:
    """A model's profile, with what copying loses without its best heads."""
    report = load_json(metrics / "profile" / f"profile_{name}.json")
    causal = load_json(metrics / "causal" / f"causal_{name}.json")

    return report | {
        "without_top_heads": causal["ablations"]["mean"]["accuracy"]["top"]["value"],
        "without_best_layer": causal["dose"]["whole_layer"]["accuracy"],
    }


def print_prompts(run: Induct) -> None:
    """The first two prompts of each family, without running the model.

    As text where the model has a tokenizer.
    """
    from pythia_topology.data import stimuli
    from pythia_topology.model import load

    for model in run.params.models:
        subject = load(model, run.known, run.params)

        absent = _place_for_absent(run)
        built = stimuli(subject, run.params, absent=absent)
        _say_absent(absent)

        for family, prompts in built.items():
            for row, length in zip(prompts.tokens[:2], prompts.lengths[:2], strict=True):
                ids = row[:length].tolist()
                text = " ".join(map(str, ids))

                if subject.tokenizer is not None:
                    text = repr(subject.tokenizer.decode(ids))

                click.echo(f"{subject.name} {family}: {text}")


def _named(run: Induct) -> Iterator[tuple[str, str]]:
    """Each model with its short name, as in file names."""
    return zip(run.params.models, names(run), strict=True)


def _each_once(
    run: Induct, command: str, measure: Callable[[str, str], None], *, reads_profile: bool = True
) -> dict[str, tuple[Arrays, Report]]:
    """What a command has found of each model, measured where a stage has not done so before."""
    found = {}

    for model, name in _named(run):
        read = _files(run, "profile", name, scores=f"scores_{name}") if reads_profile else []
        measured_once(run, command, model, partial(measure, model, name), read=read)
        found[name] = run.load(command, f"{command}_{name}")
        click.echo(f"{name}: {found[name][1]['verdict']}")

    return found


def measured_once(
    run: Induct,
    command: str,
    model: str,
    measure: Callable[[], None],
    *,
    read: Sequence[Path] = (),
    asked: Any = None,
) -> None:
    """Have a command's metrics and scores of a model: a stage measures the same only once.

    `read` are files of earlier commands, and `asked` is what the settings do not say.
    """
    from interp_core.console.measured import contents, once
    from pythia_topology.model import READ_LATER

    name, is_profile = short_name(model), command == "profile"
    once(
        run,
        f"pythia_{command}",
        name,
        _files(run, command, name, scores=f"{'scores' if is_profile else command}_{name}"),
        measure,
        of=[*contents(run, model), *_read(), *read],
        settings=run.params,
        unread={"models", *READ_LATER} if is_profile else {"models"},
        asked=asked,
    )


def _files(run: Induct, command: str, name: str, *, scores: str) -> list[Path]:
    metrics = run.file("metrics", command, f"{command}_{name}")
    return [metrics, run.file("scores", command, scores)]


def _read() -> list[Path]:
    """Files of the corpus that prompts are made from; none where there is no corpus."""
    corpus = corpus_folder()
    return [] if corpus is None else [corpus / "tokenizer.json", corpus / "tokens.npz"]


def _measure(run: Induct, model: str) -> None:
    """Score one model and write its scores and profile."""
    measured_once(run, "profile", model, partial(_score, run, model))
    name = short_name(model)
    click.echo(f"{name}: {_sentence(_profile(run, name))}")


def _score(run: Induct, model: str) -> None:
    from pythia_topology.data import prompts_sha256, stimuli
    from pythia_topology.measure_heads import behaviour, score_arrays
    from pythia_topology.measure_layer_profile import (
        evidence,
        head_labels,
        layer_profile_summary,
    )
    from pythia_topology.measure_shape import previous_token_layer
    from pythia_topology.model import load

    params = run.params
    subject = load(model, run.known, params)
    name = subject.name
    _say_opening(subject)
    absent = _place_for_absent(run)
    prompts = stimuli(subject, params, absent=absent)
    _say_absent(absent)
    arrays = score_arrays(subject, prompts, params)

    heads = evidence(arrays, "repeated_tokens")
    summary = layer_profile_summary(
        heads, run.rng("profile"), splits=params.reliability_splits, **_test_settings(run)
    )

    back, share = arrays["previous_token"], params.previous_token_share
    report = {
        "name": name,
        **summary,
        "previous_token_heads": head_labels(back >= share, back),
        "previous_token_layer": previous_token_layer(back, share=share),
        "seed": params.seed,
        "behaviour": behaviour(arrays, prompts),
        "model_hash": subject.hash,
        "prompts_hash": prompts_sha256(prompts),
        "n_parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
        **_begun(run, subject),
        **({"left_out": absent} if absent else {}),
    }
    run.save(
        "profile",
        f"profile_{name}",
        report,
        arrays,
        made=_made_scores(run, model),
        scores=f"scores_{name}",
    )


def _place_for_absent(run: Induct) -> dict[str, str] | None:
    """Where families go that a user's model cannot read; none where they were asked for.

    A stage has none either: its results are of all that the profile names.
    """
    return None if run.is_stage or "task_types" in run.asked else {}


def _say_absent(absent: dict[str, str] | None) -> None:
    from interp_core.progress import left_out

    for family, reason in (absent or {}).items():
        left_out(f"{family} is left out: {reason}")


def _made(run: Induct, models: Iterable[str], unread: Collection[str] = ()) -> Report:
    """What a record of these models is made from: their files, the corpus, and settings."""
    return run.made_from(run.sources(models), unread={"models", *unread}, read=_read())


def _made_scores(run: Induct, model: str) -> Report:
    """What scores of a model are made from.

    Every setting that is read before or while heads are scored.
    """
    from pythia_topology.model import READ_LATER

    return _made(run, [model], READ_LATER)


def _is_measured(run: Induct, model: str) -> bool:
    """Whether an experiment's folder has this model's scores, as they would be now."""
    if run.is_stage:
        return False

    name, made = short_name(model), _made_scores(run, model)
    if not run.is_made("profile", f"profile_{name}", made, scores=f"scores_{name}"):
        return False

    # A family that is asked for now may have been left out before.
    return "task_types" not in run.asked or "left_out" not in _profile(run, name)


def _scores(run: Induct, model: str) -> Arrays:
    """A model's scores, from the file that `profile` wrote."""
    return load_arrays(run.file("scores", "profile", f"scores_{short_name(model)}"))


def _profile(run: Induct, name: str) -> Report:
    """A model's profile, from the file that `profile` wrote."""
    return load_json(run.file("metrics", "profile", f"profile_{name}"))


def roles_of(run: Induct, model: str) -> "Roles":
    """What the profile says that each head of a model does."""
    from interp_core.statistics.heads import Head
    from pythia_topology.intervene_controls import Roles

    report = _profile(run, short_name(model))
    induction, writers = (
        [Head.read(name) for name in report[key]]
        for key in ("induction_heads", "previous_token_heads")
    )
    return Roles(_scores(run, model)["excess_prefix_matching"], induction, writers)


def _say_opening(subject: "Transformer") -> None:
    from interp_core.loading import begins_with

    click.echo(f"{subject.name}: prompts begin with {begins_with(subject)}")


def _begun(run: Induct, subject: "Transformer") -> Report:
    """What prompts began with; a stage's models are the project's own, and begin with their BOS."""
    from interp_core.loading import begun_with

    return {} if run.is_stage else begun_with(subject)


def _repeated(run: Induct, model: str) -> "tuple[Transformer, Prompts]":
    from pythia_topology.data import stimuli
    from pythia_topology.model import load

    subject = load(model, run.known, run.params)
    _say_opening(subject)
    only = run.params.model_copy(update={"task_types": ()})
    return subject, stimuli(subject, only)["repeated_tokens"]


def _test_settings(run: Induct) -> dict[str, Any]:
    params = run.params
    return {
        "mode": params.profile_mode,
        "q": params.high_score_quantile,
        "alpha": params.null_level,
        "draws": params.permutation_draws,
        "smallest_effect": params.smallest_excess,
        "resamples": params.bootstrap_resamples,
    }


def _sentence(report: dict[str, Any]) -> str:
    if report["n_induction_heads"] == 0:
        return "no induction heads: no head stands out of the null"

    best = ", ".join(report["induction_heads"][:5])
    peak, layers = report["peak_layer"], report["n_layers"]
    centre = report["centre_of_mass"]
    where = f"peak in layer {peak} of {layers}, centre at relative depth {centre['value']:.2f}"

    if centre["low"] is not None:
        where += f" [{centre['low']:.2f}, {centre['high']:.2f}]"

    return f"{report['verdict']} ({best}), {where}"


def _shift(report: dict[str, Any]) -> str:
    shift = report["centre_of_mass_shift"]
    if shift is None:
        return f"{report['verdict']}: no shift to speak of"

    moved = f"{shift['value']:+.3f} [{shift['low']:+.3f}, {shift['high']:+.3f}]"
    return f"long lags sit {moved} of relative depth from short ones"
