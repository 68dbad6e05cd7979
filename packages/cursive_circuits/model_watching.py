"""What attention does while the model runs, collected inside a `with` block."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from cursive_circuits.model import KINDS, CursiveTransformer, Kind
from interp_core.models.attention import AttentionCall, fused_attention


@dataclass(frozen=True)
class Seen:
    """One attention layer as it ran."""

    read: Float[
        Tensor, "row position d_model"
    ]  # the normed residual stream that queries (self: keys, values too) read
    z: Float[Tensor, "row position head d_head"]  # what each head collected, before W_O
    call: AttentionCall


@contextmanager
def observing(model: CursiveTransformer) -> Iterator[dict[tuple[int, Kind], Seen]]:
    """Collect every attention layer of the last forward pass inside the block."""
    seen: dict[tuple[int, Kind], Seen] = {}
    places: list[tuple[int, Kind]] = [(n, kind) for n in range(model.n_layers) for kind in KINDS]

    def watch(
        place: tuple[int, Kind],
        x: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        wide = None if mask is None else mask.expand(len(query), 1, query.shape[2], key.shape[2])
        scaling = query.shape[-1] ** -0.5
        z, logsumexp = fused_attention(query, key, value, wide, scaling)
        call = AttentionCall(query, key, value, logsumexp, scaling, wide)
        seen[place] = Seen(x, rearrange(z, "row head position e -> row position head e"), call)
        return z

    for place in places:
        model.attention(*place).watch = partial(watch, place)
    try:
        yield seen
    finally:
        for place in places:
            model.attention(*place).watch = None


@contextmanager
def observing_mlps(
    model: CursiveTransformer,
) -> Iterator[dict[int, Float[Tensor, "row position d_model"]]]:
    """Collect what every MLP adds to the stream in the last forward pass inside the block."""
    seen: dict[int, Tensor] = {}

    def keep(layer: int, _module: nn.Module, _inputs: object, written: Tensor) -> None:
        seen[layer] = written

    hooks = [
        block.down.register_forward_hook(partial(keep, layer))
        for layer, block in enumerate(model.layers)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
