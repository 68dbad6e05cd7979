"""Delta: how each inner channel's step size varies between and within texts, with kinds of token,
and how long its states remember. In a Mamba-2 a head has one step size, and all its states one
half-life: `channel` is a head then.

dt (after softplus) decides how much of a token a channel writes and how fast its states forget (Gu
& Dao 2023). BOS is left out: it is the same token at the same place of every text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.stats import rankdata

from interp_core.mamba.hidden_attention import mixer_calls
from interp_core.mamba.subject import MambaSubject
from interp_core.statistics.block_permutation import block_length, block_order, texts_differ
from interp_core.statistics.heads import Channel, Head
from interp_core.statistics.interval import Interval
from interp_core.statistics.resampling import (
    max_test,
    percentile_interval,
    resampled_means,
    split_half_rank,
)
from mamba_neurons.data import Texts, token_classes
from mamba_neurons.params import MambaNeurons


@dataclass(frozen=True)
class StepSizes:
    """dt of one layer at every token, padding and BOS left out; tokens of a text lie together."""

    dt: Float[np.ndarray, "token channel"]
    text: Int[np.ndarray, " token"]
    A: Float[np.ndarray, "channel state"]

    @property
    def sizes(self) -> Int[np.ndarray, " text"]:
        """Tokens of each text."""
        return np.bincount(self.text)

    def by_text(
        self, values: Float[np.ndarray, "token channel"]
    ) -> Float[np.ndarray, "text channel"]:
        """Means over each text's tokens."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        sums = np.add.reduceat(values.astype(np.float64), starts, axis=0)
        return sums / self.sizes[:, None]


@torch.no_grad()
def step_sizes(
    subject: MambaSubject, texts: Texts, layers: list[int], batch_size: int
) -> dict[int, StepSizes]:
    """dt of these layers on all texts."""
    parts: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
    matrices: dict[int, np.ndarray] = {}

    for batch in texts.batches(batch_size):
        calls = mixer_calls(subject, subject.ids(batch.tokens))
        inside = batch.after_bos

        for layer in layers:
            parts[layer].append(calls[layer].dt.float().cpu().numpy()[inside])
            matrices[layer] = calls[layer].A.double().cpu().numpy()

    text = np.repeat(np.arange(len(texts)), texts.lengths - 1)
    return {
        layer: StepSizes(np.concatenate(parts[layer]), text, matrices[layer]) for layer in layers
    }


def shares(
    mean: Float[np.ndarray, "*draw text channel"],
    within: Float[np.ndarray, "*draw text channel"],
    sizes: Int[np.ndarray, "*draw text"],
) -> np.ndarray:
    """Between-text variance over all variance, every token weighing the same, in [0, 1]; 0 for a
    channel that does not vary.

    From each text's mean and variance, because texts are resampled.
    """
    weight = (sizes / sizes.sum(axis=-1, keepdims=True))[..., None]
    grand = (weight * mean).sum(axis=-2, keepdims=True)

    between = (weight * (mean - grand) ** 2).sum(axis=-2)
    total = between + (weight * within).sum(axis=-2)

    # Means of equal values differ in their last digits: that is no variance.
    varies = total > (1e-12 * grand[..., 0, :]) ** 2
    return np.divide(between, total, out=np.zeros_like(total), where=varies)


def half_lives(steps: StepSizes) -> Float[np.ndarray, "channel state"]:
    """ln 2 / (E dt |A|): tokens after which half of what a state was written is left, at the
    channel's mean step.
    """
    return np.log(2) / (steps.dt.mean(axis=0, dtype=np.float64)[:, None] * np.abs(steps.A))


def blocks_for(
    values: Float[np.ndarray, "token unit"], text: Int[np.ndarray, " token"], params: MambaNeurons
) -> int:
    """Tokens of a block that keeps these values' autocorrelation, at most a quarter of them all."""
    wanted = block_length(values, text, left_out=params.block_left_out)

    # Fewer than four blocks would leave nothing to deal.
    return min(wanted, max(1, len(text) // 4))


def delta_layer(
    steps: StepSizes,
    classes: Int[np.ndarray, " token"],
    params: MambaNeurons,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Every channel's numbers of one layer, as named arrays."""
    sizes = steps.sizes
    mean = steps.by_text(steps.dt)
    within = steps.by_text((steps.dt.astype(np.float64) - mean[steps.text]) ** 2)

    rows = rng.integers(0, len(mean), size=(params.bootstrap_resamples, len(mean)))
    draws = np.stack([shares(mean[row], within[row], sizes[row]) for row in rows])
    interval = percentile_interval(shares(mean, within, sizes), draws)

    block = blocks_for(steps.dt, steps.text, params)
    tested = texts_differ(
        steps.dt,
        steps.text,
        rng,
        block=block,
        draws=params.permutation_draws,
        alpha=params.alpha,
    )

    return {
        "mean_dt": mean.mean(axis=0),
        "range_dt": np.ptp(steps.dt, axis=0).astype(np.float64),
        "between_variance": mean.var(axis=0),
        "within_variance": within.mean(axis=0),
        "share": interval.value,
        "share_low": interval.low,
        "share_high": interval.high,
        "share_p": tested.p,
        "share_null_threshold": np.array(tested.threshold),
        "share_null_block": np.array(block),
        "selectivity": explained(steps.dt, classes),
        "half_life": half_lives(steps),
        "text_mean_dt": mean,
        "text_within_variance": within,
    }


def explained(
    values: Float[np.ndarray, "token channel"], group: Int[np.ndarray, " token"]
) -> Float[np.ndarray, " channel"]:
    """Share of a channel's variance that the token's group explains, adjusted for the number of
    groups: about 0 when groups mean nothing, 1 when they say all, 0 for a channel that does not
    vary.
    """
    return _adjusted(*_standardised(values), group)


def explained_null(
    values: Float[np.ndarray, "token channel"],
    group_of: Int[np.ndarray, " kind"],
    kind: Int[np.ndarray, " token"],
    draws: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, " draw"]:
    """Largest explained share over channels when the groups are dealt to kinds (token types, say)
    at random: tokens of one kind stay together, as they do in the observed groups.
    """
    standard, varies = _standardised(values)
    dealt = (rng.permutation(group_of)[kind] for _ in range(draws))
    return np.array([_adjusted(standard, varies, group).max() for group in dealt])


def explained_in_blocks(
    values: Float[np.ndarray, "token channel"],
    group: Int[np.ndarray, " token"],
    block: int,
    draws: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, " draw"]:
    """Largest explained share over channels when blocks of the groups' series are dealt to the
    values: both keep their autocorrelation, and only their meeting is left to chance.
    """
    standard, varies = _standardised(values)
    dealt = (group[block_order(len(group), block, rng)] for _ in range(draws))
    return np.array([_adjusted(standard, varies, labels).max() for labels in dealt])


def _standardised(
    values: Float[np.ndarray, "token channel"],
) -> tuple[Float[np.ndarray, "token channel"], Bool[np.ndarray, " channel"]]:
    """Values with sum 0 and sum of squares 1, and which channels vary at all."""
    centred = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    size = np.sqrt((centred**2).sum(axis=0))
    varies = size > 0
    return centred / np.where(varies, size, 1.0), varies


def _adjusted(
    standard: Float[np.ndarray, "token channel"],
    varies: Bool[np.ndarray, " channel"],
    group: Int[np.ndarray, " token"],
) -> Float[np.ndarray, " channel"]:
    n = len(group)
    names, index = np.unique(group, return_inverse=True)

    # As many groups as tokens explain everything, whatever they mean.
    free = n - len(names)
    if free < 1:
        return np.zeros(standard.shape[1])

    counts = np.bincount(index)
    member = csr_array((np.ones(n), (index, np.arange(n))), shape=(len(names), n))
    between = ((member @ standard) ** 2 / counts[:, None]).sum(axis=0)
    return np.where(varies, 1 - (1 - between) / free * (n - 1), 0.0)


def split_half_share(
    mean: Float[np.ndarray, "text channel"],
    within: Float[np.ndarray, "text channel"],
    sizes: Int[np.ndarray, " text"],
    rng: np.random.Generator,
    splits: int,
) -> float:
    """How well the ranking of channels by share repeats in the other half of the texts: Spearman,
    averaged over splits, stepped up to all texts (Spearman-Brown).
    """
    n = len(mean)
    found = []

    for _ in range(splits):
        order = rng.permutation(n)
        halves = (order[: n // 2], order[n // 2 :])
        ranks = [rankdata(shares(mean[half], within[half], sizes[half])) for half in halves]
        found.append(np.corrcoef(*ranks)[0, 1])

    correlation = float(np.mean(found))
    return 2 * correlation / (1 + correlation)


def delta(
    subject: MambaSubject, texts: Texts, params: MambaNeurons, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays [layer, channel, ...] and a summary by layer, on the texts of people alone."""
    people = texts.rows(~texts.repeated)
    tokens = people.tokens[people.after_bos]
    names, classes = token_classes(subject, tokens)
    steps = step_sizes(subject, people, list(range(subject.n_layers)), params.batch_size)

    types, kind = np.unique(tokens, return_inverse=True)
    class_of_type = np.empty(len(types), dtype=np.int64)
    class_of_type[kind] = classes

    layers, summary = [], {}
    for layer, of_layer in steps.items():
        found = delta_layer(of_layer, classes, params, rng)

        null = explained_null(of_layer.dt, class_of_type, kind, params.permutation_draws, rng)
        tested = max_test(found["selectivity"], null, alpha=params.alpha)
        found["selectivity_p"] = tested.p
        found["selectivity_null_threshold"] = np.array(tested.threshold)
        found["class_mean_dt"] = _by_class(of_layer.dt, classes, len(names))

        layers.append(found)
        name_of = partial(Head if subject.unit == "head" else Channel, layer)
        summary[str(layer)] = _summary(name_of, found, names, of_layer.sizes, params, rng)

    arrays = {name: np.stack([found[name] for found in layers]) for name in layers[0]}
    # Said only where it is not a channel, as reports always had it.
    said = {} if subject.unit == "channel" else {"unit": subject.unit}
    return arrays, {"token_classes": names, "layers": summary, **said, **people.described()}


def _by_class(
    dt: Float[np.ndarray, "token channel"], classes: Int[np.ndarray, " token"], n_classes: int
) -> Float[np.ndarray, "kind channel"]:
    """Mean step at each kind of token; NaN for a kind that no text has."""
    found = np.full((n_classes, dt.shape[1]), np.nan)

    for kind in np.unique(classes):
        found[kind] = dt[classes == kind].mean(axis=0)

    return found


def _summary(
    name_of: Callable[[int], Channel | Head],
    found: dict[str, np.ndarray],
    names: list[str],
    sizes: Int[np.ndarray, " text"],
    params: MambaNeurons,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """What a layer's arrays say, in numbers that a person reads."""
    n = len(sizes)
    order = np.argsort(-found["share"], kind="stable")
    tau = found["half_life"]

    draws = resampled_means(found["text_mean_dt"], rng, resamples=params.bootstrap_resamples)
    mean_dt = percentile_interval(found["mean_dt"].mean(), draws.mean(axis=1))

    stable = {
        "share": split_half_share(
            found["text_mean_dt"], found["text_within_variance"], sizes, rng, params.splits
        ),
        "mean_dt": split_half_rank(found["text_mean_dt"], rng, splits=params.splits),
        "within_variance": split_half_rank(
            found["text_within_variance"], rng, splits=params.splits
        ),
    }

    return {
        "mean_dt": Interval.of(mean_dt, n=n, unit="texts").to_json(),
        "n_delta_sensitive": int((found["share_p"] <= params.alpha).sum()),
        "share_median": float(np.median(found["share"])),
        "share_null_threshold": float(found["share_null_threshold"]),
        "share_null_block": int(found["share_null_block"]),
        "n_class_selective": int((found["selectivity_p"] <= params.alpha).sum()),
        "selectivity_median": float(np.median(found["selectivity"])),
        "selectivity_null_threshold": float(found["selectivity_null_threshold"]),
        "half_life_quartiles": np.quantile(tau, [0.25, 0.5, 0.75]),
        "longest_half_life_quartiles": np.quantile(tau.max(axis=1), [0.25, 0.5, 0.75]),
        "split_half": stable,
        "top": [_channel(name_of(int(c)), found, names, n) for c in order[: params.top_k]],
    }


def _channel(
    channel: Channel | Head, found: dict[str, np.ndarray], names: list[str], n: int
) -> dict[str, Any]:
    c = channel[1]
    ends = (float(found[f"share{end}"][c]) for end in ("", "_low", "_high"))
    widest = int(np.nanargmax(found["class_mean_dt"][:, c]))

    return {
        "neuron": str(channel),
        "share": Interval(*ends, n=n, unit="texts").to_json(),
        "p": found["share_p"][c],
        "mean_dt": found["mean_dt"][c],
        "range_dt": found["range_dt"][c],
        "longest_half_life": found["half_life"][c].max(),
        "selectivity": found["selectivity"][c],
        "widest_open_at": names[widest],
    }
