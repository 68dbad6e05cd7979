"""Kinds of neuron: dead ones, token detectors, positional ones.

A neuron is a detector when the token's id explains most of its variance, positional when the place
does; both more than where blocks of ids, or of places, are dealt at random.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from interp_core.statistics.resampling import max_test
from mamba_neurons.data import Texts
from mamba_neurons.measure_activity import activations
from mamba_neurons.measure_delta import blocks_for, explained, explained_in_blocks
from mamba_neurons.model import Model
from mamba_neurons.params import MambaNeurons


def kinds_of_layer(
    a: Float[np.ndarray, "token unit"],
    token: Int[np.ndarray, " token"],
    position: Int[np.ndarray, " token"],
    text: Int[np.ndarray, " token"],
    params: MambaNeurons,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Shares of variance explained by token and by place, and which units are what."""
    size = np.sqrt((a.astype(np.float64) ** 2).mean(axis=0))
    dead: Bool[np.ndarray, " unit"] = size <= params.dead_share * np.median(size)
    found: dict[str, np.ndarray] = {"root_mean_square": size, "dead": dead}
    block = blocks_for(a, text, params)

    for name, group in (("token", token), ("position", position)):
        share = explained(a, group)
        null = explained_in_blocks(a, group, block, params.permutation_draws, rng)
        tested = max_test(share, null, alpha=params.alpha)

        most = share >= params.explained_share
        found[f"{name}_share"] = share
        found[f"{name}_p"] = tested.p
        found[f"{name}_units"] = most & (tested.p <= params.alpha) & ~dead

    return found


def kinds(
    model: Model,
    texts: Texts,
    layers: list[int],
    kind: str,
    params: MambaNeurons,
    rng: np.random.Generator,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays [layer, unit] and counts by layer, on the texts of people alone; BOS is left out,
    which is a token and a place at once.
    """
    people = texts.rows(~texts.repeated)
    inside = people.after_bos
    token = people.tokens[inside]
    text, position = np.nonzero(inside)

    parts: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
    for _, found in activations(model, people, layers, [kind], params.batch_size):
        for layer in layers:
            parts[layer].append(found[kind, layer][1:].astype(np.float32))

    by_layer = [
        kinds_of_layer(np.concatenate(parts[layer]), token, position, text, params, rng)
        for layer in layers
    ]
    report = {
        str(layer): {
            "units": len(found["dead"]),
            "dead": int(found["dead"].sum()),
            "token_detectors": int(found["token_units"].sum()),
            "positional": int(found["position_units"].sum()),
            "token_share_median": float(np.median(found["token_share"])),
            "position_share_median": float(np.median(found["position_share"])),
        }
        for layer, found in zip(layers, by_layer, strict=True)
    }

    return {name: np.stack([found[name] for found in by_layer]) for name in by_layer[0]}, report
