"""The one face of all models: logits, weights by head, rotations, and the way out to
TransformerLens.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens import HookedRootModule
from transformers import PreTrainedModel

import small_models as small
from interp_core.errors import InputError
from interp_core.loading import random_like, subject_of, transformer_of
from interp_core.models.hooks import capture
from interp_core.models.lens import BridgeSubject, to_transformer_lens
from interp_core.models.native import NativeSubject
from interp_core.models.sites import Site
from interp_core.models.spec import ModelSpec
from interp_core.models.subject import Transformer


def ids() -> Tensor:
    return torch.as_tensor(small.prompts(n_prompts=3).tokens)


def normed(model: Transformer, layer: int, residual: Tensor) -> Tensor:
    """What head weights act on: the residual stream, centred where the norm centres, divided by the
    norm's scale.
    """
    if model.config.model_type == "llama":
        return residual / (residual.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    centred = residual - residual.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def without_biases(model: PreTrainedModel) -> PreTrainedModel:
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    return model


@pytest.mark.parametrize("name", small.ALL)
def test_logits_are_the_models_own(name: str) -> None:
    model = small.build(name)
    with torch.no_grad():
        expected = model(ids()).logits
        subject = transformer_of(model, bos=0, name=name)
        torch.testing.assert_close(subject.logits(ids()), expected, atol=1e-4, rtol=1e-4)
        hidden = subject.trunk(ids())
        torch.testing.assert_close(
            subject.unembed(hidden[1, [3, 5]]), expected[1, [3, 5]], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("name", [*small.NATIVE, *small.FOUND, "gptj"])
def test_sizes_are_those_of_the_config(name: str) -> None:
    subject = transformer_of(small.build(name), bos=0, name=name)
    sizes = (
        subject.n_layers,
        subject.n_heads,
        subject.d_model,
        subject.d_head,
        subject.n_ctx,
        subject.vocab_size,
    )
    assert sizes == (
        small.LAYERS,
        small.HEADS,
        small.WIDTH,
        small.WIDTH // small.HEADS,
        small.CONTEXT,
        small.VOCAB,
    )


@pytest.mark.parametrize("name", small.ALL)
def test_transformer_lens_gets_the_same_weights_and_leaves_the_subject_alone(name: str) -> None:
    subject = transformer_of(small.build(name), bos=0, name=name)
    with torch.no_grad():
        before = subject.logits(ids())
        modules = [(path, type(module)) for path, module in subject.model.named_modules()]
        lens = to_transformer_lens(subject)
        assert isinstance(lens, HookedRootModule) or hasattr(lens, "run_with_cache")
        torch.testing.assert_close(lens(ids()), before, atol=1e-4, rtol=1e-4)
        assert [(path, type(module)) for path, module in subject.model.named_modules()] == modules
        assert torch.equal(subject.logits(ids()), before)
        theirs = {parameter.data_ptr() for parameter in lens.parameters()}
        ours = {parameter.data_ptr() for parameter in subject.model.parameters()}
        assert ours <= theirs
        next(iter(subject.model.parameters())).data.mul_(2)
        torch.testing.assert_close(lens(ids()), subject.logits(ids()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", small.NATIVE)
def test_head_weights_give_the_queries_keys_and_values_of_the_running_model(name: str) -> None:
    subject = transformer_of(without_biases(small.build(name)), bos=0, name=name)
    assert isinstance(subject, NativeSubject)
    sites = [
        Site(1, site)
        for site in ("resid_pre", "attn.rot_q", "attn.rot_k", "attn.v", "attn.z", "attn_out")
    ]
    with torch.no_grad(), capture(subject, sites) as seen:
        subject.trunk(ids())
    weights = subject.head_weights(1)
    x = normed(subject, 1, seen[Site(1, "resid_pre")])
    group = subject.n_heads // seen[Site(1, "attn.v")].shape[2]
    values = torch.einsum("bpd,hde->bphe", x, weights.W_V)
    repeated = seen[Site(1, "attn.v")].repeat_interleave(group, dim=2)
    torch.testing.assert_close(values, repeated, atol=1e-4, rtol=1e-4)
    written = torch.einsum("bphe,hed->bpd", seen[Site(1, "attn.z")], weights.W_O)
    torch.testing.assert_close(written, seen[Site(1, "attn_out")], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("distance", [0, 1, 7, 20])
@pytest.mark.parametrize("name", ["gpt_neox", "llama", "gpt2"])
def test_rotated_queries_score_as_the_running_model_does_at_that_distance(
    name: str, distance: int
) -> None:
    subject = transformer_of(without_biases(small.build(name)), bos=0, name=name)
    sites = [Site(1, site) for site in ("resid_pre", "attn.rot_q", "attn.rot_k")]
    with torch.no_grad(), capture(subject, sites) as seen:
        subject.trunk(ids())
    weights = subject.head_weights(1)
    x = normed(subject, 1, seen[Site(1, "resid_pre")])
    group = subject.n_heads // seen[Site(1, "attn.rot_k")].shape[2]
    keys = seen[Site(1, "attn.rot_k")].repeat_interleave(group, dim=2)
    for later in range(distance, x.shape[1], 3):
        query = torch.einsum("bd,hde->bhe", x[:, later], subject.rotated(weights.W_Q, distance))
        key = torch.einsum("bd,hde->bhe", x[:, later - distance], weights.W_K)
        running = (seen[Site(1, "attn.rot_q")][:, later] * keys[:, later - distance]).sum(-1)
        torch.testing.assert_close((query * key).sum(-1), running, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", small.NATIVE)
def test_unembedding_and_final_scale_give_the_logits_up_to_the_final_bias(name: str) -> None:
    subject = transformer_of(without_biases(small.build(name)), bos=0, name=name)
    last = Site(small.LAYERS - 1, "resid_post")
    with torch.no_grad(), subject.final_scale() as scales, capture(subject, [last]) as seen:
        logits = subject.logits(ids())
    assert len(scales) == 1
    ours = (seen[last] @ subject.unembedding()) / scales[0][..., None]
    torch.testing.assert_close(ours, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", small.NATIVE)
def test_the_bridge_has_the_same_weights_by_head(name: str) -> None:
    native = transformer_of(small.build(name), bos=0, name=name)
    bridged = BridgeSubject(name, small.build(name), None, 0)
    for layer in range(small.LAYERS):
        ours, theirs = native.head_weights(layer), bridged.head_weights(layer)
        for weight in ("W_Q", "W_K", "W_V", "W_O"):
            torch.testing.assert_close(
                getattr(ours, weight), getattr(theirs, weight), atol=1e-6, rtol=1e-6
            )
    torch.testing.assert_close(native.embedding(), bridged.embedding())
    torch.testing.assert_close(native.unembedding(), bridged.unembedding(), atol=1e-6, rtol=1e-6)
    with torch.no_grad(), native.final_scale() as one, bridged.final_scale() as two:
        native.trunk(ids())
        bridged.trunk(ids())
    torch.testing.assert_close(one[0], two[0], atol=1e-4, rtol=1e-4)


def test_bridged_rotary_models_refuse_composition_and_say_which_can() -> None:
    subject = transformer_of(small.build("gptj"), bos=0, name="gptj")
    with pytest.raises(InputError, match="known for GPT-NeoX and the Llama family"):
        subject.rotated(subject.head_weights(0).W_Q, 3)
    bloom = transformer_of(small.build("bloom"), bos=0, name="bloom")
    weights = bloom.head_weights(0).W_Q
    assert torch.equal(bloom.rotated(weights, 3), weights)


@pytest.mark.parametrize("name", ["gpt_neox", "gptj"])
def test_a_sequence_longer_than_the_context_is_refused(name: str) -> None:
    subject = transformer_of(small.build(name), bos=0, name=name)
    subject.ids(np.zeros((1, small.CONTEXT), dtype=int))
    with pytest.raises(
        InputError, match=f"a sequence of {small.CONTEXT + 1} tokens is longer than its context"
    ):
        subject.ids(np.zeros((1, small.CONTEXT + 1), dtype=int))


@pytest.mark.parametrize("bad", [-1, small.VOCAB])
def test_ids_outside_the_vocabulary_are_refused(bad: int) -> None:
    subject = transformer_of(small.build("gpt_neox"), bos=0)
    with pytest.raises(InputError, match="outside its vocabulary"):
        subject.ids(np.array([[1, bad]]))


def test_a_spec_says_what_its_source_needs() -> None:
    for source, key in {
        "hub": "repo",
        "local": "path",
        "trained": "path",
        "random": "config",
    }.items():
        with pytest.raises(ValueError, match=f"source {source} needs `{key}`"):
            ModelSpec(source=source)  # type: ignore[arg-type]


def test_an_untrained_twin_has_the_same_shape_other_weights_and_its_seed() -> None:
    subject = transformer_of(small.build("gpt_neox"), bos=3, name="toy")
    one, two, other = (random_like(subject, seed=seed) for seed in (1, 1, 2))
    assert one.bos == 3
    assert one.config.to_dict() | {"dtype": None} == subject.config.to_dict() | {"dtype": None}
    assert one.hash == two.hash
    assert len({one.hash, other.hash, subject.hash}) == 3


def test_making_an_untrained_twin_does_not_touch_the_global_generator() -> None:
    subject = transformer_of(small.build("gpt_neox"), bos=0)
    state = torch.get_rng_state()
    random_like(subject, seed=1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [*small.ALL, "mamba"])
def test_a_flat_list_of_ids_is_one_row(name: str) -> None:
    model = subject_of(small.build(name), bos=0)
    assert torch.equal(model.ids([0, 5, 7]), model.ids([[0, 5, 7]]))


def test_text_without_a_tokenizer_is_refused() -> None:
    model = subject_of(small.build("gpt2"), bos=0, name="toy")
    with pytest.raises(InputError, match="toy has no tokenizer: give token ids"):
        model.ids("text")


@pytest.mark.parametrize(
    "bad",
    [[1.5, 2.5], [[1, 2], [3]], [], 5, [True, False], torch.zeros(1, 2, 3, dtype=torch.long)],
    ids=["fractions", "ragged", "nothing", "one id", "yes and no", "three axes"],
)
def test_what_is_no_row_of_ids_is_refused_and_never_cut_to_one(bad: Any) -> None:
    with pytest.raises(InputError, match="token ids"):
        subject_of(small.build("llama"), bos=0).ids(bad)
