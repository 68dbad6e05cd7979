"""The study's figures, from files alone: no model is loaded and no score computed here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cursive_circuits import (
    figures_causal,
    figures_circuits,
    figures_heads,
    figures_ink,
    figures_page,
)
from interp_core.files.artifacts import load_arrays, load_json
from interp_core.files.params import project_root

Report = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]
OFFSETS = range(-4, 9)
SEEN = 0.05  # share of a map's variance below which the eye finds no pattern in it


def draw_all(folder: Path, *, only: str | None = None) -> list[Path]:
    """Every figure of the commands that have run, or of the `only` one, into folder/figures;
    returns the files.

    Reads folder/scores and folder/metrics. A command without metrics has not run; a model of the
    user's has its own name in the files. InputError names what is missing or damaged.
    """
    out = folder / "figures"
    written = []

    def found(command: str) -> dict[str, tuple[Report, Arrays]]:
        return _found(folder, command) if only in (None, command) else {}

    for name, (report, arrays) in found("sample").items():
        figures_ink.samples(arrays, report, path := out / f"samples_{name}.png")
        written.append(path)
    for name, (report, arrays) in found("attention").items():
        figures_heads.alignment(arrays, report, path := out / f"alignment_{name}.png")
        written.append(path)
    written += draw_heads(found("heads"), out)
    for name, (report, arrays) in found("circuits").items():
        written += draw_circuits(arrays, report, name, out)

    ablations = found("ablate")
    written += draw_interventions(ablations, found("composition"), out)

    # The page of the run has the pipeline's ink, with and without heads.
    if not _is_the_pipelines(folder):
        written += draw_redrawn(ablations, out)

    if (folder / "scores" / "draw").is_dir() and only in (None, "draw"):
        written.append(draw_page(folder, out))
    return written


def draw_heads(found: Mapping[str, tuple[Report, Arrays]], out: Path) -> list[Path]:
    """excess.png, scores.png and offsets.png of all models, and gain_<name>.png."""
    if not found:
        return []

    written = [out / f"{name}.png" for name in ("excess", "scores", "offsets")]
    scored, profiles = {}, {}

    for name, (report, arrays) in found.items():
        if "gain" in report:
            figures_heads.gain(report["gain"], out / f"gain_{name}.png")
            written.append(out / f"gain_{name}.png")

        family = "mismatched_text" if "mismatched_text" in report["families"] else "synthetic"
        scored[name] = (family, arrays)

        best = report["families"][family]["anywhere"]["head"]
        layer, head = (int(part) for part in best[1:].split("H"))
        keys = [f"{family}/offset/{offset:+d}" for offset in OFFSETS]
        values = [
            [arrays[f"{key}{end}"][layer, head] for end in ("", "_low", "_high")] for key in keys
        ]
        profiles[name] = (best, family, np.array(values))

    figures_heads.excess(found, written[0])
    figures_heads.score_maps(scored, written[1])
    figures_heads.offsets(profiles, list(OFFSETS), written[2])
    return written


def draw_circuits(arrays: Arrays, report: Report, name: str, out: Path) -> list[Path]:
    """qk_ and ov_<name>.png, only where the angle between two directions explains a visible share
    of some head's map.
    """
    # Random strokes have no geometry to learn: their maps are noise, and no figure.
    if max(head["angular_share"] for head in report["heads"].values()) < SEEN:
        return []

    paths = {kind: out / f"{kind}_{name}.png" for kind in ("qk", "ov")}
    for kind, path in paths.items():
        figures_circuits.direction_maps(arrays, name, path, kind=kind)

    return list(paths.values())


def draw_interventions(
    ablations: Mapping[str, tuple[Report, Arrays]],
    compositions: Mapping[str, tuple[Report, Arrays]],
    out: Path,
) -> list[Path]:
    """ablation.png and paths.png of all models, and composition_<name>.png."""
    written = []
    if ablations:
        figures_causal.ablation(
            {name: report for name, (report, _) in ablations.items()}, out / "ablation.png"
        )
        written.append(out / "ablation.png")
    for name, (_, arrays) in compositions.items():
        figures_circuits.composition(arrays, name, path := out / f"composition_{name}.png")
        written.append(path)
    if compositions:
        figures_causal.paths(compositions, out / "paths.png")
        written.append(out / "paths.png")
    return written


def draw_redrawn(ablations: Mapping[str, tuple[Report, Arrays]], out: Path) -> list[Path]:
    """redrawn_<name>.png: the ink of each model with and without heads."""
    written = []

    for name, (report, arrays) in ablations.items():
        writes = any(key.startswith("redrawn/") for key in arrays)
        draw = figures_ink.redrawn if writes else figures_ink.continued

        draw(arrays, report, path := out / f"redrawn_{name}.png")
        written.append(path)

    return written


def _is_the_pipelines(folder: Path) -> bool:
    """Whether these are the files of the study's stages, not those of an experiment."""
    home = project_root() / "data" / "cursive_circuits"
    return folder.resolve() == home.resolve()


def draw_ink(folder: Path, out: Path) -> list[Path]:
    """ink_<name>.png of each model, and one ink.html to hover over."""
    written = []

    for place in _drawings(folder):
        arrays = load_arrays(place)
        best, cross = ((int(a), int(b)) for a, b in (arrays["best"], arrays["best_cross"]))
        figures_ink.over_ink(arrays, place.stem, best, cross, path := out / f"ink_{place.stem}.png")
        written.append(path)

    return [*written, draw_page(folder, out)]


def draw_page(folder: Path, out: Path) -> Path:
    """One ink.html of all models, to hover over: what every head reads at every stroke."""
    drawings = {place.stem: load_json(place.with_suffix(".json")) for place in _drawings(folder)}
    figures_page.write_page(drawings, out / "ink.html")
    return out / "ink.html"


def _drawings(folder: Path) -> list[Path]:
    """Arrays of drawings, the model that writes first: the page opens with it."""
    return sorted((folder / "scores" / "draw").glob("*.npz"), reverse=True)


def _found(folder: Path, command: str) -> dict[str, tuple[Report, Arrays]]:
    """A command's reports and arrays by model, the one that writes first."""
    places = sorted((folder / "metrics" / command).glob("*.json"), reverse=True)
    scores = folder / "scores" / command
    return {
        place.stem: (load_json(place), load_arrays(scores / f"{place.stem}.npz"))
        for place in places
    }
