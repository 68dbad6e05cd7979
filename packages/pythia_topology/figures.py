"""The study's figures, from files alone: no model is loaded and no score computed here."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from interp_core.files.artifacts import load_arrays, load_json
from pythia_topology import (
    figures_causal,
    figures_circuits,
    figures_depth,
    figures_heads,
    figures_training,
)

Report = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]
Place = Callable[[str, str], Path]  # ("scores", "metrics" or "figures", command) -> folder


def draw_all(models: Sequence[str], place: Place) -> list[Path]:
    """The figures of the commands that have run, for the named models; returns the files written.

    What is of one model alone, its layer profile and its nulls, is drawn by those commands. The
    pipeline has maps of heads and of their composition of its deepest model alone: all heads of
    every model are on the page, and the numbers of all compositions in their metrics.

    `place` gives the folder of a kind of files and a command. A command of which no model has a
    file has not run; otherwise every model's must be there. InputError names what is missing or
    damaged.
    """
    out = place("figures", "")
    scores = {
        name: load_arrays(place("scores", "profile") / f"scores_{name}.npz") for name in models
    }
    profiles = {
        name: load_json(place("metrics", "profile") / f"profile_{name}.json") for name in models
    }
    written: list[Path] = []

    # An experiment has all its files in one folder, and maps of every model.
    is_experiment = out == place("scores", "profile")
    mapped = list(models) if is_experiment else [_deepest(profiles)]

    for name in mapped:
        written += draw_heatmap(scores[name], profiles[name], name, out)

    if (compared := place("metrics", "multisize") / "multi_size.json").is_file():
        written += draw_crosssize(load_json(compared), out / "multi_size_overlay.png")

    if lags := _reports(place, "lagbuckets", models, stem="lags"):
        written += draw_lags(lags, out)

    if causal := _reports(place, "causal", models, stem="causal"):
        written += draw_causal(causal, out)

    composed = _reports(place, "composition", models, stem="composition")
    for name in mapped:
        if name in composed:
            arrays = _arrays(place, "composition", name)
            written += draw_composition(composed[name], arrays, scores[name], name, out)

    if emerged := _reports(place, "emergence", models, stem="emergence"):
        both = {
            name: (report, _arrays(place, "emergence", name)) for name, report in emerged.items()
        }
        written += draw_emergence(both, out)

    return written


def _deepest(profiles: Mapping[str, Report]) -> str:
    """The model of most layers, the first of them."""
    return max(profiles, key=lambda name: profiles[name]["n_layers"])


def _reports(place: Place, command: str, models: Sequence[str], *, stem: str) -> dict[str, Report]:
    """One command's reports by model; empty when it has run for none of them."""
    files = {name: place("metrics", command) / f"{stem}_{name}.json" for name in models}
    if not any(file.is_file() for file in files.values()):
        return {}

    return {name: load_json(file) for name, file in files.items()}


def _arrays(place: Place, command: str, name: str) -> Arrays:
    return load_arrays(place("scores", command) / f"{command}_{name}.npz")


def draw_heatmap(scores: Arrays, profile: Report, name: str, folder: Path) -> list[Path]:
    """heatmap_<name>.png."""
    path = folder / f"heatmap_{name}.png"
    figures_heads.heatmap(scores, profile, name, path)
    return [path]


def draw_profile(scores: Arrays, profile: Report, name: str, folder: Path) -> list[Path]:
    """heatmap_<name>.png and profile_<name>.png, of a model alone."""
    heatmap = draw_heatmap(scores, profile, name, folder)
    return [*heatmap, *draw_layer_profile(scores, profile, name, folder)]


def draw_layer_profile(scores: Arrays, profile: Report, name: str, folder: Path) -> list[Path]:
    """profile_<name>.png."""
    path = folder / f"profile_{name}.png"
    figures_depth.layer_profile(scores, profile, name, path)
    return [path]


def draw_crosssize(crosssize: Report, path: Path) -> list[Path]:
    """The overlay of all compared models, cross_size_overlay.png or multi_size_overlay.png."""
    figures_depth.cross_size(crosssize, path)
    return [path]


def draw_nulls(nulls: Report, scores: Arrays, name: str, folder: Path) -> list[Path]:
    """nulls_<name>.png."""
    path = folder / f"nulls_{name}.png"
    figures_depth.nulls(nulls, scores, name, path)
    return [path]


def draw_causal(causal_by_model: Mapping[str, Report], folder: Path) -> list[Path]:
    """causal_delta.png and dose.png, all models."""
    delta, dose = folder / "causal_delta.png", folder / "dose.png"
    figures_causal.causal_delta(causal_by_model, delta)
    figures_causal.dose(causal_by_model, dose)
    return [delta, dose]


def draw_lags(lags_by_model: Mapping[str, Report], folder: Path) -> list[Path]:
    """lag_profiles.png."""
    path = folder / "lag_profiles.png"
    figures_depth.lag_profiles(lags_by_model, path)
    return [path]


def draw_emergence(by_model: Mapping[str, tuple[Report, Arrays]], folder: Path) -> list[Path]:
    """emergence.png, all models."""
    path = folder / "emergence.png"
    figures_training.emergence(by_model, path)
    return [path]


def draw_composition(
    composition: Report, arrays: Arrays, scores: Arrays, name: str, folder: Path
) -> list[Path]:
    """composition_<name>.png; scores say which heads look one token back or are induction heads."""
    path = folder / f"composition_{name}.png"
    figures_circuits.composition(composition, arrays, scores, name, path)
    return [path]
