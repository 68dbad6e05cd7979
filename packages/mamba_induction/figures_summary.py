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

# of interventions, as they are called in text
KINDS = {
    "layers": "layers",
    "reads": "reads of queries",
    "answer_reads": "reads of answers",
    "taps": "taps",
    "states": "scan states",
}
# of recognising and predicting, together
RATES = ("independent", "above_independence", "predicted_if_recognised", "predicted_if_not")


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
    lines += [
        "numbers in brackets are 95 % intervals, prompts resampled",
        "p of prefix matching: signs of prompts flipped, all layers together; the least is "
        "1 / (1 + flips)",
        *_overall(analyses),
    ]
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
            f"{name}: {report['architecture']}, {report['layers']} layers, "
            f"{report['parameters']} parameters"
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

        entropy = arrays[f"{index}/entropy"][:, query].mean(axis=1)
        yield f"  entropy by depth at repeats: {_row(entropy)}"


def _layers(analyses: Mapping[str, Report]) -> Iterator[str]:
    yield from _heading("LAYER-WISE EMERGENCE")
    scores = ("prefix_matching", "excess_prefix_matching", "copying", "copying_excess")
    similar = ("hidden_similarity", "hidden_similarity_excess", "untrained/hidden_similarity")
    for name, report in analyses.items():
        excess = report["scores"]["excess_prefix_matching"]["value"]
        above = report["null"]["trained"]["induction_layers"]

        # Only layers above their null: of the others the largest is the largest of noise.
        order = ", ".join(f"L{layer}" for layer in sorted(above, key=lambda at: -excess[at]))
        yield f"{name}: layers that match prefixes above their null, most first: {order or 'none'}"

        for layer in range(report["layers"]):
            profile = _row(report["scores"]["offset_profile"]["value"][layer])
            peak = f"{_peak(report['peak_offset'][layer])}; " if layer in above else ""
            yield f"  L{layer}: {peak}offset profile {report['offsets']}: {profile}"

            for score in (*scores, *similar):
                yield f"    {score}: {_interval(report['scores'][score], layer)}"


def _peak(peak: Report) -> str:
    share = peak["share_of_draws"]

    # An interval that cannot move is none: then the peak is said to be in every draw.
    if peak["ci"][0] == peak["ci"][1]:
        return f"peak at offset {peak['offset']} (in {share:.3f} of draws)"
    return f"peak at offset {peak['offset']} {peak['ci']} (in {share:.3f} of draws)"


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
                accuracy = _interval(scores[f"accuracy_by_{kind}"], index)
                yield f"  accuracy at {kind} {value}: {accuracy}"
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
            for rate in RATES:
                yield f"    {rate.replace('_', ' ')}: {_interval(found[rate])}"
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
                by_depth = report["scores"][f"{condition}/{kind}"]["value"]
                yield f"  {kind}, {condition}: {_row(by_depth)}"


def _causal(causes: Mapping[str, Report]) -> Iterator[str]:
    yield from _heading("INTERVENTIONS: CHANGE OF ACCURACY AND LOSS ON THE SECOND COPY")
    for name, report in causes.items():
        clean, loss = report["clean_accuracy"], report["clean_loss"]
        yield f"{name}: {report['verdict']['says']}"
        yield f"  clean accuracy {clean:.4f}, loss {loss:.4f}"

        for kind, label in KINDS.items():
            for where, found in report.get(kind, {}).items():
                for what, effect in found.items():
                    yield f"  {label} {where} {what}: {_effect(effect)}"

        yield from _kept(report["kept"])


def _kept(kept: Report | None) -> Iterator[str]:
    """Accuracy with little left; nothing where no read is needed."""
    if kept is None:
        return

    for offset, found in kept["reads"].items():
        share = _interval(found["accuracy"])
        told = found["random"]["says"]
        yield f"  only one read of L{kept['layer']}, at {offset}: {share}; {told}"

    for lags, share in kept.get("taps", {}).items():
        yield f"  only lags {lags} of L{kept['layer']}'s convolution: {_interval(share)}"

    for what, share in kept["circuit"].items():
        yield f"  left: {what}: {_interval(share)}"


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
    if found["value"] is None:
        return "none"

    value, low, high = (
        found[end] if index is None else found[end][index] for end in ("value", "low", "high")
    )
    return f"{value:.4f} [{low:.4f}, {high:.4f}]"


def _effect(effect: Report) -> str:
    text = f"accuracy {_interval(effect['accuracy'])}, loss {_interval(effect['loss'])}"

    if "random" in effect:
        against = effect["random"]["accuracy"]
        text += f"; random {_interval(against['random'])}, {against['says']}"

    if "new_tokens" in effect:
        elsewhere = (
            f"{kind} {_interval(effect['new_tokens'][kind])}" for kind in ("accuracy", "loss")
        )
        text += f"; on new tokens of text {', '.join(elsewhere)}"

    return text
