"""Fused attention that can be watched: single entries of the pattern without ever building [batch,
head, T, T].

The model runs a fused kernel that also returns the log-sum-exp of every row of scores. Any entry of
the pattern is then
    pattern[t, s] = exp(q_t . k_s * scale + mask[t, s] - logsumexp_t)
(Dao et al. 2022, FlashAttention, keep the same number for their backward pass). It is put under a
Hugging Face model as an attention implementation of its own, so it sees q and k exactly as
attention uses them, after rotary.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IMPLEMENTATION = "induction_lab"


@dataclass(frozen=True)
class AttentionCall:
    """One layer's attention as it ran: queries, keys and values, and the log-sum-exp of each row of
    scores.
    """

    query: Float[Tensor, "batch head position d_head"]
    key: Float[Tensor, "batch kv_head key d_head"]
    value: Float[Tensor, "batch kv_head key d_value"]
    logsumexp: Float[Tensor, "batch head position"]
    scaling: float
    mask: Tensor | None
    softcap: float | None = None  # scores s become softcap tanh(s / softcap), before the mask

    def entries(
        self,
        batch: Int[Tensor, " entry"],
        query: Int[Tensor, " entry"],
        keys: Int[Tensor, "kind entry"],
    ) -> Float[Tensor, "kind entry head"]:
        """Attention paid by (batch, query) to each of `keys`, in [0, 1]; keys must not lie after
        their query. It comes back on the device of `batch`, wherever this layer ran.
        """
        asked_at = batch.device
        batch, query, keys = (index.to(self.query.device) for index in (batch, query, keys))
        q = self.query[batch, :, query].float() * self.scaling
        lse = self.logsumexp[batch, :, query]
        group = q.shape[1] // self.key.shape[1]
        kinds = []
        for key in keys:
            k = self.key[batch, :, key].float().repeat_interleave(group, dim=1)
            scores = _capped((q * k).sum(-1), self.softcap)
            kinds.append(torch.exp(scores + self._bias(batch, query, key) - lse))
        return torch.stack(kinds).to(asked_at)

    def values(
        self, batch: Int[Tensor, " entry"], position: Int[Tensor, " entry"]
    ) -> Float[Tensor, "entry head d_value"]:
        """Value vectors, once per query head, on the device of `batch`."""
        here = self.value.device
        v = self.value[batch.to(here), :, position.to(here)]
        return v.repeat_interleave(self.query.shape[1] // v.shape[1], dim=1).to(batch.device)

    def pattern(self) -> Float[Tensor, "batch head query key"]:
        """The whole pattern: quadratic in length, for drawing and for tests."""
        group = self.query.shape[1] // self.key.shape[1]
        keys = self.key.float().repeat_interleave(group, dim=1)
        scores = _capped(self.query.float() @ keys.transpose(-1, -2) * self.scaling, self.softcap)
        return torch.exp(scores + _additive(self.mask, scores) - self.logsumexp[..., None])

    def _bias(self, batch: Tensor, query: Tensor, key: Tensor) -> Tensor | float:
        if self.mask is None:
            return 0.0
        mask = self.mask.expand(self.query.shape[0], -1, -1, -1)
        entry = mask[batch, :, query, key]
        return torch.where(entry, 0.0, -torch.inf) if entry.dtype == torch.bool else entry


Edit = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
Observer = Callable[[AttentionCall], None]


@dataclass(frozen=True)
class Watch:
    """What to do when an attention module runs: edit q, k, v (head axis second), look at the call,
    and edit what it returns [batch, position, head, d_head].
    """

    edit: Edit | None = None
    observe: Observer | None = None
    edit_out: Callable[[Tensor], Tensor] | None = None


_WATCHES: "WeakKeyDictionary[nn.Module, list[Watch]]" = WeakKeyDictionary()


@contextmanager
def watching(model: "PreTrainedModel", watches: dict[nn.Module, Watch]) -> Iterator[None]:
    """Run the given attention modules of `model` watched inside the block; everything is as before
    after it.
    """
    _register()
    before = model.config._attn_implementation or "sdpa"
    for module, watch in watches.items():
        _WATCHES.setdefault(module, []).append(watch)
    try:
        model.set_attn_implementation(IMPLEMENTATION)
        yield
    finally:
        for module, watch in watches.items():
            # By identity: two watches may compare equal.
            _WATCHES[module] = [kept for kept in _WATCHES[module] if kept is not watch]
            if not _WATCHES[module]:
                del _WATCHES[module]
        model.set_attn_implementation(before)


@dataclass(frozen=True)
class FoundCall:
    """One call of the registry's function as a trace sees it: by which module, on what, with which
    further wishes.
    """

    module: nn.Module
    query: Float[Tensor, "batch head position d_head"]
    key: Float[Tensor, "batch kv_head key d_head"]
    value: Float[Tensor, "batch kv_head key d_value"]
    beyond_default: bool  # a cap on scores or a sink, which transformers' default does not have
    bidirectional: bool  # no mask, and the caller does not want the causal one
    wishes: tuple[
        str, ...
    ]  # keyword arguments that change the result in a way that is not known here


_TRACES: list[Callable[[FoundCall], None]] = []


@contextmanager
def tracing(model: "PreTrainedModel", see: Callable[[FoundCall], None]) -> Iterator[None]:
    """Inside the block, tell `see` of every call that reaches the registry, whichever module makes
    it.
    """
    _TRACES.append(see)
    try:
        with watching(model, {}):
            yield
    finally:
        _TRACES.remove(see)


def run_by_us(model: "PreTrainedModel") -> None:
    """Let the model's attention run here from now on: transformers' default is slow, or leaves out
    a cap or a sink.
    """
    _register()
    model.set_attn_implementation(IMPLEMENTATION)


def fused_attention(
    query: Float[Tensor, "batch head position d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_value"],
    mask: Tensor | None,
    scaling: float,
    *,
    softcap: float | None = None,
    sinks: Float[Tensor, " head"] | Float[Tensor, "batch head position"] | None = None,
) -> tuple[Float[Tensor, "batch head position d_value"], Float[Tensor, "batch head position"]]:
    """Causal attention (mask None) or masked attention, and the log-sum-exp of each row of scores.

    A sink is a score that each row has beside its keys', with no value; one of each head, or of
    each row. CPU: the flash kernel; CUDA: the memory-efficient one; elsewhere, and for shapes and
    caps they refuse: rows in blocks.
    """
    out, logsumexp = _without_sinks(query, key, value, mask, scaling, softcap)
    if sinks is None:
        return out, logsumexp

    # A sink only takes its share of each row's mass, so that it can be put in after the kernel.
    sink = sinks.float()[:, None] if sinks.ndim == 1 else sinks.float()
    kept = torch.sigmoid(logsumexp.float() - sink)
    return out * kept[..., None].to(out.dtype), torch.logaddexp(logsumexp.float(), sink)


def _without_sinks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    aten = torch.ops.aten
    causal = mask is None

    # Flash kernels read a head's vector as one run of memory, whatever its strides say: what comes
    # transposed out of a convolution would be read across positions.
    query, key, value = (_in_one_run(part) for part in (query, key, value))
    alike = query.shape[-1] == value.shape[-1] and softcap is None

    if query.device.type == "cpu" and alike:
        additive = mask if causal or mask.dtype != torch.bool else _for_flash(mask, query.dtype)
        if causal or additive is not None:
            return aten._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, 0.0, causal, attn_mask=additive, scale=scaling
            )

    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)

    if query.device.type == "cuda" and causal and alike:
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(
            query, key, value, None, True, 0.0, True, scale=scaling
        )
        return out, lse[..., : query.shape[2]]

    return _attention_in_blocks(query, key, value, mask, scaling, softcap)


def _in_one_run(part: Tensor) -> Tensor:
    return part if part.stride(-1) == 1 else part.contiguous()


def _for_flash(mask: Tensor, dtype: torch.dtype) -> Tensor | None:
    """A boolean mask as what is added to scores; None where a row may look nowhere, which flash
    makes not-a-number.
    """
    # All prompts of a batch without padding share one mask: what is expanded over them is one
    # tensor.
    shared = mask[:1] if mask.stride(0) == 0 else mask
    if not bool(shared.any(dim=-1).all()):
        return None

    additive = torch.zeros(shared.shape, dtype=dtype, device=mask.device).masked_fill_(
        ~shared, -torch.inf
    )
    return additive.expand(mask.shape)


def _attention_in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    rows: int = 128,
) -> tuple[Tensor, Tensor]:
    length = key.shape[2]
    later = torch.arange(length, device=key.device)
    outs, sums = [], []
    for start in range(0, query.shape[2], rows):
        scores = (query[:, :, start : start + rows] @ key.transpose(-1, -2)).float() * scaling
        scores = _capped(scores, softcap)
        if mask is None:
            position = torch.arange(start, start + scores.shape[2], device=key.device)
            scores = scores.masked_fill(later > position[:, None], -torch.inf)
        else:
            scores = scores + _additive(mask[:, :, start : start + rows], scores)
        total = torch.logsumexp(scores, dim=-1)
        # A row that may look nowhere (left padding) attends to nothing instead of being
        # not-a-number.
        sums.append(total.masked_fill(total == -torch.inf, 0.0))
        outs.append(torch.exp(scores - sums[-1][..., None]).to(value.dtype) @ value)
    return torch.cat(outs, dim=2), torch.cat(sums, dim=2)


def _capped(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def _additive(mask: Tensor | None, scores: Tensor) -> Tensor:
    if mask is None:
        length = scores.shape[-1]
        ahead = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
        return torch.zeros(length, length, device=scores.device).masked_fill(ahead, -torch.inf)
    return torch.where(mask, 0.0, -torch.inf) if mask.dtype == torch.bool else mask


# Keyword arguments of the registry's function that change nothing here: windows and sparse choices
# are in the mask.
_WITHOUT_EFFECT = frozenset(
    {
        "dropout",
        "sliding_window",
        "position_ids",
        "is_causal",
        "use_cache",
        "deterministic",
        "return_dict",
        "logits_to_keep",
    }
    | {"cache_position", "cache", "max_length_q", "max_length_k"}
)


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    sinks: Tensor | None = None,
    position_bias: Tensor | None = None,
    indices: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: plain fused attention where nobody watches."""
    from transformers.integrations.sdpa_attention import (
        create_position_bias_mask,
        sdpa_attention_forward,
    )

    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if sinks is not None:
        s_aux = sinks.squeeze(-1)  # a sink that each token computes: [batch, head, position, 1]
    beyond = softcap is not None or s_aux is not None
    for see in _TRACES:
        see(_found(module, query, key, value, attention_mask, kwargs, beyond_default=beyond))

    if position_bias is not None:
        # A bias that positions add to scores is one more part of what is added to them: the mask.
        attention_mask = create_position_bias_mask(
            position_bias, attention_mask, is_causal=True, query=query, key=key
        )
    if indices is not None:
        attention_mask = _only(indices, attention_mask, query, key)

    watches = _WATCHES.get(module, [])
    for watch in watches:
        if watch.edit is not None:
            query, key, value = watch.edit(query, key, value)

    unseen = all(watch.observe is None for watch in watches)
    if unseen and not beyond:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scale, **kwargs
        )
        return _edited(out, watches), None

    out, logsumexp = fused_attention(
        query, key, value, attention_mask, scale, softcap=softcap, sinks=s_aux
    )
    call = AttentionCall(query, key, value, logsumexp, scale, attention_mask, softcap)
    for watch in watches:
        if watch.observe is not None:
            watch.observe(call)

    return _edited(
        rearrange(out, "batch head position d_head -> batch position head d_head"), watches
    ), None


def _only(
    indices: Int[Tensor, "batch position chosen"], mask: Tensor | None, query: Tensor, key: Tensor
) -> Tensor:
    """The mask where each token looks only at the keys that were chosen for it."""
    shape = (query.shape[0], query.shape[2], key.shape[2])
    chosen = torch.zeros(shape, dtype=torch.bool, device=query.device)
    chosen = chosen.scatter(-1, indices.long(), True)[:, None]
    if mask is None:
        return chosen & torch.ones(shape[1:], dtype=torch.bool, device=query.device).tril()
    if mask.dtype == torch.bool:
        return chosen & mask
    return mask.masked_fill(~chosen, torch.finfo(mask.dtype).min)


def _edited(out: Tensor, watches: list[Watch]) -> Tensor:
    for watch in watches:
        if watch.edit_out is not None:
            out = watch.edit_out(out)
    return out


def _found(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kwargs: Mapping[str, Any],
    *,
    beyond_default: bool,
) -> FoundCall:
    wished = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if wished is None else wished
    given = [name for name in kwargs if kwargs[name] is not None and not name.startswith("output_")]
    unknown = tuple(sorted(set(given) - _WITHOUT_EFFECT))
    return FoundCall(
        module, query, key, value, beyond_default, mask is None and not causal, unknown
    )


@cache
def _register() -> None:
    """Tell transformers of the implementation, once, when a model of its kind is first watched:
    seconds of imports.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, _attention_forward)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
