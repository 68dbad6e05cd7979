"""The study's figures, from files alone: no model is loaded and no score computed here."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from interp_core.files.artifacts import load_arrays, load_json
from mamba_induction import (
    figures_causal,
    figures_gap,
    figures_layers,
    figures_sequences,
    figures_tuning,
)

Report = Mapping[str, Any]
Place = Callable[[str, str], Path]


def draw_all(models: Sequence[str], main: str, place: Place) -> list[Path]:
    """The figures of the commands that have run, for the named models, into place("figures", "");
    returns the files. Of `main` an experiment has single sequences too.

    `place` gives the folder of a kind of files and a command. A command of which no file is there
    has not run; otherwise every model's must be there. InputError names what is missing or damaged.
    """
    out = place("figures", "")
    written: list[Path] = []

    if analyses := reports(place, "analyse", "analysis", models):
        figures_layers.layer_wise(analyses, out / "layer_wise_induction.png")
        figures_layers.behaviour(analyses, out / "behaviour.png")
        written += [out / "layer_wise_induction.png", out / "behaviour.png"]

        # Single sequences are examples, no answers. An experiment has them, all its files being in
        # one folder; the pipeline keeps figures of whole sets of prompts alone.
        if out == place("scores", "analyse"):
            sequences = load_arrays(out / f"sequences_{main}.npz")
            written += figures_sequences.draw_sequences(sequences, main, out)

    if gaps := reports(place, "gap", "gap", models):
        figures_gap.prediction_gap(gaps, out / "prediction_gap.png")
        written.append(out / "prediction_gap.png")

    if causes := reports(place, "causal", "causal", models):
        figures_causal.causal(causes, out / "causal.png")
        written.append(out / "causal.png")

        # Without a needed read there is nothing of which to ask whether it suffices.
        if any(report["kept"] is not None for report in causes.values()):
            figures_causal.sufficient(causes, out / "sufficient.png")
            written.append(out / "sufficient.png")

    history = place("training", "") / "fine_tune.csv"
    arms = place("metrics", "fine_tune") / "arms.json"
    changed = place("metrics", "analyse") / "change.json"

    if history.is_file() and arms.is_file() and changed.is_file():
        drawn = (read_history(history), load_json(changed), load_json(arms))
        figures_tuning.fine_tuning(*drawn, out / "fine_tuning.png")
        written.append(out / "fine_tuning.png")

    return written


def reports(place: Place, command: str, stem: str, models: Sequence[str]) -> dict[str, Report]:
    """One command's reports by model; empty when none of them is there."""
    files = {name: place("metrics", command) / f"{stem}_{name}.json" for name in models}

    if not any(file.is_file() for file in files.values()):
        return {}

    return {name: load_json(file) for name, file in files.items()}


def read_history(path: Path) -> dict[str, np.ndarray]:
    """Columns of a training's history."""
    with path.open() as opened:
        rows = list(csv.DictReader(opened))

    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
