"""How gradients and updates lie to the Hessian's eigenvectors, and how far these turn between two
evaluations.

A squared cosine between random directions of p parameters is 1/p on average, so K eigenvectors hold
K/p of a vector that has nothing to do with them: alignment is quoted beside that, and beside the
gradient of an independent batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from eigen_phase.model import Transformer


def flat(tensors: Sequence[Tensor]) -> Float[Tensor, " parameter"]:
    """One vector, in the given order, detached."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def squared_cosines(
    vectors: Float[Tensor, "k parameter"], direction: Float[Tensor, " parameter"]
) -> Float[Tensor, " k"]:
    """Squared cosine, in [0, 1], of a direction with each of some orthonormal vectors; zero for a
    zero direction.

    Their sum is the share of the direction's squared length inside the vectors' span.
    """
    length = direction.double().norm().clamp_min(torch.finfo(torch.float64).tiny)
    return (vectors.double() @ (direction.double() / length)).square()


def subspace_overlap(
    first: Float[Tensor, "k parameter"], second: Float[Tensor, "k2 parameter"]
) -> float:
    """Mean squared cosine of the principal angles between two spans, in [0, 1]; the rows are
    orthonormal.

    Two random spans of k and k2 dimensions overlap by max(k, k2)/p.
    """
    products = first.double() @ second.double().T
    return float(products.square().sum() / min(len(first), len(second)))


@torch.no_grad()
def next_update(
    optimizer: Any,
    model: nn.Module,
    gradient: Float[Tensor, " parameter"],
    *,
    rate: float,
    clip: float,
) -> Float[Tensor, " parameter"]:
    """The change of the parameters that AdamW would make next with this gradient (Loshchilov &
    Hutter 2019).

    The gradient is clipped to the norm `clip` first, as the training loop does. Nothing is changed.
    """
    memory = getattr(optimizer, "optimizer", optimizer)
    groups = {
        id(parameter): group for group in memory.param_groups for parameter in group["params"]
    }
    gradient = gradient * (clip / (gradient.norm() + 1e-6)).clamp(max=1.0)
    changes, start = [], 0

    for parameter in model.parameters():
        group, state = groups[id(parameter)], memory.state.get(parameter, {})
        part = gradient[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()

        first, second = group["betas"]
        step = float(state.get("step", 0.0)) + 1

        mean = first * state.get("exp_avg", torch.zeros_like(part)) + (1 - first) * part
        square = (
            second * state.get("exp_avg_sq", torch.zeros_like(part)) + (1 - second) * part.square()
        )
        scale = (square / (1 - second**step)).sqrt() + group["eps"]

        changes.append(
            -rate * (mean / (1 - first**step) / scale + group["weight_decay"] * parameter)
        )

    return flat(changes)


def adam_memory(optimizer: Any, model: nn.Module) -> dict[str, Float[Tensor, " parameter"]]:
    """AdamW's running means of gradients (exp_avg) and of squared gradients (exp_avg_sq), before
    bias correction; zeros before the first update.
    """
    memory = getattr(optimizer, "optimizer", optimizer).state
    return {
        name: flat([memory.get(p, {}).get(name, torch.zeros_like(p)) for p in model.parameters()])
        for name in ("exp_avg", "exp_avg_sq")
    }


def gradient_of(
    model: Transformer, ids: Int[Tensor, "row position"], labels: Int[Tensor, "row position"]
) -> tuple[Float[Tensor, " parameter"], float]:
    """Gradient of the mean loss of a batch, parameters in the model's order, and that loss."""
    logits = model(ids.to(model.device)).logits[:, :-1].flatten(0, 1)
    loss = functional.cross_entropy(logits, labels[:, 1:].flatten().to(model.device))
    return flat(torch.autograd.grad(loss, list(model.parameters()))), loss.item()
