"""Small cursive transformers with random weights."""

import torch

from cursive_circuits.data_tokens import Tokens
from cursive_circuits.model import CursiveTransformer
from cursive_circuits.model_shape import Shape

ALPHABET = " abcdefghijklmnopqrstuvwxyz"


def random_model(
    tokens: Tokens, *, seed: int = 0, spread: float = 0.5, **changes: object
) -> CursiveTransformer:
    """Weights large enough for attention that is not flat; biases and norms are not trivial."""
    settings = {
        "layers": 2,
        "heads": 2,
        "d_model": 16,
        "context": 200,
        "characters": 20,
        "positions": "rotary",
        "rotary_base": 100.0,
        "initializer_range": spread,
        "text_range": 1.0,
        "gelu": "tanh",
        "mask_padding": True,
    }
    shape = Shape.model_validate(settings | changes)
    model = CursiveTransformer(
        shape, vocabulary=tokens.size, alphabet=len(ALPHABET), seed=seed
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model
