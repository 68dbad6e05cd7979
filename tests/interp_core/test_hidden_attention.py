"""Hidden attention: entries, rows and maps agree with the definition, with each other and with
another library.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.mamba import modeling_mamba

from interp_core.errors import InputError
from interp_core.loading import subject_of
from interp_core.mamba import hidden_attention
from interp_core.mamba.hidden_attention import (
    MixerCall,
    attention_entries,
    attention_matrices,
    effective_attention,
    mixer_calls,
    reconstruction_error,
    state_after,
    stream_attention,
)
from interp_core.mamba.subject import MambaSubject, as_mamba
from interp_core.models.lens import to_transformer_lens
from small_models import build


def small_mamba(**changes: Any) -> MambaSubject:
    return as_mamba(subject_of(build("mamba", **changes), name="small", bos=0))


def some_ids(batch: int = 3, length: int = 45) -> Tensor:
    return torch.randint(0, 96, (batch, length), generator=torch.Generator().manual_seed(2))


def by_definition(call: MixerCall) -> Tensor:
    """alpha in float64, every exponential taken for itself."""
    S, B, C = call.S, call.B.double(), call.C.double()
    since = (S[:, :, None] - S[:, None]).clamp_min(0)[..., None]
    decay = torch.exp(since * call.A.double())
    return torch.einsum("bin,bijcn,bjn,bjc->bcij", C, decay, B, call.dt.double()).tril()


@pytest.fixture(params=[4, 6], ids=["states in fours", "six states"])
def call(request: pytest.FixtureRequest) -> MixerCall:
    subject = small_mamba(state_size=request.param)
    call = mixer_calls(subject, some_ids())[1]
    assert isinstance(call, MixerCall)
    return call


def test_whole_matrices_are_those_of_the_definition(call: MixerCall) -> None:
    exact = by_definition(call)
    found = attention_matrices(call)
    assert float((found - exact).abs().max() / exact.abs().max()) < 1e-6
    torch.testing.assert_close(attention_matrices(call, channels=slice(3, 9)), found[:, 3:9])


def test_entries_are_those_of_the_matrices_and_zero_ahead_of_the_query(call: MixerCall) -> None:
    exact = by_definition(call)
    rng = torch.Generator().manual_seed(0)
    batch, query, key = (torch.randint(0, n, (200,), generator=rng) for n in (3, 45, 45))
    found = attention_entries(call, batch, query, key)
    assert float((found - exact[batch, :, query, key]).abs().max() / exact.abs().max()) < 1e-6
    assert (found[key > query] == 0).all()


def test_streamed_maps_and_shares_are_those_of_the_matrices(call: MixerCall) -> None:
    exact = by_definition(call)
    rng = np.random.default_rng(0)
    batch, query, key = (rng.integers(0, n, 200) for n in (3, 45, 45))
    group = np.arange(200) % 4
    found = stream_attention(call, batch=batch, query=query, key=key, group=group, groups=4)
    scale = float(exact.abs().mean(1).max())
    assert float((found.size - exact.abs().mean(1)).abs().max()) < 1e-6 * scale
    torch.testing.assert_close(found.normalised.sum(-1), torch.ones(3, 45))
    rows = exact.abs() / exact.abs().sum(-1, keepdim=True)
    shares = torch.zeros(3, 4, exact.shape[1], dtype=torch.float64)
    for b, i, j, g in zip(batch, query, key, group, strict=True):
        shares[b, g] += rows[b, :, i, j]
    torch.testing.assert_close(found.shares.double(), shares, atol=1e-5, rtol=0)


def test_y_is_alpha_x_and_the_skip_of_the_stock_model_in_every_layer() -> None:
    errors = reconstruction_error(small_mamba(), some_ids())
    assert errors.shape == (3,)
    assert (errors < 2e-6).all()


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_y_is_checked_some_channels_at_a_time_where_whole_matrices_do_not_fit(
    kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = build("mamba")
    subject = as_mamba(subject_of(model.to(kind), name="small", bos=0))
    one = 45**2 * kind.itemsize
    monkeypatch.setattr(hidden_attention, "LARGEST_MATRICES", 3 * one + 1)
    assert (reconstruction_error(subject, some_ids()) < 2e-6).all()

    monkeypatch.setattr(hidden_attention, "LARGEST_MATRICES", one - 1)
    with pytest.raises(InputError, match=r"1 x 1 channels at 45 tokens"):
        reconstruction_error(subject, some_ids())


def test_a_model_that_scans_otherwise_than_its_taps_say_stops_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stock = modeling_mamba.mamba_selective_scan

    def other_variant(x: Tensor, dt: Tensor, A: Tensor, *rest: Tensor, **kwargs: Any) -> Any:
        return stock(x, dt, 1.1 * A, *rest, **kwargs)

    monkeypatch.setattr(modeling_mamba, "mamba_selective_scan", other_variant)
    with pytest.raises(InputError, match=r"mixer is not alpha x \+ D x"):
        reconstruction_error(small_mamba(), some_ids(1, 20))


def test_effective_attention_is_the_norm_of_what_a_token_brings_to_the_residual_stream(
    call: MixerCall,
) -> None:
    weight = torch.randn(32, call.x.shape[2], generator=torch.Generator().manual_seed(1))
    batch, query = torch.tensor([0, 2, 1, 0]), torch.tensor([44, 7, 0, 20])
    found = effective_attention(call, weight, batch, query, largest=4000)
    alpha = by_definition(call)
    for entry, (b, i) in enumerate(zip(batch, query, strict=True)):
        vectors = call.gate[b, i].double() * alpha[b, :, i].T * call.x[b].double()
        torch.testing.assert_close(
            found[entry].double(), (vectors @ weight.double().T).norm(dim=-1), atol=1e-4, rtol=1e-5
        )


def test_the_state_after_a_token_gives_that_tokens_output(call: MixerCall) -> None:
    state = state_after(call, 20)
    y = torch.einsum("bcn,bn->bc", state, call.C[:, 20]) + call.D * call.x[:, 20]
    torch.testing.assert_close(y * call.gate[:, 20], call.gated_y[:, 20], atol=1e-5, rtol=1e-5)


def test_another_library_has_the_same_alpha() -> None:
    subject = small_mamba()
    ids = some_ids(2, 24)
    bridge = to_transformer_lens(subject)
    for block in bridge.blocks:
        block.mixer.eager_scan = True
    _, cache = bridge.run_with_cache(ids, use_cache=False)
    calls = mixer_calls(subject, ids)
    for layer, ours in enumerate(calls):
        theirs = bridge.blocks[layer].mixer.compute_effective_attention(
            cache, layer, include_dt_scaling=True
        )
        torch.testing.assert_close(attention_matrices(ours), theirs.float(), atol=1e-5, rtol=1e-5)


def test_matrices_that_do_not_fit_are_refused_with_their_size() -> None:
    call = mixer_calls(small_mamba(), some_ids(2, 40))[0]
    with pytest.raises(InputError, match=r"2 x 64 channels at 40 tokens takes 0\.0 GiB"):
        attention_matrices(call, largest=1000)

    whole = attention_matrices(call)
    size = whole.numel() * whole.element_size()
    torch.testing.assert_close(attention_matrices(call, largest=size), whole)
    with pytest.raises(InputError, match="whole hidden attention"):
        attention_matrices(call, largest=size - 1)


def test_long_steps_neither_overflow_nor_slow_down_into_denormals(call: MixerCall) -> None:
    long = MixerCall(
        call.u, call.z, call.x, call.dt * 0 + 20.0, call.A, call.B, call.C, call.D, call.gated_y
    )
    exact = by_definition(long)
    found = attention_matrices(long)
    assert torch.isfinite(found).all()
    assert float((found - exact).abs().max() / exact.abs().max()) < 1e-6
