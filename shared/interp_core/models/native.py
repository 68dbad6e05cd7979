"""Subjects that run as plain Hugging Face modules with fused attention: GPT-NeoX, GPT-2, the Llama
family.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp_core.errors import InputError
from interp_core.models.attention import AttentionCall, Watch, watching
from interp_core.models.sites import ARCHITECTURES, ATTENTION, GPT2, GPT_NEOX, Architecture, Site
from interp_core.models.subject import HeadWeights, Observer, Subject


@dataclass(frozen=True, eq=False)
class NativeSubject(Subject):
    """A plain Hugging Face decoder of a known architecture."""

    @property
    def architecture(self) -> Architecture:
        """Module paths of this family."""
        return ARCHITECTURES[self.config.model_type]

    def module(self, path: str, layer: int = 0) -> nn.Module:
        """The submodule that a path of the architecture names."""
        return self.model.get_submodule(path.format(layer=layer))

    def trunk(self, ids: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position d_model"]:
        return self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state

    def unembed(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        return self._head()(hidden)

    @contextmanager
    def attach(self, site: Site, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        self._check_layer(site)
        if site.name in ATTENTION:
            watch = Watch(edit=_edit_of(site.name, function))
            with watching(
                self.model, {self.module(self.architecture.attention, site.layer): watch}
            ):
                yield
            return
        if site.name == "attn.pattern":
            see = Watch(observe=lambda call: _ignore(function(call.pattern())))
            with watching(self.model, {self.module(self.architecture.attention, site.layer): see}):
                yield
            return
        if site.name not in self.architecture.taps:
            raise InputError(f"{self.name} is a transformer: it has no site {site}")
        tap = self.architecture.taps[site.name]
        through = self._per_head(function) if tap.per_head else function
        with hooked(self.module(tap.module, site.layer), tap.side, through):
            yield

    def observing(
        self, observer: Observer, layers: list[int] | None = None
    ) -> AbstractContextManager[None]:
        def of_layer(layer: int) -> Watch:
            return Watch(observe=lambda call: observer(layer, call))

        chosen = range(self.n_layers) if layers is None else layers
        modules = {
            self.module(self.architecture.attention, layer): of_layer(layer) for layer in chosen
        }
        return watching(self.model, modules)

    @contextmanager
    def freezing_attention(self, ids: Int[Tensor, "batch position"]) -> Iterator[None]:
        clean: dict[int, tuple[Tensor, Tensor]] = {}

        def keep(layer: int) -> Watch:
            def observe(call: AttentionCall) -> None:
                clean[layer] = (call.query, call.key)

            return Watch(observe=observe)

        def restore(layer: int) -> Watch:
            return Watch(edit=lambda query, key, value: (*clean[layer], value))

        layers = {
            layer: self.module(self.architecture.attention, layer) for layer in range(self.n_layers)
        }
        with (
            torch.no_grad(),
            watching(self.model, {module: keep(layer) for layer, module in layers.items()}),
        ):
            self.trunk(ids)
        with watching(self.model, {module: restore(layer) for layer, module in layers.items()}):
            yield

    @torch.no_grad()
    def head_weights(self, layer: int) -> HeadWeights:
        query, key, value = self._projections(layer)
        norm = self.module(self.architecture.attention_norm, layer)
        group = self.n_heads // key.shape[0]
        return HeadWeights(
            W_Q=fold_norm(norm, query),
            W_K=fold_norm(norm, key).repeat_interleave(group, dim=0),
            W_V=fold_norm(norm, value).repeat_interleave(group, dim=0),
            W_O=self.out_weights(layer),
        )

    @torch.no_grad()
    def out_weights(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        weight = _weight(self.module(self.architecture.out_projection, layer)).float()
        if self.architecture is GPT2:
            return rearrange(
                weight, "(head d_head) d_model -> head d_head d_model", head=self.n_heads
            )
        return rearrange(weight, "d_model (head d_head) -> head d_head d_model", head=self.n_heads)

    @torch.no_grad()
    def rotated(self, weights: Float[Tensor, "head d_model d_head"], distance: int) -> Tensor:
        rotary = getattr(self.model.base_model, "rotary_emb", None)
        if rotary is None:
            return weights
        position = torch.tensor([[distance]], device=weights.device)
        cos, sin = (turn[0, 0].to(weights.dtype) for turn in rotary(weights, position_ids=position))
        turned, passed = weights[..., : len(cos)], weights[..., len(cos) :]
        first, second = turned.chunk(2, dim=-1)
        return torch.cat([turned * cos + torch.cat([-second, first], dim=-1) * sin, passed], dim=-1)

    @torch.no_grad()
    def embedding(self) -> Float[Tensor, "vocab d_model"]:
        return _weight(self.module(self.architecture.embed)).float()

    @torch.no_grad()
    def unembedding(self) -> Float[Tensor, "d_model vocab"]:
        return fold_norm(self.module(self.architecture.final_norm), _weight(self._head()).float().T)

    @contextmanager
    def final_scale(self) -> Iterator[list[Tensor]]:
        scales: list[Tensor] = []
        norm = self.module(self.architecture.final_norm)
        handle = norm.register_forward_pre_hook(
            lambda module, args: scales.append(norm_divisor(module, args[0]))
        )
        try:
            yield scales
        finally:
            handle.remove()

    def _head(self) -> nn.Module:
        head = self.model.get_output_embeddings()
        if head is None:
            raise InputError(
                f"{self.name}: {type(self.model).__name__} has no unembedding; load a causal "
                "language model"
            )
        return head

    def _check_layer(self, site: Site) -> None:
        if not 0 <= site.layer < self.n_layers:
            raise InputError(f"{self.name} has layers 0 to {self.n_layers - 1}; there is no {site}")

    def _per_head(
        self, function: Callable[[Tensor], Tensor | None]
    ) -> Callable[[Tensor], Tensor | None]:
        def split(flat: Tensor) -> Tensor | None:
            result = function(
                rearrange(flat, "... (head d_head) -> ... head d_head", head=self.n_heads)
            )
            return None if result is None else result.flatten(-2)

        return split

    def _projections(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """W_Q, W_K, W_V as [head, d_model, d_head]; keys and values with as many heads as the model
        stores.
        """
        attention: Any = self.module(self.architecture.attention, layer)
        heads = self.n_heads
        if self.architecture is GPT_NEOX:
            packed = attention.query_key_value.weight.float()
            q, k, v = rearrange(
                packed,
                "(head three d_head) d_model -> three head d_model d_head",
                three=3,
                head=heads,
            )
        elif self.architecture is GPT2:
            packed = attention.c_attn.weight.float()
            q, k, v = rearrange(
                packed,
                "d_model (three head d_head) -> three head d_model d_head",
                three=3,
                head=heads,
            )
        else:
            width = self.d_head
            q, k, v = (
                rearrange(
                    linear.weight.float(),
                    "(head d_head) d_model -> head d_model d_head",
                    d_head=width,
                )
                for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
        return q, k, v


def _edit_of(
    name: str, function: Callable[[Tensor], Tensor | None]
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """An edit of one of q, k, v, shown to `function` with the position axis before the head axis."""
    index = ATTENTION.index(name)

    def edit(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = [query, key, value]
        result = function(parts[index].transpose(1, 2))
        if result is not None:
            parts[index] = result.transpose(1, 2)
        return parts[0], parts[1], parts[2]

    return edit


def _ignore(_: object) -> None:
    """A pattern that was observed is only read."""


@contextmanager
def hooked(
    module: nn.Module, side: Literal["input", "output"], function: Callable[[Tensor], Tensor | None]
) -> Iterator[None]:
    """Inside the block, call `function` with a module's first input or output; what it returns
    takes its place.
    """
    if side == "input":
        handle = module.register_forward_pre_hook(_on_input(function), with_kwargs=True)
    else:
        handle = module.register_forward_hook(_on_output(function))
    try:
        yield
    finally:
        handle.remove()


def _on_input(function: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            result = function(args[0])
            return None if result is None else ((result, *args[1:]), kwargs)
        first = next(iter(kwargs))  # hidden_states, wherever a caller passes it by name
        result = function(kwargs[first])
        return None if result is None else (args, {**kwargs, first: result})

    return hook


def _on_output(function: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            result = function(output[0])
            return None if result is None else (result, *output[1:])
        return function(output)

    return hook


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _centres(norm: nn.Module) -> bool:
    return isinstance(norm, nn.LayerNorm)


def fold_norm(
    norm: nn.Module, weights: Float[Tensor, "*head d_model width"]
) -> Float[Tensor, "*head d_model width"]:
    """The norm's gain, and LayerNorm's centring, moved into the weights that read it."""
    gain = getattr(norm, "weight", None)
    folded = weights if gain is None else gain.float()[:, None] * weights
    return folded - folded.mean(dim=-2, keepdim=True) if _centres(norm) else folded


def norm_divisor(
    norm: nn.Module, residual: Float[Tensor, "batch position d_model"]
) -> Float[Tensor, "batch position"]:
    """What the norm divides by: 1 for no norm, the standard deviation (LayerNorm) or root mean
    square (RMSNorm).
    """
    x = residual.float()
    if isinstance(norm, nn.LayerNorm):
        return torch.sqrt(x.var(dim=-1, unbiased=False) + norm.eps)
    eps = getattr(norm, "variance_epsilon", None)
    if eps is None:
        return torch.ones_like(x[..., 0])
    return torch.sqrt(x.pow(2).mean(dim=-1) + eps)
