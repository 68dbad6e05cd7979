"""Behaviour and heads at one moment of a training, on rows that no training batch holds."""

from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from torch.nn import functional

from eigen_phase.data import Sequences
from eigen_phase.model import Transformer
from eigen_phase.params import Training
from eigen_phase.run_directory import head_key
from interp_core.measures.circuits import copying_eigenvalues, k_composition, matching_eigenvalues
from interp_core.measures.scores import attention_keys

SCORES = ("prefix_matching", "previous_token", "duplicate_token", "own_position")


@torch.no_grad()
def behaviour_and_heads(
    model: Transformer, rows: Sequences, training: Training
) -> dict[str, float]:
    """Keys of a history row.

    pattern_accuracy, pattern_loss: over predictable targets; other_loss: over the others; accuracy,
    held_out_loss: over all. copy_accuracy/2 ...: predictable targets by which copy they lie in, the
    last key holding all later ones (as many keys as `copies`; none for a copy that does not occur).
    Per head: prefix_matching, previous_token, duplicate_token, own_position (mean attention at the
    predictable targets' queries), copying, qk_matching at the distances that repeats have, and
    own_matching at distance 0 (interp_core.measures.circuits). Per pair of heads of two layers:
    k_composition, as z against random orientations.
    """
    return {**behaviour(model, rows, copies=training.copies), **heads(model, rows, training)}


@torch.no_grad()
def behaviour(model: Transformer, rows: Sequences, *, copies: int) -> dict[str, float]:
    """Accuracies in [0, 1] and losses in nats a target."""
    hit, nats = per_target(model, rows)

    # Targets begin at the second token: the first has nothing before it.
    flagged, copy = rows.predictable[:, 1:], rows.copy[:, 1:]

    def mean(values: Float[np.ndarray, "row target"], where: np.ndarray) -> float:
        return float(values[where].mean())

    found: dict[str, float] = {
        "pattern_accuracy": mean(hit, flagged),
        "accuracy": mean(hit, np.ones_like(flagged)),
        "pattern_loss": mean(nats, flagged),
        "other_loss": mean(nats, ~flagged),
        "held_out_loss": mean(nats, np.ones_like(flagged)),
    }
    for number in range(2, 2 + copies):
        where = flagged & (copy >= number if number == 1 + copies else copy == number)
        if where.any():
            found[f"copy_accuracy/{number}"] = mean(hit, where)
    return found


@torch.no_grad()
def per_target(
    model: Transformer, rows: Sequences
) -> tuple[Float[np.ndarray, "row target"], Float[np.ndarray, "row target"]]:
    """Whether each target (from the second token on) is ranked first, and its loss in nats."""
    ids = torch.from_numpy(rows.ids).to(model.device)
    logits = model(ids).logits[:, :-1]
    nats = functional.cross_entropy(
        logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
    )
    hit = logits.argmax(dim=-1) == ids[:, 1:]
    return hit.double().cpu().numpy(), nats.view(hit.shape).double().cpu().numpy()


@torch.no_grad()
def heads(model: Transformer, rows: Sequences, training: Training) -> dict[str, float]:
    """Scores of each head and of each pair of heads of two layers."""
    scores = attention_scores(model, rows)
    scores["copying"] = copying_eigenvalues(model)

    # Two questions, two names: a head that matches a token with its earlier occurrence, and one
    # that only finds its own position, where the rotary turn is none.
    scores["qk_matching"] = matching_eigenvalues(model, distances=training.matching_distances)
    scores["own_matching"] = matching_eigenvalues(model, distances=(0,))

    found = {
        head_key(family, layer, head): float(values[layer, head])
        for family, values in scores.items()
        for layer in range(model.n_layers)
        for head in range(model.n_heads)
    }
    if model.n_layers == 1:
        return found

    z = k_composition(
        model,
        distances=training.composition_distances,
        draws=training.composition_draws,
        generator=torch.Generator().manual_seed(0),
    ).z

    for before, after in combinations(range(model.n_layers), 2):
        for writer in range(model.n_heads):
            for reader in range(model.n_heads):
                name = f"k_composition/L{before}H{writer}>L{after}H{reader}"
                found[name] = float(z[before, writer, after, reader])
    return found


@torch.no_grad()
def attention_scores(
    model: Transformer, rows: Sequences
) -> dict[str, Float[np.ndarray, "layer head"]]:
    """Mean attention, in [0, 1], from the query of each predictable target.

    To the keys of interp_core.measures.scores, and to the query's own position.
    """
    pairs = rows.pairs
    patterns = model.patterns(torch.from_numpy(rows.ids).to(model.device)).cpu().numpy()
    keys = {**attention_keys(pairs), "own_position": pairs.query}

    return {
        name: patterns[:, pairs.batch, :, pairs.query, keys[name]].mean(axis=0, dtype=np.float64)
        for name in SCORES
    }
