"""What was found of a model by running it, held against what the model itself does.

Whoever finds parts by experiment can be wrong in silence: a kernel that reads other memory, a wish
of the model that never arrives, a matrix whose rows are not heads. Three identities, on a few
tokens, would break: the model says the same with our attention as with transformers' plain one;
each pattern times the values is what attention gave; heads times their output matrices are what
attention wrote.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_core.models.anatomy import NotUnderstood, few_tokens
from interp_core.models.attention import AttentionCall, Watch, watching
from interp_core.models.hooks import capture
from interp_core.models.native import NativeSubject
from interp_core.models.sites import Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CLOSE = 1e-3  # of the largest number compared: float32 rounding is a hundred times smaller


@torch.no_grad()
def checked(subject: NativeSubject) -> NativeSubject:
    """The subject, what its heads write left out where that is not what its layers add.

    NotUnderstood where its attention is not what the model's own code does.
    """
    ids = few_tokens(subject.model)
    _check_patterns(subject, ids)

    if subject.why_no_attribution() is not None or _writes_as_said(subject, ids):
        return subject

    layers = tuple(replace(layer, attn_out=None) for layer in subject.anatomy.layers)
    return replace(subject, anatomy=replace(subject.anatomy, layers=layers))


def _check_patterns(subject: NativeSubject, ids: Int[Tensor, "batch position"]) -> None:
    """Every layer at once; the model goes on with what our attention gives."""
    calls: dict[int, AttentionCall] = {}
    given: dict[int, Tensor] = {}

    def watch(layer: int) -> Watch:
        return Watch(
            observe=lambda call: calls.update({layer: call}),
            edit_out=lambda out: given.setdefault(layer, out),
        )

    modules = {layer.attention: watch(at) for at, layer in enumerate(subject.anatomy.layers)}
    with watching(subject.model, modules):
        ours = subject.model(input_ids=ids, use_cache=False).logits
    with _plain_attention(subject.model):
        plain = subject.model(input_ids=ids, use_cache=False).logits

    # By token: where experts are chosen, rounding alone may send one token another way.
    largest = float(plain.float().abs().max())
    apart = (ours.float() - plain.float()).abs().amax(dim=-1)
    if not float(apart.median()) <= _rounding(plain) * largest:
        raise NotUnderstood("with attention run here it says something else than without")

    for layer, call in calls.items():
        group = call.query.shape[1] // call.value.shape[1]
        pattern = call.pattern()
        values = call.value.to(pattern.dtype).repeat_interleave(group, dim=1)
        expected = (pattern @ values).transpose(1, 2)
        if not _alike(expected, given[layer], _rounding(given[layer])):
            raise NotUnderstood(f"the attention pattern of layer {layer} is not what is used")


def _writes_as_said(subject: NativeSubject, ids: Int[Tensor, "batch position"]) -> bool:
    """Whether z @ out_weights, over the divisor of a norm behind it, is what each layer's attention
    adds, but for a constant."""
    layers = range(subject.n_layers)
    sites = [Site(layer, name) for layer in layers for name in ("attn.z", "attn_out")]
    with capture(subject, sites) as seen, subject.write_scales() as scales:
        subject.trunk(ids)

    for layer in layers:
        found = subject.anatomy.layers[layer]
        captured = seen[Site(layer, "attn_out")]
        written = captured.float()
        if found.post_norm is not None and found.attn_out is not None:
            if found.post_norm.bias is not None:
                bias = found.post_norm.bias.to(written.device)
                written = written - found.attn_out.factor * bias
            written = written * scales[layer][..., None]

        z = seen[Site(layer, "attn.z")].float()
        expected = torch.einsum("bphe,hed->bpd", z, subject.out_weights(layer))
        if not _alike(_without_constant(expected), _without_constant(written), _rounding(captured)):
            return False
    return True


def _without_constant(
    vectors: Float[Tensor, "batch position d_model"],
) -> Float[Tensor, "batch position d_model"]:
    return vectors - vectors.mean(dim=(0, 1))


def _alike(expected: Tensor, found: Tensor, rounding: float) -> bool:
    """Whether two tensors differ by no more than this share of the largest number found."""
    largest = float(found.float().abs().max())
    return float((expected.float() - found.float()).abs().max()) <= rounding * largest


def _rounding(numbers: Tensor) -> float:
    """What the dtype that the model itself computed them in leaves uncertain."""
    return max(_CLOSE, 8 * torch.finfo(numbers.dtype).eps)


@contextmanager
def _plain_attention(model: "PreTrainedModel") -> Iterator[None]:
    """Transformers' attention as the model's own file writes it out, the only one that all of its
    wishes reach."""
    before: Any = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")
        yield
    finally:
        model.set_attn_implementation(before)
