"""Mamba-2's hidden attention, by head: the 1-semiseparable matrix of state-space duality (Dao & Gu
2024).

    alpha[h, i, j] = dt_j[h] exp(A[h] (S_i[h] - S_j[h])) C_i[g] . B_j[g]       g: the head's group
    S = cumsum(dt),   i >= j
    y_i = sum_j alpha[h, i, j] x_j + D[h] x_i             an identity, checked in every run
    gated_y = weight v / rms(v),   v = y SiLU(z)          the root mean square is a group's

All channels of a head share its alpha. The norm divides by one number a group and position: with
that number fixed, what is written is linear in what was read, and `gate` is the factor.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import silu


@dataclass(frozen=True)
class HeadCall:
    """One layer's Mamba-2 mixer as it ran."""

    z: Float[Tensor, "batch position channel"]  # the gate before SiLU
    x: Float[Tensor, "batch position channel"]  # after convolution and SiLU
    dt: Float[Tensor, "batch position head"]  # after softplus and its limits, positive
    A: Float[Tensor, "head 1"]  # negative
    B: Float[Tensor, "batch position group state"]
    C: Float[Tensor, "batch position group state"]
    D: Float[Tensor, " channel"]  # one number a head, repeated
    y: Float[Tensor, "batch position channel"]  # what the model's scan gave
    gated_y: Float[Tensor, "batch position channel"]  # what the model gave out_proj
    weight: Float[Tensor, " channel"]  # of the norm
    eps: float

    @property
    def n_heads(self) -> int:
        """Heads of the layer."""
        return self.dt.shape[-1]

    @property
    def S(self) -> Float[Tensor, "batch position head"]:
        """Running sum of dt, in float64."""
        return self.dt.double().cumsum(dim=1)

    @property
    def gate(self) -> Float[Tensor, "batch position channel"]:
        """What y is multiplied by before out_proj reads it, the norm's divisor as it was."""
        return self.weight * silu(self.z) / self._divisor(self.y * silu(self.z))

    def row(self, index: int) -> "HeadCall":
        """One sequence of the batch."""
        one = slice(index, index + 1)
        parts = {
            name: getattr(self, name)[one] for name in ("z", "x", "dt", "B", "C", "y", "gated_y")
        }
        return HeadCall(**parts, A=self.A, D=self.D, weight=self.weight, eps=self.eps)

    def by_channel(self, of_heads: Float[Tensor, "*any head"]) -> Float[Tensor, "*any channel"]:
        """What a head has, for each of its channels."""
        size = self.x.shape[-1] // self.n_heads
        return of_heads.repeat_interleave(size, dim=-1)

    def entries(
        self,
        batch: Int[Tensor, " pair"],
        query: Int[Tensor, " pair"],
        key: Int[Tensor, " pair"],
    ) -> Float[Tensor, "pair head"]:
        """alpha at wanted (sequence, query, key); 0 where the key comes after its query."""
        S = self.S
        since = (S[batch, query] - S[batch, key]).clamp_min(0).to(self.dt.dtype)
        read = (self.C[batch, query] * self.B[batch, key]).sum(dim=-1)  # [pair, group]

        alpha = self.dt[batch, key] * torch.exp(self.A[:, 0] * since) * self._by_head(read)
        return torch.where((key <= query)[:, None], alpha, 0.0)

    def matrices(self) -> Float[Tensor, "batch head query key"]:
        """Whole alpha, 0 above the diagonal."""
        S = self.S.mT  # [batch, head, position]
        since = (S[..., :, None] - S[..., None, :]).clamp_min(0).to(self.dt.dtype)
        decay = torch.exp(self.A[:, :, None] * since)

        read = torch.einsum("bign,bjgn->bijg", self.C, self.B)
        by_head = torch.einsum("bijh->bhij", self._by_head(read))
        return (by_head * decay * self.dt.mT[:, :, None]).tril()

    def attended(self) -> Float[Tensor, "batch position channel"]:
        """alpha x: what the scan gives but for the skip."""
        x = self.x.unflatten(-1, (self.n_heads, -1))
        return torch.einsum("bhij,bjhd->bihd", self.matrices(), x).flatten(2)

    def through_norm(
        self, y: Float[Tensor, "batch position channel"]
    ) -> Float[Tensor, "batch position channel"]:
        """What out_proj would read if the scan had given this."""
        v = y * silu(self.z)
        return self.weight * v / self._divisor(v)

    def slope_of_y(
        self, slope: Float[Tensor, "batch position channel"]
    ) -> Float[Tensor, "batch position channel"]:
        """The gradient by y where this is the gradient by gated_y: the norm's derivative too."""
        v = self.y * silu(self.z)
        divisor = self._divisor(v)

        along = (slope * self.weight * v).unflatten(-1, (self.n_groups, -1))
        shared = along.mean(dim=-1, keepdim=True).expand_as(along).flatten(-2)
        return (slope * self.weight - v * shared / divisor**2) * silu(self.z) / divisor

    @property
    def n_groups(self) -> int:
        """Groups of heads."""
        return self.B.shape[2]

    def states(self) -> Float[Tensor, "batch position channel state"]:
        """h after every position, by the recurrence itself."""
        decay = self.by_channel(torch.exp(self.dt * self.A[:, 0]))[..., None]
        written = (self.by_channel(self.dt) * self.x)[..., None] * self._of_channels(self.B)
        h = torch.zeros_like(written[:, 0])
        found = []

        for t in range(written.shape[1]):
            h = decay[:, t] * h + written[:, t]
            found.append(h)

        return torch.stack(found, dim=1)

    def state_after(self, position: int) -> Float[Tensor, "batch channel state"]:
        """The scan's state after a position: sum_j exp(A (S_i - S_j)) dt_j x_j B_j."""
        prefix = slice(0, position + 1)
        S = self.S[:, prefix]
        away = (S[:, -1:] - S).to(self.dt.dtype)
        kept = self.dt[:, prefix] * torch.exp(self.A[:, 0] * away)

        written = self.by_channel(kept) * self.x[:, prefix]
        B = self._of_channels(self.B[:, prefix])
        return torch.einsum("btc,btcn->bcn", written, B)

    def y_from_state(
        self, state: Float[Tensor, "batch channel state"], position: int
    ) -> Float[Tensor, "batch position channel"]:
        """What the scan would give if its state after `position` were this one.

        Summed anew, and not as a change of y: the norm behind it makes what rounding leaves of a
        vector that should be gone as large as any.
        """
        later = slice(position + 1, None)
        since = (self.S[:, later] - self.S[:, position : position + 1]).to(self.dt.dtype)
        kept = self.by_channel(torch.exp(self.A[:, 0] * since))
        read = kept * torch.einsum("btcn,bcn->btc", self._of_channels(self.C[:, later]), state)

        x = self.x.unflatten(-1, (self.n_heads, -1))
        alpha = self.matrices()[:, :, later, later]
        read += torch.einsum("bhij,bjhd->bihd", alpha, x[:, later]).flatten(2)

        y = self.y.clone()
        y[:, later] = read + self.D * self.x[:, later]
        return y

    def y_without(
        self,
        batch: Int[Tensor, " read"],
        query: Int[Tensor, " read"],
        key: Int[Tensor, " read"],
        *,
        largest: int = 2**24,
    ) -> Float[Tensor, "batch position channel"]:
        """What the scan would give if these queries did not read these keys, the others summed anew
        (see y_from_state). `largest` bounds the floats held at once.
        """
        length, channels = self.x.shape[1:]
        places, of_place = torch.unique(
            torch.stack([batch, query]), dim=1, return_inverse=True
        )  # [2, place]
        y = self.y.clone()
        step = max(1, largest // (length * channels))

        for first in range(0, places.shape[1], step):
            rows, queries = places[:, first : first + step]
            every = torch.arange(length, device=rows.device).repeat(len(rows))
            alpha = self.entries(
                rows.repeat_interleave(length), queries.repeat_interleave(length), every
            ).unflatten(0, (len(rows), length))

            here = (of_place >= first) & (of_place < first + step)
            alpha[of_place[here] - first, key[here]] = 0.0

            x = self.x[rows].unflatten(-1, (self.n_heads, -1))
            read = torch.einsum("pjh,pjhd->phd", alpha, x).flatten(1)
            y[rows, queries] = read + self.D * self.x[rows, queries]

        return y

    def read_of_states(self) -> Float[Tensor, "batch position channel state"]:
        """What each state alone gives to y: C_i[n] h_i[channel, n]."""
        return self.states() * self._of_channels(self.C)

    def _of_channels(
        self, of_groups: Float[Tensor, "batch position group state"]
    ) -> Float[Tensor, "batch position channel state"]:
        size = self.x.shape[-1] // self.n_groups
        return of_groups.repeat_interleave(size, dim=2)

    def _by_head(self, of_groups: Float[Tensor, "*any group"]) -> Float[Tensor, "*any head"]:
        return of_groups.repeat_interleave(self.n_heads // self.n_groups, dim=-1)

    def _divisor(self, v: Float[Tensor, "*any channel"]) -> Float[Tensor, "*any channel"]:
        """The root mean square over a group's channels, with eps in it."""
        groups = v.unflatten(-1, (self.n_groups, -1))
        square = groups.pow(2).mean(dim=-1, keepdim=True)
        return (square + self.eps).sqrt().expand_as(groups).flatten(-2)
