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
from interp_core.console.made_from import MADE_FROM
from interp_core.files.artifacts import load_arrays, load_json

Report = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]
OFFSETS = range(-4, 9)
SEEN = 0.05  # share of a map's variance below which the eye finds no pattern in it


def draw_all(folder: Path, *, only: str | None = None) -> list[Path]:
    """Every figure of the commands that have run, or of the `only` one, into folder/figures;
    returns the files.

    Reads folder/scores, folder/metrics and the histories of folder/runs. A command without metrics
    has not run; a model of the user's has its own name in the files. InputError names what is
    missing or damaged.
    """
    out = folder / "figures"
    written = []

    def found(command: str) -> dict[str, tuple[Report, Arrays]]:
        return _found(folder, command) if only in (None, command) else {}

    histories = {
        place.parent.name: load_json(place)["rows"]
        for place in sorted(folder.glob("runs/*/history.json"))
    }
    if histories and only in (None, "train"):
        figures_heads.training(dict(reversed(histories.items())), out / "training.png")
        written.append(out / "training.png")
    for name, (report, arrays) in found("sample").items():
        figures_ink.samples(arrays, report, path := out / f"samples_{name}.png")
        written.append(path)
    for name, (report, arrays) in found("attention").items():
        figures_heads.alignment(arrays, report, path := out / f"alignment_{name}.png")
        written.append(path)
    written += draw_heads(found("heads"), out)
    for name, (report, arrays) in found("circuits").items():
        written += draw_circuits(arrays, report, name, out)
    written += draw_interventions(found("ablate"), found("composition"), out)
    if (folder / "scores" / "draw").is_dir() and only in (None, "draw"):
        written += draw_ink(folder, out)
    return written


def draw_heads(found: Mapping[str, tuple[Report, Arrays]], out: Path) -> list[Path]:
    """excess_<name>.png, scores_<name>.png, gain_<name>.png, and offsets.png of all models."""
    written, profiles = [], {}
    for name, (report, arrays) in found.items():
        figures_heads.excess(arrays, report, name, out / f"excess_{name}.png")
        family = "mismatched_text" if "mismatched_text" in report["families"] else "synthetic"
        figures_heads.score_maps(arrays, family, name, out / f"scores_{name}.png")
        written += [out / f"excess_{name}.png", out / f"scores_{name}.png"]
        if "gain" in report:
            figures_heads.gain(report["gain"], out / f"gain_{name}.png")
            written.append(out / f"gain_{name}.png")
        best = report["families"][family]["anywhere"]["head"]
        layer, head = (int(part) for part in best[1:].split("H"))
        keys = [f"{family}/offset/{offset:+d}" for offset in OFFSETS]
        values = [
            [arrays[f"{key}{end}"][layer, head] for end in ("", "_low", "_high")] for key in keys
        ]
        profiles[name] = (best, np.array(values))
    if profiles:
        figures_heads.offsets(profiles, list(OFFSETS), out / "offsets.png")
        written.append(out / "offsets.png")
    return written


def draw_circuits(arrays: Arrays, report: Report, name: str, out: Path) -> list[Path]:
    """ov_ and (for a model that reads) characters_<name>.png; qk_, circle_ and kernel_ only where
    the angle between two directions explains a visible share of some head's map.
    """
    paths = {"ov": out / f"ov_{name}.png"}
    figures_circuits.direction_maps(arrays, name, paths["ov"], kind="ov")

    # Random strokes have no geometry to learn: their maps are noise, and no figure.
    if max(head["angular_share"] for head in report["heads"].values()) >= SEEN:
        paths |= {kind: out / f"{kind}_{name}.png" for kind in ("qk", "circle", "kernel")}
        figures_circuits.direction_maps(arrays, name, paths["qk"], kind="qk")
        figures_circuits.circles(arrays, report["heads"], name, paths["circle"])
        figures_circuits.kernels(arrays, name, paths["kernel"])

    if "reads" in report:
        paths["characters"] = out / f"characters_{name}.png"
        layer, head = (int(part) for part in report["reads"][1:].split("X"))
        figures_circuits.characters(arrays, report["alphabet"], (layer, head), paths["characters"])
    return list(paths.values())


def draw_interventions(
    ablations: Mapping[str, tuple[Report, Arrays]],
    compositions: Mapping[str, tuple[Report, Arrays]],
    out: Path,
) -> list[Path]:
    """ablation.png and paths.png of all models; single_heads_, redrawn_, composition_<name>.png."""
    written = []
    if ablations:
        figures_causal.ablation(
            {name: report for name, (report, _) in ablations.items()}, out / "ablation.png"
        )
        written.append(out / "ablation.png")
    for name, (report, arrays) in ablations.items():
        figures_causal.single_heads(arrays, name, out / f"single_heads_{name}.png")
        draw = (
            figures_ink.redrawn
            if any(key.startswith("redrawn/") for key in arrays)
            else figures_ink.continued
        )
        draw(arrays, report, out / f"redrawn_{name}.png")
        written += [out / f"single_heads_{name}.png", out / f"redrawn_{name}.png"]
    for name, (_, arrays) in compositions.items():
        figures_circuits.composition(arrays, name, path := out / f"composition_{name}.png")
        written.append(path)
    if compositions:
        figures_causal.paths(compositions, out / "paths.png")
        written.append(out / "paths.png")
    return written


def draw_ink(folder: Path, out: Path) -> list[Path]:
    """ink_<name>.png of each model, and one ink.html to hover over."""
    written, pages = [], {}

    # The model that writes first: the page opens with it.
    for place in sorted((folder / "scores" / "draw").glob("*.npz"), reverse=True):
        arrays = load_arrays(place)
        best, cross = ((int(a), int(b)) for a, b in (arrays["best"], arrays["best_cross"]))
        figures_ink.over_ink(arrays, place.stem, best, cross, path := out / f"ink_{place.stem}.png")
        written.append(path)

        page = load_json(place.with_suffix(".json"))
        page.pop(MADE_FROM, None)
        pages[place.stem] = page

    figures_page.write_page(pages, out / "ink.html")
    return [*written, out / "ink.html"]


def _found(folder: Path, command: str) -> dict[str, tuple[Report, Arrays]]:
    """A command's reports and arrays by model, the one that writes first."""
    places = sorted((folder / "metrics" / command).glob("*.json"), reverse=True)
    scores = folder / "scores" / command
    return {
        place.stem: (load_json(place), load_arrays(scores / f"{place.stem}.npz"))
        for place in places
    }
