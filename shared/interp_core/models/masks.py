"""Masks that older versions of transformers saved with a model's weights.

They are no weights: the architectures make them anew. Files of those years still hold them, such as
EleutherAI/gpt-neo-125M's. One is told by its name and by what is in it; anything else is a tensor
that the model lacks.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from zipfile import is_zipfile

import torch
from torch import Tensor

from interp_core.models.folder import weight_files

_TRIANGLES = (".attn.bias", ".attention.bias", ".attn.causal_mask")
_LOWEST = (".attn.masked_bias", ".attention.masked_bias")
_LOW = -1e3  # GPT-2's constant is -1e4, later ones' -1e9; a bias that was learned is near 0


def held_masks(folder: Path, names: Iterable[str]) -> set[str]:
    """Those of the tensors named, which a folder's files hold and its architecture lacks, that are
    old masks.
    """
    candidates = {name for name in names if name.endswith(_TRIANGLES + _LOWEST)}
    if not candidates:
        return set()
    return {name for name, tensor in _tensors(folder, candidates) if _is_mask(name, tensor)}


def _tensors(folder: Path, names: set[str]) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as held:
                for name in sorted(names & set(held.keys())):
                    yield name, held.get_tensor(name)
        else:
            # The format before PyTorch 1.6, which files of those years have, cannot be mapped.
            mapped = is_zipfile(file)
            held = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
            yield from ((name, held[name]) for name in sorted(names & set(held)))


def _is_mask(name: str, tensor: Tensor) -> bool:
    if name.endswith(_LOWEST):
        return tensor.numel() == 1 and float(tensor) <= _LOW
    return _is_causal(tensor)


def _is_causal(tensor: Tensor) -> bool:
    """Whether it is 1 where a token sees itself and those before it, or as many as a window holds,
    and else 0.
    """
    *outer, queries, keys = (0, 0, *tensor.shape)[-4:]
    if tensor.ndim < 2 or queries != keys or any(size > 1 for size in outer):
        return False

    plane = tensor.reshape(queries, keys)
    window = int((plane[-1] != 0).sum())
    seen = torch.ones(queries, keys, dtype=torch.bool).tril()
    seen &= ~torch.ones_like(seen).tril(-window)
    return window > 0 and torch.equal(plane.float(), seen.float())
