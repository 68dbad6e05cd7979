"""What each command does, from settings to files. Heavy rooms are imported where they are needed.

Each function imports its rooms itself: `make stages` reads from that what a stage depends on.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import click
import numpy as np

from interp_core.console.call import Arrays, Report
from interp_core.errors import InputError
from interp_core.files.artifacts import load_arrays, save_json
from interp_core.files.vouching import vouching
from interp_core.models.spec import short_name
from mamba_neurons.study import Neurons

if TYPE_CHECKING:
    from mamba_neurons.data import Texts
    from mamba_neurons.model import Model

# Settings that say what is measured, and nothing of how: records name it.
_UNREAD = frozenset({"model", "transformer", "texts", "enable_attention"})


def delta(run: Neurons) -> tuple[Arrays, Report]:
    """Step sizes, half-lives and selectivity of every inner channel."""
    from interp_core.mamba.subject import as_mamba
    from mamba_neurons.measure_delta import delta as measure

    model, texts = _model_and_texts(run, run.params.model)
    subject = as_mamba(model.subject)
    arrays, report = measure(subject, texts, run.params, run.rng("delta"))
    _save(run, "delta", model, texts, report, arrays)
    for layer, found in report["layers"].items():
        slowest = found["longest_half_life_quartiles"][1]
        click.echo(
            f"{model.name} layer {layer}: {found['n_delta_sensitive']} of {subject.n_scans} "
            f"{subject.unit}s differ between texts, median of their longest half-lives "
            f"{slowest:.3g} tokens"
        )

    return arrays, report


def causal(run: Neurons) -> tuple[Arrays, Report]:
    """Effects of every channel: a layer exactly in three ways, the model by estimates."""
    from interp_core.console.unfinished import dealt_out
    from interp_core.mamba.subject import as_mamba
    from mamba_neurons.intervene_channels import causal as measure

    model, texts = _model_and_texts(run, run.params.model)
    as_mamba(model.subject)

    with dealt_out(run, "mamba_causal", run.params.model, model.subject, unread=_UNREAD):
        arrays, report = measure(model, texts, run.params, run.rng("causal"))
        named = {"model_hash": model.subject.hash, **_begun(run, model), **report}
        run.save("causal", f"causal_{model.name}", named, arrays, made=_made_causal(run, texts))

    whole = report["whole_model"]
    for found in whole["agreement"]:
        exact = "computed exactly" if found["layer"] in whole["exact_layers"] else "estimates kept"
        click.echo(
            f"{model.name} layer {found['layer']}: estimates agree with {found['sample']} exact "
            f"effects at {found['kl']:.2f} (KL), {found['loss']:.2f} (loss): {exact}"
        )

    best = ", ".join(f"{top['neuron']} {top['kl']['value']:.3g}" for top in whole["top"][:5])
    click.echo(f"{model.name}: largest KL (nats, all exact): {best}")
    if "heads" in report:
        click.echo(_of_heads(model.name, report["heads"], arrays))
    return arrays, report


def _of_heads(name: str, report: Report, arrays: Arrays) -> str:
    """Each head of a Mamba-2's layer beside what random channels give."""
    ordered = sorted(report["heads"], key=lambda found: -found["kl"]["value"])
    said = ", ".join(f"{found['head']} {found['kl']['value']:.3g}" for found in ordered[:8])

    low, high = np.quantile(arrays["head_random_kl"], [0.025, 0.975])
    return (
        f"{name}: KL of whole heads (nats): {said}; as many random channels of the layer: "
        f"{low:.3g} to {high:.3g}"
    )


def inter_layer(run: Neurons) -> tuple[Arrays, Report]:
    """KL of the same residual dimension, layer by layer."""
    from mamba_neurons.intervene_influence import inter_layer as measure

    model, texts = _model_and_texts(run, run.params.model)
    arrays, report = measure(model, texts, run.params, run.rng("inter_layer"))
    _save(run, "inter_layer", model, texts, report, arrays)
    kl = ", ".join(
        f"layer {found['layer']} {found['mean_kl']['value']:.3g}" for found in report["layers"]
    )
    click.echo(f"{model.name}: mean KL of ablating one residual dimension (nats): {kl}")
    return arrays, report


def cross_layer(run: Neurons) -> tuple[Arrays, Report]:
    """What the best channels of each layer do to later channels, against random channels."""
    from interp_core.mamba.subject import as_mamba
    from mamba_neurons.intervene_influence import cross_layer as measure

    model, texts = _model_and_texts(run, run.params.model)
    as_mamba(model.subject)
    kl = _causal_of(run, model, texts)["kl"]
    arrays, report = measure(model, texts, kl, run.params, run.rng("cross_layer"))
    _save(run, "cross_layer", model, texts, report, arrays)
    for pair in report["influence"]["pairs"][:1]:
        against = pair["against_random"]
        click.echo(
            f"{model.name}: the top {run.params.top_k} of layer {pair['from']} move layer "
            f"{pair['to']} by {against['observed']:.3g} standard deviations a token; "
            f"{against['says']}"
        )
    return arrays, report


def attention(run: Neurons) -> tuple[Arrays, Report]:
    """Attention neurons by the chosen methods, and how faithful each is."""
    from interp_core.mamba.hidden_attention import reconstruction_error
    from interp_core.mamba.subject import as_mamba
    from mamba_neurons.data import halves
    from mamba_neurons.intervene_curves import faithfulness
    from mamba_neurons.intervene_estimates import fisher_order
    from mamba_neurons.intervene_units import unit_means
    from mamba_neurons.measure_attention import attention_summary, importances

    params = run.params
    model, texts = _model_and_texts(run, params.model)
    subject = as_mamba(model.subject)
    errors = reconstruction_error(subject, subject.ids(texts.tokens[:2]))
    found, maps = importances(model, texts, params)
    rank_rows, rows = halves(texts)
    orders = {
        name: np.argsort(-found[name][rank_rows].mean(axis=0), axis=1, kind="stable")
        for name in params.attention_methods
    }
    orders["fisher"] = fisher_order(
        model, texts.rows(rank_rows), params, run.rng("attention_fisher")
    )
    means = unit_means(model, texts, params.batch_size)
    faithful = faithfulness(
        model, texts.rows(rows), orders, params, means, run.rng("attention_faithfulness")
    )
    attention_data = {"reconstruction_error": errors, "faithfulness": faithful, **texts.described()}
    report = {
        "attention_data": attention_data,
        **attention_summary(found, params, run.rng("attention_summary")),
    }
    arrays = {f"{name}/importance": values for name, values in found.items()} | {"maps": maps}
    _save(run, "attention", model, texts, report, arrays)
    for method in params.attention_methods:
        deletion = faithful["deletion"][method]
        area = deletion["area"]
        click.echo(
            f"{model.name} {method}: deletion beats random orders by {area['value']:.3g} nats "
            f"[{area['low']:.3g}, {area['high']:.3g}], {deletion['against_random']['says']}"
        )
    return arrays, report


def sparsity(run: Neurons) -> dict[str, tuple[Arrays, Report]]:
    """Population and lifetime sparsity of every kind of unit, with the seed's measures beside;
    kinds of neuron.
    """
    from mamba_neurons.measure_activity import KINDS, activations, neuron_kind
    from mamba_neurons.measure_compare import fixed_thresholds
    from mamba_neurons.measure_kinds import kinds
    from mamba_neurons.measure_sparsity import seeds_of_layers, stream_all, summarise

    params = run.params
    results = {}

    for model, texts in _models_and_texts(run):
        names = KINDS[model.is_mamba]
        layers = list(params.sparsity_layers)
        streams = stream_all(
            activations(model, texts, layers, names, params.batch_size),
            n_texts=len(texts),
            groups=params.text_groups,
            thresholds=fixed_thresholds(params),
            share=params.near_zero,
        )

        report: Report = {"layers": {str(layer): {} for layer in layers}, **texts.described()}
        arrays: Arrays = {}
        rng = run.rng("sparsity")

        for (kind, layer), stream in streams.items():
            found, of_stream = summarise(
                stream,
                percentiles=params.percentiles,
                target=params.target_sparsity,
                resamples=params.bootstrap_resamples,
                lifetime_draws=params.lifetime_draws,
                rng=rng,
            )
            report["layers"][str(layer)][kind] = found
            arrays |= {f"{kind}/{layer}/{name}": values for name, values in of_stream.items()}

        for kind in ("inner", "gate") if model.is_mamba else (neuron_kind(model),):
            of_kind, report[f"kinds_{kind}"] = kinds(model, texts, layers, kind, params, rng)
            arrays |= {f"kinds_{kind}/{name}": values for name, values in of_kind.items()}

        own = [streams[neuron_kind(model), layer] for layer in layers]
        report |= seeds_of_layers(own, params.percentiles, params.target_sparsity)
        _save(run, "sparsity", model, texts, report, arrays)

        for layer in layers:
            found = report["layers"][str(layer)][neuron_kind(model)]
            gini = found["population"]["gini"]["value"]
            click.echo(f"{model.name} layer {layer}: Gini {gini:.3f} over neurons at a token")

        results[model.name] = (arrays, report)

    return results


def efficiency(run: Neurons) -> dict[str, tuple[Arrays, Report]]:
    """Parameters and active neurons, and the fewest units that keep the loss."""
    from mamba_neurons.data import halves
    from mamba_neurons.intervene_enough import how_few
    from mamba_neurons.intervene_estimates import whole_model
    from mamba_neurons.intervene_joint import joint_order, single_effects
    from mamba_neurons.intervene_units import scored_texts, unit_means
    from mamba_neurons.measure_compare import measure, seeds_efficiency

    params = run.params
    results = {}

    for model, texts in _models_and_texts(run):
        rank_rows, rows = halves(texts)
        ranking, judging = texts.rows(rank_rows), scored_texts(model, texts.rows(rows), params)
        means = unit_means(model, texts, params.batch_size)

        estimates = run.rng("efficiency_estimates")
        whole = whole_model(model, ranking, params, estimates, measures=("kl",))
        batches = scored_texts(model, ranking, params)
        single = single_effects(model, batches, whole, params, means)
        orders = {
            "single": np.argsort(-single, axis=None, kind="stable"),
            "joint": joint_order(model, batches, params, means, run.rng("efficiency_joint")),
        }

        few = how_few(model, judging, orders, params, means, run.rng("efficiency_curve"))
        report = {
            **seeds_efficiency(measure(model, texts, params), params),
            "functional": few,
            "ranked_by": {
                "exact_layers": whole.exact_layers,
                "agreement": [c.agreement for c in whole.calibrations],
            },
            **texts.described(),
        }
        arrays = {"kl": single, "joint_order": orders["joint"]}
        _save(run, "efficiency", model, texts, report, arrays)

        for name, found in few["rankings"].items():
            click.echo(
                f"{model.name}: {found['enough']['value']:.0f} of {few['units']} units, ranked by "
                f"{name} effects, keep the loss within {few['tolerance']:.0%}; random orders need "
                f"{found['against_random']['random']['value']:.0f}"
            )
        results[model.name] = (arrays, report)

    return results


def compare(run: Neurons) -> tuple[Arrays, Report]:
    """The Mamba and the transformer on the same token ids."""
    from mamba_neurons.data import load_texts, read_documents, same_tokens
    from mamba_neurons.measure_compare import compare as measure
    from mamba_neurons.measure_compare import measure as of_one
    from mamba_neurons.model import load

    params = run.params
    first, second = (load(name, run.known, params) for name in (params.model, params.transformer))

    documents = read_documents(params)[: params.text_limit]
    differ = same_tokens(first.subject, second.subject, documents)
    if differ is not None and not params.own_tokens:
        raise InputError(
            f"{first.name} and {second.name} have different tokenizers ({differ}): sparsity and "
            "loss of other tokens do not compare; choose a pair that shares one, or say "
            "--own-tokens"
        )

    ours, theirs = (load_texts(model.subject, params) for model in (first, second))
    both = of_one(first, ours, params), of_one(second, theirs, params)
    arrays, report = measure(*both, params, run.rng("compare"))
    report |= {"same_tokens": differ is None, **ours.described()}

    made = _made(run, (params.model, params.transformer), ours)
    stem = f"compare_{first.name}_{second.name}"
    named = {"model_hash": first.subject.hash, **_begun(run, first), **report}
    run.save("compare", stem, named, arrays, made=made)

    gini, loss = report["sparsity"]["gini"]["difference"], report["loss"]["difference"]
    click.echo(
        f"{first.name} - {second.name}: Gini {gini['value']:+.3f} "
        f"[{gini['low']:+.3f}, {gini['high']:+.3f}], "
        f"loss {loss['value']:+.3f} nats, n = {loss['n']} texts"
    )
    return arrays, report


def figures(run: Neurons) -> None:
    """All figures, from files alone."""
    from mamba_neurons.figures import draw_all

    written = draw_all([short_name(name) for name in _measured(run)], run.place)
    if not run.is_stage:
        click.echo(f"{len(written)} figures in {run.place('figures', '')}")


def draw(run: Neurons, command: str) -> None:
    """An experiment's figures of one command, from the files that it has just written."""
    if not run.is_stage:
        from mamba_neurons import figures as drawn

        drawn.draw(command, run.names, run.place)


def whole_run(run: Neurons, *, save_results: bool) -> None:
    """Every part in turn with its figures, and with save_results one JSON with all of it.

    `efficiency` and `sparsity` have the flat keys of earlier versions, of the Mamba; under `models`
    they have the reports of both.
    """
    results: Report = {"model": short_name(run.params.model)}
    if len(run.models) > 1:
        results["transformer"] = short_name(run.params.transformer)

    for command in (delta, causal, inter_layer, cross_layer):
        results[command.__name__] = command(run)[1]
        draw(run, command.__name__)

    if run.params.enable_attention:
        results |= attention(run)[1]
        draw(run, "attention")

    for command in (sparsity, efficiency):
        reports = {name: report for name, (_, report) in command(run).items()}
        results[command.__name__] = {**reports[results["model"]], "models": reports}
        draw(run, command.__name__)

    if len(run.models) > 1:
        results["comparison"] = compare(run)[1]
        draw(run, "compare")
    else:
        click.echo(
            "no transformer was named beside this model: compare is left out (--transformer)"
        )

    if save_results:
        path = run.file("metrics", "run", f"results_{results['model']}")
        with vouching(path):
            save_json(path, results)
        click.echo(f"results: {path}")


def _measured(run: Neurons) -> list[str]:
    """The Mamba, and the transformer where the call is about it too."""
    return [name for name in (run.params.model, run.params.transformer) if name in run.models]


def _models_and_texts(run: Neurons) -> "Iterator[tuple[Model, Texts]]":
    for name in _measured(run):
        yield _model_and_texts(run, name)


def _model_and_texts(run: Neurons, name: str) -> "tuple[Model, Texts]":
    """A loaded model and what it reads. InputError for a layer or a top_k that it does not have."""
    from interp_core.loading import begins_with
    from mamba_neurons.data import load_texts
    from mamba_neurons.model import load

    model = load(name, run.known, run.params)
    click.echo(f"{model.name}: texts begin with {begins_with(model.subject)}")
    if name == run.params.model:
        model.check_layer(run.params.layer)
        model.check_top_k(run.params.top_k)
    texts = load_texts(model.subject, run.params)
    if texts.truncated and not run.is_stage:
        click.echo(
            f"{model.name}: {texts.truncated} texts are longer than {texts.tokens.shape[1]} tokens "
            "and were cut"
        )
    return model, texts


def _causal_of(run: Neurons, model: "Model", texts: "Texts") -> Arrays:
    """The arrays that `causal` wrote; an experiment without them, or with those of other settings,
    makes them first.
    """
    stem = f"causal_{model.name}"
    if not run.is_stage and not run.is_made("causal", stem, _made_causal(run, texts)):
        return causal(run)[0]
    return load_arrays(run.file("scores", "causal", stem))


def _begun(run: Neurons, model: "Model") -> Report:
    """What texts began with; a stage's models are the project's own, and begin with their BOS."""
    from interp_core.loading import begun_with

    return {} if run.is_stage else begun_with(model.subject)


def _made(
    run: Neurons, models: Sequence[str], texts: "Texts", unread: Collection[str] = ()
) -> Report:
    """What a record of these models is made from: their files, the texts, and settings."""
    return run.made_from(run.sources(models), unread={*_UNREAD, *unread}, read=[texts.sha256])


def _made_causal(run: Neurons, texts: "Texts") -> Report:
    """What causal effects are made from."""
    return _made(run, [run.params.model], texts, unread={"attention_methods"})


def _save(
    run: Neurons, command: str, model: "Model", texts: "Texts", report: Report, arrays: Arrays
) -> None:
    (name,) = [name for name in run.models if short_name(name) == model.name]
    named = {"model_hash": model.subject.hash, **_begun(run, model), **report}
    run.save(command, f"{command}_{model.name}", named, arrays, made=_made(run, [name], texts))
