"""A Mamba's recurrence a token at a time, in float64, with chosen reads masked: what hidden
attention and every cut of it must agree with.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv1d, silu, softplus

Read = tuple[int, int, int]  # sequence, query, key


@torch.no_grad()
def mixed(mixer: Any, hidden: Tensor, without: Collection[Read] = ()) -> Tensor:
    """What a mixer of transformers writes for its input, from its weights alone."""
    given = mixer.in_proj(hidden).double()
    by_kind = {"Mamba2Mixer": _of_heads}
    written = by_kind.get(type(mixer).__name__, _of_channels)(mixer, given, without)
    return mixer.out_proj(written.float())


def _of_channels(mixer: Any, given: Tensor, without: Collection[Read]) -> Tensor:
    u, z = given.chunk(2, dim=-1)
    x = _convolved(mixer, u)
    rank, state = mixer.time_step_rank, mixer.ssm_state_size
    low, B, C = mixer.x_proj(x.float()).double().split([rank, state, state], dim=-1)

    if type(mixer).__name__ == "FalconMambaMixer":
        low, B, C = (_over_rms(part, mixer.rms_eps) for part in (low, B, C))

    dt = softplus(low @ mixer.dt_proj.weight.double().T + mixer.dt_proj.bias.double())
    A = -torch.exp(mixer.A_log.double())
    every = u.shape[-1]
    B, C = (part[:, :, None].expand(-1, -1, every, -1) for part in (B, C))
    return _scan(x, dt, A, B, C, mixer.D.double(), without) * silu(z)


def _of_heads(mixer: Any, given: Tensor, without: Collection[Read]) -> Tensor:
    width, heads, groups = mixer.intermediate_size, mixer.num_heads, mixer.n_groups
    z, rest, raw = given.split([width, mixer.conv_dim, heads], dim=-1)
    x, B, C = _convolved(mixer, rest).split([width, *[groups * mixer.ssm_state_size] * 2], dim=-1)
    low, high = mixer.time_step_limit
    dt = softplus(raw + mixer.dt_bias.double()).clamp(low, high)

    def wide(of_heads: Tensor) -> Tensor:
        return of_heads.repeat_interleave(width // heads, dim=-1)

    def of_group(part: Tensor) -> Tensor:
        return part.unflatten(-1, (groups, -1)).repeat_interleave(width // groups, dim=2)

    A = wide(-torch.exp(mixer.A_log.double()))[:, None].expand(-1, mixer.ssm_state_size)
    y = _scan(x, wide(dt), A, of_group(B), of_group(C), wide(mixer.D.double()), without)
    v = (y * silu(z)).unflatten(-1, (groups, -1))
    return mixer.norm.weight.double() * _over_rms(v, mixer.norm.variance_epsilon).flatten(-2)


def _scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, without: Collection[Read]
) -> Tensor:
    """y, each key's state kept apart so that a query can leave some of them out."""
    batch, length, channels = x.shape
    states = x.new_zeros(length, batch, channels, A.shape[1])
    y = torch.zeros_like(x)

    for t in range(length):
        states *= torch.exp(dt[:, t, :, None] * A)
        states[t] = (dt[:, t] * x[:, t])[..., None] * B[:, t]
        for row in range(batch):
            kept = [key for key in range(t + 1) if (row, t, key) not in without]
            y[row, t] = (states[kept, row].sum(dim=0) * C[row, t]).sum(dim=-1) + D * x[row, t]
    return y


def _convolved(mixer: Any, u: Tensor) -> Tensor:
    weight, bias = mixer.conv1d.weight.double(), mixer.conv1d.bias
    out = conv1d(
        u.mT,
        weight,
        None if bias is None else bias.double(),
        padding=weight.shape[-1] - 1,
        groups=len(weight),
    )
    return silu(out[..., : u.shape[1]].mT)


def _over_rms(part: Tensor, eps: float) -> Tensor:
    return part / (part.pow(2).mean(dim=-1, keepdim=True) + eps).sqrt()
