"""A transformer of eigen_phase small enough for its whole Hessian, a batch for it, and changed
settings.
"""

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from eigen_phase.measure_curvature import Operator
from eigen_phase.model import Transformer
from eigen_phase.model_shape import Shape
from eigen_phase.params import Training
from interp_core.files.params import check
from interp_core.training.batches import IGNORED


def tiny(*, mlp_ratio: int = 0, clamp_to: int | None = None) -> Transformer:
    shape = Shape(
        vocab_size=5,
        seq_length=6,
        n_layers=2,
        n_heads=2,
        d_model=4,
        mlp_ratio=mlp_ratio,
        rotary_base=100.0,
        initializer_range=0.7,
        clamp_to=clamp_to,
    )
    return Transformer(shape, seed=1).double()


def some_batch(rows: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, (rows, 6), generator=generator)
    labels = ids.clone()
    labels[0, 2:4] = IGNORED
    return ids, labels


def dense(operator: Operator) -> Tensor:
    return torch.stack([operator(row) for row in torch.eye(operator.size, dtype=operator.dtype)])


def changed(training: Training, **changes: object) -> Training:
    """The same run but for some settings. InputError when they cannot be."""
    return check(Training, training.model_dump() | changes, where="test")


class Products(LinearOperator):
    """Our operator as SciPy knows one."""

    def __init__(self, operator: Operator) -> None:
        super().__init__(np.dtype(np.float64), (operator.size, operator.size))
        self.operator = operator

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        vector = torch.from_numpy(x).flatten().to(self.operator.dtype)
        return self.operator(vector).double().numpy()
