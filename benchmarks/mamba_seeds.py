"""The laptop profile's Mamba from other seeds: does the recipe reach what is asked of it, or did
one seed?
"""

import csv
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import Row
from interp_core.files.params import project_root, read_section
from interp_core.training.mamba_models import MambaModels, train_all
from interp_core.training.reference_models import Places

TITLE = "The trained Mamba, three seeds: accuracy on what was seen once before"
SEEDS = (0, 1, 2)
ASKED = {
    "accuracy_period_8": 0.9,
    "accuracy_period_12": 0.9,
    "accuracy_period_16": 0.9,
    "accuracy_period_20": 0.8,
    "pairs_accuracy": 0.7,
    "repeated_text_accuracy": 0.85,
}


def rows(repetitions: int) -> list[Row]:
    """One row a seed and number; needs data/corpus.

    A training is the same every time: it is not repeated.
    """
    del repetitions
    found = []
    for seed in SEEDS:
        last = trained(seed)
        found += [
            Row(
                f"seed {seed}, {name.replace('_', ' ')}",
                f"{last[name]:.3f}",
                "",
                last[name],
                f">={least}",
            )
            for name, least in ASKED.items()
        ]
    return found


def trained(seed: int) -> dict[str, float]:
    """The last row of the history of a training from this seed."""
    params = read_section("mamba_models", MambaModels, "laptop", seed=seed, processes=1)
    with TemporaryDirectory() as folder:
        places = Places(
            project_root() / "data" / "corpus", Path(folder) / "models", Path(folder) / "history"
        )
        train_all(params, places, only=["mamba-2l"])
        with (places.history / "mamba-2l.csv").open() as opened:
            return {name: float(value) for name, value in list(csv.DictReader(opened))[-1].items()}
