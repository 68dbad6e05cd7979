"""Which heads copying needs: the best ones ablated, beside random ones, in dose, and elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from interp_core.measures.ablation import Ablation, Effects
from interp_core.models.subject import Transformer
from interp_core.statistics.against_random import AgainstRandom, Direction, against_random
from interp_core.statistics.heads import Head
from interp_core.statistics.interval import Interval, bootstrap
from interp_core.stimuli.prompts import Pairs, Prompts
from pythia_topology.data import first_prompts, text_windows
from pythia_topology.intervene_controls import (
    Controls,
    Roles,
    check_sizes,
    controls_of,
    say_expected,
)
from pythia_topology.intervene_heads import effects_of, every_head
from pythia_topology.params import PythiaTopology
from pythia_topology.streams import STREAMS

# What is worse: accuracy that falls, loss that rises.
_WORSE: dict[str, Direction] = {"accuracy": "below", "loss": "above"}
_ABLATIONS: tuple[tuple[str, Ablation, bool], ...] = (
    ("zero", "zero", False),
    ("mean", "mean", False),
    ("resample", "resample", False),
    ("pattern_preserving", "mean", True),
)


def causal(
    subject: Transformer, prompts: Prompts, roles: Roles, params: PythiaTopology
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The report and the arrays of causal_<name>: heads ranked by excess prefix matching, ablated.

    On repeated tokens. Every change is against the clean model on the same prompts: loss in nats,
    accuracy as a share of the targets.
    """
    check_sizes(subject, params)
    used = first_prompts(prompts, params.causal_sequences)
    say_expected(subject, used, params, single=len(used.tokens))

    report = against_controls(subject, prompts, roles, params)
    effects, arrays = every_head(subject, used, params)
    return report | effects, arrays


def against_controls(
    subject: Transformer, prompts: Prompts, roles: Roles, params: PythiaTopology
) -> dict[str, Any]:
    """The report without every head alone: the best heads together, beside both controls."""
    text = text_windows(subject, params, n=params.causal_sequences)
    used = first_prompts(prompts, params.causal_sequences)

    top = roles.ranked[: params.causal_top_k]
    rng = STREAMS.rng("controls", params.seed)
    controls = controls_of(top, roles, rng, size=params.causal_random_k, draws=params.causal_draws)

    ablations = {
        name: _ablated(subject, used, top, controls, params, name, how=how, frozen=frozen)
        for name, how, frozen in _ABLATIONS
    }
    main, outside = ablations["mean"], ablations["mean"]["accuracy"]["outside"]["random"]
    clean, change = main["accuracy"]["clean"], main["accuracy"]["top"]["value"]

    return {
        "name": subject.name,
        "baseline_acc": clean,
        "ablated_top_acc": clean + change,
        "ablated_rand_acc": None if outside["value"] is None else clean + outside["value"],
        "delta_top": change,
        "delta_rand": outside["value"],
        "random_heads": [[str(head) for head in one] for one in controls.outside.sets],
        "top_heads": [str(head) for head in top],
        "n": len(used.tokens),
        "seed": params.seed,
        "draws": len(controls.outside.sets),
        "top_k": params.causal_top_k,
        "random_k": params.causal_random_k,
        "p_value": main["loss"]["outside"]["p"],
        "controls": {
            "layer_matched": controls.layer_matched.words,
            "outside": controls.outside_words,
            "left_out": [str(head) for head in sorted({*roles.induction, *roles.writers})],
        },
        "verdict": _verdict(main, controls, level=params.causal_level),
        "ablations": ablations,
        "dose": _dose(subject, used, roles, params),
        "specificity": _specificity(subject, text, top, controls, params),
    }


def _ablated(
    subject: Transformer,
    prompts: Prompts,
    top: Sequence[Head],
    controls: Controls,
    params: PythiaTopology,
    label: str,
    *,
    how: Ablation,
    frozen: bool,
) -> dict[str, dict[str, Any]]:
    """One way of ablating: accuracy and loss of the top heads, beside both controls."""
    sets = [list(top), *controls.sets]
    effects = effects_of(
        subject, prompts, sets, params, f"{label} ablation", how=how, frozen=frozen
    )
    rng = STREAMS.rng("ablations", params.seed)

    return {
        name: _change(name, values, clean, controls, rng, params)
        for name, values, clean in _by_measure(effects)
    }


def _by_measure(effects: Effects) -> list[tuple[str, np.ndarray, np.ndarray]]:
    return [
        ("accuracy", effects.accuracy, effects.clean_accuracy),
        ("loss", effects.loss, effects.clean_loss),
    ]


def _change(
    measure: str,
    values: Float[np.ndarray, "prompt set"],
    clean: Float[np.ndarray, " prompt"],
    controls: Controls,
    rng: np.random.Generator,
    params: PythiaTopology,
) -> dict[str, Any]:
    """The first set's mean change with its interval over prompts, against each control's sets.

    Sets stand in the order of `Controls.sets`.
    """
    change = values - clean[:, None]
    top = _mean(change[:, 0], rng, params)
    random = change[:, 1:].mean(axis=0)
    n = len(controls.layer_matched.sets)

    def against(of_sets: Float[np.ndarray, " set"]) -> AgainstRandom:
        return against_random(top.value, of_sets, direction=_WORSE[measure])

    return {
        "clean": float(clean.mean()),
        "top": top.to_json(),
        "layer_matched": against(random[:n]).to_json(),
        "outside": against(random[n:]).to_json(),
    }


def _mean(
    values: Float[np.ndarray, " prompt"], rng: np.random.Generator, params: PythiaTopology
) -> Interval:
    return bootstrap(values, rng, resamples=params.bootstrap_resamples, unit="prompts")


def _verdict(main: Mapping[str, Mapping[str, Any]], controls: Controls, *, level: float) -> str:
    """Needed when the change excludes 0 and is beyond that of heads outside the circuit."""
    loss, accuracy = main["loss"], main["accuracy"]
    found = AgainstRandom.from_json(loss["outside"])
    harmful = loss["top"]["low"] > 0
    what = (
        f"ablating the top heads changes loss by {loss['top']['value']:+.2f} nats and accuracy by "
        f"{accuracy['top']['value']:+.2f}"
    )

    if not controls.outside.sets:
        return f"no control: {controls.outside_words}; {what}"

    changes = accuracy["outside"]["random"]["value"]
    against = f"{controls.outside_words}: {found.mean:+.2f} and {changes:+.2f}"

    if not found.possible:
        return f"{found.says}; {what}; {against}"

    word = "copying needs them" if harmful and found.beats(level) else "no more than random heads"
    return f"{word}: {what}; {against}"


def _dose(
    subject: Transformer, prompts: Prompts, roles: Roles, params: PythiaTopology
) -> dict[str, Any]:
    """The k best heads for growing k, each beside outside sets of k, and the best's whole layer.

    Where fewer than k heads are outside the circuit, there is no set and the control ends.
    """
    rng = STREAMS.rng("dose", params.seed)
    ranked, (n_layers, n_heads) = roles.ranked, roles.excess.shape
    doses = [k for k in params.dose_k if 2 * k <= n_layers * n_heads]

    beside = [controls_of(ranked[:k], roles, rng, size=k, draws=params.dose_draws) for k in doses]
    outside = [controls.outside for controls in beside]
    layer = [Head(ranked[0].layer, head) for head in range(n_heads)]
    sets: list[Sequence[Head]] = [layer]
    starts = []

    for k, control in zip(doses, outside, strict=True):
        starts.append(len(sets))
        sets += [ranked[:k], *control.sets]

    effects = effects_of(subject, prompts, sets, params, "dose curve")
    report: dict[str, Any] = {
        "k": doses,
        "sets": [len(control.sets) for control in outside],
        "controls": [controls.outside_words for controls in beside],
        "whole_layer": {"layer": ranked[0].layer},
    }

    for name, values, clean in _by_measure(effects):
        change = values - clean[:, None]
        report["whole_layer"][name] = float(change[:, 0].mean())
        curve = []

        for start, control in zip(starts, outside, strict=True):
            top = _mean(change[:, start], rng, params)
            random = change[:, start + 1 : start + 1 + len(control.sets)].mean(axis=0)
            curve.append((top, against_random(top.value, random, direction=_WORSE[name])))

        report[name] = {
            "top": [top.value for top, _ in curve],
            "top_low": [top.low for top, _ in curve],
            "top_high": [top.high for top, _ in curve],
            "random_mean": [random.mean for _, random in curve],
            "random_low": [random.low for _, random in curve],
            "random_high": [random.high for _, random in curve],
        }

    return report


def _specificity(
    subject: Transformer,
    tokens: Int[np.ndarray, "prompt position"],
    top: Sequence[Head],
    controls: Controls,
    params: PythiaTopology,
) -> dict[str, Any]:
    """Change of loss on real text where the current token did not occur before.

    Induction has nothing to say there.
    """
    elsewhere = without_repeats(tokens, subject.bos)
    sets = [list(top), *controls.sets]
    effects = effects_of(subject, elsewhere, sets, params, "text without repeats")

    rng = STREAMS.rng("specificity", params.seed)
    change = _change("loss", effects.loss, effects.clean_loss, controls, rng, params)
    return {"n": len(tokens), "clean_loss": change.pop("clean"), **change}


def without_repeats(tokens: np.ndarray, bos: int) -> Prompts:
    """Text windows whose queries are tokens that did not occur before in their window.

    Nothing can be copied. `earlier` of these pairs means nothing and is set to 0: only queries and
    targets are used.
    """
    before = np.tril(tokens[:, :, None] == tokens[:, None, :], k=-1).any(axis=2)
    before[:, 0] = True
    before[:, -1] = True  # the last token has no target

    batch, query = np.nonzero(~before & (tokens != bos))
    pairs = Pairs(batch, query, np.zeros_like(query), tokens[batch, query + 1])
    lengths = np.full(len(tokens), tokens.shape[1])
    return Prompts("text_without_repeats", tokens, tokens, pairs, lengths)
