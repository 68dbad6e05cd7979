"""A second device where there is none: tensors that say they are on it, compute on the CPU, and
refuse to be mixed with others, as a GPU's do.

`appear()` makes the device "twin" known to torch, for the rest of the process. Inside
`two_devices()` what is made on it, or moved to it, is a tensor of its own kind. An operation on
tensors of two devices is a RuntimeError, but for single numbers and for indices on the CPU, which
CUDA takes too.

`python tests/two_devices.py KIND` divides a model of this type between the CPU and the twin, either
way round, and prints the largest difference of all that is measured from the model in one piece.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

TWIN, CPU = "twin:0", "cpu"
_INDEXING = ("aten.index.Tensor", "aten.index_put", "aten._index_put_impl", "aten._unsafe_index")
_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class _There(Tensor):
    """A tensor on the twin; its numbers are on the CPU."""

    numbers: Tensor

    @staticmethod
    def __new__(cls: Any, numbers: Tensor, device: torch.device) -> "_There":
        make: Any = Tensor._make_wrapper_subclass  # pyright: ignore[reportAttributeAccessIssue]
        return make(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=device,
        )

    def __init__(self, numbers: Tensor, device: torch.device) -> None:
        self.numbers = numbers

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _computed(func, args, kwargs or {})


class _Machine(TorchDispatchMode):
    """Sees also what is made on a device out of nothing."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given, _ = tree_flatten((args, kwargs))
    tensors = [one for one in given if isinstance(one, Tensor)]
    device = _device_of(func, args, kwargs, tensors)

    plain_args, plain_kwargs = tree_map_only(_There, lambda one: one.numbers, (args, kwargs))
    if "device" in plain_kwargs:
        plain_kwargs["device"] = torch.device("cpu")
    result = func(*plain_args, **plain_kwargs)
    if device.type == "cpu":
        return result

    # What was changed in place is the tensor that was given.
    before = {id(one.numbers): one for one in tensors if isinstance(one, _There)}
    return tree_map_only(
        Tensor, lambda one: before[id(one)] if id(one) in before else _There(one, device), result
    )


def _device_of(func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> torch.device:
    """Where an operation runs. RuntimeError where its tensors are on several devices."""
    asked = kwargs.get("device")
    if func in _MOVES:
        return tensors[0].device if asked is None else torch.device(asked)

    here = {one.device for one in tensors if one.ndim > 0 or one.device.type != "cpu"}
    if str(func).startswith(_INDEXING):
        here = (here - {torch.device("cpu")}) | {args[0].device}
    if len(here) > 1:
        raise RuntimeError(f"{func}: expected all tensors on one device, found {here}")
    if asked is not None:
        return torch.device(asked)
    return here.pop() if here else torch.device("cpu")


def appear() -> None:
    """Let torch know a device called twin."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("twin")
    # Lists of indices become tensors below the level that a tensor's own kind sees.
    _LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")
    _LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")


_LIBRARY = torch.library.Library("aten", "IMPL")


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return _There(torch.empty_strided(size, stride, dtype=dtype), torch.device(TWIN))


def _copy_from(source: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
    plain = [one.numbers if isinstance(one, _There) else one for one in (source, to)]
    plain[1].copy_(plain[0])
    return to


@contextmanager
def two_devices() -> Iterator[None]:
    """Inside the block the twin can be computed on."""
    with _Machine():
        yield


def main(kind: str) -> None:
    """Print the largest relative difference of each measure, by where the first half is."""
    from accelerate import dispatch_model

    import decoders
    from divided_models import halves, measured
    from interp_core.loading import subject_of
    from interp_core.models import hooks

    def read_at_once(tensor: Tensor, on_read: Any) -> Tensor:
        on_read()
        return tensor

    # Whether an edit is read is seen by a kind of tensor, and a tensor cannot be of two kinds.
    hooks._Watched.watch = read_at_once  # pyright: ignore[reportAttributeAccessIssue]
    appear()
    expected = measured(subject_of(decoders.build(kind).double(), bos=0))

    for first, second in ((TWIN, CPU), (CPU, TWIN)):
        model: Any = decoders.build(kind).double()
        with two_devices():
            # By its word: accelerate offloads what is on the CPU where its main device is another.
            home: Any = CPU
            model = dispatch_model(model, halves(model, first, second), main_device=home)
            subject = subject_of(model, bos=0)
            assert subject.device == torch.device(first)
            assert {p.device.type for p in model.parameters()} == {"cpu", "twin"}
            found = measured(subject)
        assert found.keys() == expected.keys()
        apart = {
            name: float(np.abs(found[name] - values).max() / max(1.0, np.abs(values).max()))
            for name, values in expected.items()
        }
        print(first, max(apart.items(), key=lambda item: item[1]))
        assert max(apart.values()) <= 1e-6, apart


if __name__ == "__main__":
    main(*sys.argv[1:])
    # Autograd's thread for the made-up device is not joined: a slow exit would end in an abort.
    sys.stdout.flush()
    os._exit(0)
