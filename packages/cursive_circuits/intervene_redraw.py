"""The handwriting before and after an ablation: the same random numbers, drawn by the model without
some heads.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from cursive_circuits.data import Words, random_pairs, stacked_text
from cursive_circuits.intervene import Values
from cursive_circuits.model import Head
from cursive_circuits.model_sampling import sample
from cursive_circuits.params import Sampling
from cursive_circuits.run_directory import Trained
from cursive_circuits.streams import STREAMS
from interp_core.measures.ablation import ablated

Arrays = dict[str, np.ndarray]


def redrawn_words(
    trained: Trained,
    words: Words,
    spelt: Sequence[str],
    without: Mapping[str, Sequence[Head]],
    values: Values,
    settings: Sampling,
) -> Arrays:
    """`redrawn/<set>/<word>` points of each word, written with each set of heads replaced by their
    means; a word that came out without a stroke has no points.
    """
    text = torch.from_numpy(stacked_text([words.text([word]) for word in spelt])).to(
        trained.model.device
    )
    longest = min(settings.longest, trained.model.shape.context - 2)
    found: Arrays = {}
    for name, heads in without.items():
        generator = torch.Generator().manual_seed(settings.seed)
        with ablated(trained.model, {head.place: values[head] for head in heads}):
            rows = sample(
                trained.model,
                trained.tokens,
                text,
                temperature=settings.temperature,
                longest=longest,
                generator=generator,
            )
        for word, row in zip(spelt, rows, strict=True):
            decoded = trained.tokens.decode(row)
            found[f"redrawn/{name}/{word}"] = decoded[0] if decoded else np.empty((0, 3))
    return found


def continued(
    trained: Trained,
    without: Mapping[str, Sequence[Head]],
    values: Values,
    *,
    pairs: int,
    seed: int,
    temperature: float,
) -> Arrays:
    """`continued/<set>` points of one copy of random strokes, its first stroke again, and what the
    model writes then, and `continued/copied/<set>` share of the continuation's tokens that are the
    copy's; the control's kind of row.
    """
    rng = STREAMS.rng("continued", seed)
    segment = random_pairs(trained.tokens, pairs, rng)
    prompt = torch.from_numpy(
        trained.tokens.row([np.concatenate([segment, segment[:2]])], end=False)[None]
    )
    text = torch.zeros(1, 1, dtype=torch.long, device=trained.model.device)
    found: Arrays = {}
    for name, heads in without.items():
        generator = torch.Generator().manual_seed(seed)
        with ablated(trained.model, {head.place: values[head] for head in heads}):
            (row,) = sample(
                trained.model,
                trained.tokens,
                text,
                temperature=temperature,
                longest=2 * pairs - 2,
                generator=generator,
                prompt=prompt,
            )
        again = row[4 + 2 * pairs :]
        found[f"continued/{name}"] = trained.tokens.decode(row)[0]
        found[f"continued/copied/{name}"] = np.array(
            (again == segment[2 : 2 + len(again)]).sum() / len(segment[2:])
        )
    return found
