"""What each command does, from settings to files. Heavy rooms are imported where they are needed.

Each function imports its rooms itself: `make stages` reads from that what a stage depends on.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from interp_core.errors import InputError
from interp_core.files.artifacts import (
    check_writable,
    load_arrays,
    load_json,
    save_arrays,
    save_json,
)
from interp_core.files.params import project_root
from interp_core.models.spec import short_name
from pythia_topology.study import Arrays, Report, Run

if TYPE_CHECKING:
    from interp_core.models.subject import Subject
    from interp_core.stimuli.prompts import Prompts


def profile(run: Run) -> dict[str, tuple[Arrays, Report]]:
    """Scores and layer profile of each model; those that an experiment's folder already has are not
    measured again.
    """
    found = {}
    for model, name in zip(run.params.models, run.names, strict=True):
        if _is_measured(run, model):
            found[name] = (
                _scores(run, model),
                load_json(run.place("metrics", "profile") / f"profile_{name}.json"),
            )
            click.echo(f"{name}: measured before, {_sentence(found[name][1])}")
        else:
            found[name] = _measure(run, model)
    return found


def ensure_scores(run: Run) -> None:
    """Measure the models of an experiment whose scores are not in its folder for these weights and
    settings.
    """
    for model in run.params.models:
        if not _is_measured(run, model):
            _measure(run, model)


def check_request(run: Run, command: str) -> None:
    """InputError for what a command cannot do with these settings, or where it cannot write, before
    anything is measured.
    """
    if command == "crosssize" and run.out is not None and len(run.params.models) != 2:
        raise InputError(
            f"crosssize compares two models, got {len(run.params.models)}; multisize takes any "
            "number"
        )
    if command == "lagbuckets" and "spaced_pairs" not in run.params.task_types:
        raise InputError("lagbuckets needs the family spaced_pairs: add it to --task-types")
    if run.out is not None:
        check_writable(run.out)


def nulls(run: Run) -> dict[str, tuple[Arrays, Report]]:
    """Each model against permuted heads, shuffled antecedents and an untrained model."""
    from pythia_topology.measure_layer_profile import evidence
    from pythia_topology.measure_nulls import nulls_summary

    found = {}
    for model, name in zip(run.params.models, run.names, strict=True):
        arrays = _scores(run, model)
        heads = evidence(arrays, "repeated_tokens")
        untrained = arrays["untrained/excess_prefix_matching"]
        report = nulls_summary(heads, untrained, run.rng(10), **_test_settings(run))
        report = {"name": name, "seed": run.params.seed, **report}
        save_json(run.place("metrics", "nulls") / f"nulls_{name}.json", report)
        best = report["permute_summary"]["p_max"]
        click.echo(
            f"{name}: {report['verdict']}; heads denser in one layer than dealt at random: p = "
            f"{best:.3g}"
        )
        found[name] = (arrays, report)
    return found


def crosssize(run: Run, *, several: bool = False) -> Report:
    """Depth profiles of two models (or several: any number), their differences and their
    equivalence.
    """
    from pythia_topology.measure_crosssize import crosssize_summary
    from pythia_topology.measure_layer_profile import evidence

    if not several and len(run.params.models) != 2:  # a stage: the smallest and the largest
        ends = (run.params.models[0], run.params.models[-1])
        run = replace(run, params=run.params.model_copy(update={"models": ends}))
    models = {
        name: _scores(run, model) for model, name in zip(run.params.models, run.names, strict=True)
    }
    report = crosssize_summary(
        {name: evidence(arrays, "repeated_tokens") for name, arrays in models.items()},
        run.rng(11),
        margin=run.params.equivalence_margin,
        equivalence_alpha=0.05,
        grid_points=101,
        **_test_settings(run),
    )
    name, folder = ("multi_size", "multisize") if several else ("cross_size", "crosssize")
    save_json(run.place("metrics", folder) / f"{name}.json", {"seed": run.params.seed, **report})
    click.echo(f"stable relative depth: {report['verdict']}")
    return report


def multisize(run: Run) -> Report:
    """Depth profiles of any number of models, all pairs."""
    return crosssize(run, several=True)


def lagbuckets(run: Run) -> dict[str, Report]:
    """Short against long lags of spaced pairs."""
    from pythia_topology.measure_lags import lags_summary
    from pythia_topology.measure_layer_profile import evidence

    reports = {}
    for model, name in zip(run.params.models, run.names, strict=True):
        arrays = _scores(run, model)
        report = lags_summary(
            evidence(arrays, "spaced_pairs"),
            arrays["prompts/spaced_pairs/lag"],
            run.rng(12),
            split=run.params.split_lag,
            **_test_settings(run),
        )
        reports[name] = {"name": name, "seed": run.params.seed, **report}
        save_json(run.place("metrics", "lagbuckets") / f"lags_{name}.json", reports[name])
        click.echo(f"{name}: {_shift(report)}")
    return reports


def causal(run: Run) -> dict[str, tuple[Arrays, Report]]:
    """The best heads of each model ablated, against layer-matched random heads."""
    from pythia_topology import intervene

    found = {}
    for model, name in zip(run.params.models, run.names, strict=True):
        excess = _scores(run, model)["excess_prefix_matching"]
        subject, prompts = _repeated(run, model)
        report, arrays = intervene.causal(subject, prompts, excess, run.params)
        run.save("causal", name, report, arrays)
        click.echo(f"{name}: {report['verdict']}")
        found[name] = (arrays, report)
    return found


def composition(run: Run) -> dict[str, tuple[Arrays, Report, Arrays]]:
    """K-composition of earlier heads into the best induction heads, confirmed by path patching."""
    from pythia_topology.intervene_paths import composition as compose

    found = {}
    for model, name in zip(run.params.models, run.names, strict=True):
        scores = _scores(run, model)
        subject, prompts = _repeated(run, model)
        report, arrays = compose(subject, prompts, scores["excess_prefix_matching"], run.params)
        run.save("composition", name, report, arrays)
        click.echo(f"{name}: {report['verdict']}")
        found[name] = (arrays, report, scores)
    return found


def emergence(run: Run) -> dict[str, tuple[Arrays, Report]]:
    """When copying, induction heads and previous-token heads form, over training checkpoints."""
    from interp_core.models.spec import spec_of
    from pythia_topology.intervene import first_prompts
    from pythia_topology.measure_emergence import emergence as emerge

    found = {}
    for model, name in zip(run.params.models, run.names, strict=True):
        subject, prompts = _repeated(run, model)
        used = first_prompts(prompts, run.params.causal_sequences)
        report, arrays = emerge(subject, spec_of(model, run.known), used, run.params)
        run.save("emergence", name, report, arrays)
        found[name] = (arrays, report)
        click.echo(f"{name}: {report['verdict']}")
    return found


def figures(run: Run) -> None:
    """All figures of the pipeline, from its files alone."""
    from pythia_topology.figures import draw_all

    draw_all(run.names, project_root() / "data" / "pythia_topology")


def print_prompts(run: Run) -> None:
    """The first two prompts of each family, as text where the model has a tokenizer, without
    running the model.
    """
    from pythia_topology.data import stimuli
    from pythia_topology.model import load

    for model in run.params.models:
        subject = load(model, run.known, run.params)
        for family, prompts in stimuli(subject, run.params).items():
            for row, length in zip(prompts.tokens[:2], prompts.lengths[:2], strict=True):
                ids = row[:length].tolist()
                text = (
                    repr(subject.tokenizer.decode(ids))
                    if subject.tokenizer is not None
                    else " ".join(map(str, ids))
                )
                click.echo(f"{subject.name} {family}: {text}")


def _measure(run: Run, model: str) -> tuple[Arrays, Report]:
    """Score one model and write its scores and profile."""
    from interp_core.statistics.resampling import mean_interval
    from pythia_topology.data import prompts_sha256, stimuli
    from pythia_topology.measure_heads import score_arrays
    from pythia_topology.measure_layer_profile import evidence, layer_profile_summary
    from pythia_topology.model import fingerprint, load

    subject = load(model, run.known, run.params)
    name = subject.name
    prompts = stimuli(subject, run.params)
    arrays = score_arrays(subject, prompts, run.params)
    summary = layer_profile_summary(
        evidence(arrays, "repeated_tokens"), run.rng(13), splits=100, **_test_settings(run)
    )
    behaviour = {}
    for family, of_family in prompts.items():
        accuracy = mean_interval(
            arrays[f"prompts/{family}/accuracy"],
            run.rng(14),
            resamples=run.params.bootstrap_resamples,
        )
        behaviour[family] = {
            "n": len(of_family.tokens),
            "copy_operations": len(of_family.pairs),
            "accuracy": float(accuracy.value),
            "accuracy_ci": [float(accuracy.low), float(accuracy.high)],
            "loss": float(arrays[f"prompts/{family}/loss"].mean()),
            "control_accuracy": float(arrays[f"prompts/{family}/control_accuracy"].mean()),
            "control_loss": float(arrays[f"prompts/{family}/control_loss"].mean()),
        }
    report = {
        "name": name,
        **summary,
        "seed": run.params.seed,
        "behaviour": behaviour,
        "model_hash": subject.hash,
        "prompts_hash": prompts_sha256(prompts),
        "n_parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
    }
    if run.out:
        report["fingerprint"] = fingerprint(model, run.known, run.params)
    record = run.place("metrics", "profile") / f"profile_{name}.json"
    record.unlink(missing_ok=True)  # an old record must never vouch for new scores
    save_arrays(run.place("scores", "profile") / f"scores_{name}.npz", arrays)
    save_json(record, report)
    click.echo(f"{name}: {_sentence(report)}")
    return arrays, report


def _is_measured(run: Run, model: str) -> bool:
    """Whether an experiment's folder has the scores of this model for its weights and these
    settings.
    """
    from pythia_topology.model import fingerprint

    name = short_name(model)
    if run.out is None or not (run.out / f"scores_{name}.npz").is_file():
        return False
    record = run.out / f"profile_{name}.json"
    return record.is_file() and load_json(record).get("fingerprint") == fingerprint(
        model, run.known, run.params
    )


def _scores(run: Run, model: str) -> Arrays:
    """A model's scores, from the file that `profile` wrote."""
    return load_arrays(run.place("scores", "profile") / f"scores_{short_name(model)}.npz")


def _repeated(run: Run, model: str) -> "tuple[Subject, Prompts]":
    from pythia_topology.data import stimuli
    from pythia_topology.model import load

    subject = load(model, run.known, run.params)
    only = run.params.model_copy(update={"task_types": ()})
    return subject, stimuli(subject, only)["repeated_tokens"]


def _test_settings(run: Run) -> dict[str, Any]:
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
    low, high = report["peak_rel_ci"]
    best = ", ".join(report["induction_heads"][:5])
    return (
        f"{report['verdict']} ({best}), peak at relative depth {report['peak_rel']:.2f} "
        f"[{low:.2f}, {high:.2f}]"
    )


def _shift(report: dict[str, Any]) -> str:
    shift = report["centre_of_mass_shift"]
    if shift is None:
        return f"{report['verdict']}: no shift to speak of"
    low, high = shift["ci"]
    return (
        f"long lags sit {shift['value']:+.3f} of relative depth from short ones [{low:+.3f}, "
        f"{high:+.3f}]"
    )
