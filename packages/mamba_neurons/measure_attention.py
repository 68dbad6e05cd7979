"""Attention neurons: inner channels ranked by three methods on exact hidden attention alpha (Ali et
al. 2024).

    attention_weighted  E_i sum_j |alpha[c, i, j] x_j[c]| |gate_i[c]|
                        how much attended input the channel writes
    gradient_guided     E_i sum_j |alpha[c, i, j] dL/dalpha[c, i, j]|
                        how much the loss feels of it
    rollout             change of R = prod_l rownorm(|mean_c alpha_l| + I)
                        when the channel leaves the mean

With dL/dalpha[c, i, j] = dL/dy_i[c] x_j[c] and y's gradient the gated one times the gate, the
second is the first with |gate_i| replaced by |gate_i dL/d(gated y)_i|: both need the row sums of
|alpha x| alone. In a Mamba-2 the channels of a head share its alpha; its gate has the norm's
divisor in it, and y's gradient the norm's derivative.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp_core.mamba.head_attention import HeadCall
from interp_core.mamba.hidden_attention import Call, attention_matrices, mixer_calls
from interp_core.mamba.subject import MambaSubject
from interp_core.progress import progress
from interp_core.statistics.interval import array_json
from interp_core.statistics.resampling import (
    Interval,
    effective_number,
    mean_interval,
    split_half_rank,
)
from mamba_neurons.data import Texts
from mamba_neurons.intervene_estimates import gradients
from mamba_neurons.model import Model
from mamba_neurons.params import MambaNeurons


@dataclass(frozen=True)
class LayerAttention:
    """One text's hidden attention in one layer, as far as the methods need it."""

    alpha: Float[Tensor, "channel query key"]
    reach: Float[Tensor, "query channel"]  # sum_j |alpha_ij x_j|
    gate: Float[Tensor, "query channel"]

    @classmethod
    def of(cls, call: Call, length: int) -> "LayerAttention":
        """Of a call with one text, its padding cut off."""
        alpha = attention_matrices(call)[0, :, :length, :length]
        alpha = alpha.repeat_interleave(call.x.shape[-1] // len(alpha), dim=0)  # of heads
        reach = torch.einsum("cij,jc->ic", alpha.abs(), call.x[0, :length].abs().to(alpha.dtype))
        return cls(alpha, reach, call.gate[0, :length])


def row_normalised(
    mean: Float[Tensor, "*channel query key"],
) -> Float[Tensor, "*channel query key"]:
    """rownorm(|mean alpha| + I): a layer's attention with its residual stream, rows sum to 1 (Abnar
    & Zuidema 2020).
    """
    with_self = mean.abs() + torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
    return with_self / with_self.sum(dim=-1, keepdim=True)


def rollout(alphas: Sequence[Float[Tensor, "_ query key"]]) -> Float[Tensor, "query key"]:
    """prod_l rownorm(|mean_c alpha_l| + I), the first layer rightmost: how much of each token
    reaches each position.
    """
    product = torch.eye(alphas[0].shape[-1], dtype=alphas[0].dtype, device=alphas[0].device)
    for alpha in alphas:
        product = row_normalised(alpha.mean(dim=0)) @ product
    return product


def rollout_changes(
    alphas: Sequence[Float[Tensor, "_ query key"]],
) -> Float[Tensor, "layer channel"]:
    """Mean over queries of the total variation between the rollout and the rollout without one
    channel, in [0, 1].
    """
    steps = [row_normalised(alpha.mean(dim=0)) for alpha in alphas]
    eye = torch.eye(steps[0].shape[-1], dtype=steps[0].dtype, device=steps[0].device)
    changes = []

    for layer, alpha in enumerate(alphas):
        before, after = eye, eye
        for step in steps[:layer]:
            before = step @ before
        for step in steps[layer + 1 :]:
            after = step @ after

        n = len(alpha)
        without = row_normalised((alpha.sum(dim=0) - alpha) / max(n - 1, 1))
        moved = after @ (without - steps[layer]) @ before
        changes.append(0.5 * moved.abs().sum(dim=-1).mean(dim=-1))

    return torch.stack(changes)


@torch.no_grad()
def importances(
    model: Model, texts: Texts, params: MambaNeurons
) -> tuple[
    dict[str, Float[np.ndarray, "text layer channel"]], Float[np.ndarray, "layer position position"]
]:
    """Every method's importance of every channel, by text, and what neurons write: E |gated y|
    under `activation`.
    """
    subject = model.subject
    assert isinstance(subject, MambaSubject)
    methods = params.attention_methods
    shape = (len(texts), model.n_layers, model.n_neurons)
    found = {name: np.zeros(shape) for name in (*methods, "activation")}

    length = int(texts.lengths.max())
    maps, seen = np.zeros((model.n_layers, length, length)), np.zeros((length, length))
    label, row = f"{model.name}: hidden attention", 0

    for batch in progress(texts.batches(params.batch_size), label, unit="batch"):
        calls = mixer_calls(subject, subject.ids(batch.tokens))
        slopes = None
        if "gradient_guided" in methods:
            slopes = gradients(model, batch, draws=0, generator=torch.Generator()).of_loss

        for index in range(len(batch)):
            size = int(batch.lengths[index])
            layers = [LayerAttention.of(call.row(index), size) for call in calls]

            for layer, attention in enumerate(layers):
                reach, gate = attention.reach.double(), attention.gate.double().abs()
                written = calls[layer].gated_y[index, :size].double().abs()
                of_row = {"activation": written}

                if "attention_weighted" in methods:
                    of_row["attention_weighted"] = reach * gate

                if slopes is not None:
                    scored = int(batch.counted[index].sum())
                    slope = slopes[layer][index, :size].double().abs() / scored
                    of_row["gradient_guided"] = reach * gate * slope

                    if isinstance(call := calls[layer], HeadCall):
                        of_y = call.slope_of_y(slopes[layer])[index, :size]
                        of_row["gradient_guided"] = reach * of_y.double().abs() / scored

                for name, by_position in of_row.items():
                    found[name][row, layer] = by_position.mean(dim=0).cpu().numpy()

                step = row_normalised(attention.alpha.mean(dim=0))
                maps[layer, :size, :size] += step.double().cpu().numpy()

            if "rollout" in methods:
                changes = rollout_changes([attention.alpha for attention in layers])
                found["rollout"][row] = changes.double().cpu().numpy()

            seen[:size, :size] += 1
            row += 1

    return found, maps / np.maximum(seen, 1)


def attention_summary(
    found: dict[str, Float[np.ndarray, "text layer channel"]],
    params: MambaNeurons,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """The keys that earlier users read: mamba_neurons and analysis_results, by method and layer."""
    neurons: dict[str, Any] = {}
    analysis: dict[str, Any] = {}
    activation = found["activation"].mean(axis=0)

    for method in params.attention_methods:
        importance = found[method].mean(axis=0)
        neurons[method], analysis[method] = {}, {}

        for layer in range(len(importance)):
            neurons[method][str(layer)] = {
                "neuron_activations": activation[layer],
                "neuron_importance": importance[layer],
            }
            values = found[method][:, layer]
            summary = _layer_summary(values, activation[layer], layer, params, rng)
            analysis[method][str(layer)] = summary

    return {"mamba_neurons": neurons, "analysis_results": analysis}


def _layer_summary(
    values: Float[np.ndarray, "text channel"],
    activation: Float[np.ndarray, " channel"],
    layer: int,
    params: MambaNeurons,
    rng: np.random.Generator,
) -> dict[str, Any]:
    interval = mean_interval(values, rng, resamples=params.bootstrap_resamples)
    top = np.argsort(-interval.value, kind="stable")[: params.top_k]
    of_top = Interval(*(part[top] for part in (interval.value, interval.low, interval.high)))
    effective = float(effective_number(interval.value)) if interval.value.sum() > 0 else 0.0
    return {
        "layer_idx": layer,
        "num_neurons": len(activation),
        "mean_activation": float(activation.mean()),
        "activation_std": float(activation.std()),
        "top_neurons": top,
        "top_importance": array_json(of_top, n=len(values), unit="texts"),
        "neuron_diversity": effective / len(activation),
        "effective_neurons": effective,
        "split_half": _or_none(split_half_rank(values, rng, splits=params.splits)),
    }


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None
