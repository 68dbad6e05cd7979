"""Small cursive transformers with random weights."""

import torch
from torch import Tensor

from cursive_circuits.data_tokens import Vocabulary
from cursive_circuits.model import CursiveTransformer
from cursive_circuits.model_shape import Shape

ALPHABET = " abcdefghijklmnopqrstuvwxyz"


def random_model(
    tokens: Vocabulary, *, seed: int = 0, spread: float = 0.5, **changes: object
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


def public_checkpoint(
    *,
    layers: int = 2,
    d_model: int = 16,
    context: int = 120,
    alphabet: str = ALPHABET,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Random weights under the names and in the sizes of a public checkpoint, with the masks that
    it holds.
    """
    d = d_model
    sizes = {
        "transformer.wte.weight": (525, d),
        "transformer.wpe.weight": (context, d),
        "transformer.wce.weight": (len(alphabet) + 1, d),
        "transformer.wcpe.weight": (50, d),
        "transformer.ln_f.weight": (d,),
        "transformer.ln_f.bias": (d,),
        "lm_head.weight": (525, d),
    }
    maps = {
        "attn.c_attn": (3 * d, d),
        "attn.c_proj": (d, d),
        "cross_attn.c_attn_q": (d, d),
        "cross_attn.c_attn_kv": (2 * d, d),
        "cross_attn.c_proj": (d, d),
        "mlp.c_fc": (4 * d, d),
        "mlp.c_proj": (d, 4 * d),
    }
    for layer in range(layers):
        at = f"transformer.h.{layer}"
        for name, (rows, columns) in maps.items():
            sizes |= {f"{at}.{name}.weight": (rows, columns), f"{at}.{name}.bias": (rows,)}
        for name in ("ln_1", "ln_2", "ln_3"):
            sizes |= {f"{at}.{name}.weight": (d,), f"{at}.{name}.bias": (d,)}

    generator = torch.Generator().manual_seed(seed)
    found = {name: 0.4 * torch.randn(size, generator=generator) for name, size in sizes.items()}
    for layer in range(layers):
        found[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, context, context).tril()
    return found
