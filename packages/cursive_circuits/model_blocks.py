"""What the cursive transformer is made of: attention, and the pre-norm block."""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cursive_circuits.model_shape import Shape

# Where self-attention's queries, keys and values can be seen and changed, by the site's name.
TAPS = {"attn.rot_q": "q", "attn.rot_k": "k", "attn.v": "v"}

Watch = Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor
]  # x, query, key, value, mask -> z


class Attention(nn.Module):
    """Heads of one layer and kind: the rows of q, kv belong to heads, also the COLUMNS of out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q = nn.Linear(shape.d_model, shape.d_model)
        self.kv = nn.Linear(shape.d_model, 2 * shape.d_model)
        self.out = nn.Linear(shape.d_model, shape.d_model)
        self.watch: Watch | None = None

    def queries(
        self, x: Float[Tensor, "row position d_model"]
    ) -> Float[Tensor, "row head position d_head"]:
        """Before rotary."""
        return rearrange(self.q(x), "row position (head e) -> row head position e", head=self.heads)

    def keys_values(self, x: Float[Tensor, "row key d_model"]) -> tuple[Tensor, Tensor]:
        """Each [row, head, key, d_head], keys before rotary."""
        both = rearrange(
            self.kv(x), "row key (kind head e) -> kind row head key e", kind=2, head=self.heads
        )
        return both[0], both[1]

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
        """What the heads add to the residual stream; `x` is what the queries were made from, for
        the observer.
        """
        if self.watch is None:
            z = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=causal
            )
        else:
            shown = mask if causal or mask is not None else query.new_zeros(1, 1, 1, key.shape[2])
            z = self.watch(x, query, key, value, shown)
        return self.out(rearrange(z, "row head position e -> row position (head e)"))


class Block(nn.Module):
    """Self-attention, cross-attention, MLP, each on its own norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_norm, self.cross_norm, self.mlp_norm = (
            nn.LayerNorm(shape.d_model) for _ in range(3)
        )
        self.self_attention, self.cross_attention = Attention(shape), Attention(shape)
        self.up = nn.Linear(shape.d_model, 4 * shape.d_model)
        self.down = nn.Linear(4 * shape.d_model, shape.d_model)
        self.gelu = shape.gelu
        # They do nothing, and are where hooks see what is no module's output otherwise.
        self.taps = nn.ModuleDict({name: nn.Identity() for name in TAPS.values()})

    def forward(
        self,
        x: Float[Tensor, "row position d_model"],
        rotation: tuple[Float[Tensor, "position pair"], Float[Tensor, "position pair"]] | None,
        text: tuple[Tensor, Tensor],
        mask: Float[Tensor, "row 1 1 character"] | None,
        past: tuple[Tensor, Tensor] | None,
        length: int,
    ) -> Float[Tensor, "row position d_model"]:
        """The residual stream after this block.

        `rotation` turns queries and keys (cosines, sines), `text` is its cross keys and values,
        `past` its part of a cache.
        """
        attention, read = self.self_attention, self.self_norm(x)
        query, (key, value) = attention.queries(read), attention.keys_values(read)
        if rotation is not None:
            query, key = turned(query, *rotation), turned(key, *rotation)
        query, key, value = self.taps["q"](query), self.taps["k"](key), self.taps["v"](value)
        if past is not None:
            end = length + x.shape[1]
            past[0][:, :, length:end], past[1][:, :, length:end] = key, value
            key, value = past[0][:, :, :end], past[1][:, :, :end]
        x = x + attention.attend(read, query, key, value, None, causal=length == 0)
        read = self.cross_norm(x)
        x = x + self.cross_attention.attend(
            read, self.cross_attention.queries(read), *text, mask, causal=False
        )
        return x + self.down(functional.gelu(self.up(self.mlp_norm(x)), approximate=self.gelu))


def turned(
    x: Float[Tensor, "*lead d_head"],
    cosine: Float[Tensor, "*angles pair"],
    sine: Float[Tensor, "*angles pair"],
) -> Float[Tensor, "*lead d_head"]:
    """Dimensions i and i + d_head / 2 turned by the angle of pair i."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
