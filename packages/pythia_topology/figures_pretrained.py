"""Figures of the pretrained models: depth, ablations and what feeds their induction heads."""

from pathlib import Path
from typing import Any

import numpy as np

from interp_core.files.artifacts import load_arrays, load_json, save_json
from interp_core.files.params import project_root
from pythia_topology.figures import draw_causal, draw_composition, draw_layer_profile


def figures_pretrained() -> None:
    """All of them, into data/pythia_topology/pretrained/figures.

    All heads are on the page. What the nulls and the lags say are single numbers, in the metrics
    and on the page; `induct nulls` and `induct lagbuckets` draw them of a model of the user's.
    """
    home = project_root() / "data" / "pythia_topology" / "pretrained"
    out = home / "figures"

    names = load_json(home / "metrics" / "models.json")["models"]
    save_json(out / "models.json", {"models": names})

    if names:
        draw_causal({name: _report(home, "causal", name) for name in names}, out)

    for name in names:
        scores = load_arrays(home / "scores" / "profile" / f"scores_{name}.npz")
        draw_layer_profile(scores, _report(home, "profile", name), name, out)

        arrays = _arrays(home, "composition", name)
        draw_composition(_report(home, "composition", name), arrays, scores, name, out)


def _report(home: Path, command: str, name: str) -> dict[str, Any]:
    return load_json(home / "metrics" / command / f"{command}_{name}.json")


def _arrays(home: Path, command: str, name: str) -> dict[str, np.ndarray]:
    return load_arrays(home / "scores" / command / f"{command}_{name}.npz")
