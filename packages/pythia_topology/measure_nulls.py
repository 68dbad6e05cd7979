"""What the layer profile would look like by chance.

Heads dealt to layers at random, antecedents shuffled, no training.
"""

from fractions import Fraction
from math import comb
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from interp_core.statistics.resampling import max_test, sign_flip_threshold
from pythia_topology.measure_layer_profile import HeadEvidence, find_induction_heads, head_labels
from pythia_topology.measure_shape import Described, check_mode, describe


def nulls_summary(
    heads: HeadEvidence,
    untrained_excess: Float[np.ndarray, "prompt layer head"] | None,
    rng: np.random.Generator,
    *,
    mode: str,
    q: float,
    alpha: float,
    draws: int,
    smallest_effect: float,
    resamples: int,
) -> dict[str, Any]:
    """The nulls file's content.

    Density of high-scoring heads a layer against the exact head permutation, shuffled antecedents,
    an untrained model of the same shape (None where there is none), and the interval of peak and
    band.
    """
    check_mode(mode, q)
    verdict = find_induction_heads(
        heads, rng, alpha=alpha, draws=draws, smallest_effect=smallest_effect
    )

    permuted = head_permutation(heads.excess.mean(axis=0), q=q)
    described = describe(
        heads.excess,
        rng,
        mode=mode,
        q=q,
        threshold=verdict.above,
        resamples=resamples,
        shaped=verdict.n > 0,
    )

    untrained = None
    if untrained_excess is not None:
        untrained = untrained_null(heads.excess, untrained_excess, smallest_effect=smallest_effect)

    return {
        "observed_density": permuted["observed_density"],
        "q": q,
        "thresh": permuted["threshold"],
        "mode": mode,
        "n": len(heads.prefix_matching),
        "verdict": verdict.words,
        "n_induction_heads": verdict.n,
        "permute_summary": permuted,
        "shuffled_summary": shuffled_antecedent_null(heads, rng, alpha=alpha, draws=draws),
        "untrained_summary": untrained,
        "bootstrap": peak_and_band(described, resamples=resamples),
    }


def peak_and_band(described: Described, *, resamples: int) -> dict[str, Any]:
    """The peak's relative depth and the bandwidth, with 95 % intervals.

    None where there are no induction heads to describe; no interval where no draw moves the peak.
    """
    entries: dict[str, Any] = {"resamples": resamples}

    for name in ("peak_rel", "bandwidth"):
        found = described.interval(name) if described.known else None
        ends = None if found is None else found.ends
        entries[f"{name}_mean"] = None if found is None else found.value
        entries[f"{name}_ci"] = None if ends is None else list(ends)

    return entries


def head_permutation(scores: Float[np.ndarray, "layer head"], *, q: float) -> dict[str, Any]:
    """Are high-scoring heads (at or above the q-quantile) denser in some layers than chance?

    Heads are the units: the question is whether they gather, which a layer that differs from the
    others answers with yes. It is no test of where they sit. Density is the share of a layer's
    heads. Null: the same heads dealt to layers at random; each layer is then hypergeometric
    (`mean`, `lo`, `hi` a layer, 95 %), the fullest layer's distribution is counted exactly.
    `p_layer` is family-wise (against the fullest layer), `p_max` is the fullest layer's.
    """
    n_layers, n_heads = scores.shape

    threshold = float(np.quantile(scores, q))
    counts = (scores >= threshold).sum(axis=1)
    high = int(counts.sum())

    one_layer = stats.hypergeom(n_layers * n_heads, high, n_heads)
    p_layer = fullest_layer_p(counts, n_layers=n_layers, n_heads=n_heads, high=high)

    return {
        "q": q,
        "threshold": threshold,
        "observed_density": (counts / n_heads).tolist(),
        "mean": [high / (n_layers * n_heads)] * n_layers,
        "lo": [float(one_layer.ppf(0.025)) / n_heads] * n_layers,
        "hi": [float(one_layer.ppf(0.975)) / n_heads] * n_layers,
        "n_high": high,
        "p_layer": p_layer.tolist(),
        "p_max": float(p_layer.min()),
    }


def fullest_layer_p(
    counts: Int[np.ndarray, " layer"], *, n_layers: int, n_heads: int, high: int
) -> Float[np.ndarray, " layer"]:
    """P(the fullest of the layers holds at least this many of the `high` heads), for each count.

    Exact: the ways to deal `high` heads so that no layer gets more than m are the coefficient of
    x^high in (sum_{j <= m} C(n_heads, j) x^j)^n_layers.
    """
    every = comb(n_layers * n_heads, high)
    p_at_least = [Fraction(1)]

    for most in range(int(counts.max())):
        layer = np.array([comb(n_heads, j) for j in range(most + 1)], dtype=object)
        ways = np.array([1], dtype=object)

        for _ in range(n_layers):
            ways = np.convolve(ways, layer)[: high + 1]

        dealt = int(ways[high]) if len(ways) > high else 0
        p_at_least.append(1 - Fraction(dealt, every))

    return np.array([float(p_at_least[count]) for count in counts])


def shuffled_antecedent_null(
    heads: HeadEvidence, rng: np.random.Generator, *, alpha: float, draws: int
) -> dict[str, Any]:
    """Prefix matching of the true antecedents against wrong ones of the same prompts.

    `p_head` [layer][head] and `p_max`: against the maximum over heads of each shuffle, so no
    smaller than 1 / (1 + shuffles). `n_above` and `threshold` are the sharper test: sign flips over
    prompts of true minus shuffled, maximum over heads, at alpha.
    """
    observed = heads.prefix_matching.mean(axis=0, dtype=np.float64)
    shuffled = heads.shuffled.mean(axis=1, dtype=np.float64)  # [draw, layer, head]
    maxima = shuffled.reshape(len(shuffled), -1).max(axis=1)

    # So few shuffles cannot reach alpha: p is then no smaller than they allow.
    least = 1 / (1 + len(maxima))
    p = max_test(observed, maxima, alpha=max(alpha, least)).p

    flips = sign_flip_threshold(heads.over_shuffled, rng, alpha=alpha, draws=draws)
    above = flips.p <= alpha

    return {
        "shuffles": len(maxima),
        "observed_max": float(observed.max()),
        "null_mean": float(shuffled.mean()),
        "null_max_mean": float(maxima.mean()),
        "null_max_hi": float(np.quantile(maxima, 0.975)),
        "per_layer_null_mean": shuffled.mean(axis=(0, 2)).tolist(),
        "p_head": p.tolist(),
        "p_max": float(p.min()),
        "threshold": flips.threshold,
        "alpha": alpha,
        "n_above": int(above.sum()),
        "heads_above": head_labels(above, observed),
    }


def untrained_null(
    excess: Float[np.ndarray, "prompt layer head"],
    untrained_excess: Float[np.ndarray, "untrained_prompt untrained_layer untrained_head"],
    *,
    smallest_effect: float,
) -> dict[str, Any]:
    """Excess prefix matching of the trained heads against those of the untrained architecture.

    `p_best_head`: share of untrained heads that score at least as high as the best trained one, (1
    + hits) / (1 + n). An untrained model with large weights may have a small positive excess, since
    its prompts repeat tokens and its controls do not: `smallest_effect` is above that.
    """
    trained = excess.mean(axis=0, dtype=np.float64)
    untrained = untrained_excess.mean(axis=0, dtype=np.float64)
    hits = int((untrained >= trained.max()).sum())

    return {
        "n": len(untrained_excess),
        "max": float(untrained.max()),
        "mean": float(untrained.mean()),
        "per_layer": untrained.mean(axis=1).tolist(),
        "n_untrained_above_smallest_effect": int((untrained >= smallest_effect).sum()),
        "n_trained_above_max": int((trained > untrained.max()).sum()),
        "p_best_head": (1 + hits) / (1 + untrained.size),
    }
