"""Effects of all neurons of a model from a few backward passes, calibrated by layer, and exact
where that fails.

With g the gradient by a neuron's activations and a its activations, replacing them by their mean
changes the loss by sum (mean a - a) g to first order. KL has no first-order term: it is (1/2) E[(g
. (a - mean a))^2] to second order, with the labels of g drawn from the model's own predictions (the
Fisher information). Labels of different positions are independent and their scores have mean zero,
so one backward pass of their sum serves all positions of a text.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from torch import Tensor

from interp_core.progress import progress
from mamba_neurons.data import Texts
from mamba_neurons.intervene import Effects, neuron_effects
from mamba_neurons.model import Model, neuron_means
from mamba_neurons.params import MambaNeurons


@dataclass(frozen=True)
class Gradients:
    """A batch's neurons and what they do to the scored loss: what estimates are made of."""

    neurons: list[Float[Tensor, "text position neuron"]]
    of_loss: list[Float[Tensor, "text position neuron"]]  # of the text's summed loss
    # of the summed log p of drawn labels, by draw
    of_labels: list[list[Float[Tensor, "text position neuron"]]]


@torch.enable_grad()
def gradients(model: Model, texts: Texts, *, draws: int, generator: torch.Generator) -> Gradients:
    """One forward pass and 1 + draws backward passes over a batch."""
    subject = model.subject
    ids, counted = subject.ids(texts.tokens), torch.as_tensor(texts.counted, device=subject.device)
    seen: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def leaf(activation: Tensor) -> Tensor:
            # Weights have no gradients: the graph begins at the first layer's neurons.
            seen[layer] = activation.detach().requires_grad_() if layer == 0 else activation
            return seen[layer]

        return leaf

    with model.edited({layer: keep(layer) for layer in range(model.n_layers)}):
        log_p = subject.unembed(subject.trunk(ids)[counted]).float().log_softmax(dim=-1)

    neurons = [seen[layer] for layer in range(model.n_layers)]
    text, position = torch.nonzero(counted, as_tuple=True)
    target = ids[text, position + 1]
    labels = drawn_labels(log_p.detach(), draws, generator)

    def by_neurons(chosen: Tensor, sign: float) -> list[Tensor]:
        total = sign * log_p.gather(1, chosen[:, None]).sum()
        return [grad.detach() for grad in torch.autograd.grad(total, neurons, retain_graph=True)]

    return Gradients(
        [activation.detach() for activation in neurons],
        by_neurons(target, -1.0),
        [by_neurons(labels[:, draw], 1.0) for draw in range(draws)],
    )


def drawn_labels(
    log_p: Float[Tensor, "scored vocab"], draws: int, generator: torch.Generator
) -> Float[Tensor, "scored draw"] | Any:
    """Tokens sampled from the model's own predictions."""
    if draws == 0:
        return torch.empty(len(log_p), 0, dtype=torch.long, device=log_p.device)
    return torch.multinomial(log_p.exp(), draws, replacement=True, generator=generator)


@dataclass(frozen=True)
class Estimates:
    """Estimated effects of mean-ablating every neuron, by text, mean over its scored positions,
    nats.
    """

    kl: Float[np.ndarray, "text layer neuron"]
    loss: Float[np.ndarray, "text layer neuron"]


def estimate_all(
    model: Model,
    texts: Texts,
    params: MambaNeurons,
    *,
    means: Float[Tensor, "layer neuron"],
    generator: torch.Generator,
) -> Estimates:
    """Signed first-order change of loss and Fisher's second-order KL of every neuron."""
    kl, loss = [], []
    label = f"{model.name}: estimates"

    for batch in progress(texts.batches(params.batch_size), label, unit="batch"):
        found = gradients(model, batch, draws=params.label_draws, generator=generator)
        scored = torch.as_tensor(batch.counted.sum(axis=1), device=means.device)[:, None, None]
        away = [mean - neurons for mean, neurons in zip(means, found.neurons, strict=True)]

        first = _along(away, found.of_loss)
        loss.append((first / scored).double().cpu().numpy())

        squares = torch.zeros_like(first)
        for draw in found.of_labels:
            squares += _along(away, draw) ** 2

        kl.append((squares / (2 * params.label_draws * scored)).double().cpu().numpy())

    return Estimates(np.concatenate(kl), np.concatenate(loss))


def _along(away: list[Tensor], gradients: list[Tensor]) -> Float[Tensor, "text layer neuron"]:
    """Change times gradient, summed over a text's positions."""
    by_layer = [(a * g).sum(dim=1) for a, g in zip(away, gradients, strict=True)]
    return torch.stack(by_layer, dim=1)


@dataclass(frozen=True)
class Calibration:
    """A layer's estimates against exact effects of the same random neurons."""

    sample: np.ndarray  # neurons
    exact: Effects
    agreement: dict[str, float]  # Spearman's rank correlation over the sample, by measure
    factor: float  # exact over estimated KL, median over the sample


def calibrate(
    model: Model,
    texts: Texts,
    layer: int,
    estimates: Estimates,
    params: MambaNeurons,
    rng: np.random.Generator,
    means: Float[Tensor, "layer neuron"],
) -> Calibration:
    """Exact effects of a random sample of a layer's neurons beside their estimates."""
    size = min(params.calibration_channels, model.n_neurons)
    sample = np.sort(rng.choice(model.n_neurons, size=size, replace=False))
    exact = neuron_effects(model, texts, layer, sample.tolist(), params, means=means)
    pairs = {
        "kl": (estimates.kl[:, layer, sample].mean(axis=0), exact.mean_kl),
        "loss": (estimates.loss[:, layer, sample].mean(axis=0), exact.loss.mean(axis=0)),
    }
    agreement = {name: rank_agreement(*pair) for name, pair in pairs.items()}

    estimated, true = pairs["kl"]
    positive = estimated > 0
    factor = float(np.median(true[positive] / estimated[positive])) if positive.any() else 1.0
    return Calibration(sample, exact, agreement, factor)


def rank_agreement(first: Float[np.ndarray, " unit"], second: Float[np.ndarray, " unit"]) -> float:
    """Spearman's rank correlation; 0 where one side is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


@dataclass(frozen=True)
class WholeModel:
    """The effect of mean-ablating every neuron of a model: exact where `exact` says so, else the
    estimate, KL scaled by its layer's factor.
    """

    kl: Float[np.ndarray, "text layer neuron"]
    loss: Float[np.ndarray, "text layer neuron"]
    exact: Bool[np.ndarray, "layer neuron"]
    estimates: Estimates
    calibrations: list[Calibration]
    exact_layers: list[int]  # layers computed exactly because an estimate ranks them badly

    @property
    def mean_kl(self) -> Float[np.ndarray, "layer neuron"]:
        """Over texts: the ranking of record."""
        return self.kl.mean(axis=0)

    def top(self, k: int) -> list[tuple[int, int]]:
        """The k neurons (layer, neuron) with the largest KL."""
        flat = np.argsort(-self.mean_kl, axis=None, kind="stable")[:k]
        return [
            (int(place) // self.mean_kl.shape[1], int(place) % self.mean_kl.shape[1])
            for place in flat
        ]


def whole_model(
    model: Model,
    texts: Texts,
    params: MambaNeurons,
    rng: np.random.Generator,
    *,
    measures: tuple[str, ...] = ("kl", "loss"),
    also_exact: tuple[int, ...] = (),
    top_k: int | None = None,
) -> WholeModel:
    """Estimates for all neurons; layers whose rank agreement in one of `measures` is below
    least_agreement, and those in `also_exact`, exactly; the best candidates of the rest exactly,
    until the top_k hold no estimate.
    """
    means = neuron_means(model, texts, params.batch_size)
    generator = torch.Generator(device=model.subject.device).manual_seed(int(rng.integers(2**62)))
    estimates = estimate_all(model, texts, params, means=means, generator=generator)
    calibrations = [
        calibrate(model, texts, layer, estimates, params, rng, means)
        for layer in range(model.n_layers)
    ]

    factors = np.array([found.factor for found in calibrations])
    whole = WholeModel(
        kl=estimates.kl * factors[:, None],
        loss=estimates.loss.copy(),
        exact=np.zeros(estimates.kl.shape[1:], dtype=bool),
        estimates=estimates,
        calibrations=calibrations,
        exact_layers=[
            layer
            for layer, found in enumerate(calibrations)
            if min(found.agreement[name] for name in measures) < params.least_agreement
        ],
    )
    for layer, found in enumerate(calibrations):
        _put(whole, layer, found.sample, found.exact)

    wanted = np.zeros_like(whole.exact)
    wanted[sorted({*whole.exact_layers, *also_exact})] = True
    _make_exact(model, texts, whole, wanted, params, means)
    _settle_top(model, texts, whole, top_k or params.top_k, params, means)
    return whole


def _settle_top(
    model: Model, texts: Texts, whole: WholeModel, top_k: int, params: MambaNeurons, means: Tensor
) -> None:
    """Compute the best candidates exactly, again and again, until none of them is an estimate."""
    wide = min(round(params.candidates * top_k), whole.exact.size)
    while True:
        wanted = np.zeros_like(whole.exact)
        wanted[tuple(np.array(whole.top(wide)).T)] = True
        if not (wanted & ~whole.exact).any():
            return
        _make_exact(model, texts, whole, wanted, params, means)


def _make_exact(
    model: Model,
    texts: Texts,
    whole: WholeModel,
    wanted: np.ndarray,
    params: MambaNeurons,
    means: Tensor,
) -> None:
    for layer in range(model.n_layers):
        missing = np.flatnonzero(wanted[layer] & ~whole.exact[layer])
        if len(missing):
            exact = neuron_effects(model, texts, layer, missing.tolist(), params, means=means)
            _put(whole, layer, missing, exact)


def _put(whole: WholeModel, layer: int, neurons: np.ndarray, exact: Effects) -> None:
    whole.kl[:, layer, neurons], whole.loss[:, layer, neurons] = exact.kl, exact.loss
    whole.exact[layer, neurons] = True


def fisher_order(
    model: Model, texts: Texts, params: MambaNeurons, rng: np.random.Generator
) -> Int[np.ndarray, "layer neuron"]:
    """Every layer's neurons from the largest estimated KL to the smallest."""
    means = neuron_means(model, texts, params.batch_size)
    generator = torch.Generator(device=model.subject.device).manual_seed(int(rng.integers(2**62)))
    estimates = estimate_all(model, texts, params, means=means, generator=generator)
    return np.argsort(-estimates.kl.mean(axis=0), axis=1, kind="stable")
