"""analysis_summary.txt: the numbers of every report and of every single sequence, in words and
tables.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from interp_core.files.artifacts import load_arrays, load_json, replacing
from mamba_induction.figures import Place, reports

Report = Mapping[str, Any]


def write_text(path: Path, text: str) -> None:
    """The text as a file: whole or not at all."""
    with replacing(path) as part:
        part.write_text(text)


def summary_text(models: Sequence[str], main: str, place: Place) -> str:
    """All sections, of the commands that have run. InputError when a report is missing."""
    analyses = reports(place, "analyse", "analysis", models)
    lines = [
        "MAMBA INDUCTION: ANALYSIS SUMMARY",
        f"models: {', '.join(models)}; single sequences: {main}",
    ]
    lines += ["numbers in brackets are 95 % intervals, prompts resampled", *_overall(analyses)]
    if analyses:
        lines += _sequences(load_arrays(place("scores", "analyse") / f"sequences_{main}.npz"))
        lines += [*_layers(analyses), *_predictions(analyses)]
    gaps = reports(place, "gap", "gap", models)
    lines += [*_gap(gaps), *_occurrences(gaps)]
    lines += _causal(reports(place, "causal", "causal", models))
    changed = place("metrics", "analyse") / "change.json"
    if changed.is_file():
        lines += _change(load_json(changed))
    return "\n".join(lines) + "\n"


def _overall(analyses: Mapping[str, Report]) -> Iterator[str]:
    yield from _heading("OVERALL")
    for name, report in analyses.items():
        error = report["reconstruction_error"]
        yield (
            f"{name}: {report['architecture']}, {report['layers']} layers, {report['parameters']} "
            "parameters"
        )
        if error is not None:
            yield f"  alpha x + D x against the stock model, largest relative error: {error:.2e}"
        for kind in ("trained", "untrained"):
            null = report["null"][kind]
            tests = ", ".join(
                f"L{layer} {excess:+.4f} (p = {p:.4f})"
                for layer, (excess, p) in enumerate(zip(null["excess"], null["p"], strict=True))
            )
            yield f"  prefix matching above the control, {kind}: {tests}"
            yield f"    layers above {null['threshold']:.4f}: {null['induction_layers'] or 'none'}"


def _sequences(arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    yield from _heading("PER SEQUENCE")
    for index in sorted({int(key.partition("/")[0]) for key in arrays}):
        query, earlier = arrays[f"{index}/query"], arrays[f"{index}/earlier"]
        probability, rank = (
            arrays[f"{index}/probability"][:, query],
            np.exp(arrays[f"{index}/log_rank"][:, query]),
        )
        similar = arrays[f"{index}/similarity"][:, query, earlier].mean(axis=1)
        reads = arrays[f"{index}/attention"][:, query, earlier + 1].mean(axis=1)
        yield f"sequence {index} ({arrays[f'{index}/family']}): {''.join(arrays[f'{index}/words'])}"
        yield f"  {len(query)} copy operations; right: {np.mean(rank[-1] < 1.5):.3f}"
        yield f"  similarity with the earlier occurrence by layer: {_row(similar)}"
        yield f"  effective attention to the answer's place by layer: {_row(reads)}"
        yield f"  probability of the answer by depth: {_row(probability.mean(axis=1))}"
        yield (
            "  entropy by depth at repeats: "
            f"{_row(arrays[f'{index}/entropy'][:, query].mean(axis=1))}"
        )


def _layers(analyses: Mapping[str, Report]) -> Iterator[str]:
    yield from _heading("LAYER-WISE EMERGENCE")
    scores = ("prefix_matching", "excess_prefix_matching", "copying", "copying_excess")
    similar = ("hidden_similarity", "hidden_similarity_excess", "untrained/hidden_similarity")
    for name, report in analyses.items():
        excess = report["scores"]["excess_prefix_matching"]["value"]
        order = ", ".join(f"L{layer}" for layer in np.argsort(excess)[::-1][:3])
        yield f"{name}: layers that contribute most to prefix matching: {order}"
        for layer in range(report["layers"]):
            peak = report["peak_offset"][layer]
            yield (
                f"  L{layer}: peak at offset {peak['offset']} {peak['ci']} (in "
                f"{peak['share_of_draws']:.3f} of draws); "
                f"offset profile {report['offsets']}: "
                f"{_row(report['scores']['offset_profile']['value'][layer])}"
            )
            for score in (*scores, *similar):
                yield f"    {score}: {_interval(report['scores'][score], layer)}"


def _predictions(analyses: Mapping[str, Report]) -> Iterator[str]:
    yield from _heading("PREDICTIONS")
    single = ("pairs", "repeated_text", "natural", "unpredicted", "control")
    for name, report in analyses.items():
        yield f"{name}:"
        scores = report["scores"]
        for copy in range(len(scores["loss_by_copy"]["value"])):
            yield f"  loss of copy {copy + 1}: {_interval(scores['loss_by_copy'], copy)}"
        for kind, places in (("period", report["periods"]), ("lag", report["lags"])):
            for index, value in enumerate(places):
                yield (
                    f"  accuracy at {kind} {value}: "
                    f"{_interval(scores[f'accuracy_by_{kind}'], index)}"
                )
        others = [
            *(f"{kind}_accuracy" for kind in single),
            "repetition_gain",
            "text_loss",
            "in_context_score",
        ]
        for score in others:
            if score in scores:
                yield f"  {score}: {_interval(scores[score])} (n = {scores[score]['n']})"


def _gap(gaps: Mapping[str, Report]) -> Iterator[str]:
    yield from _heading("RECOGNITION AGAINST PREDICTION")
    for name, family, report in _families(gaps):
        yield f"{name}, {family}:"
        scores = report["scores"]
        for kind, found in report["recognition"].items():
            yield (
                f"  by {kind}: layer {found['layer']}, threshold {found['threshold']:.4f}; "
                f"recognised {_interval(scores[f'recognised/{kind}'])}, "
                f"and not predicted {_interval(scores[f'not_predicted/{kind}'])}"
            )
        for condition in ("second", "first", "control"):
            if f"{condition}/margin" in scores:
                margin = _interval(scores[f"{condition}/margin"])
                yield f"  margin over the best bigram competitor, {condition}: {margin} nats"
        for index, part in enumerate(report["parts"]):
            second, control = (
                _interval(scores[f"{condition}/parts"], index)
                for condition in ("second", "control")
            )
            yield f"  logit of the target from {part}: {second}; control {control}"


def _occurrences(gaps: Mapping[str, Report]) -> Iterator[str]:
    yield from _heading("FIRST AGAINST SECOND OCCURRENCE, BY DEPTH")
    for name, family, report in _families(gaps):
        yield f"{name}, {family}:"
        for kind in ("probability", "log_rank", "entropy", "top5"):
            for condition in ("second", "first", "control"):
                yield (
                    f"  {kind}, {condition}: "
                    f"{_row(report['scores'][f'{condition}/{kind}']['value'])}"
                )


def _causal(causes: Mapping[str, Report]) -> Iterator[str]:
    yield from _heading("INTERVENTIONS: CHANGE OF ACCURACY AND LOSS ON THE SECOND COPY")
    for name, report in causes.items():
        yield (
            f"{name}: clean accuracy {report['clean_accuracy']:.4f}, loss "
            f"{report['clean_loss']:.4f}"
        )
        for kind in ("layers", "reads", "taps", "states"):
            for where, found in report.get(kind, {}).items():
                if isinstance(found, Mapping):
                    for what, effect in found.items():
                        yield f"  {kind} {where} {what}: {_effect(effect)}"


def _change(change: Report) -> Iterator[str]:
    yield from _heading("FINE-TUNING: AFTER LESS BEFORE, PAIRED")
    yield f"{change['before']} -> {change['after']}"
    if (found := change.get("perplexity")) is not None:
        low, high = found["ratio_ci"]
        yield f"  perplexity {found['before']:.3f} -> {found['after']:.3f}"
        yield f"  ratio of perplexities {found['ratio']:.4f} [{low:.4f}, {high:.4f}]"
    for name, found in change.items():
        if isinstance(found, Mapping) and "value" in found:
            value, low, high = (np.ravel(found[end]) for end in ("value", "low", "high"))
            cells = ", ".join(
                f"{v:+.4f} [{a:+.4f}, {b:+.4f}]" for v, a, b in zip(value, low, high, strict=True)
            )
            yield f"  {name}: {cells}"


def _families(gaps: Mapping[str, Report]) -> Iterator[tuple[str, str, Report]]:
    for name, report in gaps.items():
        for family in ("repeated", "natural"):
            if family in report:
                yield name, family, report[family]


def _heading(text: str) -> list[str]:
    return ["", text, "=" * len(text)]


def _row(values: Sequence[float] | np.ndarray) -> str:
    return " ".join(f"{value:.4f}" for value in values)


def _interval(found: Report, index: int | None = None) -> str:
    value, low, high = (
        found[end] if index is None else found[end][index] for end in ("value", "low", "high")
    )
    return f"{value:.4f} [{low:.4f}, {high:.4f}]"


def _effect(effect: Report) -> str:
    text = f"accuracy {_interval(effect['accuracy'])}, loss {_interval(effect['loss'])}"
    if "random" in effect:
        text += f"; random {_interval(effect['random']['accuracy'])}, p = {effect['p']:.4f}"
    if "new_tokens" in effect:
        elsewhere = (
            f"{kind} {_interval(effect['new_tokens'][kind])}" for kind in ("accuracy", "loss")
        )
        text += f"; on new tokens of text {', '.join(elsewhere)}"
    return text
