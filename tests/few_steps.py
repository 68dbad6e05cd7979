"""A few training steps of each kind of model, and products as the measures take them: digests of
their bytes.

Run as a program it prints one JSON object, which must be that of tests/committed_digits.json on
every processor.
"""

import hashlib
import json
from collections.abc import Callable

import interp_core.settled  # noqa: F401 - before the libraries it decides for

# isort: split

import numpy as np
import torch
from torch import Tensor, nn

from cursive_circuits.model import CursiveTransformer
from cursive_circuits.model_blocks import Shape as CursiveShape
from eigen_phase.measure_curvature import next_token_hessian
from eigen_phase.measure_spectrum import eigenpairs
from eigen_phase.model import Shape as EigenShape
from eigen_phase.model import Transformer
from interp_core.mamba.selective_scan import fast_scan
from interp_core.training.mamba_models import MambaShape, build
from interp_core.training.reference_models import Architecture, Shape, new_model

STEPS = 3
VOCABULARY = 513


def digest(*values: Tensor | np.ndarray) -> str:
    """Twelve hex digits of the bytes of some arrays."""
    found = hashlib.sha256()

    for value in values:
        array = value.detach().numpy() if isinstance(value, Tensor) else value
        found.update(np.ascontiguousarray(array).tobytes())

    return found.hexdigest()[:12]


def train(model: nn.Module, vocabulary: int, *, rows: int, length: int) -> str:
    """Digest of the weights after a few steps of AdamW on random rows."""
    rng = np.random.default_rng(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.01)

    for _ in range(STEPS):
        ids = torch.from_numpy(rng.integers(vocabulary, size=(rows, length)))
        logits = model(input_ids=ids).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return digest(*model.state_dict().values())


def transformer() -> str:
    """A member of the reference family."""
    architecture = Architecture(context=256, mlp_ratio=4, rotary_share=0.5, initializer_range=0.06)
    model = new_model(Shape(layers=2, heads=4, width=128), architecture, VOCABULARY, seed=0)
    return train(model, VOCABULARY, rows=16, length=48)


def mamba() -> str:
    """A Mamba on the project's scan."""
    shape = MambaShape(
        kind="mamba",
        layers=2,
        width=128,
        state=16,
        expand=2,
        taps=4,
        initializer_range=0.1,
        learning_rate=1e-2,
    )
    model = build(shape, VOCABULARY, seed=0)

    with fast_scan(model):
        return train(model, VOCABULARY, rows=8, length=40)


def writer() -> str:
    """The transformer that writes, on two threads as it is trained."""
    shape = CursiveShape(
        layers=2,
        heads=4,
        d_model=64,
        context=420,
        characters=50,
        positions="rotary",
        rotary_base=1000.0,
        initializer_range=0.08,
        text_range=1.0,
        gelu="none",
        mask_padding=True,
    )
    torch.set_num_threads(2)
    try:
        return train(
            CursiveTransformer(shape, vocabulary=138, alphabet=27, seed=0), 138, rows=4, length=200
        )
    finally:
        torch.set_num_threads(1)


def curvature() -> str:
    """The largest eigenvalues of a small transformer's Hessian, and where they point."""
    shape = EigenShape(
        vocab_size=50,
        seq_length=24,
        n_layers=2,
        n_heads=4,
        d_model=32,
        mlp_ratio=1,
        rotary_base=10000.0,
        initializer_range=0.125,
        clamp_to=None,
    )
    model = Transformer(shape, seed=0)
    train(model, 50, rows=8, length=24)

    ids = torch.from_numpy(np.random.default_rng(1).integers(50, size=(8, 24)))
    generator = torch.Generator().manual_seed(0)

    with model.explicit_attention():
        operator = next_token_hessian(model, ids, ids, micro_batch=8)
        found = eigenpairs(operator, k=2, tolerance=1e-2, max_products=25, generator=generator)

    return digest(found.values, found.vectors)


def libraries() -> str:
    """Products, decompositions and elementwise functions of NumPy and PyTorch, in float32 and
    float64.
    """
    rng = np.random.default_rng(2)
    square, long = rng.standard_normal((60, 60)), rng.standard_normal(5000)
    tensor, vector = torch.from_numpy(square), torch.from_numpy(long).float()
    symmetric = square + square.T

    return digest(
        square @ symmetric,
        np.linalg.eigvalsh(symmetric),
        np.linalg.svd(square, compute_uv=False),
        np.exp(long),
        np.array(long.sum()),
        tensor @ tensor,
        torch.mv(tensor, tensor[0]),
        torch.dot(vector, vector),
        torch.linalg.eigvalsh(tensor + tensor.T),
        torch.linalg.svdvals(tensor.float()),
        torch.exp(vector),
        torch.erf(vector),
        vector.abs().sqrt(),
    )


PARTS: tuple[Callable[[], str], ...] = (transformer, mamba, writer, curvature, libraries)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({part.__name__: part() for part in PARTS}, indent=2))
