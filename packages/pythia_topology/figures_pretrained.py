"""Figures of the pretrained models: those of the study, and of each its profile and its nulls."""

from pathlib import Path

from interp_core.files.artifacts import load_arrays, load_json, save_json
from interp_core.files.params import project_root
from pythia_topology.figures import draw_all, draw_nulls, draw_profile


def figures_pretrained() -> None:
    """All of them, into data/pythia_topology/pretrained/figures."""
    home = project_root() / "data" / "pythia_topology" / "pretrained"

    def place(kind: str, command: str) -> Path:
        return home / kind / ("" if kind == "figures" else command)

    out = place("figures", "")
    names = load_json(place("metrics", "") / "models.json")["models"]
    save_json(out / "models.json", {"models": names})

    if names:
        draw_all(names, place)

    for name in names:
        scores = load_arrays(place("scores", "profile") / f"scores_{name}.npz")
        profile, nulls = (
            load_json(place("metrics", command) / f"{command}_{name}.json")
            for command in ("profile", "nulls")
        )
        draw_profile(scores, profile, name, out)
        draw_nulls(nulls, scores, name, out)
