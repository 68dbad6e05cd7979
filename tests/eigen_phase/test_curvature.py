"""Hessian products against the explicit Hessian, against closed forms, and in bounded memory."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from eigen_phase.measure_curvature import (
    Hessian,
    adam_preconditioned,
    next_token_gauss_newton,
    next_token_hessian,
)
from eigen_phase.model import Transformer
from eigen_phase.model_attention import causal_attention
from interp_core.errors import InputError
from interp_core.training.batches import IGNORED
from tiny_transformer import dense, some_batch, tiny

DOUBLE = torch.float64


def explicit_hessian(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """From torch.func, through plain softmax attention written as torch does it."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    flat = torch.cat([p.reshape(-1) for p in weights.values()])

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([p.numel() for p in weights.values()])
        named = {n: part.view_as(p) for (n, p), part in zip(weights.items(), parts, strict=True)}
        logits = torch.func.functional_call(model, named, (ids,)).logits[:, :-1]
        return functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
        )

    found = torch.autograd.functional.hessian(loss, flat)
    assert isinstance(found, Tensor)
    return found


@pytest.fixture(params=[(0, None), (2, None), (0, 1)], ids=["attention", "mlp", "clamped"])
def model(request: pytest.FixtureRequest) -> Transformer:
    mlp_ratio, clamp_to = request.param
    return tiny(mlp_ratio=mlp_ratio, clamp_to=clamp_to)


def plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    ahead = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool).triu(1)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return scores.masked_fill(ahead, -torch.inf).softmax(-1) @ value


def test_products_are_those_of_the_explicit_hessian(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, labels = some_batch()
    with model.explicit_attention():
        found = dense(next_token_hessian(model, ids, labels, micro_batch=6))
        monkeypatch.setattr("eigen_phase.model.causal_attention", plain_attention)
        expected = explicit_hessian(model, ids, labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(found, found.T, rtol=0, atol=1e-11)
    values = torch.linalg.eigvalsh(found)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(expected), rtol=0, atol=1e-8)
    assert values[0] < -1e-3 < 1e-3 < values[-1]


def test_written_out_attention_has_the_derivatives_of_the_plain_one() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(2, 2, 5, 4, dtype=DOUBLE, generator=generator).requires_grad_()
        for _ in range(3)
    ]
    torch.testing.assert_close(causal_attention(*inputs), plain_attention(*inputs))
    assert torch.autograd.gradcheck(causal_attention, inputs)
    assert torch.autograd.gradgradcheck(causal_attention, inputs)


@pytest.mark.parametrize("micro_batch", [1, 4, 5])
def test_micro_batches_add_up_to_the_batch(micro_batch: int) -> None:
    model, (ids, labels) = tiny(), some_batch()
    vector = torch.randn(sum(p.numel() for p in model.parameters()), dtype=DOUBLE)
    with model.explicit_attention():
        whole = next_token_hessian(model, ids, labels, micro_batch=6)
        parts = next_token_hessian(model, ids, labels, micro_batch=micro_batch)
        assert parts.loss == pytest.approx(whole.loss, abs=1e-12)
        torch.testing.assert_close(parts.gradient, whole.gradient)
        torch.testing.assert_close(parts(vector), whole(vector))
        gauss_newton = next_token_gauss_newton(model, ids, labels, micro_batch=6)
        torch.testing.assert_close(
            next_token_gauss_newton(model, ids, labels, micro_batch=micro_batch)(vector),
            gauss_newton(vector),
        )
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    loss = functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED)
    assert whole.loss == pytest.approx(loss.item(), abs=1e-12)


def test_what_a_product_keeps_does_not_grow_with_the_batch() -> None:
    model = tiny()

    def kept(rows: int) -> int:
        """Most bytes that graphs hold at once during a product."""
        held, most = 0, 0

        def pack(tensor: Tensor) -> "Held":
            nonlocal held, most
            held += tensor.nbytes
            most = max(most, held)
            return Held(tensor)

        class Held:
            def __init__(self, tensor: Tensor) -> None:
                self.tensor = tensor

            def __del__(self) -> None:
                nonlocal held
                held -= self.tensor.nbytes

        ids, labels = (part.repeat(rows // 6, 1) for part in some_batch())
        operator = next_token_hessian(model, ids, labels, micro_batch=6)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.tensor):
            operator(torch.ones_like(operator.gradient))
        return most

    with model.explicit_attention():
        assert 0 < kept(60) <= 1.05 * kept(12)


def test_a_quadratic_has_its_own_matrix() -> None:
    matrix = torch.tensor([[3.0, 1.0], [1.0, -2.0]], dtype=DOUBLE)
    point: Any = nn.ParameterList([nn.Parameter(torch.tensor([0.5, -1.0], dtype=DOUBLE))])
    operator = Hessian(
        point,
        (torch.zeros(1),),
        loss_sum=lambda *_: 0.5 * point[0] @ matrix @ point[0],
        divisor=1.0,
        micro_batch=1,
    )
    torch.testing.assert_close(dense(operator), matrix)
    torch.testing.assert_close(operator.gradient, matrix @ point[0].detach())
    assert operator.products == 2


def test_linear_regression_has_the_second_moment_of_its_inputs() -> None:
    x, y = torch.randn(40, 3, dtype=DOUBLE), torch.randn(40, 1, dtype=DOUBLE)
    model = nn.Linear(3, 1, bias=False, dtype=DOUBLE)
    operator = Hessian(
        model,
        (x, y),
        loss_sum=lambda m, b: 0.5 * (m(b[0]) - b[1]).square().sum(),
        divisor=40.0,
        micro_batch=7,
    )
    torch.testing.assert_close(dense(operator), x.T @ x / 40)


def test_gauss_newton_is_the_hessian_when_the_model_is_linear_and_never_negative() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Embedding(5, 5, dtype=DOUBLE)

        def forward(self, input_ids: Tensor, use_cache: bool) -> "Answer":
            return Answer(self.map(input_ids))

    class Answer:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    linear, (ids, labels) = Linear(), some_batch()
    torch.testing.assert_close(
        dense(next_token_gauss_newton(linear, ids, labels, micro_batch=6)),
        dense(next_token_hessian(linear, ids, labels, micro_batch=6)),
    )
    model = tiny()
    with model.explicit_attention():
        matrix = dense(next_token_gauss_newton(model, ids, labels, micro_batch=6))
    torch.testing.assert_close(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix)[0] > -1e-12


def test_adams_preconditioner_scales_rows_and_columns() -> None:
    model, (ids, labels) = tiny(), some_batch()
    with model.explicit_attention():
        operator = next_token_hessian(model, ids, labels, micro_batch=6)
        moment = torch.rand(operator.size, dtype=DOUBLE)
        scaled = adam_preconditioned(operator, moment, step=3, beta=0.9, epsilon=1e-8)
        scale = 1 / (torch.sqrt(moment / (1 - 0.9**3)) + 1e-8)
        torch.testing.assert_close(
            dense(scaled), torch.diag(scale.sqrt()) @ dense(operator) @ torch.diag(scale.sqrt())
        )
    with pytest.raises(InputError, match="before its first update"):
        adam_preconditioned(operator, moment, step=0, beta=0.9, epsilon=1e-8)


def test_dropout_is_off() -> None:
    model = nn.Sequential(
        nn.Linear(3, 3, dtype=DOUBLE), nn.Dropout(0.5), nn.Linear(3, 1, dtype=DOUBLE)
    ).train()
    x = torch.randn(4, 3, dtype=DOUBLE)
    operator = Hessian(
        model, (x,), loss_sum=lambda m, b: m(b[0]).square().sum(), divisor=4.0, micro_batch=4
    )
    vector = torch.randn(operator.size, dtype=DOUBLE)
    torch.testing.assert_close(operator(vector), operator(vector), rtol=0, atol=0)
    assert operator.loss == pytest.approx(float(model[2](model[0](x)).square().sum() / 4))


def test_a_fused_kernel_is_named_as_the_reason() -> None:
    model, (ids, labels) = tiny().float(), some_batch()
    with pytest.raises(InputError, match=r"cannot be differentiated twice.*explicit"):
        next_token_hessian(model, ids, labels, micro_batch=6)(torch.ones(model_size(model)))


def model_size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_edge_of_stability_of_a_quadratic_is_two_over_the_rate() -> None:
    """Gradient descent with a rate just under 2 / lambda_max settles, just over it runs away."""
    matrix = torch.diag(torch.tensor([4.0, 1.0], dtype=DOUBLE))
    for share, settles in ((0.99, True), (1.01, False)):
        x = torch.ones(2, dtype=DOUBLE)
        for _ in range(2000):
            x = x - share * 2 / 4.0 * (matrix @ x)
        assert (float(x.norm()) < 1) is settles
        assert math.isfinite(float(x.norm()))
