"""Public cursive-transformer checkpoints: their names, one by one, onto ours.

Nothing is left out or guessed.

Their attention packs queries, keys and values in one map (c_attn: d rows each), cross-attention
keys and values in another (c_attn_kv); `attn.bias` is no weight but their causal mask, and is
checked to be one. Rows of tokens are put in the order of `Vocabulary`. They read texts padded to
the longest they know, and see the padding.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cursive_circuits.data_public_tokens import PublicTokens
from cursive_circuits.data_tokens import Vocabulary
from cursive_circuits.model import CursiveTransformer
from cursive_circuits.model_shape import Shape
from cursive_circuits.params import CursiveCircuits
from cursive_circuits.run_directory import Trained, open_run
from interp_core.errors import InputError, first_line
from interp_core.files.artifacts import BROKEN_ARCHIVE, load_weights
from interp_core.files.params import check

_OUTSIDE = {
    "transformer.wte.weight": "embed.weight",
    "transformer.wpe.weight": "place.weight",
    "transformer.wce.weight": "character.weight",
    "transformer.wcpe.weight": "character_place.weight",
    "transformer.ln_f.weight": "norm.weight",
    "transformer.ln_f.bias": "norm.bias",
    "lm_head.weight": "unembed.weight",
}
_IN_BLOCK = {
    "ln_1": "self_norm",
    "ln_2": "cross_norm",
    "ln_3": "mlp_norm",
    "attn.c_proj": "self_attention.out",
    "cross_attn.c_attn_q": "cross_attention.q",
    "cross_attn.c_attn_kv": "cross_attention.kv",
    "cross_attn.c_proj": "cross_attention.out",
    "mlp.c_fc": "up",
    "mlp.c_proj": "down",
}


def open_trained(path: Path, params: CursiveCircuits) -> Trained:
    """A run directory, or a public checkpoint beside the settings that its file does not hold."""
    if path.is_dir():
        return open_run(path)
    shape = params.configurations[params.handwriting.configuration]
    tokens, alphabet = PublicTokens(), params.bank.alphabet
    return Trained(
        checkpoint_stem(path),
        load_public(path, shape, tokens=tokens, alphabet=alphabet),
        tokens,
        alphabet,
    )


def load_public(
    path: Path, shape: Shape, *, tokens: Vocabulary, alphabet: str
) -> CursiveTransformer:
    """A model with a public checkpoint's weights, in eval mode.

    Its sizes are the file's; `shape` adds what no tensor says, the number of heads.

    InputError for a file that is missing or damaged, tokens that are not the public ones, keys that
    are missing or surplus (all are listed), and tensors of another vocabulary, alphabet or width.
    """
    if not isinstance(tokens, PublicTokens):
        raise InputError(
            f"{path}: a public checkpoint knows the public tokens alone; other tokens mean other "
            "strokes"
        )

    found = _read(path)
    shape = _shape_of(found, shape, path)
    wanted = public_names(shape)
    masks = {f"transformer.h.{layer}.attn.bias" for layer in range(shape.layers)}
    missing, surplus = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted) - masks)
    if missing or surplus:
        told = [
            f"{what} {', '.join(names)}"
            for what, names in (("missing", missing), ("surplus", surplus))
            if names
        ]
        raise InputError(
            f"{path}: not a checkpoint of {shape.layers} layers: {'; '.join(told)[:600]}"
        )
    for name in sorted(masks & set(found)):
        if not _is_causal(found[name], shape.context):
            raise InputError(f"{path}: {name} is not a causal mask")
    _speaks(found, tokens, alphabet, path)

    sizes = {"vocabulary": tokens.size, "alphabet": len(alphabet)}
    # Sizes are compared before anything is indexed, and before memory is taken for them.
    with torch.device("meta"):
        _check_sizes(found, wanted, CursiveTransformer(shape, **sizes, seed=0), path)

    ours: dict[str, Tensor] = {}
    for name, targets in wanted.items():
        for target, part in zip(targets, _split(found[name], targets, shape.d_model), strict=True):
            ours[target] = part
    order = torch.from_numpy(tokens.public_ids)
    for name in ("embed.weight", "unembed.weight"):
        ours[name] = ours[name][order]

    model = CursiveTransformer(shape, **sizes, seed=0)
    model.load_state_dict(ours, strict=True)
    return model.eval()


def _is_causal(mask: Tensor, context: int) -> bool:
    """Whether it is ones on and below the diagonal; axes of one may stand before its two."""
    if mask.shape[-2:] != (context, context) or mask.numel() != context**2:
        return False
    square = mask.reshape(context, context).bool()
    return torch.equal(square, torch.ones_like(square).tril())


def _check_sizes(
    found: dict[str, Tensor],
    wanted: dict[str, list[str]],
    model: CursiveTransformer,
    path: Path,
) -> None:
    """InputError for a tensor of another size than the others make it."""
    sizes = {name: tensor.shape for name, tensor in model.state_dict().items()}

    for name, targets in wanted.items():
        rows = sum(sizes[target][0] for target in targets)
        needed = [rows, *sizes[targets[0]][1:]]
        if list(found[name].shape) != needed:
            raise InputError(
                f"{path}: {name} is {list(found[name].shape)}, its other tensors need {needed}"
            )


def _shape_of(found: dict[str, Tensor], shape: Shape, path: Path) -> Shape:
    """The sizes that the tensors have, and what public models are: learned positions, tanh's GELU,
    no mask.
    """
    if missing := [name for name in _OUTSIDE if name not in found]:
        raise InputError(f"{path}: not a public checkpoint: missing {', '.join(missing)}")
    if flat := [
        name
        for name in _OUTSIDE
        if name.endswith("weight") and "ln_f" not in name and found[name].ndim != 2
    ]:
        raise InputError(f"{path}: {flat[0]} is {list(found[flat[0]].shape)}, not a matrix")
    # As many as there are, not what the largest is called: a name costs nothing.
    blocks = {name.split(".")[2] for name in found if re.match(r"transformer\.h\.\d+\.", name)}
    sizes = {
        "layers": max(len(blocks), 1),
        "d_model": found["transformer.wte.weight"].shape[1],
        "context": found["transformer.wpe.weight"].shape[0],
        "characters": found["transformer.wcpe.weight"].shape[0],
    }
    kinds = {"positions": "learned", "gelu": "tanh", "mask_padding": False}
    return check(Shape, shape.model_dump() | sizes | kinds, where=str(path))


def _speaks(found: dict[str, Tensor], tokens: PublicTokens, alphabet: str, path: Path) -> None:
    """InputError for another vocabulary or alphabet."""
    ids = found["transformer.wte.weight"].shape[0]
    if ids != tokens.size:
        raise InputError(
            f"{path}: has {ids} tokens, the public tokenizer {tokens.size}: it was trained with "
            "another version of it"
        )
    characters = found["transformer.wce.weight"].shape[0] - 1
    if characters != len(alphabet):
        raise InputError(
            f"{path}: knows {characters} characters, `bank.alphabet` has {len(alphabet)}: name its "
            "own, in its order "
            "(the profile paper has the public one)"
        )


def checkpoint_stem(path: Path) -> str:
    """A checkpoint's name in file names: its file without the ending.

    Other dots are the name's: run-1.4, run-1.7.
    """
    return path.stem if path.suffix in (".safetensors", ".ckpt", ".pth", ".pt") else path.name


def public_names(shape: Shape) -> dict[str, list[str]]:
    """Their key -> ours, in the order in which their rows are packed."""
    names = {theirs: [ours] for theirs, ours in _OUTSIDE.items()}
    for layer in range(shape.layers):
        for kind in ("weight", "bias"):
            packed = [f"blocks.{layer}.self_attention.{part}.{kind}" for part in ("q", "kv")]
            names[f"transformer.h.{layer}.attn.c_attn.{kind}"] = packed
            for theirs, ours in _IN_BLOCK.items():
                names[f"transformer.h.{layer}.{theirs}.{kind}"] = [f"blocks.{layer}.{ours}.{kind}"]
    return names


def _split(tensor: Tensor, targets: list[str], d_model: int) -> list[Tensor]:
    return [tensor] if len(targets) == 1 else [tensor[:d_model], tensor[d_model:]]


def _read(path: Path) -> dict[str, Tensor]:
    """Named tensors of a .safetensors file, or of a torch file whose contents are tensors and plain
    numbers alone.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint {path}")
    if path.suffix == ".safetensors":
        return load_weights(path)
    from pickle import UnpicklingError

    # PyTorch's reader is a small machine: a changed instruction may fail in any of its parts.
    broken = (UnpicklingError, LookupError, TypeError, AttributeError, AssertionError)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (*broken, *BROKEN_ARCHIVE) as problem:
        raise InputError(
            f"{path} is no checkpoint of plain tensors: {first_line(problem)}"
        ) from None
    content = content.get("model_state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise InputError(f"{path}: holds no named tensors")
    return content
