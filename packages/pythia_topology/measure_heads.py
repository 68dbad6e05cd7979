"""Scores of every head of one model on every family of stimuli: the arrays of scores_<name>.npz."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from interp_core.errors import InputError
from interp_core.loading import random_like
from interp_core.measures.circuits import copying_eigenvalues
from interp_core.measures.scores import attention_keys, score_heads
from interp_core.models.subject import Transformer, as_transformer
from interp_core.progress import left_out
from interp_core.statistics.interval import mean_share
from interp_core.statistics.resampling import mean_interval
from interp_core.stimuli.prompts import Prompts, shuffled_antecedents
from pythia_topology.params import PythiaTopology
from pythia_topology.streams import STREAMS

WITH_INTERVAL = ("prefix_matching", "excess_prefix_matching", "duplicate_token", "previous_token")
# Absent where what heads write is not known.
WRITTEN = ("direct_logit_attribution", "copying_empirical")
PER_PROMPT = ("prefix_matching", "duplicate_token", "previous_token", "bos")


def score_arrays(
    subject: Transformer, stimuli: Mapping[str, Prompts], params: PythiaTopology
) -> dict[str, np.ndarray]:
    """Named arrays, float32: summaries [layer, head], and per prompt under `prompts/`.

    Summaries come with `_low` and `_high`. Those of repeated random tokens carry no prefix; other
    families' are `<family>/<score>`. `copying` is the OV circuit's, from weights alone.
    `untrained/excess_prefix_matching` is the same architecture with random weights.
    """
    arrays: dict[str, np.ndarray] = {}

    for family, prompts in stimuli.items():
        scores = _of_family(subject, prompts, params)

        prefix = "" if family == "repeated_tokens" else f"{family}/"
        arrays |= {f"{prefix}{name}": values for name, values in _summaries(scores, params).items()}
        arrays |= {f"prompts/{family}/{name}": values for name, values in scores.items()}

        if family == "spaced_pairs":
            first = np.searchsorted(prompts.pairs.batch, np.arange(len(prompts.tokens)))
            arrays["prompts/spaced_pairs/lag"] = prompts.pairs.lag[first]

    try:
        arrays["copying"] = copying_eigenvalues(subject)
    except InputError as problem:
        left_out(f"copying by OV weights is left out: {problem}")

    untrained = as_transformer(random_like(subject, seed=params.seed))
    scores = _of_family(untrained, stimuli["repeated_tokens"], params)
    arrays["untrained/excess_prefix_matching"] = _excess(scores)

    return {
        name: values.astype(np.float32) if values.dtype.kind == "f" else values
        for name, values in arrays.items()
    }


def behaviour(
    arrays: Mapping[str, np.ndarray], stimuli: Mapping[str, Prompts]
) -> dict[str, dict[str, Any]]:
    """How well the model copies, by family: accuracy with its interval over prompts, and loss.

    Accuracies near 1 have an interval for shares: a bootstrap says [1, 1] where no prompt misses.
    """
    found = {}

    for family, prompts in stimuli.items():
        at = f"prompts/{family}"
        accuracy = mean_share(arrays[f"{at}/accuracy"].astype(np.float64), unit="prompts")
        found[family] = {
            "n": len(prompts.tokens),
            "copy_operations": len(prompts.pairs),
            "accuracy": accuracy.to_json(),
            "loss": float(arrays[f"{at}/loss"].mean()),
            "control_accuracy": float(arrays[f"{at}/control_accuracy"].mean()),
            "control_loss": float(arrays[f"{at}/control_loss"].mean()),
        }

    return found


def _of_family(
    subject: Transformer, prompts: Prompts, params: PythiaTopology
) -> dict[str, np.ndarray]:
    """Per prompt: attention to the standard keys and to shuffled antecedents, and what follows.

    Contributions and behaviour; and the same attention on the control prompts, where nothing was
    there to copy.
    """
    rng = STREAMS.rng("shuffled_antecedents", params.seed)
    wrong = shuffled_antecedents(prompts.pairs, prompts.lengths, rng, params.shuffled_draws)
    keys = attention_keys(prompts.pairs) | {
        f"shuffled {draw}": key for draw, key in enumerate(wrong)
    }
    label = f"{subject.name}: {prompts.family.replace('_', ' ')}"

    found = score_heads(
        subject,
        prompts.tokens,
        prompts.pairs,
        keys,
        batch_size=params.batch_size,
        behaviour=True,
        contributions=True,
        label=label,
    )
    control = score_heads(
        subject,
        prompts.control,
        prompts.pairs,
        {"prefix_matching": prompts.pairs.induction_key},
        batch_size=params.batch_size,
        behaviour=True,
        label=f"{label}, control",
    )

    kept = [name for name in (*PER_PROMPT, *WRITTEN) if name in found.heads]
    shuffled = [found.heads[f"shuffled {draw}"] for draw in range(params.shuffled_draws)]
    return {name: found.heads[name] for name in kept} | {
        "prefix_matching_control": control.heads["prefix_matching"],
        "shuffled": np.stack(shuffled),
        "accuracy": found.accuracy,
        "loss": found.loss,
        "control_accuracy": control.accuracy,
        "control_loss": control.loss,
    }


def _excess(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """Attention to the token after the earlier occurrence, less that to the same position.

    In the control it follows nothing that occurred before: position and lag are matched exactly.
    """
    return scores["prefix_matching"] - scores["prefix_matching_control"]


def _summaries(scores: Mapping[str, np.ndarray], params: PythiaTopology) -> dict[str, np.ndarray]:
    rng = STREAMS.rng("score_intervals", params.seed)
    by_prompt = dict(scores) | {"excess_prefix_matching": _excess(scores)}
    summaries = {}

    for name in WITH_INTERVAL:
        interval = mean_interval(by_prompt[name], rng, resamples=params.bootstrap_resamples)
        summaries |= {
            name: interval.value,
            f"{name}_low": interval.low,
            f"{name}_high": interval.high,
        }

    for name in ("bos", *WRITTEN):
        if name not in by_prompt:
            continue
        summaries[name] = by_prompt[name].mean(axis=0, dtype=np.float64)

    return summaries
