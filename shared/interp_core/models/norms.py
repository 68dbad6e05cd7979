"""What a norm does, measured on the module itself: its gain, whether it centres, what it divides
by.

Names say little here. Gemma multiplies by 1 + weight, others by weight or by nothing; eps has four
names. So the module is run on probes, and what comes out says which it is. A module that is no norm
is None, never "divides by 1".
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_core.models.divided import in_one_piece

_TOLERANCE = 1e-4  # of the largest output: float32 rounding is a hundred times smaller
_EPS_NAMES = ("eps", "variance_epsilon", "epsilon", "norm_eps", "layer_norm_eps")


@dataclass(frozen=True, eq=False)
class Norm:
    """y = gain (x - mean) / divisor + bias, where `centres`; else the same without the mean."""

    gain: Float[Tensor, " d_model"] | None  # None: 1 everywhere
    bias: Float[Tensor, " d_model"] | None
    centres: bool
    eps: float

    def divisor(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """The standard deviation (LayerNorm) or the root mean square (RMSNorm) of x, with eps in
        it.
        """
        x = x.float()
        if self.centres:
            return torch.sqrt(x.var(dim=-1, unbiased=False) + self.eps)
        return torch.sqrt(x.pow(2).mean(dim=-1) + self.eps)

    def fold(
        self, weights: Float[Tensor, "*head d_model width"]
    ) -> Float[Tensor, "*head d_model width"]:
        """The gain, and the centring, moved into weights that read what the norm gives."""
        folded = weights if self.gain is None else self.gain.to(weights.device)[:, None] * weights
        return folded - folded.mean(dim=-2, keepdim=True) if self.centres else folded

    def fold_out(
        self, weights: Float[Tensor, "*head d_head d_model"]
    ) -> Float[Tensor, "*head d_head d_model"]:
        """The same moved into weights that write what the norm reads."""
        centred = weights - weights.mean(dim=-1, keepdim=True) if self.centres else weights
        return centred if self.gain is None else centred * self.gain.to(weights.device)


@torch.no_grad()
def read_norm(module: nn.Module, width: int) -> Norm | None:
    """The norm that a module is, over the last axis of this width; None where it is none."""
    if any(True for _ in module.children()):
        return None
    if any(parameter.shape != (width,) for parameter in module.parameters()):
        return None
    if not _reads_one_vector(module):
        return None

    # The forward of a copy in float32: what is rounded, and hooks that are attached, are no part of
    # the question.
    module = in_one_piece(module)
    probe: Callable[[Tensor], Any] = copy.deepcopy(module).float().cpu().forward
    generator = torch.Generator().manual_seed(0)
    x = 10.0 * torch.randn(1, 8, width, generator=generator)
    at_zero, y = probe(torch.zeros_like(x)), probe(x)
    if not isinstance(y, Tensor) or y.shape != x.shape or not bool(torch.isfinite(at_zero).all()):
        return None

    centres = torch.allclose(probe(x + 30.0), y, atol=_TOLERANCE * float(y.abs().max()), rtol=0)
    bias = at_zero[0, 0]
    gain, eps = _gain_and_eps(probe, x, bias, centres=centres)
    found = Norm(_snapped(gain, module), _or_none(bias), centres, _named_eps(module, eps))

    # The formula must give what the module gives, for vectors of every size.
    for size in (0.01, 1.0, 100.0):
        expected = _apply(found, gain, bias, size * x)
        given = probe(size * x)
        if not torch.allclose(given, expected, atol=_TOLERANCE * float(given.abs().max()), rtol=0):
            return None
    return found


def _reads_one_vector(module: nn.Module) -> bool:
    arguments = signature(module.forward).parameters.values()
    needed = [a for a in arguments if a.default is a.empty and a.kind is not a.VAR_KEYWORD]
    return len(needed) == 1


def _gain_and_eps(
    probe: Callable[[Tensor], Tensor], x: Tensor, bias: Tensor, *, centres: bool
) -> tuple[Float[Tensor, " d_model"], float]:
    def unit(size: float) -> tuple[Tensor, Tensor, Tensor]:
        centred = size * (x - x.mean(dim=-1, keepdim=True) if centres else x).double()
        power = centred.pow(2).mean(dim=-1, keepdim=True)
        return centred, power, (probe(size * x) - bias).double()

    # Large vectors show the gain, for eps is nothing beside them; small ones then show eps.
    large, power, y = unit(100.0)
    normed = large / power.sqrt()
    gain = (normed * y).sum(dim=(0, 1)) / normed.pow(2).sum(dim=(0, 1))

    small, power, y = unit(1e-4)
    ratio = (gain * small).pow(2).sum() / (gain * small * y).sum().clamp_min(
        torch.finfo(torch.float64).tiny
    )
    eps = float(ratio.pow(2) - power.mean())
    return gain.float(), max(eps, 0.0)


def _snapped(gain: Tensor, module: nn.Module) -> Float[Tensor, " d_model"] | None:
    """The measured gain without its rounding, where it is the module's weight, one more than that,
    or 1.
    """
    for parameter in module.parameters():
        weight = parameter.detach().float()
        for candidate in (weight, 1.0 + weight):
            if torch.allclose(candidate.cpu(), gain, atol=1e-4, rtol=1e-4):
                return candidate
    if torch.allclose(gain, torch.ones_like(gain), atol=1e-5, rtol=0):
        return None
    return gain


def _named_eps(module: nn.Module, measured: float) -> float:
    named = [
        float(getattr(module, name))
        for name in _EPS_NAMES
        if isinstance(getattr(module, name, None), float)
    ]
    near = [eps for eps in named if abs(eps - measured) <= 0.05 * eps + 1e-9]
    return near[0] if near else measured


def _or_none(bias: Tensor) -> Float[Tensor, " d_model"] | None:
    return bias if bool(bias.any()) else None


def _apply(norm: Norm, gain: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True) if norm.centres else x
    return gain * centred / norm.divisor(x)[..., None] + bias
