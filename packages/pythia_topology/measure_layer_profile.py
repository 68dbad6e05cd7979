"""Which heads are induction heads, and the layer profile of their excess prefix matching.

Two nulls are subtracted from prefix matching A[t, s + 1], for they answer different questions.
EXCESS: minus the same place in the control prompt, whose antecedent was replaced, so that position
and lag are matched exactly; its sign flips give the test. OVER SHUFFLED: minus attention to wrong
antecedents of the same prompt, so that a head that looks at all repeated places alike scores zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from interp_core.errors import InputError
from interp_core.statistics.heads import Head
from interp_core.statistics.resampling import MaxTest, sign_flip_threshold, split_half_rank
from pythia_topology.measure_shape import check_mode, describe, layer_profile


@dataclass(frozen=True)
class HeadEvidence:
    """One model's prefix matching on one family of prompts: attention shares in [0, 1].

    On the prompts, on their controls, and at shuffled antecedents.
    """

    prefix_matching: Float[np.ndarray, "prompt layer head"]
    control: Float[np.ndarray, "prompt layer head"]
    shuffled: Float[np.ndarray, "draw prompt layer head"]

    @property
    def excess(self) -> Float[np.ndarray, "prompt layer head"]:
        """Prefix matching minus the same on the control, in [-1, 1]."""
        return self.prefix_matching.astype(np.float64) - self.control.astype(np.float64)

    @property
    def over_shuffled(self) -> Float[np.ndarray, "prompt layer head"]:
        """Prefix matching minus attention to shuffled antecedents of the same prompt, in [-1,
        1]."""
        wrong = self.shuffled.mean(axis=0, dtype=np.float64)
        return self.prefix_matching.astype(np.float64) - wrong


@dataclass(frozen=True)
class Verdict:
    """Which heads are induction heads: [layer, head] by a family-wise test and a least effect."""

    heads: Bool[np.ndarray, "layer head"]
    test: MaxTest
    words: str
    smallest_effect: float

    @property
    def n(self) -> int:
        """The number of induction heads."""
        return int(self.heads.sum())

    @property
    def above(self) -> float:
        """The excess from which on a head counts, for profiles of mode `count`."""
        return max(self.test.threshold, self.smallest_effect)


def evidence(arrays: Mapping[str, np.ndarray], family: str) -> HeadEvidence:
    """The per-prompt scores of a family from a scores file. InputError when the file lacks one."""
    scores = ("prefix_matching", "prefix_matching_control", "shuffled")
    names = [f"prompts/{family}/{score}" for score in scores]
    missing = [name for name in names if name not in arrays]

    if missing:
        raise InputError(
            f"the scores hold no array `{missing[0]}`: compute them anew with family {family}"
        )

    return HeadEvidence(*(arrays[name] for name in names))


def find_induction_heads(
    heads: HeadEvidence,
    rng: np.random.Generator,
    *,
    alpha: float,
    draws: int,
    smallest_effect: float,
) -> Verdict:
    """Heads that stand out of the null, by a test and by a smallest effect.

    Their prefix matching exceeds the control's by more than the null's 1 - alpha quantile of the
    maximum over heads, and it exceeds control and shuffled antecedents by at least
    `smallest_effect` (attention share). That floor is part of the control, not only of taste: the
    control repeats no token and the prompt does, so that heads of an untrained model with large
    weights differ between the two by some .003, which enough prompts make certain.
    """
    excess = heads.excess.mean(axis=0)
    test = sign_flip_threshold(heads.excess, rng, alpha=alpha, draws=draws)

    effect = np.minimum(excess, heads.over_shuffled.mean(axis=0))
    found = (test.p <= alpha) & (effect >= smallest_effect)

    n = int(found.sum())
    words = {0: "no induction heads", 1: "1 induction head"}.get(n, f"{n} induction heads")
    return Verdict(found, test, words, smallest_effect)


def head_labels(
    chosen: Bool[np.ndarray, "layer head"], by: Float[np.ndarray, "layer head"]
) -> list[str]:
    """Labels as L5H1 of the chosen heads, the highest score first."""
    places = sorted(zip(*np.nonzero(chosen), strict=True), key=lambda place: -by[place])
    return [str(Head(int(layer), int(head))) for layer, head in places]


def layer_profile_summary(
    heads: HeadEvidence,
    rng: np.random.Generator,
    *,
    mode: str,
    q: float,
    alpha: float,
    draws: int,
    smallest_effect: float,
    resamples: int,
    splits: int,
) -> dict[str, Any]:
    """The profile file's content.

    Profiles are of excess prefix matching (in mode `count`: heads above the null's threshold).
    Intervals are 95 %, over prompts and over heads within their layers, never over layers. Where no
    head is an induction head, everything that describes a peak or a band is None.
    """
    check_mode(mode, q)
    verdict = find_induction_heads(
        heads, rng, alpha=alpha, draws=draws, smallest_effect=smallest_effect
    )

    excess = heads.excess
    head_means = excess.mean(axis=0)
    described = describe(
        excess,
        rng,
        mode=mode,
        q=q,
        threshold=verdict.above,
        resamples=resamples,
        shaped=verdict.n > 0,
    )

    with_control = heads.prefix_matching.mean(axis=0, dtype=np.float64)
    plain = layer_profile(with_control, mode=mode, q=q, threshold=verdict.above)
    reliability = split_half_rank(excess, rng, splits=splits)

    return {
        "mode": mode,
        "q": q,
        **described.band(),
        "per_layer_prefix_matching": plain.tolist(),
        **described.entries(),
        "n": len(excess),
        "n_layers": excess.shape[1],
        "n_heads": excess.shape[2],
        "verdict": verdict.words,
        "n_induction_heads": verdict.n,
        "induction_heads": head_labels(verdict.heads, head_means),
        "alpha": alpha,
        "null_threshold": verdict.test.threshold,
        "smallest_effect": smallest_effect,
        "p_best_head": float(verdict.test.p.min()),
        "split_half_rank": reliability if np.isfinite(reliability) else None,
    }
