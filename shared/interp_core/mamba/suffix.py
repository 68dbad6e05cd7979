"""The layers of a Mamba behind an ablation, run again without gradients: products of matrices, and
one kernel between each two. On the CPU in float32; elsewhere the model's own blocks run.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp_core.mamba.selective_scan import backend_for, has_norms
from interp_core.mamba.subject import MambaSubject


@dataclass(frozen=True, eq=False)
class Suffix:
    """A Mamba's blocks as the arrays that the kernels read."""

    blocks: list["Block"]
    norm: "Norm"

    @classmethod
    @torch.no_grad()
    def of(cls, subject: MambaSubject) -> "Suffix | None":
        """None where the kernels cannot run: another device, type or kind of mixer, or no Numba."""
        backbone: Any = subject.model.base_model
        mixers = [block.mixer for block in backbone.layers]
        if any(not hasattr(mixer, "x_proj") or has_norms(mixer) for mixer in mixers):
            return None

        weights = list(backbone.parameters())
        if any(
            weight.dtype != torch.float32 or backend_for(weight) != "numba" for weight in weights
        ):
            return None
        return cls([Block.of(block) for block in backbone.layers], Norm.of(backbone.norm_f))

    @torch.no_grad()
    def run(
        self, residual: Float[Tensor, "copy position d_model"], first: int
    ) -> Float[Tensor, "copy position d_model"]:
        """Normed hidden states when the residual stream before block `first` is this one, which is
        overwritten.
        """
        flat = residual.flatten(0, 1)
        room = Room.of(residual, self.blocks[0]) if first < len(self.blocks) else None
        for block in self.blocks[first:]:
            assert room is not None
            block.add_to(flat, room)
        return self.norm(flat, torch.empty_like(flat)).unflatten(0, residual.shape[:2])


@dataclass(frozen=True, eq=False)
class Norm:
    """RMS norm."""

    weight: Float[Tensor, " d_model"]
    eps: float

    @classmethod
    def of(cls, module: Any) -> "Norm":
        """Of a Hugging Face MambaRMSNorm."""
        return cls(module.weight.detach(), float(module.variance_epsilon))

    def __call__(
        self, residual: Float[Tensor, "row d_model"], out: Float[Tensor, "row d_model"]
    ) -> Float[Tensor, "row d_model"]:
        from interp_core.mamba.suffix_kernels import rms_norm

        rms_norm(
            residual.numpy(),
            self.weight.numpy(),
            self.weight.new_tensor(self.eps).numpy()[()],
            out.numpy(),
        )
        return out


@dataclass(frozen=True, eq=False)
class Room:
    """Where one block after another puts its intermediate values."""

    normed: Float[Tensor, "row d_model"]
    uz: Float[Tensor, "copy position both"]
    x: Float[Tensor, "copy position channel"]
    low: Float[Tensor, "copy position projected"]
    raw: Float[Tensor, "copy position channel"]

    @classmethod
    def of(cls, residual: Float[Tensor, "copy position d_model"], block: "Block") -> "Room":
        """For a residual stream of this shape."""
        copies, length, width = residual.shape
        channels = len(block.skip)
        sizes = (2 * channels, channels, len(block.x_proj), channels)
        return cls(
            residual.new_empty(copies * length, width),
            *(residual.new_empty(copies, length, n) for n in sizes),
        )


@dataclass(frozen=True, eq=False)
class Block:
    """One block: its norm and its mixer's weights."""

    norm: Norm
    in_proj: Float[Tensor, "both d_model"]
    taps: Float[Tensor, "tap channel"]
    taps_bias: Float[Tensor, " channel"]
    x_proj: Float[Tensor, "projected channel"]
    dt_proj: Float[Tensor, "channel rank"]
    dt_bias: Float[Tensor, " channel"]
    rate: Float[Tensor, "state channel"]  # A log2(e)
    skip: Float[Tensor, " channel"]  # D
    out_proj: Float[Tensor, "d_model channel"]
    biases: tuple[Tensor | None, Tensor | None]  # of in_proj and out_proj

    @classmethod
    def of(cls, block: Any) -> "Block":
        """Of a Hugging Face MambaBlock."""
        from interp_core.mamba.suffix_kernels import LOG2E

        mixer = block.mixer
        taps_bias = mixer.conv1d.bias
        return cls(
            Norm.of(block.norm),
            mixer.in_proj.weight.detach(),
            mixer.conv1d.weight.detach()[:, 0].T.contiguous(),
            torch.zeros(len(mixer.D)) if taps_bias is None else taps_bias.detach(),
            mixer.x_proj.weight.detach(),
            mixer.dt_proj.weight.detach(),
            mixer.dt_proj.bias.detach(),
            (-torch.exp(mixer.A_log.detach()) * float(LOG2E)).T.contiguous(),
            mixer.D.detach(),
            mixer.out_proj.weight.detach(),
            (_bias_of(mixer.in_proj), _bias_of(mixer.out_proj)),
        )

    def add_to(self, residual: Float[Tensor, "row d_model"], room: Room) -> None:
        """Add what the block writes to the residual stream."""
        from interp_core.mamba.suffix_kernels import convolve, scan_and_gate

        rank = self.dt_proj.shape[1]
        x, raw, low, uz = (part.flatten(0, 1) for part in (room.x, room.raw, room.low, room.uz))
        torch.mm(self.norm(residual, room.normed), self.in_proj.T, out=uz)
        if self.biases[0] is not None:
            uz += self.biases[0]
        convolve(room.uz.numpy(), self.taps.numpy(), self.taps_bias.numpy(), room.x.numpy())
        torch.mm(x, self.x_proj.T, out=low)
        torch.mm(low[:, :rank], self.dt_proj.T, out=raw)
        arrays = (room.uz, room.low, room.raw, self.dt_bias, self.rate, self.skip, room.x)
        scan_and_gate(*(array.numpy() for array in arrays))
        residual.addmm_(x, self.out_proj.T)
        if self.biases[1] is not None:
            residual += self.biases[1]


def _bias_of(projection: Any) -> Tensor | None:
    return None if projection.bias is None else projection.bias.detach()
