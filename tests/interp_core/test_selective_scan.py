"""The scan, its gradients, and what is put under a stock model."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from interp_core.errors import InputError
from interp_core.mamba.selective_scan import (
    Backend,
    causal_conv_silu,
    fast_scan,
    mamba_mixers,
    selective_scan,
)
from interp_core.training.loop import parameter_groups
from small_models import build

BACKENDS: tuple[Backend, ...] = ("numba", "torch")
SHAPES = [
    (2, 7, 5, 3),
    (1, 33, 65, 16),
    (3, 16, 64, 1),
]  # batch, length, channels, states: whole and broken tiles


def operands(
    shape: tuple[int, int, int, int], dtype: torch.dtype, largest_dt: float = 0.5
) -> list[Tensor]:
    batch, length, channels, states = shape
    rng = torch.Generator().manual_seed(sum(shape))

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    dt = torch.rand(batch, length, channels, generator=rng, dtype=torch.float64) * largest_dt + 1e-3
    A = -torch.exp(torch.rand(channels, states, generator=rng, dtype=torch.float64) * 2.7)
    parts = (
        normal(batch, length, channels),
        dt,
        A,
        normal(batch, length, states),
        normal(batch, length, states),
    )
    return [part.to(dtype).requires_grad_() for part in (*parts, normal(channels))]


def by_definition(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Gu & Dao's recurrence, a step at a time, left to autograd."""
    h, rows = torch.zeros(len(x), *A.shape, dtype=x.dtype), []
    for t in range(x.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
        rows.append((h * C[:, t, None]).sum(-1) + D * x[:, t])
    return torch.stack(rows, dim=1)


def outputs_and_gradients(function: Any, inputs: list[Tensor]) -> list[Tensor]:
    y = function(*inputs)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), inputs)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("largest_dt", [0.1, 20.0])
def test_y_and_all_gradients_are_within_a_millionth_of_the_float64_recurrence(
    backend: Backend, shape: tuple[int, int, int, int], largest_dt: float
) -> None:
    inputs = operands(shape, torch.float32, largest_dt)
    exact = outputs_and_gradients(
        by_definition, [part.detach().double().requires_grad_() for part in inputs]
    )
    found = outputs_and_gradients(lambda *parts: selective_scan(*parts, backend=backend), inputs)
    for ours, theirs in zip(found, exact, strict=True):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_backward_pass_is_the_derivative_of_the_forward_pass(backend: Backend) -> None:
    inputs = operands((2, 19, 3, 2), torch.float64)
    assert torch.autograd.gradcheck(lambda *parts: selective_scan(*parts, backend=backend), inputs)


def test_the_convolutions_backward_pass_is_the_derivative_of_its_forward_pass() -> None:
    rng = torch.Generator().manual_seed(0)
    sizes = ((2, 6, 5), (5, 4), (5,))
    inputs = tuple(
        torch.randn(*size, generator=rng, dtype=torch.float64, requires_grad=True) for size in sizes
    )
    assert torch.autograd.gradcheck(causal_conv_silu, inputs)


def test_both_backends_take_up_a_state_where_another_scan_left_it() -> None:
    x, dt, A, B, C, D = (part.detach() for part in operands((2, 24, 5, 3), torch.float64))
    whole = by_definition(x, dt, A, B, C, D)
    state = torch.zeros(2, *A.shape, dtype=torch.float64)
    for t in range(9):
        state = (
            torch.exp(dt[:, t, :, None] * A) * state
            + (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
        )
    for backend in BACKENDS:
        after = (x[:, 9:], dt[:, 9:], A, B[:, 9:], C[:, 9:], D)
        rest = selective_scan(*after, initial_state=state, backend=backend)
        torch.testing.assert_close(rest, whole[:, 9:], atol=1e-12, rtol=0)


def test_the_number_of_threads_changes_no_bit() -> None:
    inputs = operands((3, 40, 130, 16), torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(outputs_and_gradients(selective_scan, inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(
            torch.equal(ours, theirs) for ours, theirs in zip(results[0], other, strict=True)
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("padded", [False, True])
def test_a_stock_model_gives_the_same_logits_with_our_scan_under_it(
    backend: Backend, padded: bool
) -> None:
    model = build("mamba")
    ids = torch.randint(1, 96, (3, 37), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, :9] = mask[2, :20] = 0  # on the left
    with torch.no_grad():
        stock = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        with fast_scan(model, backend):
            ours = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(ours[mask.bool()], stock[mask.bool()], atol=2e-5, rtol=0)


def test_our_scan_leaves_nothing_behind() -> None:
    model = build("mamba")
    ids = torch.arange(1, 30)[None]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        before = model(input_ids=ids, use_cache=False).logits
        with pytest.raises(IndexError), fast_scan(model):
            model(input_ids=ids + 96, use_cache=False)
        after = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(before, after)
    assert all("forward" not in mixer.__dict__ for mixer in mamba_mixers(model))
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


def test_generation_with_a_cache_stays_the_stock_models() -> None:
    model = build("mamba")
    prompt = torch.arange(1, 12)[None]
    stock = model.generate(prompt, max_new_tokens=8, do_sample=False)  # pyright: ignore[reportCallIssue]
    with fast_scan(model):
        ours = model.generate(prompt, max_new_tokens=8, do_sample=False)  # pyright: ignore[reportCallIssue]
    assert torch.equal(stock, ours)


def test_twenty_steps_of_training_have_the_same_losses_as_with_the_stock_scan() -> None:
    losses = {}
    for ours in (False, True):
        model = build("mamba", seed=3).train()
        optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=1e-3)
        rng, losses[ours] = torch.Generator().manual_seed(1), []
        for _ in range(20):
            ids = torch.randint(0, 96, (4, 24), generator=rng)
            if ours:
                with fast_scan(model):
                    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            else:
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[ours].append(float(loss))
    np.testing.assert_allclose(losses[True], losses[False], atol=1e-5)
    assert losses[True][-1] < losses[True][0]


def test_bfloat16_is_computed_in_float32() -> None:
    inputs = [part.detach().bfloat16() for part in operands((1, 20, 9, 4), torch.float32)]
    y = selective_scan(*inputs)
    assert y.dtype == torch.bfloat16
    exact = by_definition(*(part.double() for part in inputs))
    assert float((y.double() - exact).abs().max() / exact.abs().max()) < 2**-8


def test_a_model_without_mixers_and_an_unknown_variant_are_refused_by_name() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(InputError, match="model of type gpt2 has no Mamba mixer"), fast_scan(gpt2):
        pass

    class JambaMambaMixer(nn.Module):
        A_log, x_proj = torch.zeros(4, 2), None

    jamba = nn.Sequential(JambaMambaMixer())
    with pytest.raises(InputError, match="JambaMambaMixer is a variant"), fast_scan(jamba):
        pass
    other = build("mamba")
    mamba_mixers(other)[0].activation = "gelu"
    with pytest.raises(InputError, match="activation gelu"):
        mamba_mixers(other)
