"""Every other decoder that TransformerLens knows, through its TransformerBridge: slower, same
results, same names.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_core.errors import InputError, first_line
from interp_core.models.divided import device_map_of
from interp_core.models.norms import Norm, read_norm
from interp_core.models.reading import rows_of
from interp_core.models.sites import Site
from interp_core.models.subject import HeadWeights, Observer, Subject, Transformer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HOOKS = {
    "resid_pre": ("hook_resid_pre", "hook_in"),
    "resid_post": ("hook_resid_post", "hook_out"),
    "attn_out": ("hook_attn_out", "attn.hook_out"),
    "mlp_out": ("hook_mlp_out", "mlp.hook_out"),
    "attn.z": ("attn.hook_z", "attn.o.hook_in"),
    "attn.rot_q": ("attn.hook_rot_q", "attn.hook_q", "attn.q.hook_out"),
    "attn.rot_k": ("attn.hook_rot_k", "attn.hook_k", "attn.k.hook_out"),
    "attn.v": ("attn.hook_v", "attn.v.hook_out"),
    "attn.pattern": ("attn.hook_pattern",),
}


def boot(model: Any, tokenizer: Any, name: str) -> Any:
    """TransformerLens's bridge over `model`, which it takes over: wrap a copy where the module is
    still needed.

    InputError for a type that TransformerLens does not know.
    """
    from transformer_lens.model_bridge import TransformerBridge

    if tokenizer is None:
        tokenizer = _nameless_tokenizer(int(model.config.vocab_size))
    if not model.config.architectures:
        # Saved models name their class here; one that was built in memory does not, and is told by
        # it.
        model.config.architectures = [type(model).__name__]
    try:
        with torch.no_grad():
            bridge = TransformerBridge.boot_transformers(
                name,
                hf_model=model,
                tokenizer=tokenizer,
                device=model.device,
                dtype=model.dtype,
                trust_remote_code=False,
            )
    except (ValueError, KeyError, AttributeError, NotImplementedError) as problem:
        reason = first_line(problem).split(". ")[0]
        raise InputError(
            f"{name}: TransformerLens cannot run a {model.config.model_type}: {reason}"
        ) from None
    bridge.eval()
    return bridge


def to_transformer_lens(subject: Subject) -> Any:
    """A TransformerLens TransformerBridge over the same weights (shared, not copied).

    InputError for a model that is divided over devices.
    """
    if device_map_of(subject.model) is not None:
        raise InputError(f"{subject.name}: TransformerLens runs a model in one piece, not divided")
    shared = {id(t): t for t in (*subject.model.parameters(), *subject.model.buffers())}
    return boot(copy.deepcopy(subject.model, shared), subject.tokenizer, subject.name)


def bridged(
    model: "PreTrainedModel", tokenizer: Any, *, name: str, bos: int, digest: str
) -> "BridgeSubject":
    """The model through TransformerLens, checked: it must say what the model itself says.

    InputError if not.
    """
    ids = torch.arange(1, 9, device=model.device)[None]
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        subject = BridgeSubject(name, model, tokenizer, bos, digest)
        if "blocks.0.attn.hook_pattern" not in subject.bridge.hook_dict:
            raise InputError(
                f"{name} is a {model.config.model_type}, not a Mamba, and has no attention heads "
                "that TransformerLens knows"
            )
        logits = subject.logits(ids)
        apart = subject.unembed(subject.trunk(ids))

    scale = float(expected.abs().max())
    for found in (logits, apart):
        if found.shape != expected.shape or not torch.allclose(
            found, expected, atol=1e-3 * scale, rtol=1e-3
        ):
            raise InputError(
                f"{name}: TransformerLens runs a {model.config.model_type} wrongly: its logits "
                "differ"
            )
    return subject


def _nameless_tokenizer(vocab_size: int) -> Any:
    """The bridge asks a hub for a tokenizer unless it gets one: ids as words, for models that have
    none.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({str(i): i for i in range(vocab_size)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="0", eos_token="0", pad_token="0"
    )
    tokenizer.init_kwargs |= {"name_or_path": "ids", "add_bos_token": True}
    return tokenizer


@dataclass(frozen=True)
class PatternRows:
    """One layer's whole pattern and values: what TransformerLens has instead of log-sum-exps."""

    pattern: Float[Tensor, "batch head query key"]
    value: Float[Tensor, "batch position kv_head d_head"]

    def entries(
        self,
        batch: Int[Tensor, " entry"],
        query: Int[Tensor, " entry"],
        keys: Int[Tensor, "kind entry"],
    ) -> Float[Tensor, "kind entry head"]:
        """Attention paid by (batch, query) to each of `keys`."""
        return torch.stack([self.pattern[batch, :, query, key].float() for key in keys])

    def values(
        self, batch: Int[Tensor, " entry"], position: Int[Tensor, " entry"]
    ) -> Float[Tensor, "entry head d_head"]:
        """Value vectors, once per query head."""
        v = self.value[batch, position]
        return v.repeat_interleave(self.pattern.shape[1] // v.shape[1], dim=1)


@dataclass(frozen=True, eq=False)
class BridgeSubject(Transformer):
    """A decoder run through TransformerLens: eager attention, patterns materialised one layer at a
    time.
    """

    @property
    def pattern_is_editable(self) -> bool:
        return self._pattern_is_read

    @cached_property
    def _pattern_is_read(self) -> bool:
        """Measured: in some types TransformerLens shows a copy of the pattern, and drops what is
        made of it.
        """
        ids = torch.arange(1, 9, device=self.device)[None]
        with torch.no_grad():
            before = self.bridge(ids)
            with self.attach(Site(0, "attn.pattern"), torch.zeros_like):
                return not torch.equal(self.bridge(ids), before)

    @cached_property
    def bridge(self) -> Any:
        """The booted bridge; it owns `model` from here on."""
        return boot(self.model, self.tokenizer, self.name)

    @property
    def n_layers(self) -> int:
        return int(self.bridge.cfg.n_layers)

    @property
    def n_heads(self) -> int:
        return int(self.bridge.cfg.n_heads)

    @property
    def d_model(self) -> int:
        return int(self.bridge.cfg.d_model)

    @property
    def d_head(self) -> int:
        return int(self.bridge.cfg.d_head)

    @property
    def n_ctx(self) -> int:
        return int(self.bridge.cfg.n_ctx)

    @property
    def device(self) -> torch.device:
        return torch.device(self.bridge.cfg.device)

    def ids(self, tokens: Any) -> Int[Tensor, "batch position"]:
        return super().ids(rows_of(self, tokens))

    def logits(self, ids: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position vocab"]:
        return self.bridge(ids)

    def trunk(self, ids: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position d_model"]:
        seen: list[Tensor] = []
        with self._hooked(
            self._hook("ln_final.hook_out", "unembed.hook_in"), lambda x: seen.append(x)
        ):
            self.bridge(ids)
        return seen[0]

    def unembed(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        return self.bridge.unembed(hidden)

    @contextmanager
    def attach(self, site: Site, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        self.checked_layer(site.layer, site)
        if site.name not in HOOKS:
            raise InputError(f"{self.name} is a transformer: it has no site {site}")
        hooks = HOOKS[site.name]
        if (
            site.name in ("attn.rot_q", "attn.rot_k")
            and self.bridge.cfg.positional_embedding_type == "rotary"
        ):
            hooks = hooks[:1]  # the others come before the rotation
        names = tuple(f"blocks.{site.layer}.{hook}" for hook in hooks)
        with self._hooked(self._hook(*names), function):
            yield

    @contextmanager
    def observing(self, observer: Observer, layers: list[int] | None = None) -> Iterator[None]:
        values: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for layer in range(self.n_layers) if layers is None else layers:

                def value(v: Tensor, layer: int = layer) -> None:
                    values[layer] = v

                def pattern(p: Tensor, layer: int = layer) -> None:
                    observer(layer, PatternRows(p, values.pop(layer)))

                stack.enter_context(self.attach(Site(layer, "attn.v"), value))
                stack.enter_context(self.attach(Site(layer, "attn.pattern"), pattern))
            yield

    @contextmanager
    def freezing_attention(self, ids: Int[Tensor, "batch position"]) -> Iterator[None]:
        from interp_core.models.hooks import capture

        if not self.pattern_is_editable:
            raise InputError(
                f"{self.name}: TransformerLens cannot hold the attention of a "
                f"{self.config.model_type}"
            )
        sites = [Site(layer, "attn.pattern") for layer in range(self.n_layers)]
        with torch.no_grad(), capture(self, sites) as clean:
            self.bridge(ids)
        with ExitStack() as stack:
            for site in sites:
                stack.enter_context(self.attach(site, lambda _, site=site: clean[site]))
            yield

    @torch.no_grad()
    def head_weights(self, layer: int) -> HeadWeights:
        block = self.bridge.blocks[self.checked_layer(layer)]
        norm = (
            read_norm(block.ln1.original_component, self.d_model) if hasattr(block, "ln1") else None
        )
        weights = {}
        for name in ("W_Q", "W_K", "W_V"):
            weight = self._stacked(name)[layer].float()
            folded = weight if norm is None else norm.fold(weight)
            weights[name] = folded.repeat_interleave(self.n_heads // weight.shape[0], dim=0)
        return HeadWeights(**weights, W_O=self.out_weights(layer))

    @torch.no_grad()
    def out_weights(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        layer = self.checked_layer(layer)
        return self._stacked("W_O")[layer].float()

    def _stacked(self, name: str) -> Tensor:
        """One matrix of all layers' heads. InputError where TransformerLens does not give it."""
        try:
            return getattr(self.bridge, name)
        except (ValueError, RuntimeError) as problem:
            raise InputError(
                f"{self.name}: TransformerLens does not give its {name} ({first_line(problem)})"
            ) from None

    @torch.no_grad()
    def rotated(self, weights: Float[Tensor, "head d_model d_head"], distance: int) -> Tensor:
        cfg = self.bridge.cfg
        if cfg.positional_embedding_type != "rotary":
            return weights
        raise InputError(
            f"{self.name}: composition needs the layout of rotary positions, known for GPT-NeoX "
            "and the Llama family"
        )

    @torch.no_grad()
    def embedding(self) -> Float[Tensor, "vocab d_model"]:
        return self.bridge.W_E.float()

    @torch.no_grad()
    def unembedding(self) -> Float[Tensor, "d_model vocab"]:
        return self._final_norm().fold(self.bridge.W_U.float())

    @contextmanager
    def final_scale(self) -> Iterator[list[Tensor]]:
        scales: list[Tensor] = []
        norm = self._final_norm()
        with self._hooked(self._hook("ln_final.hook_in"), lambda x: scales.append(norm.divisor(x))):
            yield scales

    def why_no_attribution(self) -> str | None:
        if not hasattr(self.bridge, "ln_final"):
            return "TransformerLens knows no final norm of it"
        return None

    def _final_norm(self) -> Norm:
        norm = read_norm(self.bridge.ln_final.original_component, self.d_model)
        if norm is None:
            raise InputError(f"{self.name}: its final norm is none that is known")
        return norm

    def _hook(self, *names: str) -> Any:
        for name in names:
            if name in self.bridge.hook_dict:
                return self.bridge.hook_dict[name]
        raise InputError(f"{self.name}: TransformerLens has no {names[0]} for this architecture")

    @contextmanager
    def _hooked(self, point: Any, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        before = list(point.fwd_hooks)
        point.add_hook(lambda activation, hook: function(activation))
        added = [handle for handle in point.fwd_hooks if handle not in before]
        try:
            yield
        finally:
            for handle in added:
                handle.hook.remove()
                point.fwd_hooks.remove(handle)
