"""Numba kernels of Mamba's scan and of its short convolution, compiled once and cached beside this
file.

Work is cut into tiles of BLOCK channels of one sequence: a tile's state stays in the first cache,
its loops over channels become vector instructions, and its results do not depend on the number of
threads. States are kept every CHUNK steps only; the backward pass computes those between anew.
"""

import math
from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

BLOCK = 64  # channels of a tile
CHUNK = 16  # steps between kept states
FAST = {
    "contract",
    "nnan",
    "ninf",
    "nsz",
    "reassoc",
}  # sums over channels may be reordered into vectors
_EXACT = {"contract", "nnan", "ninf", "nsz"}

# Cephes' expf: exp(r) on |r| <= ln(2) / 2 to half a unit in the last place, and ln(2) in two parts.
_LOG2E, _LN2_HIGH, _LN2_LOW = (
    np.float32(1.44269504088896341),
    np.float32(0.693359375),
    np.float32(-2.12194440e-4),
)
_P0, _P1, _P2 = (
    np.float32(1.9875691500e-4),
    np.float32(1.3981999507e-3),
    np.float32(8.3334519073e-3),
)
_P3, _P4, _P5 = (
    np.float32(4.1665795894e-2),
    np.float32(1.6666665459e-1),
    np.float32(5.0000001201e-1),
)
_LOWEST, _HIGHEST, _HALF, _ONE = (
    np.float32(-87.3),
    np.float32(88.0),
    np.float32(0.5),
    np.float32(1.0),
)


@intrinsic
@no_type_check
def _power_of_two(typing_context: Any, exponent: Any) -> Any:
    """2 ** k for a whole float32 k, written into the exponent's bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer = ir.IntType(32)
        biased = builder.add(builder.fptosi(arguments[0], integer), ir.Constant(integer, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(integer, 23)), ir.FloatType())

    return types.float32(types.float32), generate


@njit(fastmath=_EXACT, cache=True)
@no_type_check
def _exp_float32(x):  # noqa: ANN001, ANN202
    x = min(max(x, _LOWEST), _HIGHEST)
    k = np.floor(x * _LOG2E + _HALF)
    r = x - k * _LN2_HIGH - k * _LN2_LOW
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
    return (p * r * r + r + _ONE) * _power_of_two(k)  # pyright: ignore[reportCallIssue]


def exponential(x):  # noqa: ANN001, ANN201
    """exp(x) in the type of x; below -87.3 a float32 gives exp(-87.3) = 1e-38."""
    raise NotImplementedError(x)


@overload(exponential)
@no_type_check
def _exponential_by_type(x):  # noqa: ANN001, ANN202
    if x == types.float32:
        return lambda x: _exp_float32(x)
    return lambda x: math.exp(x)


@njit(fastmath=FAST, error_model="numpy", cache=True, nogil=True)
@no_type_check
def scan_forward(first, last, x, dt, A, B, C, D, initial, y, states):  # noqa: ANN001, ANN201
    """Tiles first..last of y[t] = C[t] . h[t] + D x[t], h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t]
    B[t].

    x, dt, y [batch, position, channel]; A [state, channel]; B, C [batch, position, state]; D
    [channel]; initial [batch or 0, state, channel]; states [batch, tile, chunk, state, BLOCK], the
    state before each chunk.
    """
    length, channels, n_states = x.shape[1], x.shape[2], A.shape[0]
    tiles = states.shape[1]
    h, a_of = np.empty((n_states, BLOCK), x.dtype), np.empty((n_states, BLOCK), x.dtype)
    u, out = np.empty(BLOCK, x.dtype), np.empty(BLOCK, x.dtype)
    for tile in range(first, last):
        row, begin = tile // tiles, (tile % tiles) * BLOCK
        width = min(BLOCK, channels - begin)
        for n in range(n_states):
            for c in range(width):
                a_of[n, c] = A[n, begin + c]
                h[n, c] = initial[row, n, begin + c] if initial.shape[0] else 0.0
        for t in range(length):
            if t % CHUNK == 0:
                kept = states[row, tile % tiles, t // CHUNK]
                for n in range(n_states):
                    for c in range(width):
                        kept[n, c] = h[n, c]
            step, read = dt[row, t, begin : begin + width], x[row, t, begin : begin + width]
            skip = D[begin : begin + width]
            for c in range(width):
                u[c] = step[c] * read[c]
                out[c] = skip[c] * read[c]
            for n in range(n_states):
                a_n, h_n, b, c_n = a_of[n], h[n], B[row, t, n], C[row, t, n]
                for c in range(width):
                    now = exponential(step[c] * a_n[c]) * h_n[c] + u[c] * b
                    h_n[c] = now
                    out[c] += c_n * now
            written = y[row, t, begin : begin + width]
            for c in range(width):
                written[c] = out[c]


@njit(fastmath=FAST, error_model="numpy", cache=True, nogil=True)
@no_type_check
def scan_backward(first, last, x, dt, A, B, C, D, states, dy, dx, ddt, dA, dB, dC, dD):  # noqa: ANN001, ANN201
    """Gradients of tiles first..last. dA [batch, state, channel] and dD [batch, channel] are of one
    sequence, dB and dC [tile, batch, position, state] of one tile: the caller adds them up.
    """
    length, channels, n_states = x.shape[1], x.shape[2], A.shape[0]
    tiles = states.shape[1]
    shape = (n_states, BLOCK)
    g, a_of, da_of = np.empty(shape, x.dtype), np.empty(shape, x.dtype), np.empty(shape, x.dtype)
    decay, h = np.empty((CHUNK, *shape), x.dtype), np.empty((CHUNK + 1, *shape), x.dtype)
    u, gx, gdt, gd = (
        np.empty(BLOCK, x.dtype),
        np.empty(BLOCK, x.dtype),
        np.empty(BLOCK, x.dtype),
        np.empty(BLOCK, x.dtype),
    )
    for tile in range(first, last):
        part, row = tile % tiles, tile // tiles
        begin = part * BLOCK
        width = min(BLOCK, channels - begin)
        for n in range(n_states):
            for c in range(width):
                a_of[n, c] = A[n, begin + c]
                g[n, c] = 0.0
                da_of[n, c] = 0.0
        for c in range(width):
            gd[c] = 0.0
        for chunk in range((length - 1) // CHUNK, -1, -1):
            start, stop = chunk * CHUNK, min(length, chunk * CHUNK + CHUNK)
            for n in range(n_states):
                for c in range(width):
                    h[0, n, c] = states[row, part, chunk, n, c]
            for t in range(start, stop):
                step, read = dt[row, t, begin : begin + width], x[row, t, begin : begin + width]
                for c in range(width):
                    u[c] = step[c] * read[c]
                for n in range(n_states):
                    a_n, b = a_of[n], B[row, t, n]
                    decay_n, before, after = (
                        decay[t - start, n],
                        h[t - start, n],
                        h[t - start + 1, n],
                    )
                    for c in range(width):
                        factor = exponential(step[c] * a_n[c])
                        decay_n[c] = factor
                        after[c] = factor * before[c] + u[c] * b
            for t in range(stop - 1, start - 1, -1):
                step, read = dt[row, t, begin : begin + width], x[row, t, begin : begin + width]
                above, skip = dy[row, t, begin : begin + width], D[begin : begin + width]
                for c in range(width):
                    u[c] = step[c] * read[c]
                    gx[c] = 0.0
                    gdt[c] = 0.0
                for n in range(n_states):
                    a_n, g_n, da_n, b, c_n = a_of[n], g[n], da_of[n], B[row, t, n], C[row, t, n]
                    decay_n, before, after = (
                        decay[t - start, n],
                        h[t - start, n],
                        h[t - start + 1, n],
                    )
                    sum_b, sum_c = u[0] * 0, u[0] * 0
                    for c in range(width):
                        now = g_n[c] + c_n * above[c]
                        passed = now * decay_n[c]
                        through = passed * before[c]
                        gdt[c] += through * a_n[c]
                        da_n[c] += through * step[c]
                        gx[c] += now * b
                        g_n[c] = passed
                        sum_b += now * u[c]
                        sum_c += above[c] * after[c]
                    dB[part, row, t, n] = sum_b
                    dC[part, row, t, n] = sum_c
                to_x, to_dt = dx[row, t, begin : begin + width], ddt[row, t, begin : begin + width]
                for c in range(width):
                    gd[c] += above[c] * read[c]
                    to_dt[c] = gdt[c] + read[c] * gx[c]
                    to_x[c] = step[c] * gx[c] + skip[c] * above[c]
        for c in range(width):
            dD[row, begin + c] = gd[c]
        for n in range(n_states):
            for c in range(width):
                dA[row, n, begin + c] = da_of[n, c]


@njit(fastmath=FAST, error_model="numpy", cache=True, nogil=True)
@no_type_check
def conv_forward(first, last, u, weight, bias, before, out):  # noqa: ANN001, ANN201
    """Sequences first..last of out = SiLU(before), before[t] = bias + sum_k weight[k] u[t - taps +
    1 + k]; all arrays [batch, position, channel], weight [tap, channel].
    """
    length, channels, taps = u.shape[1], u.shape[2], weight.shape[0]
    for row in range(first, last):
        for t in range(length):
            pre, post = before[row, t], out[row, t]
            for c in range(channels):
                pre[c] = bias[c]
            for k in range(max(0, taps - 1 - t), taps):
                w, read = weight[k], u[row, t - taps + 1 + k]
                for c in range(channels):
                    pre[c] += w[c] * read[c]
            for c in range(channels):
                post[c] = pre[c] / (1 + exponential(-pre[c]))


@njit(fastmath=FAST, error_model="numpy", cache=True, nogil=True)
@no_type_check
def conv_backward(first, last, u, weight, before, dout, du, dweight, dbias):  # noqa: ANN001, ANN201
    """Gradients of sequences first..last; dweight [batch, tap, channel] and dbias [batch, channel]
    are of one sequence.
    """
    length, channels, taps = u.shape[1], u.shape[2], weight.shape[0]
    g = np.empty(channels, u.dtype)
    for row in range(first, last):
        of_bias = dbias[row]
        for t in range(length):
            pre, above = before[row, t], dout[row, t]
            for c in range(channels):
                gate = 1 / (1 + exponential(-pre[c]))
                g[c] = above[c] * gate * (1 + pre[c] * (1 - gate))
                of_bias[c] += g[c]
            for k in range(max(0, taps - 1 - t), taps):
                w, of_w = weight[k], dweight[row, k]
                read, to = u[row, t - taps + 1 + k], du[row, t - taps + 1 + k]
                for c in range(channels):
                    of_w[c] += g[c] * read[c]
                    to[c] += g[c] * w[c]
