"""Subjects that run as plain Hugging Face modules with fused attention: every decoder that calls
the registry.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp_core.errors import InputError
from interp_core.models.anatomy import Anatomy, LayerAnatomy, Part, few_tokens, trunk_giving
from interp_core.models.attention import AttentionCall, Watch, watching
from interp_core.models.divided import shown_at, weight_of
from interp_core.models.hooks import capture, hooked, per_head
from interp_core.models.norms import Norm, read_norm
from interp_core.models.reading import rows_of
from interp_core.models.sites import ATTENTION, Site
from interp_core.models.subject import HeadWeights, Observer, Transformer, without_advice


@dataclass(frozen=True, eq=False)
class NativeSubject(Transformer):
    """A plain Hugging Face decoder, its parts found by running it (anatomy.py)."""

    anatomy: Anatomy = field(kw_only=True, repr=False)

    @property
    def n_layers(self) -> int:
        return len(self.anatomy.layers)

    @property
    def n_heads(self) -> int:
        return self.anatomy.n_heads

    @property
    def d_head(self) -> int:
        return self.anatomy.d_head

    @property
    def n_ctx(self) -> int:
        names = ("max_position_embeddings", "max_target_positions", "max_seq_len")
        known = [getattr(self.config, name, None) for name in names]
        return next((int(length) for length in known if length), sys.maxsize)

    def ids(self, tokens: Any) -> Int[Tensor, "batch position"]:
        return super().ids(rows_of(self, tokens))

    def trunk(self, ids: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position d_model"]:
        with without_advice():
            hidden = self.anatomy.trunk(input_ids=ids, use_cache=False).last_hidden_state
        return hidden.to(ids.device)

    def unembed(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        no_ids = torch.zeros(rows.shape[:2], dtype=torch.long, device=hidden.device)
        with trunk_giving(self.anatomy, rows), without_advice():
            logits = self.model(input_ids=no_ids, use_cache=False).logits
        return logits.reshape(*hidden.shape[:-1], logits.shape[-1])

    def normed(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The final norm of a residual stream. InputError for a model that has none."""
        if self.anatomy.final_norm is None:
            raise InputError(f"{self.name}: it has no final norm that was understood")
        return self.anatomy.final_norm(residual).to(residual.device)

    @property
    def reruns(self) -> bool:
        """Whether the model can be run again from any block on (recording.py)."""
        return self.anatomy.suffix and self.anatomy.final_norm is not None

    @contextmanager
    def attach(self, site: Site, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        layer = self._layer(site)
        function = shown_at(self.device, function)
        if site.name in ATTENTION:
            watch = Watch(edit=_edit_of(site.name, function))
            with watching(self.model, {layer.attention: watch}):
                yield
            return
        if site.name == "attn.pattern":
            see = Watch(observe=lambda call: _ignore(function(call.pattern())))
            with watching(self.model, {layer.attention: see}):
                yield
            return
        if site.name == "attn.z":
            with hooked(layer.out, "input", per_head(function, self.n_heads)):
                yield
            return
        part = self._part(site, layer)
        with hooked(part.module, part.side, _scaled(function, part.factor)):
            yield

    def observing(
        self, observer: Observer, layers: list[int] | None = None
    ) -> AbstractContextManager[None]:
        def of_layer(layer: int) -> Watch:
            return Watch(observe=lambda call: observer(layer, call))

        asked = range(self.n_layers) if layers is None else layers
        chosen = [self.checked_layer(layer) for layer in asked]
        return watching(
            self.model, {self.anatomy.layers[layer].attention: of_layer(layer) for layer in chosen}
        )

    @contextmanager
    def freezing_attention(self, ids: Int[Tensor, "batch position"]) -> Iterator[None]:
        clean: dict[int, tuple[Tensor, Tensor]] = {}

        def keep(layer: int) -> Watch:
            def observe(call: AttentionCall) -> None:
                clean[layer] = (call.query, call.key)

            return Watch(observe=observe)

        def restore(layer: int) -> Watch:
            return Watch(edit=lambda query, key, value: (*clean[layer], value))

        layers = {index: layer.attention for index, layer in enumerate(self.anatomy.layers)}
        with (
            torch.no_grad(),
            watching(self.model, {module: keep(layer) for layer, module in layers.items()}),
        ):
            self.trunk(ids)
        with watching(self.model, {module: restore(layer) for layer, module in layers.items()}):
            yield

    @torch.no_grad()
    def head_weights(self, layer: int) -> HeadWeights:
        layer = self.checked_layer(layer)
        query, key, value = self._projections(layer)
        norm = self._attention_norm(layer)
        group = self.n_heads // key.shape[0]

        def reading(weights: Tensor) -> Tensor:
            return weights if norm is None else norm.fold(weights)

        return HeadWeights(
            W_Q=reading(query),
            W_K=reading(key).repeat_interleave(group, dim=0),
            W_V=reading(value).repeat_interleave(group, dim=0),
            W_O=self.out_weights(layer),
        )

    @torch.no_grad()
    def value_weights(self, layer: int) -> Float[Tensor, "head d_model d_head"]:
        """W_V of a layer, norm folded, in float32. InputError where values are not one matrix away
        from the normed stream, which is tried on a few tokens for a type that no table names.
        """
        layer = self.checked_layer(layer)
        if self.config.model_type in ("gpt_neox", "gpt2", *SEPARATE):
            return self.head_weights(layer).W_V
        if (reason := self.why_no_copying()) is not None:
            raise InputError(f"{self.name}: {reason}")

        found = self.anatomy.layers[layer]
        linear: Any = getattr(found.attention, "v_proj", None)
        if not isinstance(linear, nn.Linear) or not self._gives_values(layer, linear):
            raise InputError(
                f"{self.name} is a {self.config.model_type}: its values are not one matrix "
                "`v_proj` away from the normed stream"
            )
        weights = rearrange(
            self._matrix(linear),
            "(head d_head) d_model -> head d_model d_head",
            d_head=self.anatomy.d_value,
        )
        norm = self._attention_norm(layer)
        folded = weights if norm is None else norm.fold(weights)
        return folded.repeat_interleave(self.n_heads // len(weights), dim=0)

    def _gives_values(self, layer: int, linear: nn.Linear) -> bool:
        """Whether attention's values are (norm of the stream) W_V + b."""
        sites = [Site(layer, "resid_pre"), Site(layer, "attn.v")]
        with capture(self, sites) as seen:
            self.trunk(few_tokens(self.model))

        module = self.anatomy.layers[layer].attention_norm
        stream, values = seen[sites[0]], seen[sites[1]].flatten(-2).float()
        if linear.in_features != self.d_model or linear.out_features != values.shape[-1]:
            return False
        expected = linear(stream if module is None else module(stream)).to(values)
        rounding = max(1e-3, 8 * torch.finfo(seen[sites[1]].dtype).eps)
        return float((expected - values).abs().max()) <= rounding * float(values.abs().max())

    def _attention_norm(self, layer: int) -> Norm | None:
        module = self.anatomy.layers[layer].attention_norm
        return None if module is None else read_norm(module, self.d_model)

    @torch.no_grad()
    def out_weights(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        found = self.anatomy.layers[self.checked_layer(layer)]
        weight = weight_of(found.out).to(self.device).float()
        if isinstance(found.out, nn.Linear):
            weight = weight.T
        weights = rearrange(
            weight, "(head d_head) d_model -> head d_head d_model", head=self.n_heads
        )
        if found.post_norm is not None:
            weights = found.post_norm.fold_out(weights)
        factor = 1.0 if found.attn_out is None else found.attn_out.factor
        return weights if factor == 1.0 else factor * weights

    @torch.no_grad()
    def rotated(self, weights: Float[Tensor, "head d_model d_head"], distance: int) -> Tensor:
        rotary = getattr(self.model.base_model, "rotary_emb", None)
        if rotary is None:
            return weights
        position = torch.tensor([[distance]], device=weights.device)
        cos, sin = (turn[0, 0].to(weights) for turn in rotary(weights, position_ids=position))
        turned, passed = weights[..., : len(cos)], weights[..., len(cos) :]
        first, second = turned.chunk(2, dim=-1)
        return torch.cat([turned * cos + torch.cat([-second, first], dim=-1) * sin, passed], dim=-1)

    @torch.no_grad()
    def embedding(self) -> Float[Tensor, "vocab d_model"]:
        return weight_of(self.model.get_input_embeddings()).to(self.device).float()

    @torch.no_grad()
    def unembedding(self) -> Float[Tensor, "d_model vocab"]:
        norm, scale = self._final_norm, self._logit_scale
        if norm is None or scale is None:
            raise InputError(f"{self.name}: {self.why_no_attribution()}")
        weight = weight_of(self.model.get_output_embeddings()).to(self.device).float().T
        return norm.fold(weight if scale == 1.0 else scale * weight)

    @contextmanager
    def final_scale(self) -> Iterator[list[Tensor]]:
        norm = self._final_norm
        if norm is None or self.anatomy.final_norm is None:
            raise InputError(f"{self.name}: {self.why_no_attribution()}")
        scales: list[Tensor] = []
        home = self.device

        def keep(x: Tensor) -> None:
            scales.append(norm.divisor(x).to(home))

        with hooked(self.anatomy.final_norm, "input", keep):
            yield scales

    @contextmanager
    def write_scales(self) -> Iterator[dict[int, Float[Tensor, "batch position"]]]:
        scales: dict[int, Tensor] = {}
        home = self.device
        with ExitStack() as stack:
            for index, layer in enumerate(self.anatomy.layers):
                if layer.post_norm is None or layer.attn_out is None:
                    continue

                def keep(x: Tensor, index: int = index, norm: Norm = layer.post_norm) -> None:
                    scales[index] = norm.divisor(x).to(home)

                stack.enter_context(hooked(layer.attn_out.module, "input", keep))
            yield scales

    @property
    def norms_writes(self) -> bool:
        return any(
            layer.post_norm is not None or layer.carry != 1.0 for layer in self.anatomy.layers
        )

    def carried(self, layer: int) -> float:
        factor = 1.0
        for later in self.anatomy.layers[self.checked_layer(layer) + 1 :]:
            factor *= 1.0 if later.carry is None else later.carry
        return factor

    def why_no_attribution(self) -> str | None:
        if not self.anatomy.one_stream:
            return "its residual stream is not one vector a token"
        if self._final_norm is None:
            return "no final norm between the last block and the unembedding was found"
        if self._logit_scale is None:
            return "its logits are no multiple of its unembedding of the normed stream"
        for index, layer in enumerate(self.anatomy.layers):
            if layer.attn_out is None or layer.carry is None:
                return self._not_added(index)
        return None

    def _not_added(self, layer: int) -> str:
        added = "simply added to the residual stream"
        dtype = self.model.dtype
        if torch.finfo(dtype).eps <= torch.finfo(torch.float32).eps:
            return f"what the heads of layer {layer} write is not {added}"
        # Rounding this coarse hides small factors: a reason would be a guess.
        kind = str(dtype).removeprefix("torch.")
        return (
            f"whether what the heads of layer {layer} write is {added} cannot be told in {kind}: "
            "--dtype float32"
        )

    def why_no_copying(self) -> str | None:
        if not all(layer.reads_attention for layer in self.anatomy.layers):
            return "something stands between its attention and the output projection"
        if self.anatomy.d_value * self.n_heads != _width_in(self.anatomy.layers[0].out):
            return "its values have another width than what its heads write from"
        return self.why_no_attribution()

    @cached_property
    def _final_norm(self) -> Norm | None:
        module = self.anatomy.final_norm
        return None if module is None else read_norm(module, self.d_model)

    @cached_property
    def _logit_scale(self) -> float | None:
        """What the model multiplies the unembedding's product by, from the gradient at 0, where a
        cap does nothing.
        """
        head: Any = self.model.get_output_embeddings()
        weight = getattr(head, "weight", None)
        if not isinstance(weight, Tensor) or weight.shape[-1] != self.d_model:
            return None
        weight = weight_of(head).to(self.device)
        with torch.enable_grad():
            hidden = torch.zeros(
                1, self.d_model, dtype=weight.dtype, device=weight.device, requires_grad=True
            )
            logits = self.unembed(hidden)
            if logits.shape[-1] != len(weight):
                return None
            mix = torch.randn(len(weight), generator=torch.Generator().manual_seed(0)).to(logits)
            (slope,) = torch.autograd.grad((logits * mix).sum(), hidden)
        expected = (weight.detach().double().T @ mix.double()).flatten()
        found = slope.double().flatten()
        scale = float(found @ expected / (expected @ expected))
        rounding = max(1e-5, 4 * torch.finfo(weight.dtype).eps)
        if float((found - scale * expected).norm()) > 10 * rounding * float(found.norm()):
            return None
        return 1.0 if abs(scale - 1.0) < rounding else scale

    def _layer(self, site: Site) -> LayerAnatomy:
        return self.anatomy.layers[self.checked_layer(site.layer, site)]

    def _part(self, site: Site, layer: LayerAnatomy) -> Part:
        one = self.anatomy.one_stream
        parts = {
            "resid_pre": Part(layer.block, "input") if one else None,
            "resid_post": Part(layer.block, "output") if one else None,
            "attn_out": layer.attn_out,
            "mlp_out": layer.mlp_out,
        }
        if site.name not in parts:
            raise InputError(f"{self.name} is a transformer: it has no site {site}")
        part = parts[site.name]
        if part is None:
            raise InputError(
                f"{self.name}: {site} is no vector of one residual stream, nor added to it, in a "
                f"{self.config.model_type}"
            )
        return part

    def _projections(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """W_Q, W_K, W_V as [head, d_model, d_head]; keys and values with as many heads as the model
        stores.
        """
        attention: Any = self.anatomy.layers[layer].attention
        heads = self.n_heads
        kind = self.config.model_type
        if kind == "gpt_neox":
            packed = self._matrix(attention.query_key_value)
            q, k, v = rearrange(
                packed,
                "(head three d_head) d_model -> three head d_model d_head",
                three=3,
                head=heads,
            )
        elif kind == "gpt2":
            packed = self._matrix(attention.c_attn)
            q, k, v = rearrange(
                packed,
                "d_model (three head d_head) -> three head d_model d_head",
                three=3,
                head=heads,
            )
        elif kind in SEPARATE:
            width = self.d_head
            q, k, v = (
                rearrange(
                    self._matrix(linear),
                    "(head d_head) d_model -> head d_model d_head",
                    d_head=width,
                )
                for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
        elif hasattr(attention, "q_norm") or hasattr(attention, "k_norm"):
            raise InputError(
                f"{self.name} is a {kind}: a norm stands behind its queries and keys, so that "
                "composition is not linear in its weights"
            )
        else:
            known = ", ".join(("gpt_neox", "gpt2", *SEPARATE))
            raise InputError(
                f"{self.name} is a {kind}: circuits from weights alone are known for {known}"
            )
        return q, k, v

    def _matrix(self, module: nn.Module) -> Tensor:
        return weight_of(module).to(self.device).float()


# Families whose queries, keys and values are each one matrix away from the normed stream, and
# turned as Llama's are.
SEPARATE = (
    "llama",
    "mistral",
    "qwen2",
    "gemma",
    "gemma2",
    "granite",
    "starcoder2",
    "olmo",
    "phi",
    "opt",
)


def _scaled(
    function: Callable[[Tensor], Tensor | None], factor: float
) -> Callable[[Tensor], Tensor | None]:
    """The same of an activation that the model multiplies by a factor before it adds it."""
    if factor == 1.0:
        return function

    def through(written: Tensor) -> Tensor | None:
        result = function(factor * written)
        return None if result is None else result / factor

    return through


def _width_in(out: nn.Module) -> int:
    weight = out.weight
    assert isinstance(weight, Tensor)
    return int(weight.shape[1] if isinstance(out, nn.Linear) else weight.shape[0])


def _edit_of(
    name: str, function: Callable[[Tensor], Tensor | None]
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """An edit of one of q, k, v, shown to `function` with the position axis before the heads'."""
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
