"""Reports of the five studies with known headline numbers: what the rooms `answers` read."""

import copy
from pathlib import Path
from typing import Any

from interp_core.files.artifacts import save_json

Content = dict[str, Any]  # by path below metrics/


def scored(value: float, low: float, high: float) -> Content:
    """A number with its interval, as most reports have it."""
    return {"value": value, "ci": [low, high]}


def _pair(first: str, second: str, difference: float) -> Content:
    away = {"difference": difference, "ci_equivalence": [difference - 0.01, difference + 0.01]}
    return {"models": [first, second], "centre_of_mass": away, "verdict": "equivalent within 0.1"}


def _profile(name: str, centre: float) -> Content:
    ends = [centre - 0.02, centre + 0.02]
    centred = {"centre_of_mass": centre, "centre_of_mass_ci": ends}
    return {"name": name, **centred, "n": 24, "verdict": "2 induction heads"}


def _ablation(name: str, change: float) -> Content:
    accuracy = {"top": change, "top_ci": [change - 0.1, change + 0.1]}
    return {"name": name, "n": 12, "top_k": 3, "ablations": {"mean": {"accuracy": accuracy}}}


def _reads(*changes: float) -> Content:
    offsets = ("+0", "+1", "prefix")
    return {
        offset: {"accuracy": {"value": change, "low": change - 0.01, "high": change + 0.01}}
        for offset, change in zip(offsets, changes, strict=True)
    }


def _gap(name: str, missed: float) -> Content:
    share = {"value": missed, "low": missed - 0.005, "high": missed + 0.005, "n": 128}
    return {"name": name, "repeated": {"scores": {"not_predicted/attention": share}}}


def _interval(value: float, low: float, high: float) -> Content:
    return {"value": value, "low": low, "high": high, "n": 5, "unit": "trainings"}


def _lag(ratio: Content | None, dated: int) -> Content:
    return {"ratio": ratio, "dated": dated, "of": 5}


def _clamped(ratio: Content | None) -> Content:
    return {"ratio": ratio, "dated": 5 if ratio else 4, "seeds": [0, 1, 2, 3, 4]}


def _arms(name: str, inside: float, outside: float) -> Content:
    change = {"free": -1.0, "inside": inside, "outside": outside, "short": -0.05}
    return {"name": name, "steps": 100, "k": 6, "change_of_pattern_loss": change}


def _heads(**families: tuple[float, str]) -> Content:
    found = {}

    for name, (excess, best) in families.items():
        ends = [excess - 0.001, excess + 0.001]
        found[name] = {"n": 64, "best": best, "best_excess": excess, "best_excess_ci": ends}

    return found


PLANTED: dict[str, Content] = {
    "pythia_topology": {
        "multisize/multi_size.json": {
            "equivalence_alpha": 0.05,
            "models": {"short": {"n": 24}, "tall": {"n": 24}, "taller": {"n": 24}},
            "pairs": [
                _pair("short", "tall", 0.031),
                _pair("short", "taller", -0.042),
                _pair("tall", "taller", 0.017),
            ],
        },
        "profile/profile_short.json": _profile("short", 0.41),
        "profile/profile_tall.json": _profile("tall", 0.46),
        "profile/profile_taller.json": _profile("taller", 0.39),
        "causal/causal_short.json": _ablation("short", -0.61),
        "causal/causal_tall.json": _ablation("tall", -0.53),
        "causal/causal_taller.json": _ablation("taller", -0.71),
    },
    "mamba_induction": {
        "analyse/change.json": {
            "before": "snake",
            "after": "snake-tuned",
            "text_loss": {"n": 96},
            "perplexity": {"before": 60.0, "after": 21.0, "ratio": 0.35, "ratio_ci": [0.33, 0.37]},
        },
        "causal/causal_snake.json": {
            "n": 32,
            "reads": {
                "L0": _reads(-0.06, -0.02, -0.08),
                "L1": _reads(-0.01, -0.93, -0.95),
                "all": _reads(-0.07, -0.96, -0.98),
            },
        },
        "gap/gap_snake.json": _gap("snake", 0.025),
        "gap/gap_snake-tuned.json": _gap("snake-tuned", 0.215),
    },
    "mamba_neurons": {
        "compare/compare_snake_twin.json": {
            "first": "snake",
            "second": "twin",
            "sparsity": {
                "gini": {"difference": scored(0.011, 0.004, 0.018), "n": 55},
                "treves_rolls": {"difference": scored(-0.016, -0.022, -0.009), "n": 55},
            },
        },
        "causal/causal_snake.json": {
            "texts": 44,
            "repeated_rows": 11,
            "layer": {"layer": 1},
            "whole_model": {
                "channels": 512,
                "top": [{"neuron": "L1C7", "kl": 0.027, "kl_ci": [0.023, 0.032]}],
            },
            "together": {
                "k": [1, 8],
                "kl": [0.02, 0.82],
                "kl_low": [0.01, 0.75],
                "kl_high": [0.03, 0.91],
                "random_mean": [0.004, 0.4],
                "n": 27,
            },
        },
        "efficiency/efficiency_snake.json": {
            "functional": {
                "enough": 412,
                "enough_ci": [376.0, 421.0],
                "neurons": 512,
                "tolerance": 0.01,
                "n": 28,
            }
        },
    },
    "eigen_phase": {
        "transition/transition.json": {
            "conditions": {
                "wide": {"midpoint": None, "runs": 2, "lags": {}},
                "tiled": {
                    "midpoint": _interval(288.0, 262.0, 318.0),
                    "runs": 5,
                    "lags": {
                        "largest_eigenvalue": _lag(_interval(1.02, 0.9, 1.16), 5),
                        "qk_matching of the best head": _lag(None, 4),
                    },
                },
            }
        },
        "controls/controls.json": {"conditions": {"masked": {}, "clamped": {}, "tiled": {}}},
        "controls/clamped.json": {
            "clamped": "clamped",
            "over_free": {"clamped": _clamped(_interval(0.7, 0.64, 0.76))},
            "over_controls": {"clamped_itself": _clamped(None)},
            "verdict": "earlier",
        },
        "controls/subspace_tiled-s0.json": _arms("tiled-s0", 0.005, -0.71),
        "controls/subspace_tiled-s1.json": _arms("tiled-s1", -0.002, -1.37),
    },
    "cursive_circuits": {
        "heads/handwriting.json": {
            "families": _heads(
                same_text=(0.0003, "L0H2"),
                synthetic=(0.0034, "L3H1"),
                natural=(0.0018, "L2H0"),
            ),
            "gain": {"n": 63, "mismatched": {"excess": {"loss": scored(0.064, 0.054, 0.074)}}},
        },
        "heads/control.json": {"families": _heads(synthetic=(0.7, "L2H2"))},
        "composition/control.json": {
            "paths": {
                "n": 31,
                "k": {
                    "by_weights": {
                        "reader": "L2H2",
                        "writer": "L1H0",
                        "effect": -0.46,
                        "ci": [-0.48, -0.43],
                    }
                },
            }
        },
        "sample/handwriting.json": {
            "samples": scored(0.75, 0.65, 0.83) | {"n": 96},
            "true_ink": scored(0.72, 0.56, 0.88) | {"n": 30},
        },
    },
}


def planted(study: str) -> Content:
    """A study's reports by path, to change one of."""
    return copy.deepcopy(PLANTED[study])


def save(folder: Path, reports: Content) -> Path:
    """Write reports below metrics/ of a study's folder; returns metrics/."""
    for name, report in reports.items():
        save_json(folder / "metrics" / name, report)

    return folder / "metrics"
