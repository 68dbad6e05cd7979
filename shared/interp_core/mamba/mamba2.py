"""Mamba-2 as a subject (Dao & Gu 2024): heads that share one step and one rate of forgetting.

A layer's convolution runs over x, B and C; B and C come in groups of heads; what the scan gives is
gated and normed before it is written. The authors' code, which is products of matrices already,
runs in smaller chunks here: it pads every sequence to whole ones.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from interp_core.errors import InputError
from interp_core.mamba.subject import MambaSubject
from interp_core.models.hooks import hooked
from interp_core.models.sites import MAMBA_TAPS, Tap
from interp_core.models.subject import without_advice

CHUNK = 64  # tokens; the usual 256 would make short prompts many times as long

# It has no x_proj: in_proj gives gate, x, B, C and dt at once.
MAMBA2_TAPS: Mapping[str, Tap] = {
    name: tap for name, tap in MAMBA_TAPS.items() if name not in ("mixer.x", "mixer.x_proj")
}


@dataclass(frozen=True, eq=False)
class Mamba2Subject(MambaSubject):
    """A Mamba-2 language model. Its heads have channels, as a transformer's have."""

    @property
    def kind(self) -> str:
        return "Mamba-2"

    @property
    def d_inner(self) -> int:
        return self.heads * int(self.config.head_dim)

    @property
    def heads(self) -> int:
        """Heads of a layer: each has one dt and one rate of forgetting."""
        return int(self.config.num_heads)

    @property
    def unit(self) -> str:
        return "head"

    @property
    def n_scans(self) -> int:
        return self.heads

    @property
    def groups(self) -> int:
        """Groups of heads that share B and C."""
        return int(self.config.n_groups)

    @property
    def conv_channels(self) -> int:
        return self.d_inner + 2 * self.groups * self.d_state

    @property
    def taps(self) -> Mapping[str, Tap]:
        return MAMBA2_TAPS

    def check(self) -> None:
        for layer in range(self.n_layers):
            mixer = self.mixer(layer)
            if mixer.activation not in ("silu", "swish"):
                raise InputError(
                    f"{self.name}: a Mamba-2 mixer with activation {mixer.activation} is not known "
                    "here: only silu is"
                )

    def at_scan(
        self, layer: int, function: Callable[[Tensor], Tensor | None]
    ) -> AbstractContextManager[None]:
        """Call `function` with what a layer's scan gives, before gate and norm."""
        return hooked(self.mixer(layer).norm, "input", function)

    @contextmanager
    def fast(self) -> Iterator[None]:
        if self._stock[0]:
            yield
            return

        mixers: list[Any] = [self.mixer(layer) for layer in range(self.n_layers)]
        before = [mixer.chunk_size for mixer in mixers]

        for mixer, size in zip(mixers, before, strict=True):
            mixer.chunk_size = min(CHUNK, size)
        try:
            with without_advice():
                yield
        finally:
            for mixer, size in zip(mixers, before, strict=True):
                mixer.chunk_size = size
