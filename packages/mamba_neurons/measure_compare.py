"""A Mamba beside a transformer on the same tokens: how the residual stream moves from layer to
layer, how sparse the neurons are, how many are active; over relative depth, with intervals of
differences paired by text.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from interp_core.statistics.interval import Interval
from interp_core.statistics.resampling import percentile_interval, resampled_means
from mamba_neurons.data import Texts
from mamba_neurons.intervene_scored import Scored
from mamba_neurons.measure_activity import activations, neuron_kind
from mamba_neurons.measure_divergence import divergence
from mamba_neurons.measure_sparsity import MEASURES, Stream, stream_all
from mamba_neurons.model import Model
from mamba_neurons.params import MambaNeurons

DYNAMICS = ("update", "turn", "lens_kl")
THRESHOLDS = ("mamba_threshold", "transformer_threshold")
GRID = np.linspace(0, 1, 21)  # relative depths at which models of different depth meet


@dataclass(frozen=True)
class Measured:
    """One model's numbers by text and layer."""

    model: Model
    loss: Float[np.ndarray, " text"]
    dynamics: dict[str, Float[np.ndarray, "text layer"]]
    streams: list[Stream]  # of its neurons, by layer

    @property
    def depth(self) -> Float[np.ndarray, " layer"]:
        """The middle of layer l of L: (l + 0.5) / L."""
        n = len(self.streams)
        return (np.arange(n) + 0.5) / n

    @property
    def sparsity(self) -> dict[str, Float[np.ndarray, "text layer"]]:
        """Population measures."""
        return {name: np.array([of.population[name] for of in self.streams]).T for name in MEASURES}


@torch.no_grad()
def layer_dynamics(
    model: Model, texts: Texts, params: MambaNeurons
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """By text and layer, mean over tokens: `update` ||r' - r|| / ||r||; `turn` 1 - cos(r, r');
    `lens_kl` KL from the final predictions to those read off after the layer (nats, scored
    positions). And each text's loss.
    """
    found = {name: np.zeros((len(texts), model.n_layers)) for name in DYNAMICS}
    losses, row = [], 0

    for batch in texts.batches(params.batch_size):
        scored = Scored.of(model, batch)
        losses.append(scored.loss)
        rows = slice(row, row + len(batch))
        real = torch.as_tensor(batch.real, device=scored.logits.device).double()

        for layer in range(model.n_layers):
            before, after = (scored.clean.residual[layer + step].double() for step in (0, 1))
            moved = (after - before).norm(dim=-1) / before.norm(dim=-1)
            turned = 1 - torch.nn.functional.cosine_similarity(before, after, dim=-1)
            for name, values in (("update", moved), ("turn", turned)):
                mean = (values * real).sum(dim=1) / real.sum(dim=1)
                found[name][rows, layer] = mean.cpu().numpy()

            hidden = scored.clean.rerun(model.n_layers, scored.clean.residual[layer + 1])
            logits = model.subject.unembed(hidden[scored.clean.counted]).float()[None]
            kl = divergence(logits, scored.logits, scored.p, scored.target)[0]
            found["lens_kl"][rows, layer] = (kl @ scored.weights.T)[0].double().cpu().numpy()

        row += len(batch)

    return found, np.concatenate(losses)


def fixed_thresholds(params: MambaNeurons) -> tuple[float, ...]:
    """The seed's, in the order of THRESHOLDS."""
    return tuple(float(getattr(params, name)) for name in THRESHOLDS)


def measure(model: Model, texts: Texts, params: MambaNeurons) -> Measured:
    """Everything that is compared, of one model."""
    layers = list(range(model.n_layers))
    kind = neuron_kind(model)
    streams = stream_all(
        activations(model, texts, layers, [kind], params.batch_size),
        n_texts=len(texts),
        groups=params.text_groups,
        thresholds=fixed_thresholds(params),
        share=params.near_zero,
    )
    dynamics, loss = layer_dynamics(model, texts, params)
    return Measured(model, loss, dynamics, [streams[kind, layer] for layer in layers])


def seeds_efficiency(measured: Measured, params: MambaNeurons) -> dict[str, Any]:
    """The keys that earlier users read.

    A neuron is active unless it is dead (root mean square at most dead_share of its layer's
    median); mean_sparsity is the share of |activation| below the model's fixed threshold.
    """
    active, variances, below = 0, [], []
    which = THRESHOLDS.index(
        "mamba_threshold" if measured.model.is_mamba else "transformer_threshold"
    )

    for stream in measured.streams:
        assert stream.lifetime is not None
        size = stream.lifetime.root_mean_square
        active += int((size > params.dead_share * np.median(size)).sum())
        variances.append(stream.lifetime.variance)
        below.append(stream.shares_below[which])

    neurons = sum(len(v) for v in variances)
    return {
        "total_parameters": sum(p.numel() for p in measured.model.subject.model.parameters()),
        "neurons": neurons,
        "active_neurons": active,
        "efficiency_ratio": active / neurons,
        "mean_variance": float(np.concatenate(variances).mean()),
        "mean_sparsity": float(np.mean(below)),
    }


def over_depth(
    values: Float[np.ndarray, "*text layer"], depth: Float[np.ndarray, " layer"]
) -> np.ndarray:
    """Values of layers read off at the relative depths of GRID, flat beyond the first and last
    layer's middle.
    """
    flat = values.reshape(-1, values.shape[-1])
    read_off = np.stack([np.interp(GRID, depth, row) for row in flat])
    return read_off.reshape(*values.shape[:-1], len(GRID))


def compare(
    first: Measured, second: Measured, params: MambaNeurons, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Differences first - second of every measure, mean over relative depth, bootstrapped over
    texts in pairs.
    """
    arrays: dict[str, np.ndarray] = {
        "first/depth": first.depth,
        "second/depth": second.depth,
    }
    sections: dict[str, Any] = {}

    for title in ("dynamics", "sparsity"):
        ours, theirs = getattr(first, title), getattr(second, title)
        sections[title] = {}

        for name in ours:
            models = ((ours[name], first), (theirs[name], second))
            means = [over_depth(values, of.depth).mean(axis=1) for values, of in models]
            sections[title][name] = _difference(means[0], means[1], rng, params)

            for which, values in (("first", ours[name]), ("second", theirs[name])):
                draws = resampled_means(values, rng, resamples=params.bootstrap_resamples)
                interval = percentile_interval(values.mean(axis=0), draws)
                arrays[f"{which}/{name}"] = interval.value
                arrays[f"{which}/{name}_low"] = interval.low
                arrays[f"{which}/{name}_high"] = interval.high

    report = {
        "first": first.model.name,
        "second": second.model.name,
        "loss": _difference(first.loss, second.loss, rng, params),
        **sections,
        "efficiency": {m.model.name: seeds_efficiency(m, params) for m in (first, second)},
        "fixed_thresholds": {m.model.name: _below(m, params) for m in (first, second)},
    }
    return arrays, report


def _difference(
    ours: Float[np.ndarray, " text"],
    theirs: Float[np.ndarray, " text"],
    rng: np.random.Generator,
    params: MambaNeurons,
) -> dict[str, Any]:
    """Means of both models and of their difference, in pairs: a text is read by both."""
    both = np.stack([ours, theirs, ours - theirs], axis=1)
    draws = resampled_means(both, rng, resamples=params.bootstrap_resamples)
    found = percentile_interval(both.mean(axis=0), draws)
    parts = np.stack([found.value, found.low, found.high], axis=1).tolist()

    return {
        name: Interval(*ends, n=len(ours), unit="texts").to_json()
        for name, ends in zip(("first", "second", "difference"), parts, strict=True)
    }


def _below(measured: Measured, params: MambaNeurons) -> dict[str, Any]:
    """Share of |activation| below each fixed threshold, and the root mean square that it should be
    read against.
    """
    shares = np.mean([stream.shares_below for stream in measured.streams], axis=0).tolist()
    names = [f"{threshold:g}" for threshold in fixed_thresholds(params)]
    sizes = [
        float(np.sqrt((stream.lifetime.root_mean_square**2).mean()))
        for stream in measured.streams
        if stream.lifetime is not None
    ]

    return {**dict(zip(names, shares, strict=True)), "root_mean_square_by_layer": sizes}
