"""Every head ablated alone, exactly and to first order."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import spearmanr

from interp_core.measures.ablation import (
    Ablation,
    Effects,
    ablation_effects,
    first_order_effects,
)
from interp_core.models.subject import Transformer
from interp_core.statistics.heads import Head
from interp_core.stimuli.prompts import Prompts
from pythia_topology.intervene_controls import rank_heads
from pythia_topology.params import PythiaTopology


def every_head(
    subject: Transformer, prompts: Prompts, params: PythiaTopology
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Each head ablated alone, exactly and to first order, and how well the two agree."""
    shape = (subject.n_layers, subject.n_heads)
    heads = [Head(layer, head) for layer in range(shape[0]) for head in range(shape[1])]

    exact = effects_of(subject, prompts, [[head] for head in heads], params, "every head")
    loss = (exact.loss - exact.clean_loss[:, None]).mean(axis=0).reshape(shape)
    accuracy = (exact.accuracy - exact.clean_accuracy[:, None]).mean(axis=0).reshape(shape)

    estimates = first_order_effects(subject, prompts, batch_size=params.batch_size)
    first_order = estimates.mean(axis=0)
    agreement = float(spearmanr(loss.ravel(), first_order.ravel())[0])  # pyright: ignore[reportArgumentType]

    report = {
        "rank_agreement": agreement,
        "recall": recall(loss, first_order, params.dose_k),
        "most_harmful": [str(head) for head in rank_heads(loss)[: params.causal_top_k]],
    }
    arrays = {"loss_effect": loss, "accuracy_effect": accuracy, "first_order": first_order}
    return report, {name: values.astype(np.float32) for name, values in arrays.items()}


def recall(
    exact: Float[np.ndarray, "layer head"],
    estimate: Float[np.ndarray, "layer head"],
    sizes: Sequence[int],
) -> dict[str, list[float]]:
    """Share of the k heads with the largest exact effects that are among the k largest estimates.

    For each k that the model has; `chance` is what k heads at random would share.
    """
    kept = [k for k in sizes if k <= exact.size]
    true, found = rank_heads(exact), rank_heads(estimate)

    return {
        "k": [float(k) for k in kept],
        "recall": [len({*true[:k]} & {*found[:k]}) / k for k in kept],
        "chance": [k / exact.size for k in kept],
    }


def effects_of(
    subject: Transformer,
    prompts: Prompts,
    sets: Sequence[Sequence[Head]],
    params: PythiaTopology,
    label: str,
    *,
    how: Ablation = "mean",
    frozen: bool = False,
) -> Effects:
    """Effects of sets of heads; a set that is in two controls runs once."""
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
    place = {heads: i for i, heads in enumerate(distinct)}
    index = [place[tuple(heads)] for heads in sets]

    return Effects(
        effects.loss[:, index],
        effects.accuracy[:, index],
        effects.clean_loss,
        effects.clean_accuracy,
    )
