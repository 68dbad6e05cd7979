"""What each command does, from settings to files. Heavy rooms are imported where they are needed.

Each function imports its rooms itself: `make stages` reads from that what a stage depends on.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click
import numpy as np

from interp_core.errors import InputError
from interp_core.files.artifacts import load_arrays, load_json, save_json
from interp_core.models.spec import short_name
from mamba_neurons.study import Arrays, Report, Run

if TYPE_CHECKING:
    from mamba_neurons.data import Texts
    from mamba_neurons.model import Model


def delta(run: Run) -> tuple[Arrays, Report]:
    """Step sizes, half-lives and selectivity of every inner channel."""
    from interp_core.mamba.subject import as_mamba
    from mamba_neurons.measure_delta import delta as measure

    model, texts = _model_and_texts(run, run.params.model)
    arrays, report = measure(as_mamba(model.subject), texts, run.params, run.rng(1))
    _save(run, "delta", model, report, arrays)
    for layer, found in report["layers"].items():
        slowest = found["longest_half_life_quartiles"][1]
        click.echo(
            f"{model.name} layer {layer}: {found['n_delta_sensitive']} of {model.n_neurons} "
            "channels differ between "
            f"texts, median of their longest half-lives {slowest:.3g} tokens"
        )
    return arrays, report


def causal(run: Run) -> tuple[Arrays, Report]:
    """Effects of every channel: one layer exactly in three ways, the model by calibrated estimates."""
    from interp_core.mamba.subject import as_mamba
    from mamba_neurons.intervene_channels import causal as measure

    model, texts = _model_and_texts(run, run.params.model)
    as_mamba(model.subject)
    arrays, report = measure(model, texts, run.params, run.rng(2))
    report["fingerprint"] = _fingerprint(run, model, texts)
    _save(run, "causal", model, report, arrays)
    whole = report["whole_model"]
    for found in whole["agreement"]:
        exact = "computed exactly" if found["layer"] in whole["exact_layers"] else "estimates kept"
        click.echo(
            f"{model.name} layer {found['layer']}: estimates agree with {found['sample']} exact "
            "effects at "
            f"{found['kl']:.2f} (KL), {found['loss']:.2f} (loss): {exact}"
        )
    best = ", ".join(f"{top['neuron']} {top['kl']:.3g}" for top in whole["top"][:5])
    click.echo(f"{model.name}: largest KL (nats, all exact): {best}")
    return arrays, report


def inter_layer(run: Run) -> tuple[Arrays, Report]:
    """KL of the same residual dimension, layer by layer."""
    from mamba_neurons.intervene_influence import inter_layer as measure

    model, texts = _model_and_texts(run, run.params.model)
    arrays, report = measure(model, texts, run.params, run.rng(3))
    _save(run, "inter_layer", model, report, arrays)
    kl = ", ".join(f"layer {found['layer']} {found['mean_kl']:.3g}" for found in report["layers"])
    click.echo(f"{model.name}: mean KL of ablating one residual dimension (nats): {kl}")
    return arrays, report


def cross_layer(run: Run) -> tuple[Arrays, Report]:
    """What the best channels of each layer do to later channels, against random channels."""
    from interp_core.mamba.subject import as_mamba
    from mamba_neurons.intervene_influence import cross_layer as measure

    model, texts = _model_and_texts(run, run.params.model)
    as_mamba(model.subject)
    kl = _causal_of(run, model, texts)["kl"]
    arrays, report = measure(model, texts, kl, run.params, run.rng(4))
    _save(run, "cross_layer", model, report, arrays)
    total, null = report["influence"]["total"], report["influence"]["null"]
    if model.n_layers > 1:
        click.echo(
            f"{model.name}: the top {run.params.top_k} of layer 0 move layer 1 by "
            f"{total[0][1]:.3g} standard "
            f"deviations a token, random channels by {null[0][1]:.3g}"
        )
    return arrays, report


def attention(run: Run) -> tuple[Arrays, Report]:
    """Attention neurons by the chosen methods, and how faithful each is."""
    from interp_core.mamba.hidden_attention import reconstruction_error
    from interp_core.mamba.subject import as_mamba
    from mamba_neurons.intervene_curves import faithfulness, halves
    from mamba_neurons.intervene_estimates import fisher_order
    from mamba_neurons.measure_attention import attention_summary, importances
    from mamba_neurons.model import neuron_means

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
    orders["fisher"] = fisher_order(model, texts.rows(rank_rows), params, run.rng(5))
    means = neuron_means(model, texts, params.batch_size)
    faithful = faithfulness(model, texts.rows(rows), orders, params, means, run.rng(6))
    attention_data = {"reconstruction_error": errors, "faithfulness": faithful, **texts.described()}
    report = {"attention_data": attention_data, **attention_summary(found, params, run.rng(7))}
    arrays = {f"{name}/importance": values for name, values in found.items()} | {"maps": maps}
    _save(run, "attention", model, report, arrays)
    for method in params.attention_methods:
        deletion = faithful["deletion"][method]
        low, high = deletion["area_ci"]
        click.echo(
            f"{model.name} {method}: deletion beats random orders by {deletion['area']:.3g} nats "
            f"[{low:.3g}, {high:.3g}], p = {deletion['p']:.3g}"
        )
    return arrays, report


def sparsity(run: Run) -> dict[str, tuple[Arrays, Report]]:
    """Population and lifetime sparsity of every kind of unit, with the seed's measures beside;
    kinds of neuron.
    """
    from mamba_neurons.measure_activity import KINDS, activations, neuron_kind
    from mamba_neurons.measure_kinds import kinds
    from mamba_neurons.measure_sparsity import stream_all, summarise

    params = run.params
    results = {}
    for model, texts in _models_and_texts(run):
        names = KINDS[model.is_mamba]
        layers = list(params.sparsity_layers)
        streams = stream_all(
            activations(model, texts, layers, names, params.batch_size),
            n_texts=len(texts),
            groups=params.text_groups,
            thresholds=(params.mamba_threshold, params.transformer_threshold),
            share=params.near_zero,
        )
        report: Report = {"layers": {str(layer): {} for layer in layers}, **texts.described()}
        arrays: Arrays = {}
        rng = run.rng(8)
        for (kind, layer), stream in streams.items():
            found, of_stream = summarise(
                stream,
                percentiles=params.percentiles,
                target=params.target_sparsity,
                resamples=params.bootstrap_resamples,
                rng=rng,
            )
            report["layers"][str(layer)][kind] = found
            arrays |= {f"{kind}/{layer}/{name}": values for name, values in of_stream.items()}
        for kind in ("inner", "gate") if model.is_mamba else (neuron_kind(model),):
            of_kind, report[f"kinds_{kind}"] = kinds(model, texts, layers, kind, params, rng)
            arrays |= {f"kinds_{kind}/{name}": values for name, values in of_kind.items()}
        _save(run, "sparsity", model, report, arrays)
        for layer in layers:
            found = report["layers"][str(layer)][neuron_kind(model)]
            gini, p50 = found["population"]["gini"], found["percentile"].get("p50")
            said = (
                ""
                if p50 is None
                else f"; P50 threshold {p50['threshold']:.3g} (its sparsity is .5 by construction)"
            )
            click.echo(
                f"{model.name} layer {layer}: Gini {gini['value']:.3f} over neurons at a "
                f"token{said}"
            )
        results[model.name] = (arrays, report)
    return results


def efficiency(run: Run) -> dict[str, tuple[Arrays, Report]]:
    """Parameters and active neurons, and the fewest neurons that keep the loss."""
    from mamba_neurons.intervene_curves import functional_curve, halves
    from mamba_neurons.intervene_estimates import whole_model
    from mamba_neurons.measure_compare import measure, seeds_efficiency
    from mamba_neurons.model import neuron_means

    results = {}
    for model, texts in _models_and_texts(run):
        rank_rows, rows = halves(texts)
        whole = whole_model(model, texts.rows(rank_rows), run.params, run.rng(9), measures=("kl",))
        means = neuron_means(model, texts, run.params.batch_size)
        curve = functional_curve(
            model, texts.rows(rows), whole.mean_kl, run.params, means, run.rng(10)
        )
        report = {
            **seeds_efficiency(measure(model, texts, run.params), run.params),
            "functional": curve,
            "ranked_by": {
                "exact_layers": whole.exact_layers,
                "agreement": [c.agreement for c in whole.calibrations],
            },
            **texts.described(),
        }
        arrays = {"kl": whole.mean_kl}
        _save(run, "efficiency", model, report, arrays)
        click.echo(
            f"{model.name}: {curve['enough']} of {curve['neurons']} neurons keep the loss within "
            f"{curve['tolerance']:.0%} ({report['active_neurons']} are active, "
            f"{report['total_parameters']} parameters)"
        )
        results[model.name] = (arrays, report)
    return results


def compare(run: Run) -> tuple[Arrays, Report]:
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
            "loss of other tokens "
            "do not compare; choose a pair that shares one, or say --own-tokens"
        )
    ours, theirs = (load_texts(model.subject, params) for model in (first, second))
    arrays, report = measure(
        of_one(first, ours, params), of_one(second, theirs, params), params, run.rng(11)
    )
    report |= {"same_tokens": differ is None, **ours.described()}
    run.save(
        "compare",
        f"{first.name}_{second.name}",
        {"model_hash": first.subject.hash, **report},
        arrays,
    )
    gini = report["sparsity"]["gini"]["difference"]
    click.echo(
        f"{first.name} - {second.name}: Gini {gini['value']:+.3f} [{gini['ci'][0]:+.3f}, "
        f"{gini['ci'][1]:+.3f}], "
        f"loss {report['loss']['difference']['value']:+.3f} nats, n = {report['loss']['n']} texts"
    )
    return arrays, report


def figures(run: Run) -> None:
    """All figures of the pipeline, from its files alone."""
    from mamba_neurons.figures import draw_all

    draw_all(run.names, run.place, run.plots)


def whole_run(run: Run, *, save_results: bool) -> None:
    """Every part in turn, its figures, and with save_results one JSON with all of it."""
    results: Report = {
        "model": short_name(run.params.model),
        "transformer": short_name(run.params.transformer),
    }
    for command in (delta, causal, inter_layer, cross_layer):
        results[command.__name__] = command(run)[1]
    if run.params.enable_attention:
        results |= attention(run)[1]
    for command in (sparsity, efficiency):
        results[command.__name__] = {name: report for name, (_, report) in command(run).items()}
    results["comparison"] = compare(run)[1]
    if save_results:
        path = run.place("metrics", "run") / f"results_{results['model']}.json"
        save_json(path, results)
        click.echo(f"results: {path}")


def _models_and_texts(run: Run) -> "Iterator[tuple[Model, Texts]]":
    for name in run.models:
        yield _model_and_texts(run, name)


def _model_and_texts(run: Run, name: str) -> "tuple[Model, Texts]":
    """A loaded model and what it reads. InputError for a layer or a top_k that it does not have."""
    from mamba_neurons.data import load_texts
    from mamba_neurons.model import load

    model = load(name, run.known, run.params)
    if name == run.params.model:
        model.check_layer(run.params.layer)
        model.check_top_k(run.params.top_k)
    texts = load_texts(model.subject, run.params)
    if texts.truncated and run.out is not None:
        click.echo(
            f"{model.name}: {texts.truncated} texts are longer than {texts.tokens.shape[1]} tokens "
            "and were cut"
        )
    return model, texts


def _causal_of(run: Run, model: "Model", texts: "Texts") -> Arrays:
    """The arrays that `causal` wrote; an experiment without them, or with those of other settings,
    makes them first.
    """
    path = run.place("scores", "causal") / f"causal_{model.name}.npz"
    record = run.place("metrics", "causal") / f"causal_{model.name}.json"
    if run.out is not None:
        made = record.is_file() and path.is_file()
        if not made or load_json(record).get("fingerprint") != _fingerprint(run, model, texts):
            return causal(run)[0]
    return load_arrays(path)


def _fingerprint(run: Run, model: "Model", texts: "Texts") -> str:
    """What causal effects depend on."""
    settings = run.params.model_dump(
        mode="json", exclude={"transformer", "enable_attention", "attention_methods"}
    )
    content = json.dumps([model.subject.hash, texts.sha256, settings], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _save(run: Run, command: str, model: "Model", report: Report, arrays: Arrays) -> None:
    run.save(command, model.name, {"model_hash": model.subject.hash, **report}, arrays)
