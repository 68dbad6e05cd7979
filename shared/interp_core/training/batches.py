"""What a training reads: batches of token ids with their labels, as functions of the step."""

from collections.abc import Callable, Mapping

from jaxtyping import Int
from torch import Tensor

IGNORED = -100  # a label that does not count, as in torch's cross_entropy

Batch = tuple[
    Int[Tensor, "row position"], Int[Tensor, "row position"]
]  # input ids, labels (label t is id t)
BatchSource = Callable[[int], Batch]  # the global batch of a step, a pure function of the step

# What else the model is given at a step, by keyword; rows as the batch's.
Inputs = Callable[[int], Mapping[str, Tensor]]
