"""What the study's commands write, for models whose heads are planted as numbers: no model runs.

Layer profiles, nulls, cross-size and lags come from the study's own measures; what only a running
model could tell is made up in the same format, so that figures can be drawn for any number of
layers and heads.
"""

from typing import Any

import numpy as np

from interp_core.statistics.against_random import against_random
from interp_core.statistics.interval import Interval
from pythia_topology.measure_crosssize import crosssize_summary
from pythia_topology.measure_lags import lags_summary
from pythia_topology.measure_layer_profile import HeadEvidence, evidence, layer_profile_summary
from pythia_topology.measure_nulls import nulls_summary
from pythia_topology.measure_shape import previous_token_layer

PROMPTS = 24
LAGS = (2, 4, 8, 16)


def _settings(mode: str = "mean") -> dict[str, Any]:
    return {
        "mode": mode,
        "q": 0.9,
        "alpha": 0.001,
        "draws": 2000,
        "smallest_effect": 0.1,
        "resamples": 200,
    }


def interval(value: float, reach: float) -> dict[str, Any]:
    """A number with its interval over prompts, as reports have it."""
    return Interval(value, value - reach, value + reach, PROMPTS, "prompts").to_json()


def scores(
    n_layers: int, n_heads: int, *, planted: bool = True, centre: float = 0.6, seed: int = 0
) -> dict[str, np.ndarray]:
    """scores_<name>.npz: induction heads around relative depth `centre`, previous-token heads
    before them, or none.
    """
    rng = np.random.default_rng([seed, n_layers, n_heads])
    depth = (np.arange(n_layers) + 0.5) / n_layers
    bump = np.exp(-0.5 * ((depth - centre) / 0.12) ** 2)[:, None] * (
        rng.random((n_layers, n_heads)) < 0.5
    )
    bump[int(centre * n_layers), 0] = 1.0
    earlier = np.exp(-0.5 * ((depth - 0.25) / 0.1) ** 2)[:, None] * (
        rng.random((n_layers, n_heads)) < 0.3
    )
    strength = 0.85 if planted else 0.0
    arrays: dict[str, np.ndarray] = {}
    for family, size in (("repeated_tokens", PROMPTS), ("spaced_pairs", 4 * PROMPTS)):

        def noisy(mean: np.ndarray, size: int = size) -> np.ndarray:
            return np.clip(mean + 0.03 * rng.standard_normal((size, n_layers, n_heads)), 0, 1)

        at = f"prompts/{family}"
        arrays[f"{at}/prefix_matching"] = noisy(0.04 + strength * bump)
        arrays[f"{at}/prefix_matching_control"] = noisy(np.full((n_layers, n_heads), 0.04))
        arrays[f"{at}/shuffled"] = np.stack(
            [noisy(np.full((n_layers, n_heads), 0.04)) for _ in range(3)]
        )
        arrays[f"{at}/previous_token"] = noisy(0.05 + 0.9 * earlier)
        arrays[f"{at}/duplicate_token"] = noisy(np.full((n_layers, n_heads), 0.06))
    arrays["prompts/spaced_pairs/lag"] = np.repeat(LAGS, PROMPTS)
    at = "prompts/repeated_tokens"
    by_prompt = {
        name: arrays[f"{at}/{name}"]
        for name in ("prefix_matching", "duplicate_token", "previous_token")
    }
    by_prompt["excess_prefix_matching"] = (
        by_prompt["prefix_matching"] - arrays[f"{at}/prefix_matching_control"]
    )
    for name, values in by_prompt.items():
        half = 1.96 * values.std(axis=0) / np.sqrt(len(values))
        mean = values.mean(axis=0)
        arrays |= {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}
    arrays["bos"] = rng.random((n_layers, n_heads)) * (1 - arrays["prefix_matching"])
    arrays["copying"] = np.clip(bump + 0.2 * rng.standard_normal(bump.shape), -1, 1)
    arrays["copying_empirical"] = 4 * bump + 0.5 * rng.standard_normal(bump.shape)
    arrays["direct_logit_attribution"] = 3 * bump + 0.3 * rng.standard_normal(bump.shape)
    arrays["untrained/excess_prefix_matching"] = 0.02 * rng.standard_normal(
        (PROMPTS, n_layers, n_heads)
    )
    return {name: a.astype(np.float32) if a.dtype.kind == "f" else a for name, a in arrays.items()}


def profile(arrays: dict[str, np.ndarray], *, mode: str = "mean") -> dict[str, Any]:
    """profile_<name>.json."""
    rng = np.random.default_rng(1)
    summary = layer_profile_summary(
        evidence(arrays, "repeated_tokens"), rng, splits=10, **_settings(mode)
    )
    back = arrays["previous_token"]
    return summary | {"previous_token_layer": previous_token_layer(back, share=0.5)}


def nulls(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """nulls_<name>.json."""
    heads = evidence(arrays, "repeated_tokens")
    return nulls_summary(
        heads, arrays["untrained/excess_prefix_matching"], np.random.default_rng(2), **_settings()
    )


def crosssize(by_model: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """cross_size.json, or multi_size.json for more than two models."""
    heads: dict[str, HeadEvidence] = {
        name: evidence(arrays, "repeated_tokens") for name, arrays in by_model.items()
    }
    settings = {"margin": 0.1, "equivalence_alpha": 0.05, "grid_points": 11}
    return crosssize_summary(heads, np.random.default_rng(3), **settings, **_settings())


def lags(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """lags_<name>.json."""
    heads, lag = evidence(arrays, "spaced_pairs"), arrays["prompts/spaced_pairs/lag"]
    return lags_summary(heads, lag, np.random.default_rng(4), split=4, **_settings())


def causal(arrays: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """causal_<name>.json and .npz."""
    excess = arrays["excess_prefix_matching"]
    ranked = [np.unravel_index(flat, excess.shape) for flat in np.argsort(-excess, axis=None)]
    names = [f"L{layer}H{head}" for layer, head in ranked]

    def change(size: float) -> dict[str, Any]:
        def random(mean: float, n: int) -> dict[str, Any]:
            values = np.linspace(-0.02 * size, 2 * mean * size, n)
            direction = "above" if size > 0 else "below"
            return against_random(size, values, direction=direction).to_json()

        return {
            "clean": 1.0,
            "top": interval(size, 0.1 * abs(size)),
            "layer_matched": random(0.1, 28),
            "outside": random(0.05, 200),
        }

    def doses(size: float) -> dict[str, list[float | None]]:
        grown = [size * (1 - 0.6**k) for k in ks]
        # Too few heads are outside the circuit for sets of 8.
        return {
            "top": [*grown],
            "top_low": [0.9 * value for value in grown],
            "top_high": [1.1 * value for value in grown],
            "random_mean": [*(0.02 * k * size for k in ks[:-1]), None],
            "random_low": [*(0.0 * k for k in ks[:-1]), None],
            "random_high": [*(0.06 * k * size for k in ks[:-1]), None],
        }

    ks = [1, 2, 3, 4, 6, 8]
    rng = np.random.default_rng(5)
    effect = np.clip(excess, 0, None) * 2 + 0.05 * rng.standard_normal(excess.shape)
    report = {
        "baseline_acc": 0.97,
        "top_heads": names[:3],
        "top_k": 3,
        "random_k": 3,
        "n": PROMPTS,
        "draws": 200,
        "p_value": 1 / 201,
        "verdict": "copying needs them",
        "controls": {
            "layer_matched": "all 28 distinct random sets, from L1 and L2, 2 a set from another "
            "layer than its own",
            "outside": "200 of 560 distinct sets of heads outside the circuit, from L0, L3",
            "left_out": names[:4],
        },
        "ablations": {
            how: {"accuracy": change(-0.7 * share), "loss": change(3.1 * share)}
            for how, share in (
                ("zero", 1.0),
                ("mean", 0.95),
                ("resample", 1.05),
                ("pattern_preserving", 0.4),
            )
        },
        "dose": {
            "k": ks,
            "sets": [16, 50, 50, 50, 50, 0],
            "controls": ["50 of 560 distinct sets of heads outside the circuit, from L0, L3"]
            * len(ks),
            "accuracy": doses(-0.8),
            "loss": doses(3.5),
            "whole_layer": {"layer": int(ranked[0][0]), "accuracy": -0.85, "loss": 4.0},
        },
        "specificity": change(0.04) | {"clean_loss": 3.4, "n": PROMPTS},
        "rank_agreement": 0.91,
        "recall": {"k": [1.0, 2.0, 4.0], "recall": [1.0, 0.5, 0.75], "chance": [0.06, 0.12, 0.25]},
    }
    estimate = 0.8 * effect + 0.03 * rng.standard_normal(excess.shape)
    return report, {
        "loss_effect": effect,
        "accuracy_effect": -0.2 * effect,
        "first_order": estimate,
    }


def emergence(arrays: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """emergence_<name>.json and .npz: every quantity rises once; nothing has an onset where no head
    is planted.
    """
    steps = np.array([0, *(2**power for power in range(11))])
    found = bool((arrays["excess_prefix_matching"] > 0.5).any())

    def rise(middle: float) -> np.ndarray:
        return 1 / (1 + np.exp(-(np.log1p(steps) - np.log1p(middle)) / 0.25))

    onset = {
        name: {"step": interval(middle, 0.15 * middle), "low": 0.02, "high": 0.95}
        if found or name == "previous_token_head"
        else None
        for name, middle in (
            ("copy_accuracy", 360.0),
            ("induction_head", 300.0),
            ("previous_token_head", 110.0),
        )
    }
    series = {
        "accuracy": 0.02 + 0.93 * rise(360.0) * found,
        "loss": 6.0 - 5.5 * rise(360.0) * found,
        "excess_prefix_matching": rise(300.0)[:, None, None] * arrays["excess_prefix_matching"],
        "previous_token": rise(110.0)[:, None, None] * arrays["previous_token"],
    }
    report = {"n": PROMPTS, "steps": steps.tolist(), "onset": onset, "verdict": "in order"}
    return report, {"steps": steps, "prefix_matching": series["excess_prefix_matching"], **series}


def composition(arrays: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """composition_<name>.json and .npz: previous-token heads compose with induction heads."""
    rng = np.random.default_rng(6)
    back, excess = arrays["previous_token"], arrays["excess_prefix_matching"]
    z = 8 * np.einsum("ab,cd->abcd", back, excess) + rng.standard_normal((*back.shape, *back.shape))
    layers = np.arange(len(back))
    z *= (layers[:, None] < layers)[:, None, :, None]

    def pair(writer: int, reader: int, change: float) -> dict[str, Any]:
        return {
            "writer": f"L0H{writer}",
            "reader": f"L2H{reader}",
            "score": 0.1,
            "z": 4.0,
            "path_patching": interval(change, 0.04),
        }

    report = {
        "n": PROMPTS,
        "pairs": [pair(head, 1, -0.6 / (1 + head)) for head in range(4)],
        "random_pairs": [pair(head, 2, 0.01) for head in range(4)],
        "control": "4 random pairs, writers from L0, no previous-token heads",
        "z_max": float(z.max()),
        "share_above_2": float((z > 2).mean()),
        "verdict": (
            "confirmed: without L0H0 -> L2H1 (z +9.1) in its keys the reader's prefix matching"
            " changes by -0.60, at random by +0.01"
        ),
    }
    return report, {"score": np.abs(z) / 20, "z": z}
