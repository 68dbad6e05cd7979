"""A forward pass kept block by block, to run a model again from any layer on.

What is changed in a layer leaves everything before it as it was: only the blocks behind it run
again, and several changes can be stacked in the batch of one such run.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from interp_core.models.anatomy import rest_of
from interp_core.models.hooks import hooked
from interp_core.models.native import NativeSubject


@dataclass(frozen=True)
class Recording:
    """A clean run: the input of each block (and of the final norm, as if it were one block more)
    and what else it was called with, to run the blocks again from anywhere.
    """

    inputs: dict[int, Float[Tensor, "batch position d_model"]] = field(default_factory=dict)
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)

    def run(
        self,
        subject: NativeSubject,
        layer: int,
        residual: Float[Tensor, "copies_batch position d_model"],
    ) -> Float[Tensor, "copies_batch position d_model"]:
        """The residual stream after the last block, starting with `residual` before block `layer`;
        the batch may hold several copies of the recorded one. It comes back at the subject's home.
        """
        batch = len(self.inputs[layer])
        copies = len(residual) // batch

        def spread(value: Any) -> Any:
            per_row = isinstance(value, Tensor) and value.ndim > 1 and len(value) == batch > 1
            return value.repeat(copies, *[1] * (value.ndim - 1)) if per_row else value

        for later in range(layer, subject.n_layers):
            args, kwargs = tree_map(spread, self.calls[later])
            output = subject.anatomy.layers[later].block(residual, *args, **kwargs)
            residual = output[0] if isinstance(output, tuple) else output
        return residual.to(subject.device)


@contextmanager
def recording(subject: NativeSubject) -> Iterator[Recording]:
    """Record the last forward pass inside the block."""
    record = Recording()
    with ExitStack() as stack:
        for layer in range(subject.n_layers):
            block = subject.anatomy.layers[layer].block

            def keep(
                module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], layer: int = layer
            ) -> None:
                record.inputs[layer] = args[0] if args else next(iter(kwargs.values()))
                record.calls[layer] = rest_of(args, kwargs)

            stack.callback(block.register_forward_pre_hook(keep, with_kwargs=True).remove)

        def keep_last(residual: Tensor) -> None:
            record.inputs[subject.n_layers] = residual

        stack.enter_context(hooked(subject.anatomy.layers[-1].block, "output", keep_last))
        yield record
