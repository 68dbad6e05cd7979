"""Causal attention that can be differentiated twice, with the second derivative written out.

Automatic differentiation sends some twenty T x T temporaries through memory for the second
derivative of a softmax; written out it is a third of that. S = scale q k^T, P = softmax(S) over
keys up to the query, z = P v; dz is the gradient of the loss with respect to z.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Heads = Float[Tensor, "row head position d_head"]


def causal_attention(query: Heads, key: Heads, value: Heads) -> Heads:
    """z = softmax(q k^T / sqrt(d_head)) v over the keys up to each query; twice differentiable, T x
    T memory.
    """
    return _Attention.apply(query.contiguous(), key.contiguous(), value.contiguous())  # pyright: ignore[reportReturnType]


def causal_pattern(query: Heads, key: Heads) -> Float[Tensor, "row head query key"]:
    """Attention patterns: rows sum to one."""
    length = query.shape[2]
    ahead = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return scores.masked_fill_(ahead, -torch.inf).softmax(dim=-1)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        pattern = causal_pattern(query, key)
        ctx.save_for_backward(query, key, value, pattern)
        return pattern @ value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _AttentionGradient.apply(*ctx.saved_tensors, gradients[0])  # pyright: ignore[reportReturnType]


class _AttentionGradient(torch.autograd.Function):
    """(q, k, v, P, dz) -> (dq, dk, dv), where P is a function of q and k."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, pattern: Tensor, dz: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        dz = dz.contiguous()
        ctx.save_for_backward(query, key, value, pattern, dz)
        ds = _score_gradient(pattern, dz @ value.transpose(-1, -2)).mul_(query.shape[-1] ** -0.5)
        return ds @ key, ds.transpose(-1, -2) @ query, pattern.transpose(-1, -2) @ dz

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, Tensor, Tensor, None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of <c_q, dq> + <c_k, dk> + <c_v, dv> with respect to q, k, v, dz."""
        query, key, value, pattern, dz = ctx.saved_tensors
        scale = query.shape[-1] ** -0.5
        of_dq, of_dk, of_dv = (cotangent.contiguous() for cotangent in cotangents)
        of_dq, of_dk = scale * of_dq, scale * of_dk
        centred = dz @ value.transpose(-1, -2)  # dP, then dP - rowsum(P dP)
        centred -= _row_sums(pattern * centred)
        of_ds = of_dq @ key.transpose(-1, -2)
        of_ds += query @ of_dk.transpose(-1, -2)
        of_ds -= _row_sums(pattern * of_ds)
        # A constant along a row of the pattern's gradient changes nothing: the softmax takes it
        # out.
        of_pattern = (dz @ of_dv.transpose(-1, -2)).addcmul_(of_ds, centred)
        of_scores = _score_gradient(pattern, of_pattern).mul_(scale)
        of_dp, ds = of_ds.mul_(pattern), centred.mul_(pattern)
        to_query = of_scores @ key + ds @ of_dk
        to_key = of_scores.transpose(-1, -2) @ query + ds.transpose(-1, -2) @ of_dq
        return to_query, to_key, of_dp.transpose(-1, -2) @ dz, None, of_dp @ value + pattern @ of_dv


def _score_gradient(pattern: Tensor, of_pattern: Tensor) -> Tensor:
    """Gradient with respect to the scores from the one with respect to their softmax: P (dP -
    rowsum(P dP)).
    """
    of_scores = of_pattern.mul_(pattern)
    return of_scores.addcmul_(pattern, _row_sums(of_scores), value=-1.0)


def _row_sums(entries: Float[Tensor, "row head query key"]) -> Float[Tensor, "row head query 1"]:
    """By a matrix product: several times faster than a reduction over a short last axis."""
    return (entries.flatten(0, 2) @ entries.new_ones(entries.shape[-1], 1)).view(
        *entries.shape[:-1], 1
    )
