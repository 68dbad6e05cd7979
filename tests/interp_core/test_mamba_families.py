"""Mamba-1, FalconMamba and Mamba-2 against their authors' code, and against the recurrence a token
at a time.
"""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mamba_steps as steps
from interp_core.errors import InputError
from interp_core.loading import subject_of
from interp_core.mamba.families import recurrence_of
from interp_core.mamba.head_attention import HeadCall
from interp_core.mamba.hidden_attention import (
    attention_entries,
    attention_matrices,
    effective_attention,
    mixer_calls,
    reconstruction_error,
    state_after,
    stream_attention,
)
from interp_core.mamba.subject import MambaSubject, as_mamba
from interp_core.mamba.suffix import Suffix
from interp_core.models.hooks import capture, intervene
from interp_core.models.sites import Site
from interp_core.models.subject import as_transformer
from small_models import MAMBAS, build

# Every kind, and what can be otherwise in it.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("mamba", {}),
    "falcon_mamba": ("falcon_mamba", {}),
    "falcon_mamba, biases": ("falcon_mamba", {"use_bias": True, "use_conv_bias": False}),
    "mamba2": ("mamba2", {}),
    "mamba2, one group": ("mamba2", {"n_groups": 1, "use_bias": True}),
    "mamba2, a head a group": ("mamba2", {"n_groups": 4, "use_conv_bias": False}),
    "mamba2, limits": ("mamba2", {"time_step_limit": (0.01, 0.05), "chunk_size": 8}),
    "mamba2, tied": ("mamba2", {"tie_word_embeddings": True, "conv_kernel": 2}),
}


def subject(kind: str, **changes: Any) -> MambaSubject:
    return as_mamba(subject_of(build(kind, **changes), name="small", bos=0))


@pytest.fixture(params=list(VARIANTS.values()), ids=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> MambaSubject:
    kind, changes = request.param
    return subject(kind, **changes)


def some_ids(batch: int = 2, length: int = 21) -> Tensor:
    return torch.randint(1, 96, (batch, length), generator=torch.Generator().manual_seed(2))


def apart(found: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest size."""
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def of_transformers(model: Any, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What each mixer of the model read and wrote, by its authors' own code."""
    seen: list[tuple[Tensor, Tensor]] = []
    handles = [
        block.mixer.register_forward_hook(
            lambda _, given, kwargs, out: seen.append(
                (given[0] if given else kwargs["hidden_states"], out)
            ),
            with_kwargs=True,
        )
        for block in model.backbone.layers
    ]
    model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def test_hidden_attention_times_values_is_what_the_block_of_transformers_writes(
    variant: MambaSubject,
) -> None:
    ids = some_ids()
    expected = of_transformers(variant.model, ids)

    for layer, call in enumerate(mixer_calls(variant, ids)):
        alpha = attention_matrices(call).double()
        by_unit = call.x.double().unflatten(-1, (alpha.shape[1], -1))
        y = torch.einsum("buij,bjud->biud", alpha, by_unit).flatten(2) + call.D * call.x
        gated = call.through_norm(y.float()) if isinstance(call, HeadCall) else y * call.gate
        written = variant.mixer(layer).out_proj(gated.float())
        assert apart(written, expected[layer][1]) < 1e-5


@torch.no_grad()
def test_the_recurrence_a_token_at_a_time_is_what_the_block_writes(variant: MambaSubject) -> None:
    for layer, (given, written) in enumerate(of_transformers(variant.model, some_ids())):
        assert apart(steps.mixed(variant.mixer(layer), given), written) < 1e-5


def test_logits_are_those_of_the_authors_code_and_reconstruction_is_checked(
    variant: MambaSubject,
) -> None:
    ids = some_ids()
    with torch.no_grad():
        expected = variant.model(input_ids=ids, use_cache=False).logits
    assert apart(variant.logits(ids), expected) < 1e-5
    assert (reconstruction_error(variant, ids) < 1e-5).all()


def heads_call() -> HeadCall:
    call = mixer_calls(subject("mamba2"), some_ids(3, 30))[1]
    assert isinstance(call, HeadCall)
    return call


def by_definition(call: HeadCall) -> Tensor:
    """alpha by head in float64, every exponential taken for itself."""
    found = torch.zeros(3, 4, 30, 30, dtype=torch.float64)
    for h in range(4):
        B, C = call.B[:, :, h // 2].double(), call.C[:, :, h // 2].double()
        S, dt = call.S[..., h], call.dt[..., h].double()
        since = (S[:, :, None] - S[:, None]).clamp_min(0)
        read = torch.einsum("bin,bjn->bij", C, B)
        found[:, h] = (read * torch.exp(call.A[h].double() * since) * dt[:, None]).tril()
    return found


def test_alpha_of_a_head_is_the_semiseparable_matrix_by_definition() -> None:
    call = heads_call()
    exact = by_definition(call)
    assert apart(attention_matrices(call), exact) < 1e-6

    rng = torch.Generator().manual_seed(0)
    batch, query, key = (torch.randint(0, n, (100,), generator=rng) for n in (3, 30, 30))
    found = attention_entries(call, batch, query, key)
    wide = exact[batch, :, query, key].repeat_interleave(16, dim=1)
    assert apart(found, wide) < 1e-6
    assert (found[key > query] == 0).all()


def test_shares_of_heads_are_those_of_the_matrices() -> None:
    call = heads_call()
    exact = by_definition(call).abs()
    rng = np.random.default_rng(0)
    batch, query, key = (rng.integers(0, n, 60) for n in (3, 30, 30))
    group = np.arange(60) % 3

    found = stream_attention(call, batch=batch, query=query, key=key, group=group, groups=3)
    assert apart(found.size, exact.mean(dim=1)) < 1e-6

    rows = exact / exact.sum(dim=-1, keepdim=True)
    shares = torch.zeros(3, 3, 4, dtype=torch.float64)
    for b, i, j, g in zip(batch, query, key, group, strict=True):
        shares[b, g] += rows[b, :, i, j]
    torch.testing.assert_close(found.shares.double(), shares, atol=1e-5, rtol=0)


def test_with_the_norms_divisor_fixed_reads_and_skip_are_all_that_is_written() -> None:
    call, weight = heads_call(), torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    batch, query = torch.tensor([0, 2]), torch.tensor([29, 12])
    found = effective_attention(call, weight, batch, query, largest=4000)
    alpha = by_definition(call).repeat_interleave(16, dim=1)

    for entry, (b, i) in enumerate(zip(batch, query, strict=True)):
        vectors = call.gate[b, i].double() * alpha[b, :, i].T * call.x[b].double()  # [key, channel]
        expected = (vectors @ weight.double().T).norm(dim=-1)
        torch.testing.assert_close(found[entry].double(), expected, atol=1e-4, rtol=1e-4)

        whole = vectors.sum(dim=0) + (call.gate * call.D * call.x)[b, i]
        torch.testing.assert_close(whole, call.gated_y[b, i].double(), atol=1e-5, rtol=1e-4)


def test_the_slope_of_the_scan_is_that_of_autograd_through_gate_and_norm() -> None:
    call = heads_call()
    slope = torch.randn(call.y.shape, generator=torch.Generator().manual_seed(3))
    y = call.y.clone().requires_grad_()
    (expected,) = torch.autograd.grad((call.through_norm(y) * slope).sum(), y)
    assert apart(call.slope_of_y(slope), expected) < 1e-5


def test_states_of_heads_give_what_the_scan_gives() -> None:
    call = heads_call()
    y = call.read_of_states().sum(dim=-1) + call.D * call.x
    assert apart(y, call.y) < 1e-5
    assert apart(state_after(call, 20), call.states()[:, 20]) < 1e-5


@pytest.mark.parametrize("largest", [2**24, 2 * 30 * 64, 1], ids=["at once", "by twos", "by ones"])
def test_y_without_some_reads_is_that_of_the_matrices_without_them(largest: int) -> None:
    call = heads_call()
    # Five places, one of them with two keys, out of order; the last key of a place is its own.
    batch = torch.tensor([2, 0, 1, 0, 2, 2])
    query, key = torch.tensor([[12, 29, 7, 3, 12, 20], [5, 0, 7, 1, 11, 20]])
    alpha = by_definition(call)
    alpha[batch, :, query, key] = 0.0

    x = call.x.double().unflatten(-1, (4, 16))
    expected = torch.einsum("bhij,bjhd->bihd", alpha, x).flatten(2) + call.D * call.x
    found = call.y_without(batch, query, key, largest=largest)
    assert apart(found, expected) < 1e-5
    assert (found - call.y).abs().amax(dim=-1)[batch, query].min() > 1e-4


@pytest.mark.parametrize("position", [0, 11, 28])
def test_y_from_another_state_is_that_of_the_recurrence_begun_with_it(position: int) -> None:
    call = heads_call()
    state = call.state_after(position) + 0.3 * torch.randn(
        call.state_after(position).shape, generator=torch.Generator().manual_seed(4)
    )

    # A token at a time, in float64: channels of a head share its step and its rate.
    dt, A = (call.by_channel(part).double() for part in (call.dt, call.A[:, 0]))
    C, B = (part.double().repeat_interleave(32, dim=2) for part in (call.C, call.B))
    h, expected = state.double(), call.y.double().clone()
    for t in range(position + 1, 30):
        written = dt[:, t, :, None] * call.x[:, t, :, None] * B[:, t]
        h = torch.exp(A * dt[:, t])[..., None] * h + written
        expected[:, t] = torch.einsum("bcn,bcn->bc", h, C[:, t]) + call.D * call.x[:, t]

    assert apart(call.y_from_state(state, position), expected) < 1e-5
    assert apart(call.y_from_state(call.state_after(position), position), call.y) < 1e-5


def test_sites_of_a_mamba2_fire_and_those_it_lacks_are_named() -> None:
    small = subject("mamba2")
    widths = {"mixer.in_proj": 64 + 88 + 4, "mixer.gated_y": 64}

    with capture(small, [Site(1, name) for name in small.taps]) as seen:
        clean = small.logits(some_ids())
    for site, activation in seen.items():
        assert activation.shape == (2, 21, widths.get(site.name, 32)), site

    for name in small.taps:
        with intervene(small, {Site(1, name): lambda a: 1.5 * a + 0.1}):
            assert not torch.allclose(small.logits(some_ids()), clean, atol=1e-3)
    with (
        pytest.raises(InputError, match=r"is a Mamba-2: it has no blocks\.0\.mixer\.x;"),
        capture(small, [Site(0, "mixer.x")]),
    ):
        pass


@pytest.mark.parametrize("kind", MAMBAS)
def test_a_suffix_continues_where_the_residual_stream_was_taken(kind: str) -> None:
    small = subject(kind)
    with capture(small, [Site(2, "resid_pre")]) as seen:
        whole = small.trunk(some_ids())
    assert torch.equal(small.suffix(seen[Site(2, "resid_pre")], 2), whole)
    assert (Suffix.of(small) is None) == (kind != "mamba")


@pytest.mark.parametrize("kind", MAMBAS)
def test_none_of_them_has_heads_of_attention(kind: str) -> None:
    with pytest.raises(InputError, match=f"small is a {kind}: it has no attention heads"):
        as_transformer(subject(kind))


def test_nobody_is_told_to_install_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger: Any = logging.getLogger("transformers.integrations.hub_kernels")
    small = subject("mamba2")
    monkeypatch.setattr(logger, "level", logging.WARNING)  # whatever has silenced it before
    monkeypatch.setattr(logger, "_cache", {})

    # transformers says a thing once in a process.
    logger.warning_once.__func__.cache_clear()
    logger.addHandler(handler)
    try:
        small.trunk(some_ids())
        with small.stock():
            small.trunk(some_ids())
        assert said == []

        logger.warning_once.__func__.cache_clear()
        small.model(input_ids=some_ids(), use_cache=False)
        assert "falling back" in said[0]
    finally:
        logger.removeHandler(handler)


def test_what_other_models_mix_tokens_by_is_named() -> None:
    class OtherDeltaNet(nn.Module): ...

    hybrid = nn.Sequential(nn.Linear(2, 2), OtherDeltaNet())
    assert recurrence_of(hybrid) == "a gated delta rule"
    assert recurrence_of(build("mamba2")) == "a state-space scan"
    assert recurrence_of(build("gpt2")) is None
