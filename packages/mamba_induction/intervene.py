"""What copying loses when one piece of a model is changed while it runs: layers, taps, single
reads, states.

Every edit is a context manager; nothing is left behind after it. Effects are changes of loss (nats)
and accuracy at the copy operations of each prompt.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_core.mamba.head_attention import HeadCall
from interp_core.mamba.hidden_attention import (
    Call,
    attention_entries,
    observing_mixers,
    state_after,
)
from interp_core.mamba.subject import MambaSubject
from interp_core.measures.means import PlaceMeans
from interp_core.models.hooks import Edit, capture, intervene
from interp_core.models.sites import Site
from interp_core.models.subject import AttentionRows, Subject, as_transformer
from mamba_induction.model import write_sites

Ablation = Literal["zero", "mean", "resample"]


@contextmanager
def without_layer(
    subject: Subject, layer: int, how: Ablation, means: dict[Site, Float[Tensor, " d_model"]]
) -> Iterator[None]:
    """All that a layer writes into the residual stream becomes zero, its mean, or what it writes in
    the next prompt at the same position.
    """

    def edit_at(site: Site) -> Edit:
        if how == "zero":
            return torch.zeros_like

        if how == "mean":
            return lambda written: means[site].to(written.dtype).expand_as(written).clone()

        return lambda written: written.roll(1, dims=0)

    with intervene(subject, {site: edit_at(site) for site in write_sites(subject, layer).values()}):
        yield


@torch.no_grad()
def mean_writes(
    subject: Subject, ids: Int[Tensor, "batch position"]
) -> dict[Site, Float[Tensor, " d_model"]]:
    """What each layer writes on average over prompts and positions."""
    sites = [
        site for layer in range(subject.n_layers) for site in write_sites(subject, layer).values()
    ]

    with capture(subject, sites) as seen:
        subject.trunk(ids)

    means: PlaceMeans[Site] = PlaceMeans()
    means.add(seen, torch.ones(ids.shape, dtype=torch.bool))
    return means.means()


@contextmanager
def without_taps(
    subject: MambaSubject, layers: Sequence[int], removed: Bool[Tensor, "channel lag"]
) -> Iterator[None]:
    """These layers' convolutions without some of their weights; lag 0 is the position itself, lag k
    the k-th before. A Mamba-2's convolves x, B and C.

    HF's Mamba reads the convolution's weights and never calls it: a hook would do nothing, so the
    weights are changed and put back.
    """
    weights: list[Any] = [subject.mixer(layer).conv1d.weight for layer in layers]
    before = [weight.detach().clone() for weight in weights]
    gone = removed.flip(1)[:, None]  # the last tap reads the position itself

    with torch.no_grad():
        for weight in weights:
            weight.masked_fill_(gone, 0.0)

    try:
        yield
    finally:
        with torch.no_grad():
            for weight, values in zip(weights, before, strict=True):
                weight.copy_(values)


@contextmanager
def without_reads(
    subject: Subject,
    layers: Sequence[int],
    batch: Int[Tensor, " read"],
    query: Int[Tensor, " read"],
    key: Int[Tensor, " read"],
) -> Iterator[None]:
    """In these layers the queries do not get what they read from these keys, all channels or heads.

    Everything else, other rows' attention included, stays. The same entry of `(query, key)` must
    not be named twice. In a Mamba alpha[:, i, j] x_j is taken out of y_i; in a transformer
    A_h[i, j] v_j out of every z_i.
    """

    def take(given: Tensor, read: Tensor, _skip: Tensor) -> Tensor:
        return given.index_put((batch, query), -read.to(given.dtype), accumulate=True)

    def of_heads(call: HeadCall) -> Tensor:
        return call.y_without(batch, query, key)

    with _with_reads(subject, layers, (batch, query, key), take, of_heads):
        yield


@contextmanager
def only_reads(
    subject: Subject,
    layers: Sequence[int],
    batch: Int[Tensor, " read"],
    query: Int[Tensor, " read"],
    key: Int[Tensor, " read"],
) -> Iterator[None]:
    """In these layers the named queries get what they read from these keys and from no other.

    A Mamba's skip D x_i stays, which reads nothing; positions that are no query here keep all their
    reads. The same entry must not be named twice.
    """

    def keep(given: Tensor, read: Tensor, skip: Tensor) -> Tensor:
        # Written once for each query, however many keys it has; then every read is added to it.
        emptied = given.index_put((batch, query), skip.to(given.dtype))
        return emptied.index_put((batch, query), read.to(given.dtype), accumulate=True)

    def of_heads(call: HeadCall) -> Tensor:
        read = attention_entries(call, batch, query, key) * call.x[batch, key]
        return keep(call.y, read, call.D * call.x[batch, query])

    with _with_reads(subject, layers, (batch, query, key), keep, of_heads):
        yield


@contextmanager
def without_mixing(
    subject: Subject, layers: Sequence[int], shape: tuple[int, int]
) -> Iterator[None]:
    """In these layers every position reads itself alone: the scan, or the attention, moves nothing.

    A Mamba's convolution still does. `shape` is that of the prompts, [batch, position].
    """
    batch, position = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    rows, places = (index.flatten().to(subject.device) for index in (batch, position))

    with only_reads(subject, layers, rows, places, places):
        yield


Reading = Callable[[Tensor, Tensor, Tensor], Tensor]  # (given, read, skip) to what goes on


@contextmanager
def _with_reads(
    subject: Subject,
    layers: Sequence[int],
    places: tuple[Int[Tensor, " read"], Int[Tensor, " read"], Int[Tensor, " read"]],
    change: Reading,
    of_heads: Callable[[HeadCall], Tensor],
) -> Iterator[None]:
    """Change what these layers' mixing gives, knowing each read and what is no read.

    `of_heads` is what a Mamba-2's scan gives then: a norm follows, so it must be right to the last
    digit.
    """
    batch, query, key = places

    if isinstance(subject, MambaSubject):
        calls: dict[int, Call] = {}

        def edit_of(layer: int) -> Edit:
            def edit(gated_y: Tensor) -> Tensor:
                call = calls[layer]

                if isinstance(call, HeadCall):
                    # Before the norm, which divides by what is left.
                    return call.through_norm(of_heads(call))

                gate = call.gate[batch, query]
                read = gate * attention_entries(call, batch, query, key) * call.x[batch, key]
                skip = gate * call.D * call.x[batch, query]
                return change(gated_y, read, skip)

            return edit

        edits = {Site(layer, "mixer.gated_y"): edit_of(layer) for layer in layers}
        with observing_mixers(subject, calls.__setitem__, list(layers)), intervene(subject, edits):
            yield
        return

    reads: dict[int, Tensor] = {}

    def note(layer: int, rows: AttentionRows) -> None:
        weights = rows.entries(batch, query, key[None])[0]  # [read, head]
        reads[layer] = weights[..., None] * rows.values(batch, key)

    def edit_z(layer: int) -> Edit:
        return lambda z: change(z, reads[layer], torch.zeros_like(reads[layer]))

    edits = {Site(layer, "attn.z"): edit_z(layer) for layer in layers}
    with as_transformer(subject).observing(note, list(layers)), intervene(subject, edits):
        yield


@contextmanager
def with_state(
    subject: MambaSubject, added: dict[int, Float[Tensor, "batch channel state"]], position: int
) -> Iterator[None]:
    """The scan's state after `position` gets something added, in each of these layers.

    y_i gains C_i exp(A (S_i - S_t)) times it at every later i, which is exact because the scan is
    linear in its state. The convolution's last inputs stay as they are.
    """
    calls: dict[int, Call] = {}

    def edit_of(layer: int) -> Edit:
        def edit(gated_y: Tensor) -> Tensor:
            call = calls[layer]
            later = slice(position + 1, None)

            if isinstance(call, HeadCall):
                state = call.state_after(position) + added[layer]
                return call.through_norm(call.y_from_state(state, position))

            since = (call.S[:, later] - call.S[:, position : position + 1]).to(gated_y.dtype)
            gained = torch.zeros_like(since)

            # State by state: [batch, position, channel, state] would be the largest array of all.
            for n in range(call.A.shape[1]):
                kept = torch.exp(call.A[:, n] * since)
                gained += call.C[:, later, n, None] * kept * added[layer][:, None, :, n]

            edited = gated_y.clone()
            edited[:, later] += call.gate[:, later] * gained
            return edited

        return edit

    edits = {Site(layer, "mixer.gated_y"): edit_of(layer) for layer in added}
    with observing_mixers(subject, calls.__setitem__, list(added)), intervene(subject, edits):
        yield


@torch.no_grad()
def states(
    subject: MambaSubject, ids: Int[Tensor, "batch position"], position: int
) -> dict[int, Float[Tensor, "batch channel state"]]:
    """Every layer's scan state after a position."""
    found: dict[int, Tensor] = {}

    def note(layer: int, call: Call) -> None:
        found[layer] = state_after(call, position)

    with observing_mixers(subject, note):
        subject.trunk(ids)

    return found


def random_direction(
    gap: Float[Tensor, "batch channel state"], generator: torch.Generator
) -> Float[Tensor, "batch channel state"]:
    """A random direction for each prompt, as long as that prompt's difference of states."""
    drawn = torch.randn(gap.shape, generator=generator).to(gap)
    size = gap.flatten(1).norm(dim=1) / drawn.flatten(1).norm(dim=1)  # [batch]

    return drawn * size[:, None, None]


def taps_at(subject: MambaSubject, lags: Iterable[int]) -> Bool[Tensor, "channel lag"]:
    """The taps of these lags, all channels."""
    shape = (subject.conv_channels, subject.d_conv)
    chosen = torch.zeros(shape, dtype=torch.bool, device=subject.device)
    chosen[:, list(lags)] = True

    return chosen
