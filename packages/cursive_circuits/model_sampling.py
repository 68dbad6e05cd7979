"""Writing: tokens sampled one at a time from a cache of keys and values."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cursive_circuits.data_tokens import Vocabulary
from cursive_circuits.model import CursiveTransformer
from interp_core.errors import InputError


@torch.no_grad()
def sample(
    model: CursiveTransformer,
    tokens: Vocabulary,
    text: Int[Tensor, "row character"],
    *,
    temperature: float,
    longest: int,
    generator: torch.Generator,
    prompt: Int[Tensor, "row position"] | None = None,
) -> list[Int[np.ndarray, "_"]]:
    """For each text a row that begins with `prompt` (by default its tokens' own), then at most
    `longest` sampled ones, until END or the next WORD. Only tokens that may stand there are drawn:
    directions, WORD and END at even places, radii at odd ones. At the same place of a row every row
    draws the same number, whatever was drawn before.

    InputError for a temperature that is not above zero, or rows longer than the context.
    """
    if temperature <= 0:
        raise InputError(f"temperature must be above 0, got {temperature}")
    rows = len(text)
    if prompt is None:
        prompt = torch.from_numpy(tokens.prompt).expand(rows, -1)
    ids = prompt.to(model.device)
    cache = model.empty_cache(rows, ids.shape[1] + longest)
    logits = model(ids, text, cache=cache).logits[:, -1]
    drawn: list[Tensor] = []
    ended = torch.zeros(rows, dtype=torch.bool, device=model.device)
    for place in range(ids.shape[1], ids.shape[1] + longest):
        barred = _barred(tokens, place, after_word=not drawn).to(logits.device)
        shares = torch.softmax(
            logits.double().masked_fill(barred, -torch.inf) / temperature, dim=-1
        )
        chosen = _inverse(
            shares, torch.rand(rows, 1, generator=generator, dtype=torch.float64).to(shares.device)
        )
        chosen = torch.where(ended, tokens.pad, chosen)
        ended |= (chosen == tokens.end) | (chosen == tokens.word)
        drawn.append(chosen)
        if bool(ended.all()) or len(drawn) == longest:
            break
        logits = model(chosen[:, None], text, cache=cache).logits[:, -1]
    written = torch.cat([ids, torch.stack(drawn, dim=1)], dim=1).cpu().numpy()
    return [row[~np.isin(row, [tokens.pad, tokens.end])] for row in written]


def _barred(tokens: Vocabulary, place: int, *, after_word: bool) -> Tensor:
    """Tokens that may not stand at a place."""
    ids = torch.arange(tokens.size)
    if place % 2:
        return (ids < tokens.directions) | (ids >= tokens.pad)
    ends = (ids == tokens.end) | (ids == tokens.word)
    return ~((ids < tokens.directions) | (ends & (not after_word)))


def _inverse(
    shares: Float[Tensor, "row vocab"], uniform: Float[Tensor, "row 1"]
) -> Int[Tensor, " row"]:
    """Draws by inverse transform: one uniform number a row, so that draws can be paired between
    models.
    """
    cumulative = shares.cumsum(dim=-1)
    chosen = torch.searchsorted(cumulative, uniform * cumulative[:, -1:]).squeeze(-1)
    return chosen.clamp_max(shares.shape[-1] - 1)
