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
    same_first_layer,
)
from interp_core.models.subject import Transformer
from interp_core.statistics.heads import Head
from interp_core.stimuli.prompts import Prompts
from interp_core.training.shares import in_shares
from pythia_topology.intervene_controls import SUFFIX, rank_heads
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
    """Effects of sets of heads; a set that is in two controls runs once.

    Shares hold whole stacks of sets, so that each set is computed beside the same others.
    """
    distinct = list(dict.fromkeys(tuple(heads) for heads in sets))
    stacks = [[distinct[i] for i in group] for group in same_first_layer(distinct)]

    found = in_shares(
        measure_stacks,
        stacks,
        subject,
        prompts,
        params.batch_size,
        how,
        frozen,
        label,
        about=[prompts.sha256, how, frozen],
        tokens=prompts.tokens.size,
        passes=SUFFIX * max(len(stack) for stack in stacks),
    )

    measured = [heads for stack in stacks for heads in stack]
    place = {heads: i for i, heads in enumerate(measured)}
    index = [place[tuple(heads)] for heads in sets]

    return Effects(
        np.concatenate([share["loss"] for share in found], axis=1)[:, index],
        np.concatenate([share["accuracy"] for share in found], axis=1)[:, index],
        found[0]["clean_loss"],
        found[0]["clean_accuracy"],
    )


def measure_stacks(
    subject: Transformer,
    stacks: Sequence[Sequence[Sequence[Head]]],
    prompts: Prompts,
    batch_size: int,
    how: Ablation,
    frozen: bool,
    label: str,
) -> dict[str, np.ndarray]:
    """Effects of these sets of heads, as arrays."""
    effects = ablation_effects(
        subject,
        prompts,
        [heads for stack in stacks for heads in stack],
        ablation=how,
        batch_size=batch_size,
        freeze_attention=frozen,
        label=f"{subject.name}: {label}",
    )
    return vars(effects)
