"""Reports of the five studies with known numbers: what the rooms `answers` read."""

import copy
from pathlib import Path
from typing import Any

from interp_core.files.artifacts import save_json

Content = dict[str, Any]  # by path below metrics/


def scored(value: float, low: float, high: float) -> Content:
    """A number with its interval, as most reports have it."""
    return {"value": value, "ci": [low, high]}


def interval(value: float, low: float, high: float, n: int, unit: str) -> Content:
    """A number in the one shape of an interval."""
    return {"value": value, "low": low, "high": high, "n": n, "unit": unit}


def _over_prompts(value: float, reach: float, n: int) -> Content:
    """A number with its interval, as pythia_topology's reports have it."""
    return {"value": value, "low": value - reach, "high": value + reach, "n": n, "unit": "prompts"}


def _pair(first: str, second: str, difference: float) -> Content:
    away = {"difference": _over_prompts(difference, 0.01, 24), "p": 0.01, "equivalent": True}
    return {"models": [first, second], "centre_of_mass": away, "verdict": "equivalent within 0.1"}


def _profile(name: str, centre: float) -> Content:
    centred = {"centre_of_mass": _over_prompts(centre, 0.02, 24)}
    return {"name": name, **centred, "n": 24, "verdict": "2 induction heads"}


def _ablation(name: str, change: float) -> Content:
    accuracy = {"top": _over_prompts(change, 0.1, 12)}
    return {
        "name": name,
        "n": 12,
        "top_k": 3,
        "ablations": {"mean": {"accuracy": accuracy}},
        "dose": {"whole_layer": {"accuracy": -0.97}},
    }


def _share(value: float, n: int) -> Content:
    ends = {"low": value - 0.01, "high": value + 0.01}
    return {"value": value, **ends, "n": n, "unit": "prompts"}


def _cut(where: str, offset: int, change: float) -> Content:
    return {"where": where, "offset": offset, "accuracy": _share(change, 32)}


def _gap(name: str, missed: float, independent: float) -> Content:
    beyond = {"above_independence": _share(missed - independent, 128)}
    return {
        "name": name,
        "repeated": {
            "scores": {"not_predicted/attention": _share(missed, 128)},
            "recognition": {"attention": beyond},
        },
    }


def _arm(rate: float, repeats: float, accuracy: float) -> Content:
    return {"rate": rate, "repeats": repeats, "repeat_accuracy": _share(accuracy, 128)}


def _over_trainings(value: float, low: float, high: float) -> Content:
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
        entry = interval(excess, excess - 0.001, excess + 0.001, 64, "prompts")
        found[name] = {"n": 64, "best": best, "best_excess": entry}

    return found


def _interval(value: float, low: float, high: float, n: int) -> Content:
    return {"value": value, "low": low, "high": high, "n": n, "unit": "texts"}


def _dose(k: int, kl: Content, random: float) -> Content:
    return {"k": k, "kl": kl, "against_random": {"random": {"value": random}}}


def _few(units: int, single: int, joint: int) -> Content:
    def ranking(enough: int) -> Content:
        ends = (enough, enough - 20, enough + 30)
        value, low, high = (size / units for size in ends)
        return {"enough": _interval(*ends, 28), "enough_share": _interval(value, low, high, 28)}

    return {
        "units": units,
        "tolerance": 0.01,
        "rankings": {"single": ranking(single), "joint": ranking(joint)},
    }


def _direct(copied: float, control: float, says: str) -> Content:
    parts = {"copied": copied, "control": control}
    harms = {name: interval(v, v - 0.1, v + 0.1, 32, "prompts") for name, v in parts.items()}
    return {"top": ["L2H2", "L2H3", "L2H1"], "direct": harms | {"against": {"says": says}}}


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
            "verdict": {
                "copies": True,
                "cuts": 12,
                "level": 0.996,
                "best": _cut("L1", 1, -0.93),
                "other": _cut("L0", 0, -0.06),
                "says": "copies",
            },
            "kept": {
                "layer": 1,
                "offset": 1,
                "circuit": {
                    "one read": _share(0.98, 32),
                    "taps 0 and 1": _share(0.8, 32),
                    "one read, taps 0 and 1": _share(0.97, 32),
                    "and other layers' scans unmixed": _share(0.76, 32),
                    "and their convolutions at lag 0": _share(0.49, 32),
                },
            },
        },
        "causal/causal_snake-tuned.json": {
            "kept": {"clean": _share(0.48, 32), "circuit": {"one read": _share(0.91, 32)}},
        },
        "gap/gap_snake.json": _gap("snake", 0.025, 0.035),
        "gap/gap_snake-tuned.json": _gap("snake-tuned", 0.215, 0.255),
        "fine_tune/arms.json": {
            "before": {"repeat_accuracy": _share(0.95, 128)},
            "arms": {
                "lr 0.001": _arm(0.001, 0, 0.48),
                "lr 5e-05": _arm(5e-5, 0, 0.9),
                "lr 0.001, 10 % repeats": _arm(0.001, 0.1, 0.93),
            },
        },
    },
    "mamba_neurons": {
        "compare/compare_snake_twin.json": {
            "first": "snake",
            "second": "twin",
            "sparsity": {
                "gini": {"difference": _interval(0.011, 0.004, 0.018, 55)},
                "treves_rolls": {"difference": _interval(-0.016, -0.022, -0.009, 55)},
            },
        },
        "causal/causal_snake.json": {
            "whole_model": {
                "channels": 512,
                "top": [{"neuron": "L1C7", "kl": _interval(0.027, 0.023, 0.032, 55)}],
            },
            "together": {
                "layer": 1,
                "doses": [
                    _dose(1, _interval(0.02, 0.01, 0.03, 27), 0.004),
                    _dose(8, _interval(0.82, 0.75, 0.91, 27), 0.4),
                ],
            },
        },
        "efficiency/efficiency_snake.json": {"functional": _few(512, 412, 399)},
        "efficiency/efficiency_twin.json": {"functional": _few(1032, 833, 867)},
    },
    "eigen_phase": {
        "transition/transition.json": {
            "conditions": {
                "wide": {"midpoint": None, "peak_over_step": None, "runs": 2, "lags": {}},
                "tiled": {
                    "midpoint": _over_trainings(288.0, 262.0, 318.0),
                    "peak_over_step": _over_trainings(1.07, 1.03, 1.11),
                    "runs": 5,
                    "lags": {
                        "largest_eigenvalue": _lag(_over_trainings(1.02, 0.9, 1.16), 5),
                        "qk_matching of the best head": _lag(None, 4),
                        "own_matching of the best head": _lag(_over_trainings(0.65, 0.6, 0.7), 5),
                    },
                },
            }
        },
        "controls/controls.json": {"conditions": {"masked": {}, "clamped": {}, "tiled": {}}},
        "controls/clamped.json": {
            "clamped": "clamped",
            "over_free": {"clamped": _clamped(_over_trainings(0.7, 0.64, 0.76))},
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
                mismatched_text=(0.0011, "L1H0"),
                synthetic=(0.0034, "L3H1"),
                natural=(0.0018, "L2H0"),
            ),
            "gain": {
                "mismatched": {"excess": {"loss": interval(0.064, 0.054, 0.074, 63, "words")}}
            },
        },
        "heads/control.json": {"families": _heads(synthetic=(0.7, "L2H2"))},
        "composition/control.json": {
            "paths": {
                "k": {
                    "by_weights": {
                        "reader": "L2H2",
                        "writer": "L1H0",
                        **interval(-0.46, -0.48, -0.43, 31, "prompts"),
                    }
                },
            }
        },
        "sample/handwriting.json": {
            "samples": interval(0.75, 0.65, 0.83, 32, "words"),
            "true_ink": interval(0.72, 0.56, 0.88, 30, "words"),
        },
        "ablate/handwriting.json": _direct(0.01, -0.02, "p = 0.4000, 59 distinct random sets"),
        "ablate/control.json": _direct(2.5, -0.6, "p = 0.0167, 59 distinct random sets"),
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
