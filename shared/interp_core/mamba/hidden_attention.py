"""Mamba's hidden attention: how much of token j's input each channel's scan brings to token i (Ali
et al. 2024).

    alpha[c, i, j] = dt_j[c] sum_n C_i[n] exp(A[c, n] (S_i[c] - S_j[c])) B_j[n]
    S = cumsum(dt),   i >= j
    y_i[c] = sum_j alpha[c, i, j] x_j[c] + D[c] x_i[c]     an identity, checked in every run

Everything is exact from four taps of a layer's mixer (MixerCall). Single entries and streamed maps
never hold a [channel, T, T]; whole matrices are given when they fit. A Mamba-2's call is a HeadCall
(head_attention.py): what is by channel here is by head there, where it says `unit`.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_core.errors import InputError
from interp_core.given import places, shown, whole
from interp_core.mamba.head_attention import HeadCall
from interp_core.mamba.mamba2 import Mamba2Subject
from interp_core.mamba.selective_scan import causal_conv_silu, over_parts, split_projection
from interp_core.mamba.subject import MambaSubject, as_mamba
from interp_core.models.sites import Site

LARGEST_ERROR = 1e-4  # relative; above it the taps are not what the model computed
LARGEST_MATRICES = 2**31  # bytes of whole matrices that are given without asking


@dataclass(frozen=True)
class MixerCall:
    """One layer's mixer as it ran.

    Symbols are Gu & Dao's; u is what the convolution read, z the gate before SiLU.
    """

    u: Float[Tensor, "batch position channel"]
    z: Float[Tensor, "batch position channel"]
    x: Float[Tensor, "batch position channel"]  # after convolution and SiLU
    dt: Float[Tensor, "batch position channel"]  # after softplus, positive
    A: Float[Tensor, "channel state"]  # negative
    B: Float[Tensor, "batch position state"]
    C: Float[Tensor, "batch position state"]
    D: Float[Tensor, " channel"]
    gated_y: Float[Tensor, "batch position channel"]  # what the model gave out_proj: y SiLU(z)

    @property
    def gate(self) -> Float[Tensor, "batch position channel"]:
        """SiLU(z)."""
        return torch.nn.functional.silu(self.z)

    @property
    def S(self) -> Float[Tensor, "batch position channel"]:
        """Running sum of dt, in float64."""
        return self.dt.double().cumsum(dim=1)

    def row(self, index: int) -> "MixerCall":
        """One sequence of the batch."""
        one = slice(index, index + 1)
        parts = {
            name: getattr(self, name)[one] for name in ("u", "z", "x", "dt", "B", "C", "gated_y")
        }
        return MixerCall(**parts, A=self.A, D=self.D)


Call = MixerCall | HeadCall
Observer = Callable[[int, Call], None]


@contextmanager
def observing_mixers(
    subject: MambaSubject, observer: Observer, layers: list[int] | None = None
) -> Iterator[None]:
    """Call observer(layer, call) as each layer's mixer runs, with what it computed, edits of others
    included.
    """
    with ExitStack() as stack:
        for layer in range(subject.n_layers) if layers is None else layers:
            if isinstance(subject, Mamba2Subject):
                stack.enter_context(_observing_heads(subject, layer, observer))
                continue

            seen: dict[str, Tensor] = {}

            def keep(activation: Tensor, name: str, seen: dict[str, Tensor] = seen) -> None:
                seen[name] = activation

            def finish(gated_y: Tensor, layer: int = layer, seen: dict[str, Tensor] = seen) -> None:
                observer(
                    layer,
                    _call(
                        subject,
                        layer,
                        seen["mixer.in_proj"],
                        seen["mixer.x"],
                        seen["mixer.x_proj"],
                        gated_y,
                    ),
                )

            for name in ("mixer.in_proj", "mixer.x", "mixer.x_proj"):
                stack.enter_context(
                    subject.attach(Site(layer, name), lambda a, name=name, keep=keep: keep(a, name))
                )
            stack.enter_context(subject.attach(Site(layer, "mixer.gated_y"), finish))
        yield


@contextmanager
def _observing_heads(subject: Mamba2Subject, layer: int, observer: Observer) -> Iterator[None]:
    """The same of one layer of a Mamba-2, from what its in_proj, its scan and its norm give."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[Tensor], None]:
        return lambda activation: seen.__setitem__(name, activation)

    def finish(gated_y: Tensor) -> None:
        observer(layer, _head_call(subject, layer, seen["in_proj"], seen["y"], gated_y))

    with (
        subject.attach(Site(layer, "mixer.in_proj"), note("in_proj")),
        subject.at_scan(layer, note("y")),
        subject.attach(Site(layer, "mixer.gated_y"), finish),
    ):
        yield


@torch.no_grad()
def mixer_calls(subject: MambaSubject, ids: Int[Tensor, "batch position"]) -> list[Call]:
    """Every layer's call in one pass over the model: all operands of the batch are held at once."""
    subject = as_mamba(subject)
    found: dict[int, Call] = {}
    with observing_mixers(subject, lambda layer, call: found.__setitem__(layer, call)):
        subject.trunk(subject.ids(ids))
    return [found[layer] for layer in range(subject.n_layers)]


def _gated(call: Call) -> Float[Tensor, "position channel"]:
    """What out_proj would read of one sequence, by alpha x + D x."""
    if isinstance(call, HeadCall):
        return call.through_norm(call.attended() + call.D * call.x)[0]

    return call.gate[0] * (_weighted(call) + call.D * call.x[0])


@torch.no_grad()
def reconstruction_error(
    subject: MambaSubject, ids: Int[Tensor, "batch position"]
) -> Float[np.ndarray, " layer"]:
    """Largest difference between gated y from alpha x + D x and what the STOCK model gives
    out_proj, over its largest size, by layer. InputError above LARGEST_ERROR: then nothing that is
    read from the taps can be trusted.
    """
    errors = np.zeros(subject.n_layers)

    def check(layer: int, call: Call) -> None:
        for index in range(len(ids)):
            one = call.row(index)
            ours = _gated(one)
            size = float(one.gated_y.abs().max()) or 1.0
            errors[layer] = max(errors[layer], float((ours - one.gated_y[0]).abs().max()) / size)

    with subject.stock(), observing_mixers(subject, check):
        subject.trunk(ids)
    if not (errors <= LARGEST_ERROR).all():
        worst = int(np.argmax(errors))
        raise InputError(
            f"{subject.name}: layer {worst}'s mixer is not alpha x + D x (relative error "
            f"{errors[worst]:.1e}): a "
            "variant of Mamba that is not known here"
        )
    return errors


def attention_entries(
    call: Call,
    batch: Int[Tensor, " pair"],
    query: Int[Tensor, " pair"],
    key: Int[Tensor, " pair"],
) -> Float[Tensor, "pair channel"]:
    """alpha of all channels at wanted (sequence, query, key); 0 where the key comes after its
    query. InputError for what does not lie in the call's sequences.
    """
    wanted = [torch.as_tensor(index) for index in _inside(call, batch, query, key)]
    if isinstance(call, HeadCall):
        return call.by_channel(call.entries(*(index.to(call.dt.device) for index in wanted)))

    from interp_core.mamba import hidden_attention_kernels

    entries: Any = hidden_attention_kernels.entries

    out = torch.empty(len(query), call.dt.shape[2], dtype=call.dt.dtype)
    indices = [_host(index) for index in wanted]
    operands = [_host(t) for t in (call.S, call.dt, call.A.T, call.B, call.C)]
    over_parts(
        len(query), lambda first, last: entries(first, last, *operands, *indices, out.numpy())
    )
    return out.to(call.dt.device)


def _inside(call: Any, batch: Any, query: Any, key: Any) -> list[Int[np.ndarray, " pair"]]:
    """Places that lie in a call's sequences. InputError for others: kernels do not look."""
    if not isinstance(call, Call):
        raise InputError(
            f"a call is what mixer_calls(subject, ids) has of one layer; got {shown(call)}"
        )
    rows, length, _ = call.dt.shape
    found = [places(batch, "batch", below=rows)]
    n = len(found[0])
    return found + [
        places(index, name, below=length, length=n)
        for name, index in (("query", query), ("key", key))
    ]


def attention_matrices(
    call: Call, *, channels: slice = slice(None), largest: int = LARGEST_MATRICES
) -> Float[Tensor, "batch unit query key"]:
    """Whole alpha of these channels, or of all heads of a Mamba-2.

    InputError, with the size, when it would take more than `largest` bytes.
    """
    batch, length, _ = call.dt.shape
    A = call.A if isinstance(call, HeadCall) else call.A[channels]
    needed = batch * len(A) * length**2 * call.dt.element_size()
    if needed > largest:
        units = "heads" if isinstance(call, HeadCall) else "channels"
        raise InputError(
            f"whole hidden attention of {batch} x {len(A)} {units} at {length} tokens takes "
            f"{needed / 2**30:.1f} GiB, "
            f"more than {largest / 2**30:.1f}: ask for fewer channels, or for single entries or "
            "streamed maps"
        )
    if isinstance(call, HeadCall):
        return call.matrices()

    from interp_core.mamba import hidden_attention_kernels

    matrices: Any = hidden_attention_kernels.matrices
    out = torch.zeros(batch, len(A), length, length, dtype=call.dt.dtype)
    for index in range(batch):
        operands = _by_channel(call, index, channels)
        over_parts(
            len(A),
            lambda first, last, o=operands, i=index: matrices(first, last, *o, out[i].numpy()),
        )
    return out.to(call.dt.device)


@dataclass(frozen=True)
class Streamed:
    """Hidden attention of one layer, channels (or a Mamba-2's heads) summed as they pass."""

    size: Float[Tensor, "batch query key"]  # mean over channels of |alpha|
    shares: Float[
        Tensor, "batch group unit"
    ]  # |alpha| at the wanted keys over the query's sum, added up by group

    @property
    def normalised(self) -> Float[Tensor, "batch query key"]:
        """size with rows that sum to 1."""
        return self.size / self.size.sum(dim=-1, keepdim=True).clamp_min(
            torch.finfo(self.size.dtype).tiny
        )


def stream_attention(
    call: Call,
    *,
    batch: Int[np.ndarray, " pair"],
    query: Int[np.ndarray, " pair"],
    key: Int[np.ndarray, " pair"],
    group: Int[np.ndarray, " pair"],
    groups: int,
) -> Streamed:
    """Channel-mean maps and each channel's normalised attention at wanted pairs, in memory of one
    channel's rows.

    Divide a group's shares by the number of its pairs for a mean in [0, 1].
    """
    batch, query, key = _inside(call, batch, query, key)
    groups = whole(groups, "groups", least=0)
    group = places(group, "group", below=groups, length=len(batch))
    if isinstance(call, HeadCall):
        return _stream_heads(call, (batch, query, key, group), groups)

    from interp_core.mamba import hidden_attention_kernels

    stream: Any = hidden_attention_kernels.stream

    rows, length, channels = call.dt.shape
    kind = call.dt.dtype
    size = torch.zeros(rows, length, length, dtype=kind)
    shares = torch.zeros(rows, groups, channels, dtype=kind)
    for index in range(rows):
        mine = np.flatnonzero(batch == index)
        mine = mine[np.argsort(query[mine], kind="stable")]
        starts = np.searchsorted(query[mine], np.arange(length + 1))
        wanted = (starts, key[mine].astype(np.int64), group[mine].astype(np.int64))
        operands = _by_channel(call, index, slice(None))
        # Sums over channels are of fixed parts, so that they do not depend on the number of
        # threads.
        parts = [slice(first, min(first + 256, channels)) for first in range(0, channels, 256)]
        padded = operands[0].shape[1]
        sums = torch.zeros(len(parts), padded, padded, dtype=kind)

        arrays = (*operands, *wanted), sums.numpy(), shares[index].numpy()

        def of_parts(
            first: int, last: int, arrays: tuple[Any, ...] = arrays, parts: list[slice] = parts
        ) -> None:
            inputs, maps, to = arrays
            for p in range(first, last):
                stream(parts[p].start, parts[p].stop, *inputs, maps[p], to)

        over_parts(len(parts), of_parts)
        size[index] = sums.sum(dim=0)[:length, :length] / channels
    device = call.dt.device
    return Streamed(size.to(device), shares.to(device))


def _stream_heads(
    call: HeadCall, wanted: tuple[Int[np.ndarray, " pair"], ...], groups: int
) -> Streamed:
    """stream_attention of a Mamba-2: a layer has few heads, so a sequence's matrices are held."""
    batch, query, key, group = (torch.as_tensor(index, device=call.dt.device) for index in wanted)
    size, shares = [], call.dt.new_zeros(len(call.dt), groups, call.n_heads)

    for index in range(len(call.dt)):
        alpha = attention_matrices(call.row(index))[0].abs()
        size.append(alpha.mean(dim=0))

        mine = batch == index
        i, j = query[mine], key[mine]
        whole = alpha.sum(dim=-1).clamp_min(torch.finfo(alpha.dtype).tiny)
        of_pairs = (alpha[:, i, j] / whole[:, i]).T  # [pair, head]
        shares[index].index_add_(0, group[mine], of_pairs)

    return Streamed(torch.stack(size), shares)


@torch.no_grad()
def effective_attention(
    call: Call,
    out_weight: Float[Tensor, "d_model channel"],
    batch: Int[Tensor, " entry"],
    query: Int[Tensor, " entry"],
    *,
    largest: int = 2**26,
) -> Float[Tensor, "entry key"]:
    """E[i, j] = || W_out (SiLU(z_i) * alpha[:, i, j] * x_j) ||_2 at sampled queries, for all keys
    (0 after the query): what token j's input adds to the residual stream at i through the scan, in
    the residual's units. A Mamba-2's gate has its norm in it. `largest` bounds the floats held at
    once.
    """
    length, channels = call.x.shape[1:]
    found = torch.zeros(len(query), length, dtype=call.x.dtype, device=call.x.device)
    gate = call.gate
    step = max(1, largest // (length * channels))
    for first in range(0, len(query), step):
        b, i = batch[first : first + step], query[first : first + step]
        entry, j = torch.nonzero(torch.arange(length, device=i.device) <= i[:, None], as_tuple=True)
        alpha = attention_entries(call, b[entry], i[entry], j)
        vectors = gate[b[entry], i[entry]] * alpha * call.x[b[entry], j]
        found[first + entry, j] = (vectors @ out_weight.T.to(vectors.dtype)).norm(dim=-1)
    return found


def state_after(call: Call, position: int) -> Float[Tensor, "batch channel state"]:
    """The scan's state after a position: sum_j exp(A (S_i - S_j)) dt_j x_j B_j."""
    if isinstance(call, HeadCall):
        return call.state_after(position)

    prefix = slice(0, position + 1)
    S = call.S[:, prefix]
    away = (S[:, -1:] - S).to(call.dt.dtype)
    written = call.dt[:, prefix] * call.x[:, prefix]
    states = [
        torch.einsum(
            "btc,btc,bt->bc", torch.exp(away * call.A[:, n]), written, call.B[:, prefix, n]
        )
        for n in range(call.A.shape[1])
    ]
    return torch.stack(states, dim=-1)


def _weighted(call: MixerCall, channels: int = 256) -> Float[Tensor, "position channel"]:
    """alpha x of one sequence, some channels at a time."""
    length, width = call.x.shape[1:]
    one = length**2 * call.dt.element_size()
    step = max(1, min(channels, LARGEST_MATRICES // one))
    parts = []
    for first in range(0, width, step):
        chosen = slice(first, min(first + step, width))
        alpha = attention_matrices(call, channels=chosen, largest=LARGEST_MATRICES)[0]
        parts.append(torch.einsum("cij,jc->ic", alpha, call.x[0, :, chosen].to(alpha.dtype)))
    return torch.cat(parts, dim=1)


def _call(
    subject: MambaSubject, layer: int, both: Tensor, x: Tensor, projected: Tensor, gated_y: Tensor
) -> MixerCall:
    mixer = subject.mixer(layer)
    u, z = both.chunk(2, dim=-1)
    dt, B, C = split_projection(mixer, projected)
    return MixerCall(u, z, x, dt, -torch.exp(mixer.A_log.float()), B, C, mixer.D.float(), gated_y)


def _head_call(
    subject: Mamba2Subject, layer: int, projected: Tensor, y: Tensor, gated_y: Tensor
) -> HeadCall:
    mixer, width, states = subject.mixer(layer), subject.d_inner, subject.groups * subject.d_state
    z, mixed, raw = projected.split([width, subject.conv_channels, subject.heads], dim=-1)

    convolved = causal_conv_silu(mixed, mixer.conv1d.weight[:, 0], mixer.conv1d.bias)
    x, B, C = convolved.split([width, states, states], dim=-1)
    dt = torch.nn.functional.softplus(raw + mixer.dt_bias).clamp(*mixer.time_step_limit)

    return HeadCall(
        z=z,
        x=x,
        dt=dt,
        A=-torch.exp(mixer.A_log.float())[:, None],
        B=B.unflatten(-1, (subject.groups, -1)),
        C=C.unflatten(-1, (subject.groups, -1)),
        D=mixer.D.float().repeat_interleave(width // subject.heads),
        y=y,
        gated_y=gated_y,
        weight=mixer.norm.weight,
        eps=float(mixer.norm.variance_epsilon),
    )


def _host(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().numpy()


def _by_channel(call: MixerCall, index: int, channels: slice) -> list[np.ndarray]:
    """dt [channel, position], A [channel, state], B and C [state, position] of one sequence as the
    kernels of rows want them: positions in eights, states in fours; what is added is zero, writes
    nothing and reads nothing.
    """
    from interp_core.mamba.hidden_attention_kernels import ROWS

    dt = call.dt[index, :, channels].T
    positions, states = -dt.shape[1] % ROWS, -call.A.shape[1] % 4
    padded = [
        torch.nn.functional.pad(tensor, pad)
        for tensor, pad in (
            (dt, (0, positions)),
            (call.A[channels].to(dt.dtype), (0, states)),
            (call.B[index].T, (0, positions, 0, states)),
            (call.C[index].T, (0, positions, 0, states)),
        )
    ]
    return [_host(tensor) for tensor in padded]
