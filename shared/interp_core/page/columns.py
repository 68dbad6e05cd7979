"""A training's saved history, read back for figures and pages."""

import csv
from pathlib import Path

import numpy as np

from interp_core.errors import InputError
from interp_core.files.way_out import way_out


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Columns of a history by name. InputError where there is none."""
    try:
        with path.open() as opened:
            rows = list(csv.DictReader(opened))
    except FileNotFoundError:
        told = "run the training first (`dvc repro` runs all)"
        raise InputError(f"{path} is missing: {told}{way_out(path, 'writes')}") from None

    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
