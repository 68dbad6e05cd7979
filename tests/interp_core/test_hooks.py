"""Reads and edits by name: what they see, what they change, what they refuse, and that nothing is
left of them.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import small_models as small
from interp_core.errors import InputError
from interp_core.loading import transformer_of
from interp_core.models import attention
from interp_core.models.hooks import HookError, capture, intervene, replace_by, zero
from interp_core.models.lens import BridgeSubject, to_transformer_lens
from interp_core.models.native import NativeSubject
from interp_core.models.sites import ATTENTION, RESIDUAL, Site
from interp_core.models.subject import Transformer

NAMES = (
    *RESIDUAL,
    "attn.z",
    *ATTENTION,
    "attn.pattern",
)  # of transformers; a Mamba's are in test_mamba.py
READ_ONLY = "attn.pattern"
HEAD_SITES = ("attn.z", "attn.rot_q", "attn.rot_k", "attn.v")


def subject(name: str) -> Transformer:
    return transformer_of(small.build(name), bos=0, name=name)


def ids() -> Tensor:
    return torch.as_tensor(small.prompts(n_prompts=3).tokens)


def hooks_left(model: PreTrainedModel) -> int:
    """Hooks of any kind on any module, and watches on any attention module."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    on_modules = sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)
    return on_modules + sum(module in attention._WATCHES for module in model.modules())


@pytest.mark.parametrize("site", NAMES)
@pytest.mark.parametrize("name", [*small.NATIVE, "bloom"])
def test_after_a_read_or_an_edit_logits_are_bitwise_as_before(name: str, site: str) -> None:
    model = subject(name)
    with torch.no_grad():
        before = model.logits(ids())
        hooks = hooks_left(model.model)
        implementation = model.config._attn_implementation
        with capture(model, [Site(1, site)]):
            model.logits(ids())
        if site != READ_ONLY:
            with intervene(model, {Site(1, site): lambda x: x * 0.5}):
                assert not torch.equal(model.logits(ids()), before)
        assert torch.equal(model.logits(ids()), before)
    assert hooks_left(model.model) == hooks
    assert model.config._attn_implementation == implementation


class Broken(Exception):
    """Raised in the middle of a forward pass."""


def broken(_: Tensor) -> Tensor:
    raise Broken


@pytest.mark.parametrize("site", [name for name in NAMES if name != READ_ONLY])
@pytest.mark.parametrize("name", [*small.NATIVE, "bloom"])
def test_after_an_exception_inside_logits_are_bitwise_as_before(name: str, site: str) -> None:
    model = subject(name)
    with torch.no_grad():
        before = model.logits(ids())
        hooks = hooks_left(model.model)
        edits: dict[Site, Callable[[Tensor], Tensor]] = {
            Site(0, "attn.z"): torch.zeros_like,
            Site(1, site): broken,
        }
        with pytest.raises(Broken), intervene(model, edits):
            model.logits(ids())
        with pytest.raises(Broken), capture(model, [Site(0, READ_ONLY), Site(2, site)]):
            raise Broken
        assert torch.equal(model.logits(ids()), before)
    assert hooks_left(model.model) == hooks


def test_a_refused_second_edit_takes_the_first_one_away() -> None:
    model = subject("gpt2")
    with torch.no_grad():
        before = model.logits(ids())
        with (
            pytest.raises(InputError),
            intervene(model, {Site(0, "attn.z"): zero([0]), Site(9, "attn.z"): zero([0])}),
        ):
            pass
        assert torch.equal(model.logits(ids()), before)
    assert hooks_left(model.model) == 0


@pytest.mark.parametrize("name", small.NATIVE)
def test_sites_hold_what_transformer_lens_caches_there(name: str) -> None:
    model = subject(name)
    lens = to_transformer_lens(model)
    with torch.no_grad():
        _, cache = lens.run_with_cache(ids())
        with capture(
            model, [Site(layer, site) for layer in range(small.LAYERS) for site in NAMES]
        ) as seen:
            model.trunk(ids())
    spellings = {
        "resid_pre": "hook_in",
        "resid_post": "hook_out",
        "attn_out": "attn.hook_out",
        "mlp_out": "mlp.hook_out",
        "attn.z": "attn.o.hook_in",
        "attn.v": "attn.v.hook_out",
        "attn.pattern": "attn.hook_pattern",
    }
    for layer in range(small.LAYERS):
        for site, spelling in spellings.items():
            theirs = cache[f"blocks.{layer}.{spelling}"]
            ours = seen[Site(layer, site)]
            torch.testing.assert_close(
                ours, theirs.reshape(ours.shape), atol=2e-4, rtol=1e-4, msg=f"{site}"
            )


def in_both(sites: tuple[str, ...]) -> list[tuple[str, str]]:
    """(model, site), without the one thing that TransformerLens does not show: GPT-NeoX's q and k
    after rotary.
    """
    cases = [(name, site) for name in small.NATIVE for site in sites]
    return [
        case
        for case in cases
        if case not in (("gpt_neox", "attn.rot_q"), ("gpt_neox", "attn.rot_k"))
    ]


@pytest.mark.parametrize(("name", "site"), in_both(NAMES))
def test_a_bridged_subject_has_the_same_activations_under_the_same_names(
    name: str, site: str
) -> None:
    native, bridged = subject(name), BridgeSubject(name, small.build(name), None, 0)
    seen = []
    for model in (native, bridged):
        with torch.no_grad(), capture(model, [Site(2, site)]) as found:
            model.trunk(ids())
        seen.append(found[Site(2, site)])
    assert seen[0].shape == seen[1].shape
    torch.testing.assert_close(seen[0], seen[1], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "site"), in_both(tuple(name for name in NAMES if name != READ_ONLY))
)
def test_an_edit_does_the_same_to_a_bridged_subject(name: str, site: str) -> None:
    native, bridged = subject(name), BridgeSubject(name, small.build(name), None, 0)

    def edit(x: Tensor) -> Tensor:
        return zero([1])(x) if site in HEAD_SITES else x * 0.7

    with torch.no_grad():
        logits = []
        for model in (native, bridged):
            with intervene(model, {Site(1, site): edit}):
                logits.append(model.logits(ids()))
        clean = native.logits(ids())
    torch.testing.assert_close(logits[0], logits[1], atol=1e-3, rtol=1e-3)
    assert (logits[0] - clean).abs().max() > 0.01


@pytest.mark.parametrize("name", small.NATIVE)
def test_zeroing_a_head_is_removing_its_rows_from_the_output_weights(name: str) -> None:
    model, cut = subject(name), small.build(name)
    weight = cut.get_parameter("transformer.h.1.attn.c_proj.weight") if name == "gpt2" else None
    width = small.WIDTH // small.HEADS
    rows = slice(2 * width, 3 * width)
    if weight is not None:
        weight.data[rows] = 0
    else:
        path = (
            "gpt_neox.layers.1.attention.dense"
            if name == "gpt_neox"
            else "model.layers.1.self_attn.o_proj"
        )
        linear: Any = cut.get_submodule(path)
        linear.weight.data[:, rows] = 0
    with torch.no_grad(), intervene(model, {Site(1, "attn.z"): zero([2])}):
        edited = model.logits(ids())
    torch.testing.assert_close(edited, cut(ids()).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [*small.NATIVE, "bloom"])
def test_a_head_patched_from_its_own_run_changes_nothing(name: str) -> None:
    model = subject(name)
    site = Site(1, "attn.z")
    with torch.no_grad():
        with capture(model, [site]) as seen:
            before = model.logits(ids())
        with intervene(model, {site: replace_by([0, 3], seen[site])}):
            after = model.logits(ids())
    assert torch.equal(after, before)


def test_a_read_inside_an_edit_sees_the_edit() -> None:
    model = subject("gpt_neox")
    site = Site(0, "attn.z")
    with torch.no_grad(), intervene(model, {site: zero([1])}), capture(model, [site]) as seen:
        model.trunk(ids())
    assert seen[site][:, :, 1].abs().max() == 0
    assert type(seen[site]) is Tensor


def test_gradients_flow_through_what_is_captured_undetached() -> None:
    model = subject("gpt_neox")
    site = Site(1, "resid_pre")
    with (
        torch.enable_grad(),
        intervene(model, {Site(0, "resid_pre"): lambda x: x.detach().requires_grad_()}),
    ):
        with capture(model, [site], detach=False) as seen:
            loss = model.logits(ids()).sum()
        gradient = torch.autograd.grad(loss, seen[site])[0]
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", ["gpt2", "bloom"])
def test_an_edit_that_changes_the_shape_is_refused(name: str) -> None:
    model = subject(name)
    refused = pytest.raises(HookError, match=r"blocks.1.attn.z: the edit changed shape")
    with refused, intervene(model, {Site(1, "attn.z"): lambda z: z[:, :-1]}):
        model.trunk(ids())


def test_an_edit_that_changes_the_type_is_refused() -> None:
    model = subject("gpt2")
    refused = pytest.raises(HookError, match="the edit changed dtype")
    with refused, intervene(model, {Site(1, "resid_pre"): lambda x: x.double()}):
        model.trunk(ids())


@pytest.mark.parametrize("name", small.NATIVE)
def test_the_pattern_is_read_only_where_attention_is_fused(name: str) -> None:
    refused = pytest.raises(HookError, match="nothing reads an edited pattern")
    with refused, intervene(subject(name), {Site(0, READ_ONLY): torch.zeros_like}):
        pass


def test_a_bridged_pattern_can_be_edited_and_is_read() -> None:
    model = BridgeSubject("phi", small.build("phi"), None, 0)
    with torch.no_grad():
        before = model.logits(ids())
        with intervene(model, {Site(0, READ_ONLY): torch.zeros_like}):
            assert not torch.equal(model.logits(ids()), before)


@pytest.mark.parametrize("site", NAMES)
def test_a_site_that_never_fires_is_an_error(site: str) -> None:
    model = subject("gpt_neox")
    with pytest.raises(HookError, match="never fired"), capture(model, [Site(0, site)]):
        pass
    if site != READ_ONLY:
        with (
            pytest.raises(HookError, match="never fired"),
            intervene(model, {Site(0, site): lambda x: x}),
        ):
            pass


class Deaf(nn.Module):
    """In a module's place: writes zeros and reads nothing of its input, as HF Mamba never calls its
    conv1d.
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(x.shape)


@pytest.mark.parametrize("name", small.NATIVE)
def test_an_edit_that_nobody_reads_is_an_error(name: str) -> None:
    model = subject(name)
    assert isinstance(model, NativeSubject)
    model.anatomy.layers[1].out.forward = Deaf().forward
    edits = {Site(1, "attn.z"): zero([0])}
    unread = r"nothing read the edited blocks.1.attn.z"
    with torch.no_grad(), pytest.raises(HookError, match=unread), intervene(model, edits):
        model.trunk(ids())
    with (
        torch.no_grad(),
        pytest.raises(HookError, match=unread),
        intervene(model, edits),
        capture(model, edits),
    ):
        model.trunk(ids())  # looking is not reading
    with torch.no_grad(), intervene(model, {Site(0, "attn.z"): zero([0])}):
        model.trunk(ids())


def test_an_edited_output_that_the_block_drops_is_an_error() -> None:
    model = subject("llama")
    block: Any = model.model.get_submodule("model.layers.1")

    def without_mlp(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        self.mlp(hidden_states)
        return hidden_states + attended

    block.forward = without_mlp.__get__(block)
    refused = pytest.raises(HookError, match=r"nothing read the edited blocks.1.mlp_out")
    with torch.no_grad(), refused, intervene(model, {Site(1, "mlp_out"): torch.zeros_like}):
        model.trunk(ids())


@pytest.mark.parametrize("site", [name for name in NAMES if name != READ_ONLY])
@pytest.mark.parametrize("name", [*small.NATIVE, "bloom", "opt"])
def test_an_edit_of_any_site_counts_as_read(name: str, site: str) -> None:
    model = subject(name)
    for layer in (0, small.LAYERS - 1):
        with torch.no_grad(), intervene(model, {Site(layer, site): lambda x: x + 0}):
            model.logits(ids())


def test_sites_are_parsed_in_both_spellings_and_refused_by_name() -> None:
    assert Site.parse("blocks.3.attn.hook_z") == Site.parse("blocks.3.attn.z") == Site(3, "attn.z")
    assert str(Site(3, "attn.z")) == "blocks.3.attn.z"
    with pytest.raises(InputError, match="sites are"):
        Site(0, "attn.zz")
    with pytest.raises(InputError, match=r"blocks\.LAYER\.NAME"):
        Site.parse("attn.z")
    for model in (subject("gpt2"), subject("bloom")):
        with (
            pytest.raises(InputError, match="has layers 0 to 2"),
            capture(model, [Site(3, "attn.z")]),
        ):
            pass


def test_a_sites_name_in_text_is_the_site() -> None:
    model = subject("gpt2")
    name = "blocks.1.attn.hook_z"
    with intervene(model, {name: zero(heads=[2])}), capture(model, [name]) as seen:
        model.logits(ids())
    assert torch.equal(seen[name], seen[Site(1, "attn.z")])
    assert not bool(seen[name][..., 2, :].any())
    with pytest.raises(InputError, match="no site is called"), capture(model, ["blocks.1.attn.y"]):
        pass


@pytest.mark.parametrize("head", [4, -1])
@pytest.mark.parametrize("edit", [zero, lambda heads: replace_by(heads, torch.zeros(4, 8))])
def test_a_head_that_is_not_there_is_named(edit: Callable[..., Any], head: int) -> None:
    model = subject("gpt2")
    with (
        pytest.raises(InputError, match=rf"no head {head}: this layer has heads 0 to 3"),
        intervene(model, {Site(1, "attn.z"): edit(heads=[head])}),
    ):
        model.logits(ids())
