"""The kernels behind exact effects are the functions and the layers that they stand for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import planted_mamba as planted
from interp_core.mamba import suffix_kernels as kernels
from interp_core.mamba.suffix import Suffix
from mamba_neurons.measure_divergence import Streamed, divergence
from mamba_neurons.model import Model

REAL = np.concatenate(
    [np.linspace(-40, 40, 1601), np.geomspace(1e-5, 1, 60), -np.geomspace(1e-5, 1, 60)]
)
CLOSED = {
    "softplus": lambda x: np.logaddexp(0, x),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "excess": lambda x: np.where(
        abs(x) < 1e-2, x**2 / 2 + x**3 / 6 + x**4 / 24 + x**5 / 120, np.expm1(x) - x
    ),
    "power_of_two": np.exp2,
}


@pytest.mark.parametrize("name", CLOSED)
def test_kernel_functions_are_their_closed_forms_to_float32(name: str) -> None:
    x = REAL[REAL != 0].astype(np.float32)
    found = np.array([getattr(kernels, name)(value) for value in x])
    np.testing.assert_allclose(found, CLOSED[name](x.astype(np.float64)), rtol=3e-6)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_suffix_on_the_kernels_is_the_models_own(model: Model, first: int) -> None:
    subject = planted.mamba_of(model)
    suffix = Suffix.of(subject)
    assert suffix is not None
    residual = torch.randn(3, 7, subject.d_model, generator=torch.Generator().manual_seed(first))
    expected = subject.suffix(residual, first)
    torch.testing.assert_close(suffix.run(residual.clone(), first), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["in_proj", "out_proj"])
def test_a_suffix_adds_the_biases_of_its_projections(kind: str) -> None:
    """Each alone, and large, so that one in the place of the other is seen."""
    module = planted.random_mamba(seed=4, biases=True)
    generator = torch.Generator().manual_seed(4)
    for block in module.backbone.layers:
        for name in ("in_proj", "out_proj"):
            bias = getattr(block.mixer, name).bias
            size = 2.0 if name == kind else 0.0
            bias.data = size * torch.randn(bias.shape, generator=generator)

    subject = planted.mamba_of(planted.model_of(module))
    suffix = Suffix.of(subject)
    assert suffix is not None
    residual = torch.randn(3, 7, subject.d_model, generator=torch.Generator().manual_seed(0))
    found = suffix.run(residual.clone(), 0)
    torch.testing.assert_close(found, subject.suffix(residual, 0), atol=2e-5, rtol=1e-4)


def test_a_model_in_another_type_runs_on_its_own_blocks() -> None:
    module = planted.random_mamba(seed=5).double()
    subject = planted.mamba_of(planted.model_of(module))
    assert Suffix.of(subject) is None


@settings(max_examples=40, deadline=None)
@given(scale=st.floats(1e-4, 300), seed=st.integers(0, 1000))
def test_streaming_the_vocabulary_is_comparing_all_logits(scale: float, seed: int) -> None:
    """Changes that move logits by hundreds of nats included."""
    generator = torch.Generator().manual_seed(seed)
    head = torch.nn.Linear(6, 1100, bias=False)
    hidden, change = (
        torch.randn(5, 6, generator=generator),
        scale * torch.randn(2, 5, 6, generator=generator),
    )
    target = torch.randint(1100, (5,), generator=generator)
    with torch.no_grad():
        clean = head(hidden)
        streamed = Streamed.of(head, clean, clean.softmax(-1), target)
        assert streamed is not None
        found = streamed(change)
        p = head.double()(hidden.double()).log_softmax(-1)
        q = head(hidden.double() + change.double()).log_softmax(-1)
    at_target = (p - q).gather(-1, target.expand(2, 5)[..., None])[..., 0]
    torch.testing.assert_close(found[0].double(), (p.exp() * (p - q)).sum(-1), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(found[1].double(), at_target, rtol=1e-4, atol=1e-6 * max(1, scale))
    plain = divergence(
        (clean + change @ head.weight.T.float()).detach(), clean, clean.softmax(-1), target
    )
    torch.testing.assert_close(found[0], plain[0], rtol=5e-3, atol=1e-6)
