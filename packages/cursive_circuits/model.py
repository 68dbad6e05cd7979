"""The cursive transformer: a decoder over pen-stroke tokens with self-attention, and
cross-attention to the text.

Pre-norm blocks: self-attention, cross-attention to the characters, MLP. Heads are named L1H2 (layer
1, self-attention, head 2) and L1X2 (cross-attention). Everything that measures or intervenes goes
through `attach` and model_watching's `observing`, and is gone when its block ends.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from cursive_circuits.model_blocks import TAPS, Attention, Block
from cursive_circuits.model_shape import NO_CHARACTER, Shape
from interp_core.errors import InputError
from interp_core.models.hooks import hooked, per_head
from interp_core.models.sites import Site
from interp_core.statistics.heads import read_name

Kind = Literal["self", "cross"]
KINDS: tuple[Kind, Kind] = ("self", "cross")


class Head(NamedTuple):
    """One attention head."""

    layer: int
    kind: Kind
    number: int

    def __str__(self) -> str:
        return f"L{self.layer}{'H' if self.kind == 'self' else 'X'}{self.number}"

    @property
    def place(self) -> tuple[Site, int]:
        """Where what it collects is, and which of the heads there it is."""
        return Site(self.layer, "attn.z" if self.kind == "self" else "cross_attn.z"), self.number

    @classmethod
    def read(cls, name: str) -> "Head":
        """The inverse of str. InputError for anything else."""
        layer, letter, number = read_name(name, kinds="HX", example="L1H2 or L1X2")
        return cls(layer, "self" if letter == "H" else "cross", number)


class Output(NamedTuple):
    """As a Hugging Face decoder answers."""

    logits: Float[Tensor, "row position vocab"]


class TextRead(NamedTuple):
    """What cross-attention reads of a text."""

    layers: list[tuple[Tensor, Tensor]]  # keys and values, each [row, head, character, d_head]
    mask: Float[Tensor, "row 1 1 character"] | None


@dataclass
class Cache:
    """Keys and values of a growing row and of its text, so that a new token costs one position."""

    keys: Float[Tensor, "layer row head position d_head"]
    values: Float[Tensor, "layer row head position d_head"]
    text: "TextRead | None" = None  # from the first call on
    length: int = 0  # positions filled


class CursiveTransformer(nn.Module):
    """Stroke tokens and characters in, logits of the next stroke token out (untied unembedding)."""

    pattern_is_editable = False

    def __init__(self, shape: Shape, *, vocabulary: int, alphabet: int, seed: int) -> None:
        super().__init__()
        self.shape = shape
        self.n_layers, self.n_heads, self.d_model = shape.layers, shape.heads, shape.d_model
        self.d_head = shape.d_model // shape.heads
        self.embed = nn.Embedding(vocabulary, shape.d_model)
        self.place = (
            nn.Embedding(shape.context, shape.d_model) if shape.positions == "learned" else None
        )
        self.character = nn.Embedding(alphabet + 1, shape.d_model)
        self.character_place = nn.Embedding(shape.characters, shape.d_model)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.d_model)
        self.unembed = nn.Linear(shape.d_model, vocabulary, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim == 2:
                    spread = (
                        shape.text_range
                        if name.startswith("character")
                        else shape.initializer_range
                    )
                    parameter.normal_(0.0, spread, generator=generator)
                elif name.endswith("bias"):
                    parameter.zero_()

    @property
    def layers(self) -> list[Block]:
        """The blocks."""
        return list(self.blocks)  # pyright: ignore[reportReturnType]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.weight.device

    @property
    def heads(self) -> list[Head]:
        """Every head, self-attention first in each layer."""
        return [
            Head(n, kind, i)
            for n in range(self.n_layers)
            for kind in KINDS
            for i in range(self.n_heads)
        ]

    def attention(self, layer: int, kind: Kind) -> Attention:
        """One layer's attention of a kind."""
        block = self.layers[layer]
        return block.self_attention if kind == "self" else block.cross_attention

    def forward(
        self,
        input_ids: Int[Tensor, "row position"],
        text: Int[Tensor, "row character"] | None = None,
        use_cache: bool = False,
        cache: Cache | None = None,
    ) -> Output:
        """Logits at t predict the token at t + 1.

        Without a text, the empty one. `use_cache` is for callers that name it; a `cache` is filled
        and must be empty or be given one token at a time. It keeps the text of its first call.

        InputError for a row longer than the context, a text longer than the model reads, or ids it
        does not know.
        """
        start = cache.length if cache is not None else 0
        self._check(input_ids, start)
        assert start == 0 or input_ids.shape[1] == 1
        x = self.embed(input_ids)
        if self.place is not None:
            x = x + self.place.weight[start : start + input_ids.shape[1]]
        read = (
            cache.text
            if cache is not None and cache.text is not None
            else self._cross_read(text, len(input_ids))
        )
        rotation = self.rotation(start, input_ids.shape[1])
        for number, block in enumerate(self.layers):
            past = None if cache is None else (cache.keys[number], cache.values[number])
            x = block(x, rotation, read.layers[number], read.mask, past, start)
        if cache is not None:
            cache.text, cache.length = read, start + input_ids.shape[1]
        return Output(self.unembed(self.norm(x)))

    def read_text(
        self, text: Int[Tensor, "row character"] | None, rows: int
    ) -> tuple[Float[Tensor, "row read d_model"], Float[Tensor, "row 1 1 read"] | None]:
        """What cross-attention reads, and its mask.

        The first place is always visible: it stands for "no text". A model that does not mask its
        padding reads every text as long as the longest, so that its length is always the same.
        """
        if text is None:
            text = torch.full((rows, 1), NO_CHARACTER, device=self.device)
        if text.shape[1] > self.shape.characters:
            raise InputError(
                f"a text of {text.shape[1]} characters is longer than the "
                f"{self.shape.characters} it reads"
            )
        if not self.shape.mask_padding:
            text = functional.pad(
                text, (0, self.shape.characters - text.shape[1]), value=NO_CHARACTER
            )
            return self.character(text) + self.character_place.weight, None
        memory = self.character(text) + self.character_place.weight[: text.shape[1]]
        hidden = text == NO_CHARACTER
        hidden[:, 0] = False
        return memory, torch.zeros_like(hidden, dtype=memory.dtype).masked_fill(hidden, -torch.inf)[
            :, None, None
        ]

    def rotation(
        self, start: int, positions: int
    ) -> tuple[Float[Tensor, "position pair"], Float[Tensor, "position pair"]] | None:
        """Cosine and sine of the rotary angles; None with learned positions."""
        if self.shape.positions == "learned":
            return None
        at = torch.arange(start, start + positions, device=self.device, dtype=torch.float64)
        angles = (at[:, None] * self.frequencies().to(self.device)).to(self.embed.weight.dtype)
        return angles.cos(), angles.sin()

    def frequencies(self) -> Float[Tensor, " pair"]:
        """Rotary frequencies, radians a token, float64."""
        pairs = torch.arange(0, self.d_head, 2, dtype=torch.float64)
        return self.shape.rotary_base ** (-pairs / self.d_head)

    def empty_cache(self, rows: int, positions: int) -> Cache:
        """Room for rows of that many tokens."""
        size = (self.n_layers, rows, self.n_heads, positions, self.d_head)
        return Cache(torch.zeros(size, device=self.device), torch.zeros(size, device=self.device))

    def attach(
        self, site: Site, function: Callable[[Tensor], Tensor | None]
    ) -> AbstractContextManager[None]:
        """Call `function` with the activation at a site whenever it fires; what it returns takes
        its place. InputError for a site that the model does not have.
        """
        if not 0 <= site.layer < self.n_layers:
            raise InputError(f"{site}: this model has {self.n_layers} layers, from 0")

        block = self.layers[site.layer]
        collecting = {"attn.z": block.self_attention, "cross_attn.z": block.cross_attention}

        if site.name == "resid_pre":
            return hooked(block, "input", function)
        if site.name in collecting:
            read = per_head(function, self.n_heads)
            return hooked(collecting[site.name].out, "input", read)
        if site.name in TAPS:
            return hooked(block.taps[TAPS[site.name]], "output", _heads_after(function))

        known = ", ".join(["resid_pre", *collecting, *TAPS])
        raise InputError(f"{site}: this model has the sites {known}")

    def written(
        self, head: Head, z: Float[Tensor, "row position d_head"]
    ) -> Float[Tensor, "row position d_model"]:
        """What a head adds to the residual stream when it has collected z (the layer's output bias
        left out).
        """
        return z @ self.out_weights(head.layer, head.kind)[head.number]

    def out_weights(self, layer: int, kind: Kind) -> Float[Tensor, "head d_head d_model"]:
        """W_O of each head."""
        return rearrange(
            self.attention(layer, kind).out.weight, "d (head e) -> head e d", head=self.n_heads
        )

    def _cross_read(self, text: Int[Tensor, "row character"] | None, rows: int) -> TextRead:
        memory, mask = self.read_text(text, rows)
        return TextRead([block.cross_attention.keys_values(memory) for block in self.layers], mask)

    def _check(self, ids: Tensor, start: int) -> None:
        if start + ids.shape[1] > self.shape.context:
            raise InputError(
                f"a row of {start + ids.shape[1]} tokens is longer than the context, "
                f"{self.shape.context}"
            )
        if int(ids.max()) >= self.embed.num_embeddings or int(ids.min()) < 0:
            raise InputError(
                f"token id {int(ids.max())} is outside the vocabulary of "
                f"{self.embed.num_embeddings}"
            )


def _heads_after(
    function: Callable[[Tensor], Tensor | None],
) -> Callable[[Tensor], Tensor | None]:
    """For activations whose heads come before positions: the function sees them behind."""

    def turned(activation: Float[Tensor, "row head position d_head"]) -> Tensor | None:
        result = function(activation.transpose(1, 2))
        return None if result is None else result.transpose(1, 2)

    return turned
