"""Which heads copying needs: the best ones ablated against layer-matched random heads, in dose, and
elsewhere.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import spearmanr

from interp_core.errors import InputError
from interp_core.measures.ablation import (
    Ablation,
    Effects,
    Head,
    ablation_effects,
    first_order_effects,
)
from interp_core.models.subject import Subject
from interp_core.statistics.resampling import mean_interval
from interp_core.stimuli.prompts import Pairs, Prompts
from pythia_topology.data import text_windows
from pythia_topology.params import PythiaTopology


def causal(
    subject: Subject,
    prompts: Prompts,
    excess: Float[np.ndarray, "layer head"],
    params: PythiaTopology,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The report and the arrays of causal_<name>: heads ranked by excess prefix matching, ablated
    on repeated tokens.

    Every change is against the clean model on the same prompts: loss in nats, accuracy as a share
    of the targets.
    """
    check_sizes(subject, params)
    text = text_windows(subject, params, n=params.causal_sequences)
    ranked = rank_heads(excess)
    rng = np.random.default_rng([params.seed, 3])
    draws = random_sets(
        ranked[: params.causal_top_k],
        excess.shape,
        params.causal_random_k,
        params.causal_draws,
        rng,
    )
    used = first_prompts(prompts, params.causal_sequences)
    ablations = {
        name: _against_random(
            subject, used, ranked[: params.causal_top_k], draws, how, frozen, params, name
        )
        for name, how, frozen in _ABLATIONS
    }
    effects, arrays = _every_head(subject, used, params)
    main = ablations["mean"]["accuracy"]
    report = {
        "name": subject.name,
        "baseline_acc": main["clean"],
        "ablated_top_acc": main["clean"] + main["top"],
        "ablated_rand_acc": main["clean"] + main["random_mean"],
        "delta_top": main["top"],
        "delta_rand": main["random_mean"],
        "random_heads": [[head_name(head) for head in draw] for draw in draws],
        "top_heads": [head_name(head) for head in ranked[: params.causal_top_k]],
        "n": len(used.tokens),
        "seed": params.seed,
        "draws": len(draws),
        "top_k": params.causal_top_k,
        "random_k": params.causal_random_k,
        "p_value": ablations["mean"]["loss"]["p"],
        "verdict": _verdict(ablations["mean"], len(draws)),
        "ablations": ablations,
        "dose": _dose(subject, used, ranked, excess.shape, params),
        "specificity": _specificity(subject, text, ranked[: params.causal_top_k], draws, params),
        **effects,
    }
    return report, arrays


_ABLATIONS: tuple[tuple[str, Ablation, bool], ...] = (
    ("zero", "zero", False),
    ("mean", "mean", False),
    ("resample", "resample", False),
    ("pattern_preserving", "mean", True),
)


def check_sizes(subject: Subject, params: PythiaTopology) -> None:
    """InputError when more heads are to be ablated than the model has."""
    total = subject.n_layers * subject.n_heads
    for option, k in (
        ("causal_top_k (--topk)", params.causal_top_k),
        ("causal_random_k", params.causal_random_k),
    ):
        if k > total:
            raise InputError(f"{subject.name}: {option} is {k}, but the model has {total} heads")
    if params.causal_top_k + params.causal_random_k > total:
        raise InputError(
            f"{subject.name}: {params.causal_top_k} top and {params.causal_random_k} random heads "
            "are more than its "
            f"{total}"
        )


def rank_heads(excess: Float[np.ndarray, "layer head"]) -> list[Head]:
    """All heads, the one with the highest score first; ties by layer and head."""
    order = np.argsort(-excess, axis=None, kind="stable")
    return [
        (int(layer), int(head))
        for layer, head in zip(*np.unravel_index(order, excess.shape), strict=True)
    ]


def head_name(head: Head) -> str:
    """L5H1 for head 1 of layer 5."""
    return f"L{head[0]}H{head[1]}"


def random_sets(
    top: Sequence[Head], shape: tuple[int, ...], k: int, draws: int, rng: np.random.Generator
) -> list[list[Head]]:
    """`draws` sets of k heads outside `top`, each matched to a top head by layer: from its own
    layer while heads are left there, else from the nearest layers (ties at random).
    """
    free = np.ones(shape, dtype=bool)
    free[tuple(np.transpose(list(top)))] = False
    return [_matched([top[i % len(top)][0] for i in range(k)], free, rng) for _ in range(draws)]


def _matched(
    layers: Sequence[int], free: Bool[np.ndarray, "layer head"], rng: np.random.Generator
) -> list[Head]:
    left = free.copy()
    chosen = []
    for layer in layers:
        candidates = np.argwhere(left)
        distance = np.abs(candidates[:, 0] - layer)
        nearest = candidates[distance == distance.min()]
        at = nearest[rng.integers(len(nearest))]
        left[tuple(at)] = False
        chosen.append((int(at[0]), int(at[1])))
    return sorted(chosen)


def first_prompts(prompts: Prompts, n: int) -> Prompts:
    """The first n prompts of a family."""
    pairs = prompts.pairs
    kept = pairs.batch < n
    return Prompts(
        prompts.family,
        prompts.tokens[:n],
        prompts.control[:n],
        Pairs(pairs.batch[kept], pairs.query[kept], pairs.earlier[kept], pairs.target[kept]),
        prompts.lengths[:n],
    )


def _effects(
    subject: Subject,
    prompts: Prompts,
    sets: Sequence[Sequence[Head]],
    params: PythiaTopology,
    label: str,
    *,
    how: Ablation = "mean",
    frozen: bool = False,
) -> Effects:
    """Effects of sets of heads; a set that is drawn twice runs once."""
    distinct = list(dict.fromkeys(tuple(heads) for heads in sets))
    effects = ablation_effects(
        subject,
        prompts,
        distinct,
        ablation=how,
        batch_size=params.batch_size,
        freeze_attention=frozen,
        label=f"{subject.name}: {label}",
    )
    index = [distinct.index(tuple(heads)) for heads in sets]
    return Effects(
        effects.loss[:, index],
        effects.accuracy[:, index],
        effects.clean_loss,
        effects.clean_accuracy,
    )


def _against_random(
    subject: Subject,
    prompts: Prompts,
    top: Sequence[Head],
    draws: Sequence[Sequence[Head]],
    how: Ablation,
    frozen: bool,
    params: PythiaTopology,
    label: str,
) -> dict[str, dict[str, Any]]:
    effects = _effects(
        subject, prompts, [list(top), *draws], params, f"{label} ablation", how=how, frozen=frozen
    )
    rng = np.random.default_rng([params.seed, 4])
    return {
        "accuracy": _change(effects.accuracy, effects.clean_accuracy, rng, params, worse=-1),
        "loss": _change(effects.loss, effects.clean_loss, rng, params, worse=1),
    }


def _change(
    values: Float[np.ndarray, "prompt set"],
    clean: Float[np.ndarray, " prompt"],
    rng: np.random.Generator,
    params: PythiaTopology,
    *,
    worse: int,
) -> dict[str, Any]:
    """The first set's mean change with its interval over prompts, the others' mean and central 95
    %, and the share of them that is at least as harmful, p = (1 + hits) / (1 + draws).
    """
    change = values - clean[:, None]
    top = mean_interval(change[:, 0], rng, resamples=params.bootstrap_resamples)
    random = change[:, 1:].mean(axis=0)
    hits = int(np.sum(worse * random >= worse * top.value))
    low, high = np.quantile(random, [0.025, 0.975])
    return {
        "clean": float(clean.mean()),
        "top": float(top.value),
        "top_ci": [float(top.low), float(top.high)],
        "random_mean": float(random.mean()),
        "random_low": float(low),
        "random_high": float(high),
        "p": (1 + hits) / (1 + len(random)),
    }


def _verdict(main: Mapping[str, Mapping[str, Any]], draws: int) -> str:
    loss, accuracy = main["loss"], main["accuracy"]
    what = (
        f"ablating the top heads changes loss by {loss['top']:+.2f} nats and accuracy by "
        f"{accuracy['top']:+.2f}"
    )
    against = (
        f"{draws} layer-matched random sets: {loss['random_mean']:+.2f} and "
        f"{accuracy['random_mean']:+.2f}"
    )
    word = (
        "copying needs them"
        if loss["p"] <= 0.05 and loss["top_ci"][0] > 0
        else "no more than random heads"
    )
    return f"{word}: {what}; {against}"


def _every_head(
    subject: Subject, prompts: Prompts, params: PythiaTopology
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Each head ablated alone, exactly and to first order, and how well the two rankings agree."""
    heads = [(layer, head) for layer in range(subject.n_layers) for head in range(subject.n_heads)]
    exact = _effects(subject, prompts, [[head] for head in heads], params, "every head")
    shape = (subject.n_layers, subject.n_heads)
    loss = (exact.loss - exact.clean_loss[:, None]).mean(axis=0).reshape(shape)
    accuracy = (exact.accuracy - exact.clean_accuracy[:, None]).mean(axis=0).reshape(shape)
    first_order = first_order_effects(subject, prompts, batch_size=params.batch_size).mean(axis=0)
    agreement = float(spearmanr(loss.ravel(), first_order.ravel())[0])  # pyright: ignore[reportArgumentType]
    order = rank_heads(loss)[: params.causal_top_k]
    report = {"rank_agreement": agreement, "most_harmful": [head_name(head) for head in order]}
    arrays = {"loss_effect": loss, "accuracy_effect": accuracy, "first_order": first_order}
    return report, {name: values.astype(np.float32) for name, values in arrays.items()}


def _dose(
    subject: Subject,
    prompts: Prompts,
    ranked: Sequence[Head],
    shape: tuple[int, ...],
    params: PythiaTopology,
) -> dict[str, Any]:
    """The k best heads for growing k, each with layer-matched random sets of k, and the best head's
    whole layer.
    """
    rng = np.random.default_rng([params.seed, 5])
    doses = [k for k in params.dose_k if 2 * k <= shape[0] * shape[1]]
    few = max(20, params.causal_draws // 4)
    sets: list[list[Head]] = []
    for k in doses:
        sets += [list(ranked[:k]), *random_sets(ranked[:k], shape, k, few, rng)]
    layer = ranked[0][0]
    sets.append([(layer, head) for head in range(shape[1])])
    effects = _effects(subject, prompts, sets, params, "dose curve")
    report: dict[str, Any] = {"k": doses, "draws": few, "whole_layer": {"layer": layer}}
    for name, values, clean, worse in (
        ("accuracy", effects.accuracy, effects.clean_accuracy, -1),
        ("loss", effects.loss, effects.clean_loss, 1),
    ):
        changes = [
            _change(values[:, start : start + 1 + few], clean, rng, params, worse=worse)
            for start in range(0, len(doses) * (1 + few), 1 + few)
        ]
        report[name] = {
            "top": [change["top"] for change in changes],
            "top_low": [change["top_ci"][0] for change in changes],
            "top_high": [change["top_ci"][1] for change in changes],
            **{
                key: [change[key] for change in changes]
                for key in ("random_mean", "random_low", "random_high")
            },
        }
        report["whole_layer"][name] = float((values[:, -1] - clean).mean())
    return report


def _specificity(
    subject: Subject,
    tokens: Int[np.ndarray, "prompt position"],
    top: Sequence[Head],
    draws: Sequence[Sequence[Head]],
    params: PythiaTopology,
) -> dict[str, Any]:
    """Change of loss on real text where the current token did not occur before: induction has
    nothing to say there.
    """
    effects = _effects(
        subject,
        without_repeats(tokens, subject.bos),
        [list(top), *draws],
        params,
        "text without repeats",
    )
    change = _change(
        effects.loss, effects.clean_loss, np.random.default_rng([params.seed, 6]), params, worse=1
    )
    change["clean_loss"] = change.pop("clean")
    return {"n": len(tokens), **change}


def without_repeats(tokens: np.ndarray, bos: int) -> Prompts:
    """Text windows whose queries are the tokens that did not occur before in their window; nothing
    can be copied.

    `earlier` of these pairs means nothing and is set to 0: only queries and targets are used.
    """
    before = np.tril(tokens[:, :, None] == tokens[:, None, :], k=-1).any(axis=2)
    before[:, 0] = True
    before[:, -1] = True  # the last token has no target
    batch, query = np.nonzero(~before & (tokens != bos))
    pairs = Pairs(batch, query, np.zeros_like(query), tokens[batch, query + 1])
    return Prompts(
        "text_without_repeats", tokens, tokens, pairs, np.full(len(tokens), tokens.shape[1])
    )
