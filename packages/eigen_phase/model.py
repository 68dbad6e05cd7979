"""The transformer of this study: attention-only or with MLPs, rotary positions, no biases (Elhage
et al. 2021).

Small enough to differentiate twice. Attention is fused while it trains and explicit while its
curvature is measured: fused kernels have no second derivative.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from eigen_phase.model_attention import causal_attention, causal_pattern
from eigen_phase.model_shape import Shape
from interp_core.errors import InputError
from interp_core.models.hooks import hooked, per_head
from interp_core.models.sites import Site
from interp_core.models.subject import HeadWeights


class Output(NamedTuple):
    """As a Hugging Face decoder answers."""

    logits: Float[Tensor, "row position vocab"]


class Attention(nn.Module):
    """One layer of causal attention heads: W_Q, W_K, W_V with the heads along their rows, W_O along
    its columns.
    """

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.n_heads, self.layer = shape.n_heads, layer
        self.q, self.k, self.v, self.o = (
            nn.Linear(shape.d_model, shape.d_model, bias=False) for _ in range(4)
        )
        self.clamp_to = shape.clamp_to if layer == 0 else None  # of head 0
        self.explicit = False
        self.seen: list[tuple[Tensor, Tensor]] | None = (
            None  # (pattern, z) of each call, when wanted
        )

    def forward(
        self, x: Float[Tensor, "row position d_model"], rotary: Complex[Tensor, "position d_model"]
    ) -> Float[Tensor, "row position d_model"]:
        """What the heads add to the residual stream."""
        packed = functional.linear(x, torch.cat([self.q.weight, self.k.weight, self.v.weight]))
        turned, plain = packed.split([2 * x.shape[-1], x.shape[-1]], dim=-1)
        heads = "row position (kind head e) -> kind row head position e"
        query, key = rearrange(_turn(turned, rotary), heads, kind=2, head=self.n_heads)
        value = rearrange(plain, heads, kind=1, head=self.n_heads)[0]
        if self.explicit:
            z = causal_attention(query, key, value)
        else:
            z = functional.scaled_dot_product_attention(query, key, value, is_causal=True)

        if self.clamp_to is not None:
            z = torch.cat([_looking_back(value[:, :1], self.clamp_to), z[:, 1:]], dim=1)

        if self.seen is not None:
            self.seen.append((self._clamp(causal_pattern(query, key)), z))

        return self.o(rearrange(z, "row head position e -> row position (head e)"))

    def _clamp(
        self, pattern: Float[Tensor, "row head query key"]
    ) -> Float[Tensor, "row head query key"]:
        """The patterns with those of a clamped head as it really looks."""
        if self.clamp_to is None:
            return pattern

        length = pattern.shape[-1]
        keys = (torch.arange(length, device=pattern.device) - self.clamp_to).clamp_min(0)
        back = functional.one_hot(keys, length).to(pattern.dtype)
        return torch.cat([back.expand_as(pattern[:, :1]), pattern[:, 1:]], dim=1)


class Block(nn.Module):
    """Pre-norm attention and, where there is one, a pre-norm MLP."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(shape.d_model, eps=1e-5)
        self.attention = Attention(shape, layer)
        self.mlp = Mlp(shape) if shape.mlp_ratio else None

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        """The residual stream after this block."""
        x = x + self.attention(self.norm(x), rotary)
        return x if self.mlp is None else x + self.mlp(x)


class Mlp(nn.Module):
    """Norm, up, GELU, down."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(shape.d_model, eps=1e-5)
        self.up = nn.Linear(shape.d_model, shape.mlp_ratio * shape.d_model, bias=False)
        self.down = nn.Linear(shape.mlp_ratio * shape.d_model, shape.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """What it adds to the residual stream."""
        return self.down(functional.gelu(self.up(self.norm(x))))


class Transformer(nn.Module):
    """Embedding, blocks, norm, unembedding (not tied).

    Also the face that interp_core.measures reads: weights of heads, and activations by name.
    """

    pattern_is_editable = False

    def __init__(self, shape: Shape, *, seed: int) -> None:
        super().__init__()
        self.shape = shape
        self.n_layers, self.n_heads, self.d_model = shape.n_layers, shape.n_heads, shape.d_model
        self.d_head = shape.d_model // shape.n_heads
        self.embed = nn.Embedding(shape.vocab_size, shape.d_model)
        self.layers = nn.ModuleList(Block(shape, layer) for layer in range(shape.n_layers))
        self.norm = nn.RMSNorm(shape.d_model, eps=1e-5)
        self.unembed = nn.Linear(shape.d_model, shape.vocab_size, bias=False)
        self.register_buffer("rotary", _rotary(shape, self.d_head), persistent=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0.0, shape.initializer_range, generator=generator)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.weight.device

    @property
    def blocks(self) -> list[Block]:
        """The layers."""
        return list(self.layers)  # pyright: ignore[reportReturnType]

    @property
    def attentions(self) -> list[Attention]:
        """The attention of each layer."""
        return [block.attention for block in self.blocks]

    def forward(self, input_ids: Int[Tensor, "row position"], use_cache: bool = False) -> Output:
        """Logits at t predict the token at t + 1.

        There is no cache; the argument is for callers that name it.
        """
        x = self.embed(input_ids)
        assert isinstance(self.rotary, Tensor)
        rotary = self.rotary[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x, rotary)
        return Output(self.unembed(self.norm(x)))

    @contextmanager
    def explicit_attention(self) -> Iterator[None]:
        """Attention from plain matrix products inside the block: twice differentiable, T x T
        memory.
        """
        before = [attention.explicit for attention in self.attentions]
        for attention in self.attentions:
            attention.explicit = True
        try:
            yield
        finally:
            for attention, was in zip(self.attentions, before, strict=True):
                attention.explicit = was

    def attach(
        self, site: Site, function: Callable[[Tensor], Tensor | None]
    ) -> AbstractContextManager[None]:
        """Call `function` with what heads collect (`attn.z`); what it returns takes its place.

        InputError for another site, and for a layer that the model does not have.
        """
        if site.name != "attn.z" or not 0 <= site.layer < self.n_layers:
            raise InputError(f"{site}: this model has attn.z of {self.n_layers} layers, from 0")

        return hooked(self.attentions[site.layer].o, "input", per_head(function, self.n_heads))

    @torch.no_grad()
    def patterns(
        self, ids: Int[Tensor, "row position"]
    ) -> Float[Tensor, "layer row head query key"]:
        """Attention patterns, rows sum to one."""
        return torch.stack([pattern for pattern, _ in self._seen(ids)])

    @torch.no_grad()
    def head_outputs(
        self, ids: Int[Tensor, "row position"]
    ) -> Float[Tensor, "layer row head position d_head"]:
        """z: what each head reads, before W_O."""
        return torch.stack([z for _, z in self._seen(ids)])

    def _seen(self, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
        seen: list[tuple[Tensor, Tensor]] = []
        for attention in self.attentions:
            attention.seen = seen
        try:
            self(ids)
        finally:
            for attention in self.attentions:
                attention.seen = None
        return seen

    def head_weights(self, layer: int) -> HeadWeights:
        """Attention weights of a layer with the norm's gain folded in, acting from the left on the
        normed stream.
        """
        attention: Attention = self.attentions[layer]
        gain = self.blocks[layer].norm.weight[:, None]
        read = {
            name: gain
            * rearrange(
                getattr(attention, name).weight, "(head e) d -> head d e", head=self.n_heads
            )
            for name in ("q", "k", "v")
        }
        out = rearrange(attention.o.weight, "d (head e) -> head e d", head=self.n_heads)
        return HeadWeights(read["q"].detach(), read["k"].detach(), read["v"].detach(), out.detach())

    def rotated(self, weights: Float[Tensor, "head d_model d_head"], distance: int) -> Tensor:
        """Query weights turned as positions turn a query `distance` tokens after its key."""
        turn = torch.polar(
            torch.ones(()).double(), distance / _wavelengths(self.shape, self.d_head)
        )
        return _turn(
            weights.contiguous(), turn.to(torch.promote_types(weights.dtype, torch.complex64))
        )

    def embedding(self) -> Float[Tensor, "vocab d_model"]:
        """W_E."""
        return self.embed.weight.detach()

    def unembedding(self) -> Float[Tensor, "d_model vocab"]:
        """W_U with the final norm's gain folded in."""
        return (self.unembed.weight * self.norm.weight).T.detach()


def _looking_back(
    value: Float[Tensor, "row 1 position d_head"], offset: int
) -> Float[Tensor, "row 1 position d_head"]:
    """Each position's value is that of `offset` tokens before, of the first where none is there."""
    offset = min(offset, value.shape[2])
    if offset == 0:
        return value

    first = value[:, :, :1].expand(-1, -1, offset, -1)
    return torch.cat([first, value[:, :, :-offset]], dim=2)


def _wavelengths(shape: Shape, d_head: int) -> Float[Tensor, " pair"]:
    """Tokens per radian of each pair of dimensions."""
    return shape.rotary_base ** (torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)


def _rotary(shape: Shape, d_head: int) -> Complex[Tensor, "position d_model"]:
    """exp(i angle) of each pair of dimensions of the queries and the keys of all heads."""
    angles = torch.arange(shape.seq_length, dtype=torch.float64)[:, None] / _wavelengths(
        shape, d_head
    )
    return (
        torch.polar(torch.ones(()).double(), angles)
        .to(torch.complex64)
        .repeat(1, 2 * shape.n_heads)
    )


def _turn(
    x: Float[Tensor, "*lead dimension"], by: Complex[Tensor, "*#lead pair"]
) -> Float[Tensor, "*lead dimension"]:
    """Turn neighbouring dimensions as real and imaginary part (Su et al. 2021)."""
    pairs = torch.view_as_complex(rearrange(x, "... (pair part) -> ... pair part", part=2))
    return torch.view_as_real(pairs * by).flatten(-2)
