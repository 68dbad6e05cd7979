"""A layer's self-attention under the names that the notebook's cells read.

    attn_drop                                   the attention patterns pass through it
    q_proj, k_proj, v_proj, out_proj            the four maps, each a [d_model, d_model] weight

The weights are the model's own: what is written into one, in place, is what the model computes
with. A hook on any of them fires, and what it returns takes the place of what it saw. Without hooks
the model runs as the study's does, to the bit.
"""

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from cursive_circuits.model_blocks import Attention, Watch
from cursive_circuits.model_shape import Shape
from interp_core.errors import InputError


class PackedMap(nn.Module):
    """The map of the keys or of the values: its rows of `kv`, which packs both.

    Gradients gather in `kv`. InputError for another tensor in its weight's place.
    """

    def __init__(self, kv: nn.Linear, rows: slice) -> None:
        super().__init__()
        # In a tuple torch does not see the weights, so that the model's state holds them once.
        self._packed = (kv, rows)

    @property
    def weight(self) -> Float[Tensor, "out d_model"]:
        """A view of the model's weight, read anew each time: a move to a device replaces it."""
        kv, rows = self._packed
        return kv.weight[rows]

    @property
    def bias(self) -> Float[Tensor, " out"]:
        """A view of the model's bias."""
        kv, rows = self._packed
        return kv.bias[rows]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("weight", "bias"):
            raise InputError(f"this {name} is a part of kv's: write into it, {name}[...] = values")
        super().__setattr__(name, value)

    def forward(self, x: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead out"]:
        """What it makes of the stream."""
        kv, rows = self._packed
        return kv(x)[..., rows]


NAMES = ("attn_drop", "q_proj", "k_proj", "v_proj", "out_proj")


class SelfAttention(Attention):
    """The study's attention, which also has the notebook's parts."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.attn_drop = nn.Identity()  # the model has no dropout
        self.k_proj = PackedMap(self.kv, slice(shape.d_model))
        self.v_proj = PackedMap(self.kv, slice(shape.d_model, None))

    @property
    def num_heads(self) -> int:
        """Heads of the layer."""
        return self.heads

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.q.out_features // self.heads

    @property
    def q_proj(self) -> nn.Linear:
        """The map of the queries: a head's are rows of its weight."""
        return self.q

    @property
    def out_proj(self) -> nn.Linear:
        """The map of what the heads collected: a head's are columns of its weight."""
        return self.out

    def __setattr__(self, name: str, value: Any) -> None:
        # Torch would keep a module that is put in a property's place, and never call it.
        if name in NAMES and hasattr(self, name):
            raise InputError(
                f"{name} is not replaced: write into its weight, or register a hook on it"
            )
        super().__setattr__(name, value)

    def keys_values(self, x: Float[Tensor, "row key d_model"]) -> tuple[Tensor, Tensor]:
        """As the study's; through the two maps where one has a hook."""
        if not (_has_hooks(self.k_proj) or _has_hooks(self.v_proj)):
            return super().keys_values(x)

        key, value = (
            rearrange(part(x), "row key (head e) -> row head key e", head=self.heads)
            for part in (self.k_proj, self.v_proj)
        )
        return key, value

    def attend(
        self,
        x: Float[Tensor, "row position d_model"],
        query: Float[Tensor, "row head position d_head"],
        key: Float[Tensor, "row head key d_head"],
        value: Float[Tensor, "row head key d_head"],
        mask: Float[Tensor, "row 1 1 key"] | None,
        *,
        causal: bool,
    ) -> Float[Tensor, "row position d_model"]:
        """As the study's; where `attn_drop` has a hook, by whole patterns, quadratic in length."""
        if not _has_hooks(self.attn_drop):
            return super().attend(x, query, key, value, mask, causal=causal)

        before = self.watch
        self.watch = _through(self.attn_drop, before)
        try:
            return super().attend(x, query, key, value, mask, causal=causal)
        finally:
            self.watch = before


def _through(drop: Callable[[Tensor], Tensor], observer: Watch | None) -> Watch:
    """Attention whose patterns pass through a module. An observer sees the call as it was without
    its hooks.
    """

    def collect(
        x: Float[Tensor, "row position d_model"],
        query: Float[Tensor, "row head position d_head"],
        key: Float[Tensor, "row head key d_head"],
        value: Float[Tensor, "row head key d_head"],
        mask: Tensor | None,
    ) -> Float[Tensor, "row head position d_head"]:
        if observer is not None:
            observer(x, query, key, value, mask)

        scores = query @ key.mT * query.shape[-1] ** -0.5  # [row, head, position, key]
        if mask is None:
            ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(ahead, -torch.inf)
        else:
            scores = scores + mask
        return drop(scores.softmax(dim=-1)) @ value

    return collect


def _has_hooks(module: nn.Module) -> bool:
    """Whether anybody sees or changes what goes through it; torch has no public question."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
