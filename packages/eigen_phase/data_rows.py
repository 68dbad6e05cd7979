"""Rows that a run is measured on: none of them is in a training batch."""

import torch
from jaxtyping import Int
from torch import Tensor

from eigen_phase.data import Data, Sequences, draw, masked_labels
from eigen_phase.params import Training
from eigen_phase.streams import STREAMS


def held_out_rows(training: Training, settings: Data) -> Sequences:
    """Rows that behaviour and heads are measured on."""
    return draw(STREAMS.rng("held_out", training.seed), training.held_out_sequences, settings)


def probe_rows(training: Training, *, rows: int | None = None, draw_number: int = 0) -> Sequences:
    """Rows of the training's own kind that the Hessian is of.

    Other numbers of rows are other rows, and so is every `draw_number`.
    """
    if draw_number == 0:
        rng = STREAMS.rng("probe", training.seed)
    else:
        rng = STREAMS.rng("another_probe", training.seed, draw_number)

    return draw(rng, rows or training.probe_sequences, training.data_settings)


def independent_rows(training: Training, *, rows: int | None = None) -> Sequences:
    """As many rows of the same kind that the Hessian is not of."""
    rng = STREAMS.rng("independent", training.seed)
    return draw(rng, rows or training.probe_sequences, training.data_settings)


def labelled(
    sequences: Sequences, training: Training
) -> tuple[Int[Tensor, "row position"], Int[Tensor, "row position"]]:
    """Input ids and labels as the training sees them."""
    labels = masked_labels(sequences, leave_out_predictable=training.leave_out_predictable)
    return torch.from_numpy(sequences.ids), torch.from_numpy(labels)
