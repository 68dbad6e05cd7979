"""Delta: how each inner channel's step size varies between and within texts, with kinds of token,
and how long its states remember.

dt (after softplus) decides how much of a token a channel writes and how fast its states forget (Gu
& Dao 2023).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.stats import rankdata

from interp_core.mamba.hidden_attention import mixer_calls
from interp_core.mamba.subject import MambaSubject
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
    """dt of one layer at every token, padding left out; tokens of a text lie together."""

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
        return np.add.reduceat(values.astype(np.float64), starts, axis=0) / self.sizes[:, None]


@torch.no_grad()
def step_sizes(
    subject: MambaSubject, texts: Texts, layers: list[int], batch_size: int
) -> dict[int, StepSizes]:
    """dt of these layers on all texts."""
    parts: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
    matrices: dict[int, np.ndarray] = {}
    for batch in texts.batches(batch_size):
        calls = mixer_calls(subject, subject.ids(batch.tokens))
        for layer in layers:
            parts[layer].append(calls[layer].dt.float().cpu().numpy()[batch.real])
            matrices[layer] = calls[layer].A.double().cpu().numpy()
    text = np.repeat(np.arange(len(texts)), texts.lengths)
    return {
        layer: StepSizes(np.concatenate(parts[layer]), text, matrices[layer]) for layer in layers
    }


def shares(
    mean: Float[np.ndarray, "*draw text channel"], within: Float[np.ndarray, "*draw text channel"]
) -> np.ndarray:
    """v / (v + w): between-text variance of the text means over it and the mean within-text
    variance, in [0, 1]; 0 for a channel that does not vary.
    """
    between = mean.var(axis=-2)
    total = between + within.mean(axis=-2)
    return np.divide(between, total, out=np.zeros_like(total), where=total > 0)


def half_lives(steps: StepSizes) -> Float[np.ndarray, "channel state"]:
    """ln 2 / (E dt |A|): tokens after which half of what a state was written is left, at the
    channel's mean step.
    """
    return np.log(2) / (steps.dt.mean(axis=0, dtype=np.float64)[:, None] * np.abs(steps.A))


def delta_layer(
    steps: StepSizes,
    classes: Int[np.ndarray, " token"],
    params: MambaNeurons,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Every channel's numbers of one layer, as named arrays."""
    mean = steps.by_text(steps.dt)
    within = steps.by_text((steps.dt.astype(np.float64) - mean[steps.text]) ** 2)
    rows = rng.integers(0, len(mean), size=(params.bootstrap_resamples, len(mean)))
    draws = np.stack([shares(mean[row], within[row]) for row in rows])
    interval = percentile_interval(shares(mean, within), draws)
    null = share_null(steps, params.permutation_draws, rng)
    tested = max_test(interval.value, null, alpha=params.alpha)
    selectivity = explained(steps.dt, classes)
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
        "share_null_mean": np.array(null.mean()),
        "selectivity": selectivity,
        "half_life": half_lives(steps),
        "text_mean_dt": mean,
        "text_within_variance": within,
    }


def share_null(
    steps: StepSizes, draws: int, rng: np.random.Generator
) -> Float[np.ndarray, " draw"]:
    """Largest share over channels when tokens are dealt to texts at random: no text differs from
    another.
    """
    largest = np.empty(draws)
    total = steps.dt.var(axis=0, dtype=np.float64)
    total[total == 0] = np.inf
    for draw in range(draws):
        mean = steps.by_text(steps.dt[rng.permutation(len(steps.dt))])
        # With tokens exchanged the total variance stays, and the within-text part is what is left
        # of it.
        sizes = steps.sizes / steps.sizes.sum()
        grand = sizes @ mean
        largest[draw] = float(((sizes @ (mean - grand) ** 2) / total).max())
    return largest


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
    return np.array(
        [_adjusted(standard, varies, rng.permutation(group_of)[kind]).max() for _ in range(draws)]
    )


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
        ranks = [
            rankdata(shares(mean[half], within[half]))
            for half in (order[: n // 2], order[n // 2 :])
        ]
        found.append(np.corrcoef(*ranks)[0, 1])
    correlation = float(np.mean(found))
    return 2 * correlation / (1 + correlation)


def delta(
    subject: MambaSubject, texts: Texts, params: MambaNeurons, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays [layer, channel, ...] and a summary by layer, on the texts of people alone."""
    people = texts.rows(~texts.repeated)
    tokens = people.tokens[people.real]
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
        found |= {
            "selectivity_p": tested.p,
            "selectivity_null_threshold": np.array(tested.threshold),
        }
        found["class_mean_dt"] = np.stack(
            [
                of_layer.dt[classes == c].mean(axis=0)
                if (classes == c).any()
                else np.full(subject.d_inner, np.nan)
                for c in range(len(names))
            ]
        )
        layers.append(found)
        summary[str(layer)] = _summary(found, names, params, rng)
    arrays = {name: np.stack([found[name] for found in layers]) for name in layers[0]}
    return arrays, {"token_classes": names, "layers": summary, **people.described()}


def _summary(
    found: dict[str, np.ndarray], names: list[str], params: MambaNeurons, rng: np.random.Generator
) -> dict[str, Any]:
    """What a layer's arrays say, in numbers that a person reads."""
    top = np.argsort(-found["share"], kind="stable")[: params.top_k]
    tau = found["half_life"]
    means = resampled_means(found["text_mean_dt"], rng, resamples=params.bootstrap_resamples).mean(
        axis=1
    )
    interval = percentile_interval(found["mean_dt"].mean(), means)
    return {
        "mean_dt": float(interval.value),
        "mean_dt_ci": [float(interval.low), float(interval.high)],
        "n_delta_sensitive": int((found["share_p"] <= params.alpha).sum()),
        "share_median": float(np.median(found["share"])),
        "share_null_threshold": float(found["share_null_threshold"]),
        "n_class_selective": int((found["selectivity_p"] <= params.alpha).sum()),
        "selectivity_median": float(np.median(found["selectivity"])),
        "selectivity_null_threshold": float(found["selectivity_null_threshold"]),
        "half_life_quartiles": np.quantile(tau, [0.25, 0.5, 0.75]),
        "longest_half_life_quartiles": np.quantile(tau.max(axis=1), [0.25, 0.5, 0.75]),
        "split_half": {
            "share": split_half_share(
                found["text_mean_dt"], found["text_within_variance"], rng, params.splits
            ),
            "mean_dt": split_half_rank(found["text_mean_dt"], rng, splits=params.splits),
            "within_variance": split_half_rank(
                found["text_within_variance"], rng, splits=params.splits
            ),
        },
        "top": [
            {
                "channel": int(c),
                "share": found["share"][c],
                "share_ci": [found["share_low"][c], found["share_high"][c]],
                "p": found["share_p"][c],
                "mean_dt": found["mean_dt"][c],
                "range_dt": found["range_dt"][c],
                "longest_half_life": tau[c].max(),
                "selectivity": found["selectivity"][c],
                "widest_open_at": names[int(np.nanargmax(found["class_mean_dt"][:, c]))],
            }
            for c in top
        ],
    }
