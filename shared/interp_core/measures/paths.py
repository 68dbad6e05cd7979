"""Path patching: what one matrix of a head reads, without what another part of the model wrote.

Composition scores compare weights. This takes a part out of the residual stream that some heads
make their queries, keys or values from, and lets everything else run as it was (Wang et al. 2022).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from interp_core.models.hooks import Edit, HasSites, capture, intervene
from interp_core.models.sites import Site

Reads = Literal["q", "k", "v"]
_SITES: dict[Reads, str] = {"q": "attn.rot_q", "k": "attn.rot_k", "v": "attn.v"}


@runtime_checkable
class HasHeads(HasSites, Protocol):
    """A model with attention heads whose activations have names."""

    @property
    def n_heads(self) -> int:
        """Query heads a layer."""
        ...


@dataclass(frozen=True)
class Cut:
    """What some heads of a layer read through one matrix, less a part of the residual stream."""

    layer: int
    reads: Reads
    heads: tuple[int, ...]
    part: Float[Tensor, "batch position d_model"]


@contextmanager
def without(subject: HasHeads, cuts: Sequence[Cut], run: Callable[[], object]) -> Iterator[None]:
    """Inside the block the heads of each cut read a residual stream without its part.

    `run` runs the model on what it will get inside the block: a cut needs what its matrix makes of
    the other stream. Later layers see what earlier cuts did.
    """
    with ExitStack() as stack:
        for cut in sorted(cuts, key=lambda cut: cut.layer):
            site = Site(cut.layer, _SITES[cut.reads])

            def less(residual: Tensor, part: Tensor = cut.part) -> Tensor:
                return residual - part.to(residual.dtype)

            other = {Site(cut.layer, "resid_pre"): less}
            with intervene(subject, other), capture(subject, [site]) as seen:
                run()

            edit = _only(cut.heads, seen[site], subject.n_heads)
            stack.enter_context(intervene(subject, {site: edit}))
        yield


def _only(
    heads: Sequence[int], other: Float[Tensor, "batch position head d_head"], n_heads: int
) -> Edit:
    """Heads may share keys and values: only the groups that these heads read are replaced."""
    group = n_heads // other.shape[2]
    own = sorted({head // group for head in heads})

    def edit(activation: Tensor) -> Tensor:
        edited = activation.clone()
        edited[:, :, own] = other[:, :, own]
        return edited

    return edit
