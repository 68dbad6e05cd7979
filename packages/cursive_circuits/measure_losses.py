"""The loss of each token, and its parts by what the token says."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from cursive_circuits.data_tokens import Vocabulary
from cursive_circuits.model import CursiveTransformer


@torch.no_grad()
def losses(
    model: CursiveTransformer,
    tokens: Vocabulary,
    ids: Int[Tensor, "row position"],
    text: Int[Tensor, "row character"] | None,
) -> dict[str, Float[np.ndarray, "row target"]]:
    """Nats of every token but the first, float64; not-a-number where a kind does not apply.

    `loss` is of every token; `direction` of directions; `pen` of the pen's state (the sum over all
    radii with that state) and `radius` of the radius given the pen, which add up to the loss of a
    radius token; `accuracy` is 1 or 0.
    """
    text = None if text is None else text.to(model.device)
    shares = functional.log_softmax(
        model(ids.to(model.device), text).logits[:, :-1].double(), dim=-1
    )
    target = ids[:, 1:].to(model.device)
    loss = -shares.gather(-1, target[..., None]).squeeze(-1)
    up, down = (
        slice(tokens.directions + n * tokens.radii, tokens.directions + (n + 1) * tokens.radii)
        for n in (0, 1)
    )
    states = torch.stack([shares[..., up].logsumexp(-1), shares[..., down].logsumexp(-1)], dim=-1)
    is_direction = target < tokens.directions
    is_radius = ~is_direction & (target < tokens.pad)
    state = (target >= tokens.directions + tokens.radii).long()
    pen = -states.gather(-1, state[..., None]).squeeze(-1)
    nothing = torch.full_like(loss, torch.nan)
    found = {
        "loss": loss,
        "direction": torch.where(is_direction, loss, nothing),
        "radius": torch.where(is_radius, loss - pen, nothing),
        "pen": torch.where(is_radius, pen, nothing),
        "accuracy": (shares.argmax(-1) == target).double(),
    }
    return {name: values.cpu().numpy() for name, values in found.items()}
