"""Rows that a run is measured on: none of them is in a training batch."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from eigen_phase.data import Data, Sequences, draw, masked_labels
from eigen_phase.params import Training

HELD_OUT, PROBE, INDEPENDENT = 1, 2, 3  # streams of rows that no training batch uses


def held_out_rows(training: Training, settings: Data) -> Sequences:
    """Rows that behaviour and heads are measured on."""
    return _rows(training, settings, training.held_out_sequences, HELD_OUT)


def probe_rows(
    training: Training, *, rows: int | None = None, stream: int = PROBE, draw_number: int = 0
) -> Sequences:
    """Rows of the training's own kind that the Hessian is of.

    Other numbers of rows are other rows, and so is every `draw_number`.
    """
    n = rows or training.probe_sequences
    return _rows(training, training.data_settings, n, stream, draw_number)


def _rows(
    training: Training, settings: Data, n: int, stream: int, draw_number: int = 0
) -> Sequences:
    # Three numbers or more: never the stream of a training batch.
    seeds = [training.seed, 0, stream, *([draw_number] if draw_number else [])]
    return draw(np.random.default_rng(seeds), n, settings)


def labelled(
    sequences: Sequences, training: Training
) -> tuple[Int[Tensor, "row position"], Int[Tensor, "row position"]]:
    """Input ids and labels as the training sees them."""
    labels = masked_labels(sequences, leave_out_predictable=training.leave_out_predictable)
    return torch.from_numpy(sequences.ids), torch.from_numpy(labels)
