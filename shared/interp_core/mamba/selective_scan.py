"""Mamba's selective scan on any device, with a backward pass of its own, and a way to put it under
a stock model.

    h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] x[t],   y[t] = C[t] . h[t] + D x[t]
                                                        (Gu & Dao 2023, section 3)

On the CPU the work is Numba's (scan_kernels.py), a pass of every channel in microseconds a token;
where Numba cannot run, the same chunks are computed with torch; on CUDA the model authors' own
kernels are used where they are installed (mamba-ssm). Every factor exp(dt A) is at most 1, so
nothing is done in logarithms. All tensors have channels last.
"""

import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from types import MethodType
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from interp_core.errors import InputError

Backend = Literal["numba", "torch", "mamba-ssm"]
_CHUNK = 16  # steps between kept states in the torch version
_MIXERS = ("MambaMixer", "FalconMambaMixer")


def selective_scan(
    x: Float[Tensor, "batch position channel"],
    dt: Float[Tensor, "batch position channel"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "batch position state"],
    C: Float[Tensor, "batch position state"],
    D: Float[Tensor, " channel"],
    *,
    initial_state: Float[Tensor, "batch channel state"] | None = None,
    backend: Backend | None = None,
) -> Float[Tensor, "batch position channel"]:
    """y of the scan; dt is positive (after softplus), A negative. float32 and float64; other types
    are computed in float32. Differentiable once by all but `initial_state`.
    """
    kind = x.dtype
    working = kind if kind in (torch.float32, torch.float64) else torch.float32
    chosen = backend or backend_for(x)
    inputs = [tensor.to(working).contiguous() for tensor in (x, dt, A, B, C, D)]
    if chosen == "mamba-ssm" and initial_state is None:
        return _their_scan(*inputs).to(kind)
    start = None if initial_state is None else initial_state.detach().to(working).contiguous()
    function: Any = _NumbaScan if chosen == "numba" else _TorchScan
    return function.apply(*inputs, start).to(kind)


def causal_conv_silu(
    u: Float[Tensor, "batch position channel"],
    weight: Float[Tensor, "channel tap"],
    bias: Float[Tensor, " channel"] | None,
) -> Float[Tensor, "batch position channel"]:
    """SiLU of the depthwise causal convolution: the last tap reads the position itself."""
    offset = torch.zeros_like(weight[:, 0]) if bias is None else bias
    if backend_for(u) == "numba" and u.dtype in (torch.float32, torch.float64):
        mixed: Any = _NumbaConv.apply(u.contiguous(), weight.T.contiguous(), offset)
        return mixed
    taps = weight.shape[1]
    padded = rearrange(u, "batch position channel -> batch channel position").to(weight.dtype)
    out = nn.functional.conv1d(
        padded, weight[:, None], offset, padding=taps - 1, groups=len(weight)
    )
    out = rearrange(out[..., : u.shape[1]], "batch channel position -> batch position channel")
    return nn.functional.silu(out).to(u.dtype)


def backend_for(x: Tensor) -> Backend:
    """What computes the scan of a tensor like this one."""
    if x.device.type == "cpu" and _numba_runs():
        return "numba"
    if x.device.type == "cuda" and importlib.util.find_spec("mamba_ssm"):
        return "mamba-ssm"
    return "torch"


@contextmanager
def fast_scan(model: nn.Module, backend: Backend | None = None) -> Iterator[None]:
    """Inside the block every mixer of a stock Hugging Face Mamba runs on this scan, its weights
    untouched.

    Its submodules in_proj, x_proj and out_proj are called as before, so hooks on them fire. Steps
    with a cache (generation) stay the stock model's. InputError for a model without Mamba mixers,
    or one whose variant is unknown.
    """
    mixers = mamba_mixers(model)
    before = {mixer: mixer.__dict__.get("forward") for mixer in mixers}

    def forward(mixer: Any, *args: Any, **kwargs: Any) -> Tensor:
        return mixer_forward(mixer, *args, backend=backend, **kwargs)

    for mixer in mixers:
        mixer.__dict__["forward"] = MethodType(forward, mixer)
    try:
        yield
    finally:
        for mixer, function in before.items():
            if function is None:
                del mixer.__dict__["forward"]
            else:
                mixer.__dict__["forward"] = function


def mamba_mixers(model: nn.Module) -> list[Any]:
    """The mixers of a Hugging Face Mamba in order.

    InputError, naming the variant, where there are none that we know.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"a {type(model).__name__} is no model of transformers; of what load_model returns, "
            "give its .model"
        )
    mixers = [
        module
        for module in model.modules()
        if hasattr(module, "A_log") and hasattr(module, "x_proj")
    ]
    if not mixers:
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise InputError(
            f"a model of type {kind} has no Mamba mixer that is known here (Mamba-1, model_type "
            "mamba or falcon_mamba)"
        )
    for mixer in mixers:
        if type(mixer).__name__ not in _MIXERS or mixer.A_log.ndim != 2:
            raise InputError(
                f"{type(mixer).__name__} is a variant of Mamba's mixer that is not known here: "
                "refused"
            )
        if mixer.activation not in ("silu", "swish"):
            raise InputError(
                f"a Mamba mixer with activation {mixer.activation} is not known here: only silu is"
            )
    return mixers


def mixer_forward(
    mixer: Any,
    hidden_states: Float[Tensor, "batch position d_model"],
    cache_params: Any = None,
    attention_mask: Tensor | None = None,
    *,
    backend: Backend | None = None,
    **kwargs: Any,
) -> Float[Tensor, "batch position d_model"]:
    """What MambaMixer.forward computes on whole sequences, channels last throughout."""
    if cache_params is not None:
        return type(mixer).forward(mixer, hidden_states, cache_params, attention_mask, **kwargs)
    kept = None if attention_mask is None else attention_mask[:, :, None].to(hidden_states.dtype)
    if kept is not None:
        hidden_states = hidden_states * kept
    u, z = mixer.in_proj(hidden_states).chunk(2, dim=-1)
    x = causal_conv_silu(u, mixer.conv1d.weight[:, 0], mixer.conv1d.bias)
    if kept is not None:
        x = x * kept
    dt, B, C = split_projection(mixer, mixer.x_proj(x))
    y = selective_scan(
        x, dt, -torch.exp(mixer.A_log.float()), B, C, mixer.D.float(), backend=backend
    )
    return mixer.out_proj((y * nn.functional.silu(z)).to(hidden_states.dtype))


def split_projection(
    mixer: Any, projected: Float[Tensor, "batch position projected"]
) -> tuple[Tensor, Tensor, Tensor]:
    """dt [batch, position, channel] after softplus, B and C [batch, position, state], from x_proj's
    output. FalconMamba norms all three of them first.
    """
    rank, state = mixer.time_step_rank, mixer.ssm_state_size
    low, B, C = projected.split([rank, state, state], dim=-1)

    if has_norms(mixer):
        low, B, C = mixer.dt_layernorm(low), mixer.b_layernorm(B), mixer.c_layernorm(C)

    return (
        nn.functional.softplus(nn.functional.linear(low, mixer.dt_proj.weight, mixer.dt_proj.bias)),
        B,
        C,
    )


def has_norms(mixer: Any) -> bool:
    """Whether dt, B and C are normed before the scan: FalconMamba."""
    return hasattr(mixer, "dt_layernorm")


@cache
def _numba_runs() -> bool:
    """Whether the kernels can be had: Numba has no wheel for every machine and Python."""
    try:
        import interp_core.mamba.scan_kernels  # noqa: F401
    except ImportError:
        return False
    return True


def over_parts(tiles: int, call: Callable[[int, int], None]) -> None:
    """Run call(first, last) over all tiles, in as many threads as torch has (kernels leave the
    interpreter's lock).
    """
    threads = min(torch.get_num_threads(), tiles)
    if threads == 1:
        call(0, tiles)
        return
    ends = [tiles * part // threads for part in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, ends[:-1], ends[1:]))


class _NumbaScan(torch.autograd.Function):
    """The scan and its gradients by scan_kernels."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, start: Any
    ) -> Tensor:
        from interp_core.mamba.scan_kernels import BLOCK, CHUNK, scan_forward

        batch, length, channels = x.shape
        state = A.shape[1]
        tiles, chunks = -(-channels // BLOCK), -(-length // CHUNK)
        y = torch.empty_like(x)
        states = x.new_empty(batch, tiles, chunks, state, BLOCK)
        by_state = A.T.contiguous()
        initial = (
            x.new_empty(0, state, channels) if start is None else start.transpose(1, 2).contiguous()
        )
        arrays = [
            tensor.detach().numpy() for tensor in (x, dt, by_state, B, C, D, initial, y, states)
        ]
        over_parts(batch * tiles, lambda first, last: scan_forward(first, last, *arrays))
        ctx.save_for_backward(x, dt, by_state, B, C, D, states)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        from interp_core.mamba.scan_kernels import scan_backward

        x, dt, A, B, C, D, states = ctx.saved_tensors
        batch, length, channels = x.shape
        state, tiles = A.shape[0], states.shape[1]
        dx, ddt = torch.empty_like(x), torch.empty_like(x)
        dA, dD = x.new_empty(batch, state, channels), x.new_empty(batch, channels)
        dB, dC = (x.new_empty(tiles, batch, length, state) for _ in range(2))
        tensors = (x, dt, A, B, C, D, states, grads[0].contiguous(), dx, ddt, dA, dB, dC, dD)
        arrays = [tensor.detach().numpy() for tensor in tensors]
        over_parts(batch * tiles, lambda first, last: scan_backward(first, last, *arrays))
        return dx, ddt, dA.sum(0).T, dB.sum(0), dC.sum(0), dD.sum(0), None


class _TorchScan(torch.autograd.Function):
    """The same by torch alone: a loop over steps, states kept at the chunks' starts."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, start: Any
    ) -> Tensor:
        y, kept = torch.empty_like(x), []
        h = x.new_zeros(len(x), *A.shape) if start is None else start.clone()
        for t in range(x.shape[1]):
            if t % _CHUNK == 0:
                kept.append(h.clone())
            h.mul_(torch.exp(dt[:, t, :, None] * A)).addcmul_(
                (dt[:, t] * x[:, t])[..., None], B[:, t, None]
            )
            y[:, t] = torch.einsum("bcn,bn->bc", h, C[:, t])
        ctx.save_for_backward(x, dt, A, B, C, D, torch.stack(kept))
        return y.addcmul_(D, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, dt, A, B, C, D, kept = ctx.saved_tensors
        dy = grads[0]
        dx, ddt = D * dy, torch.zeros_like(dt)
        dA, dB, dC = torch.zeros_like(A), torch.zeros_like(B), torch.zeros_like(C)
        g = torch.zeros_like(kept[0])
        for chunk in range(len(kept) - 1, -1, -1):
            steps = range(chunk * _CHUNK, min(x.shape[1], (chunk + 1) * _CHUNK))
            decay = torch.exp(dt[:, steps.start : steps.stop, :, None] * A)
            states = [kept[chunk]]
            for i, t in enumerate(steps):
                written = (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
                states.append(torch.addcmul(written, states[-1], decay[:, i]))
            for i, t in reversed(list(enumerate(steps))):
                g.addcmul_(dy[:, t, :, None], C[:, t, None])
                dC[:, t] = torch.einsum("bc,bcn->bn", dy[:, t], states[i + 1])
                dB[:, t] = torch.einsum("bcn,bc->bn", g, dt[:, t] * x[:, t])
                into = torch.einsum("bcn,bn->bc", g, B[:, t])
                g = g * decay[:, i]
                through = g * states[i]
                dA += torch.einsum("bcn,bc->cn", through, dt[:, t])
                ddt[:, t] = (through * A).sum(-1) + x[:, t] * into
                dx[:, t] += dt[:, t] * into
        return dx, ddt, dA, dB, dC, (dy * x).sum((0, 1)), None


class _NumbaConv(torch.autograd.Function):
    """The convolution with its SiLU by scan_kernels."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        from interp_core.mamba.scan_kernels import conv_forward

        before, out = torch.empty_like(u), torch.empty_like(u)
        arrays = [tensor.detach().numpy() for tensor in (u, weight, bias, before, out)]
        over_parts(len(u), lambda first, last: conv_forward(first, last, *arrays))
        ctx.save_for_backward(u, weight, before)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        from interp_core.mamba.scan_kernels import conv_backward

        u, weight, before = ctx.saved_tensors
        du = torch.zeros_like(u)
        dweight, dbias = u.new_zeros(len(u), *weight.shape), u.new_zeros(len(u), u.shape[2])
        tensors = (u, weight, before, grads[0].contiguous(), du, dweight, dbias)
        arrays = [tensor.detach().numpy() for tensor in tensors]
        over_parts(len(u), lambda first, last: conv_backward(first, last, *arrays))
        return du, dweight.sum(0), dbias.sum(0)


def _their_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """mamba-ssm's CUDA kernel, which has positions last."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # pyright: ignore[reportMissingImports]

    last = [
        rearrange(tensor, "batch position axis -> batch axis position").contiguous()
        for tensor in (x, dt, B, C)
    ]
    y = selective_scan_fn(last[0], last[1], A, last[2], last[3], D, delta_softplus=False)
    return rearrange(y, "batch channel position -> batch position channel")
