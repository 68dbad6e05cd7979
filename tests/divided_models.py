"""All that is measured of a model's heads, and maps that divide a small model into two halves."""

from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

import small_models as small
from interp_core.measures.ablation import ablation_effects, first_order_effects
from interp_core.measures.scores import attention_keys, score_heads


def measured(subject: Any) -> dict[str, np.ndarray]:
    """Scores, losses, attribution, and ablations of every kind, by name."""
    prompts = small.prompts()
    keys = attention_keys(prompts.pairs)
    scores = score_heads(
        subject, prompts.tokens, prompts.pairs, keys, behaviour=True, contributions=True
    )
    sets = [[(1, 1)], [(0, 2), (2, 0)], [(2, 3)]]
    held = ablation_effects(subject, prompts, sets, freeze_attention=True)
    return {
        **scores.heads,
        "loss": scores.loss,
        "zero ablation": ablation_effects(subject, prompts, sets, ablation="zero").loss,
        "mean ablation": ablation_effects(subject, prompts, sets).loss,
        "resample ablation": ablation_effects(subject, prompts, sets, ablation="resample").loss,
        "attention held": held.loss,
        "first order": first_order_effects(subject, prompts),
    }


def halves(model: PreTrainedModel, first: int | str, second: int | str) -> dict[str, Any]:
    """The embedding and layer 1 in the first half, all else in the second, so that each layer reads
    what was written elsewhere; an unembedding that is the embedding stays with it.
    """
    blocks = next(name for name, one in model.named_modules() if isinstance(one, nn.ModuleList))
    trunk = blocks.rpartition(".")[0]
    parts = [f"{trunk}.{name}" for name, _ in model.get_submodule(trunk).named_children()]
    parts = [part for part in parts if part != blocks]
    tops = [name for name, _ in model.named_children() if not trunk.startswith(name)]

    tied = model.config.get_text_config().tie_word_embeddings
    near = {parts[0], f"{blocks}.1", *(tops if tied else ())}
    every = [*parts, *(f"{blocks}.{layer}" for layer in range(small.LAYERS)), *tops]
    return {part: first if part in near else second for part in every}
