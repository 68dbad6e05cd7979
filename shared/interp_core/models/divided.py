"""A model divided over several devices, or over memory and disk, for one that fits on none alone.

accelerate puts a hook on each part: before a part runs, its inputs come to its device, and weights
that lie elsewhere come too; afterwards they go again. So a divided model has a home, where ids go
in and logits come out. All that a subject shows of it is brought there, and what is put in its
place is taken back: who measures need not know where a layer runs.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What a user may say instead of a device: how accelerate fills devices, the fastest first.
MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def device_map_of(model: "PreTrainedModel") -> dict[str, int | str | torch.device] | None:
    """Which part of the model is where; None for a model that is in one piece."""
    found: Any = getattr(model, "hf_device_map", None)
    divided = found and any(hasattr(module, "_hf_hook") for module in model.modules())
    return dict(found) if divided else None


def home_of(model: "PreTrainedModel") -> torch.device:
    """Where ids go: where the embedding runs, which is not always where its weights lie."""
    embedding = model.get_input_embeddings()
    hook = getattr(embedding, "_hf_hook", None)
    # A module with several tasks has a hook that lists hooks.
    for one in getattr(hook, "hooks", [hook]):
        runs_on = getattr(one, "execution_device", None)
        if runs_on is not None:
            return torch.empty(0, device=runs_on).device
    return model.device


def torn_apart(model: "PreTrainedModel") -> tuple[str, str] | None:
    """Names of an embedding and an unembedding that are one tensor, of which one is on disk and the
    other not: the weights' file has it under one name.
    """
    device_map = device_map_of(model) or {}
    read, written = model.get_input_embeddings(), model.get_output_embeddings()
    paths = {module: path for path, module in model.named_modules()}
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if not tied or read not in paths or written not in paths:
        return None

    names = paths[read], paths[written]
    on_disk = [_place(name, device_map) == "disk" for name in names]
    return names if any(on_disk) and not all(on_disk) else None


def _place(name: str, device_map: Mapping[str, int | str | torch.device]) -> Any:
    """Where a module is: what the map says of it, or of the nearest that holds it."""
    while name not in device_map and name:
        name = name.rpartition(".")[0]
    return device_map.get(name)


@contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """Inside the block the module's own weights are there, wherever they lie between its runs."""
    if not any(parameter.is_meta for parameter in module.parameters(recurse=False)):
        yield
        return

    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


def weight_of(module: nn.Module | None) -> Tensor:
    """The weight of a linear map or an embedding."""
    assert module is not None
    with present(module):
        weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def in_one_piece(module: nn.Module) -> nn.Module:
    """The module, or where it belongs to a divided model, a copy without hooks that has weights."""
    if not hasattr(module, "_hf_hook"):
        return module

    with present(module):
        # The hook's forward is an attribute that belongs to the original: a copy would run that.
        hidden = ("_hf_hook", "_old_forward", "forward")
        kept = {name: value for name, value in vars(module).items() if name not in hidden}
        alone = object.__new__(type(module))
        alone.__dict__.update(copy.deepcopy(kept))
    return alone


def all_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of a model's state, by name; one at a time where not all are in memory."""
    for name, tensor in sorted(model.state_dict().items()):
        if not tensor.is_meta:
            yield name, tensor
            continue

        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        with present(module):
            yield name, getattr(module, own)


def shown_at(
    home: torch.device, function: Callable[[Tensor], Any]
) -> Callable[[Tensor], Tensor | None]:
    """The same function of an activation that is elsewhere: it sees it at home, and what it returns
    goes where the activation was.
    """

    def through(activation: Tensor) -> Tensor | None:
        if activation.device == home:
            return function(activation)

        result = function(activation.to(home))
        return None if result is None else result.to(activation.device)

    return through
