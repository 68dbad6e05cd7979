"""Curvature of a loss as operators on vectors of parameters: Hessian, Gauss-Newton,
Adam-preconditioned Hessian.

Nothing here knows the model: any module, any batch, any loss that is a sum over examples divided by
a number. Products are exact (Pearlmutter 1994). The graph of the gradient is built once and used
for all products when the batch is one micro-batch; else each product goes through the micro-batches
one by one, in the memory of one.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from interp_core.errors import InputError, first_line
from interp_core.training.batches import IGNORED

EPSILON = 1e-8  # AdamW's, in trainings and in their geometry

Batch = tuple[Tensor, ...]
LossSum = Callable[[nn.Module, Batch], Tensor]
Vector = Float[Tensor, " parameter"]


class Operator:
    """A symmetric linear map of parameter vectors that counts how often it is applied."""

    def __init__(self, apply: Callable[[Vector], Vector], like: Vector) -> None:
        self._apply = apply
        self.size, self.dtype, self.device = len(like), like.dtype, like.device
        self.products = 0

    def __call__(self, vector: Vector) -> Vector:
        """The product with a vector."""
        self.products += 1
        with torch.enable_grad():  # whoever only wants numbers may have switched it off
            return self._apply(vector)


class Hessian(Operator):
    """Second derivative of loss_sum / divisor at the model's weights, with the loss and its
    gradient there.

    `batch` holds tensors of one length; `micro_batch` examples are in memory at once. Parameters in
    the model's order, flattened, those that need no gradient left out. InputError when the loss
    cannot be differentiated twice.
    """

    def __init__(
        self, model: nn.Module, batch: Batch, *, loss_sum: LossSum, divisor: float, micro_batch: int
    ) -> None:
        self._model, self._loss_sum, self._divisor = model.eval(), loss_sum, divisor
        self._parameters = [
            parameter for parameter in model.parameters() if parameter.requires_grad
        ]
        self._parts = _split(batch, micro_batch)
        self._kept: Vector | None = None
        self.loss, self.gradient = 0.0, torch.zeros(sum(p.numel() for p in self._parameters))
        for part in self._parts:
            loss, gradient = self._differentiated(part)
            self.loss += float(loss)
            self.gradient = self.gradient.to(gradient) + gradient.detach()
            if len(self._parts) == 1:
                self._kept = gradient
        super().__init__(self._times, self.gradient)

    def _differentiated(self, part: Batch) -> tuple[Tensor, Vector]:
        """Loss of a micro-batch and its gradient, as a function of the weights."""
        loss = self._loss_sum(self._model, part) / self._divisor
        gradients = torch.autograd.grad(
            loss, self._parameters, create_graph=True, materialize_grads=True
        )
        return loss.detach(), _flat(gradients)

    def _times(self, vector: Vector) -> Vector:
        if self._kept is not None:
            return self._second(self._kept, vector, keep=True)
        total = torch.zeros_like(self.gradient)
        for part in self._parts:
            total += self._second(self._differentiated(part)[1], vector, keep=False)
        return total

    def _second(self, gradient: Vector, vector: Vector, *, keep: bool) -> Vector:
        try:
            products = torch.autograd.grad(
                gradient, self._parameters, vector, retain_graph=keep, materialize_grads=True
            )
        except RuntimeError as problem:
            if "derivative for" not in str(problem):
                raise
            raise InputError(
                f"this model cannot be differentiated twice ({first_line(problem)}); fused "
                "attention cannot: use its explicit or eager attention"
            ) from None
        return _flat(products).detach()


class GaussNewton(Operator):
    """J^T (d^2 loss / d logits^2) J / divisor for the cross-entropy of next tokens.

    The Hessian less what comes from the model's own curvature; never negative (Schraudolph 2002;
    Martens 2020).
    """

    def __init__(self, model: nn.Module, batch: Batch, *, divisor: float, micro_batch: int) -> None:
        self._model, self._divisor = model.eval(), divisor
        self._parameters = [
            parameter for parameter in model.parameters() if parameter.requires_grad
        ]
        self._parts = _split(batch, micro_batch)
        self._kept = self._linearised(self._parts[0]) if len(self._parts) == 1 else None
        super().__init__(self._times, _flat(self._parameters).detach())

    def _linearised(self, part: Batch) -> tuple[Tensor, Tensor, Vector]:
        """Logits of the counted targets, a dummy of their shape, and J^T dummy, which is linear in
        the dummy.
        """
        logits = counted_logits(self._model, part)[0]
        dummy = torch.zeros_like(logits, requires_grad=True)
        gradients = torch.autograd.grad(
            logits, self._parameters, dummy, create_graph=True, materialize_grads=True
        )
        return logits, dummy, _flat(gradients)

    def _times(self, vector: Vector) -> Vector:
        total = torch.zeros_like(vector)
        for part in self._parts:
            logits, dummy, transposed = self._kept or self._linearised(part)
            (tangent,) = torch.autograd.grad(transposed, dummy, vector, retain_graph=True)
            probability = logits.detach().softmax(dim=-1)
            weighted = probability * tangent
            curved = (weighted - probability * weighted.sum(dim=-1, keepdim=True)) / self._divisor
            products = torch.autograd.grad(
                logits, self._parameters, curved, retain_graph=True, materialize_grads=True
            )
            total += _flat(products)
        return total.detach()


def adam_preconditioned(
    operator: Operator, second_moment: Vector, *, step: int, beta: float, epsilon: float
) -> Operator:
    """P^-1/2 H P^-1/2 with Adam's P = sqrt(second moment / (1 - beta^step)) + epsilon (Cohen et al.
    2022).

    Its largest eigenvalue is the sharpness that decides whether Adam is stable: (2 + 2 beta1) / ((1
    - beta1) rate) is the edge. InputError before the first update, when there is no second moment.
    """
    if step < 1:
        raise InputError("Adam has no preconditioner before its first update")
    scale = (
        ((second_moment / (1 - beta**step)).sqrt() + epsilon)
        .rsqrt()
        .to(operator.device, operator.dtype)
    )
    return Operator(lambda vector: scale * operator(scale * vector), scale)


def counted_logits(
    model: Any, batch: Batch
) -> tuple[Float[Tensor, "target vocab"], Int[Tensor, " target"]]:
    """Logits at the positions whose next token counts, and those tokens.

    `batch` is input ids and labels, label t being token t or lm_training.IGNORED.
    """
    ids, labels = batch
    target = labels[:, 1:]
    counts = target != IGNORED
    return model(input_ids=ids, use_cache=False).logits[:, :-1][counts], target[counts]


def next_token_sum(model: nn.Module, batch: Batch) -> Tensor:
    """Sum of the cross-entropy of the counted next tokens, nats."""
    return functional.cross_entropy(*counted_logits(model, batch), reduction="sum")


def next_token_hessian(
    model: nn.Module,
    ids: Int[Tensor, "row position"],
    labels: Int[Tensor, "row position"],
    *,
    micro_batch: int,
) -> Hessian:
    """Hessian of the mean next-token loss."""
    batch = _on_device(model, ids, labels)
    return Hessian(
        model, batch, loss_sum=next_token_sum, divisor=_counted(labels), micro_batch=micro_batch
    )


def next_token_gauss_newton(
    model: nn.Module,
    ids: Int[Tensor, "row position"],
    labels: Int[Tensor, "row position"],
    *,
    micro_batch: int,
) -> GaussNewton:
    """Gauss-Newton operator of the mean next-token loss."""
    return GaussNewton(
        model, _on_device(model, ids, labels), divisor=_counted(labels), micro_batch=micro_batch
    )


def _counted(labels: Int[Tensor, "row position"]) -> float:
    return float((labels[:, 1:] != IGNORED).sum())


def _on_device(model: nn.Module, *tensors: Tensor) -> Batch:
    device = next(model.parameters()).device
    return tuple(tensor.to(device) for tensor in tensors)


def _split(batch: Batch, size: int) -> list[Batch]:
    return list(zip(*(tensor.split(size) for tensor in batch), strict=True))


def _flat(tensors: Any) -> Vector:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
