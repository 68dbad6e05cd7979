"""One vocabulary of live curves for all studies: names by section, units, which way is better.

A history calls its columns as its study does; here they get the names of the dashboard. What is
one number a head, a pair of heads or an eigenpair becomes a row of a table, not a panel each.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

AXIS = "step"  # updates so far: the x axis of every curve


@dataclass(frozen=True)
class Curve:
    """One panel of the dashboard."""

    name: str  # section/name
    says: str  # what it is, with its unit
    best: Literal["min", "max"] | None = None  # which end of it is worth a summary


@dataclass(frozen=True)
class Cell:
    """A number's place in a table that grows with the steps."""

    table: str  # section/name
    row: str  # a head, a pair of heads, an eigenpair's rank
    column: str


NATS = "nats a token"
SHARE = "share of tokens, 0 to 1"

# By the name of a history's column, which may be a pattern.
CURVES: dict[str, Curve] = {
    "loss": Curve("train/loss", f"mean of the batches since the last row, {NATS}", "min"),
    "batch_loss": Curve("train/loss_of_batch", f"of one batch before its update, {NATS}", "min"),
    "(?:batch_)?learning_rate": Curve("train/learning_rate", "of the next update"),
    "tokens_per_second": Curve("speed/tokens_per_second", "tokens a second", "max"),
    "validation_loss|held_out_loss": Curve("heldout/loss", f"of held-out rows, {NATS}", "min"),
    "held_out_perplexity": Curve("heldout/perplexity", "e to the loss of held-out rows", "min"),
    "held_out_accuracy|accuracy": Curve("heldout/accuracy", f"of held-out rows, {SHARE}", "max"),
    "other_loss": Curve("heldout/loss_unpredictable", f"of what no copy tells, {NATS}", "min"),
    "held_out_(direction|radius|pen)": Curve(r"heldout/loss_\1", f"of one part of a pair, {NATS}"),
    "repeat_accuracy|pattern_accuracy": Curve(
        "copying/accuracy", f"of tokens that an earlier copy tells, {SHARE}", "max"
    ),
    "pattern_loss": Curve("copying/loss", f"of tokens that an earlier copy tells, {NATS}", "min"),
    r"accuracy_period_(\d+)": Curve(
        r"copying/accuracy_period_\1", f"of second copies at this period, {SHARE}", "max"
    ),
    r"copy_accuracy/(\d+)": Curve(
        r"copying/accuracy_copy_\1", f"of this copy (the last: and later ones), {SHARE}", "max"
    ),
    "(repeated_text|pairs|unpredicted|own)_accuracy": Curve(
        r"copying/accuracy_\1", f"of another kind of copy, {SHARE}", "max"
    ),
    "(?:best_)?prefix_matching": Curve(
        "heads/best_prefix_matching",
        "attention of the best head, or layer, to what followed, 0 to 1",
        "max",
    ),
    "top_eigenvalue": Curve(
        "curvature/top_eigenvalue", "largest of the Hessian, nats a squared unit of weight", "max"
    ),
    "most_negative_eigenvalue": Curve(
        "curvature/most_negative_eigenvalue",
        "of the Hessian, nats a squared unit of weight",
        "min",
    ),
    "spectral_norm": Curve(
        "curvature/spectral_norm", "largest by magnitude, nats a squared unit of weight", "max"
    ),
    "gradient_norm": Curve("curvature/gradient_norm", "of the probe's loss, nats a unit of weight"),
    "(worst|most_negative)_residual": Curve(
        r"curvature/\1_residual", "of an eigenpair, over its eigenvalue"
    ),
    "products": Curve("curvature/products", "Hessian-vector products of one look"),
    "persistence": Curve("curvature/persistence", "overlap with the look before, 0 to 1"),
    "alignment_(mass|independent|training|update|null)": Curve(
        r"curvature/alignment_\1", "share of a vector in the top eigenvectors, 0 to 1"
    ),
}

# The sections of the dashboard, in order; `other` is what a study has not given a name here.
SECTIONS = ("train", "heldout", "copying", "heads", "curvature", "speed", "ink", "other")

_CELLS = {
    r"(\w+)/(L\d+H\d+)": "heads/scores",
    r"(\w+)/(L\d+H\d+>L\d+H\d+)": "heads/pairs",
    r"(eigenvalues|residuals|alignment)/(\d+)": "curvature/eigenpairs",
}


def curve_of(column: str) -> Curve:
    """The curve of a history's column; one of section `other` where it has no name."""
    for pattern, curve in CURVES.items():
        if found := re.fullmatch(pattern, column):
            return Curve(found.expand(curve.name), curve.says, curve.best)
    return Curve(f"other/{column}", column.replace("_", " "))


def cell_of(column: str) -> Cell | None:
    """The place in a table of a number that is one of many, or None."""
    for pattern, table in _CELLS.items():
        if found := re.fullmatch(pattern, column):
            return Cell(table, found[2], found[1])
    return None


def by_head(score: str, values: Sequence[Sequence[float]]) -> dict[str, float]:
    """A score of every head, as columns that go into the table of heads."""
    return {
        f"{score}/L{layer}H{head}": float(value)
        for layer, row in enumerate(values)
        for head, value in enumerate(row)
    }
