"""From stimuli to named arrays and a report; and what fine-tuning changed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from interp_core.loading import random_like
from interp_core.mamba.hidden_attention import reconstruction_error
from interp_core.mamba.subject import MambaSubject
from interp_core.models.subject import Subject
from interp_core.statistics.interval import array_json, mean_share
from interp_core.statistics.resampling import Interval as Ends
from interp_core.statistics.resampling import (
    mean_interval,
    percentile_interval,
    resampled_means,
    sign_flip_threshold,
)
from mamba_induction.data import Stimuli, sampled
from mamba_induction.measure_attention import (
    copying_shares,
    head_prefix_matching,
    hidden_similarity,
    offset_profiles,
    prefix_matching,
    prompt_means,
    unit_prefix_matching,
)
from mamba_induction.measure_behaviour import behaviour_arrays
from mamba_induction.params import OFFSETS, MambaInduction
from mamba_induction.streams import STREAMS

Arrays = dict[str, np.ndarray]
Report = dict[str, Any]
_CHECKED = 8  # prompts on which alpha x + D x is compared with the stock model
_LONG = ("context_loss",)  # arrays too long for a report


def analyse(subject: Subject, stimuli: Stimuli, params: MambaInduction) -> tuple[Arrays, Report]:
    """Every score of one model: arrays of scores_<name>.npz, and the report.

    Summaries carry `_low` and `_high` (95 %, prompts resampled); the values by prompt are under
    `prompts/`, and `untrained/` is the same architecture with random weights. InputError when a
    Mamba's taps do not reconstruct its output.
    """
    arrays: Arrays = {}
    error: float | None = None

    if isinstance(subject, MambaSubject):
        few = subject.ids(stimuli.repeated.tokens[:_CHECKED])
        arrays["reconstruction_error"] = reconstruction_error(subject, few)
        error = float(arrays["reconstruction_error"].max())

        asked = sampled(stimuli.repeated, params)
        matching = unit_prefix_matching(subject, asked, params)
        arrays[f"{subject.unit}_prefix_matching"] = matching
    else:
        arrays["head_prefix_matching"] = head_prefix_matching(subject, stimuli.repeated, params)

    by_prompt = attention_arrays(subject, stimuli, params)
    untrained = attention_arrays(random_like(subject, seed=params.seed), stimuli, params)
    by_prompt |= {f"untrained/{name}": values for name, values in untrained.items()}
    by_prompt |= behaviour_arrays(subject, stimuli, params)

    summaries = summarise(by_prompt, params)
    for name, interval in summaries.items():
        arrays |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    arrays |= {f"prompts/{name}": values for name, values in by_prompt.items()}

    report = {
        "name": subject.name,
        "architecture": subject.config.model_type,
        "layers": subject.n_layers,
        "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
        "model_hash": subject.hash,
        "real_text": stimuli.windows is not None,
        "offsets": list(OFFSETS),
        "period": params.period,
        "periods": list(params.periods),
        "lags": list(params.lags),
        "reconstruction_error": error,
        "peak_offset": peak_offsets(by_prompt["offset_profile_excess"], params),
        "null": {
            name: null_of(by_prompt[f"{prefix}excess_prefix_matching"], params)
            for name, prefix in (("trained", ""), ("untrained", "untrained/"))
        },
        "scores": {
            name: array_json(interval, n=len(by_prompt[name]), unit="prompts")
            for name, interval in summaries.items()
            if name not in _LONG
        },
    }
    return {name: _stored(values) for name, values in arrays.items()}, report


def attention_arrays(subject: Subject, stimuli: Stimuli, params: MambaInduction) -> Arrays:
    """Per prompt: profiles, prefix matching, copying and hidden similarity on repeated random
    tokens, each with what the control gives. hidden_similarity_excess is over different tokens at
    the same two positions.
    """
    asked = sampled(stimuli.repeated, params)

    profile = offset_profiles(subject, stimuli.repeated, params)
    control = offset_profiles(subject, stimuli.repeated, params, control=True)

    copying, chance = (
        prompt_means(shares, asked) for shares in copying_shares(subject, asked, params)
    )
    alike = hidden_similarity(subject, stimuli.repeated, params)
    different = hidden_similarity(subject, stimuli.repeated, params, control=True)

    return {
        "offset_profile": profile,
        "offset_profile_excess": profile - control,
        "prefix_matching": prefix_matching(profile),
        "excess_prefix_matching": prefix_matching(profile) - prefix_matching(control),
        "copying": copying,
        "copying_excess": copying - chance,
        "hidden_similarity": alike,
        "hidden_similarity_excess": alike - different,
    }


def peak_offsets(excess: np.ndarray, params: MambaInduction) -> list[Report]:
    """By layer: the offset of the largest excess, the central 95 % of it over resampled prompts,
    and the share of these in which it is the same.
    """
    rng = STREAMS.rng("peak_offsets", params.seed)
    draws = resampled_means(excess, rng, resamples=params.bootstrap_resamples).argmax(axis=-1)
    best = excess.mean(axis=0).argmax(axis=-1)

    offsets = np.array(OFFSETS)
    ends = np.quantile(offsets[draws], [0.025, 0.975], axis=0, method="nearest")

    return [
        {
            "offset": int(offsets[best[layer]]),
            "ci": [int(ends[0, layer]), int(ends[1, layer])],
            "share_of_draws": float((draws[:, layer] == best[layer]).mean()),
        }
        for layer in range(len(best))
    ]


def null_of(excess: np.ndarray, params: MambaInduction) -> Report:
    """Family-wise sign-flip test of each layer's excess prefix matching over its control, and which
    layers pass it with an excess of at least smallest_excess.
    """
    rng = STREAMS.rng("null", params.seed)
    test = sign_flip_threshold(excess, rng, alpha=params.null_level, draws=params.permutation_draws)

    mean = excess.mean(axis=0)
    passed = (test.p <= params.null_level) & (mean >= params.smallest_excess)

    return {
        "excess": mean.tolist(),
        "p": test.p.tolist(),
        "threshold": max(test.threshold, params.smallest_excess),
        "induction_layers": np.flatnonzero(passed).tolist(),
    }


def change(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], params: MambaInduction
) -> Report:
    """Every score before and after fine-tuning with its paired difference: the same prompts,
    resampled together.
    """
    rng = STREAMS.rng("change", params.seed)
    found: Report = {}

    for key in before:
        name = key.removeprefix("prompts/")
        if name == key or name.startswith("untrained/") or name in _LONG:
            continue

        pair = [arrays[key].astype(np.float64) for arrays in (before, after)]
        difference = mean_interval(pair[1] - pair[0], rng, resamples=params.bootstrap_resamples)

        found[name] = {
            "before": pair[0].mean(axis=0).tolist(),
            "after": pair[1].mean(axis=0).tolist(),
            **array_json(difference, n=len(pair[0]), unit="prompts"),
        }

    if "text_loss" in found:
        loss = found["text_loss"]
        found["perplexity"] = {
            "before": float(np.exp(loss["before"])),
            "after": float(np.exp(loss["after"])),
            "ratio": float(np.exp(loss["value"])),
            "ratio_ci": [float(np.exp(loss["low"])), float(np.exp(loss["high"]))],
        }

    return found


def summarise(by_prompt: Mapping[str, np.ndarray], params: MambaInduction) -> dict[str, Ends]:
    """The mean of each array over prompts with its interval: of a mean share for accuracies and
    rates, the bootstrap's for the rest.
    """
    found = {}

    for name, values in by_prompt.items():
        if _is_share(name):
            found[name] = _share_ends(values)
            continue

        rng = STREAMS.rng("score", params.seed, name)
        draws = resampled_means(values, rng, resamples=params.bootstrap_resamples)
        found[name] = percentile_interval(values.mean(axis=0, dtype=np.float64), draws)

    return found


def _is_share(name: str) -> bool:
    """Whether each prompt's value is a share of its copy operations."""
    return "accuracy" in name or name.startswith(("recognised", "not_predicted", "predicted"))


def _share_ends(values: Float[np.ndarray, "prompt *unit"]) -> Ends:
    """mean_share of each column: near 0 and 1 the bootstrap is too sure."""
    columns = values.astype(np.float64).reshape(len(values), -1).T
    intervals = [mean_share(column, unit="prompts") for column in columns]

    shape = values.shape[1:]
    return Ends(
        *(
            np.array([getattr(one, end) for one in intervals]).reshape(shape)
            for end in ("value", "low", "high")
        )
    )


def _stored(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32) if values.dtype.kind == "f" else values
