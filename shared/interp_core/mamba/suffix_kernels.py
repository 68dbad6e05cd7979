"""Numba kernels for running the layers behind an ablation again: whatever is no product of
matrices, one pass each.

No gradients, float32 alone. Powers are of two, because A carries log2(e) already; loops over
channels become vector instructions.
"""

from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

BLOCK = 64  # channels whose states stay in the first cache
EXACT = {"contract", "nnan", "ninf", "nsz"}
FAST = {*EXACT, "reassoc"}  # sums may be reordered into vectors

LOG2E = np.float32(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
_LOWEST, _HIGHEST = np.float32(-126), np.float32(127)
# 2^r on |r| <= 1/2, the polynomial with the least relative error (7e-8).
_T0, _T1, _T2 = (
    np.float32(1.0000001192092896),
    np.float32(0.6931469440460205),
    np.float32(0.24022120237350464),
)
_T3, _T4, _T5 = (
    np.float32(0.05550713464617729),
    np.float32(0.009675541892647743),
    np.float32(0.0013276470126584172),
)
# Adding 1.5 2^23 rounds to a whole number, which is then in the last bits.
_MAGIC = np.float32(12582912)
# (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2: 1 / k! from k = 2 on.
_E2, _E3, _E4 = np.float32(0.5), np.float32(1 / 6), np.float32(1 / 24)
_E5, _E6, _E7, _E8 = (
    np.float32(1 / 120),
    np.float32(1 / 720),
    np.float32(1 / 5040),
    np.float32(1 / 40320),
)
# 2 atanh(s) / (2 s) in s^2: 1 / (2 k + 1).
_L1, _L2, _L3, _L4 = np.float32(1 / 3), np.float32(1 / 5), np.float32(1 / 7), np.float32(1 / 9)
_L5, _L6, _L7 = np.float32(1 / 11), np.float32(1 / 13), np.float32(1 / 15)


@intrinsic
@no_type_check
def _scaled(typing_context: Any, value: Any, shifted: Any) -> Any:
    """value * 2 ** k, where shifted = k + _MAGIC: its last bits are added to the exponent's."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer = ir.IntType(32)
        value, shifted = (builder.bitcast(argument, integer) for argument in arguments)
        return builder.bitcast(
            builder.add(value, builder.shl(shifted, ir.Constant(integer, 23))), ir.FloatType()
        )

    return types.float32(types.float32, types.float32), generate


@njit(fastmath=EXACT, cache=True)
@no_type_check
def power_of_two(y):  # noqa: ANN001, ANN201
    """2 ** y for y below 127; below -126 it gives 2 ** -126."""
    y = max(y, _LOWEST)
    shifted = y + _MAGIC
    r = y - (shifted - _MAGIC)
    p = ((((_T5 * r + _T4) * r + _T3) * r + _T2) * r + _T1) * r + _T0
    return _scaled(p, shifted)  # pyright: ignore[reportCallIssue]


@njit(fastmath=EXACT, cache=True)
@no_type_check
def silu(x):  # noqa: ANN001, ANN201
    """x / (1 + exp(-x))."""
    return x / (_ONE + power_of_two(min(-x * LOG2E, _HIGHEST)))


@njit(fastmath=EXACT, cache=True)
@no_type_check
def softplus(x):  # noqa: ANN001, ANN201
    """log(1 + exp(x)) = max(x, 0) + 2 atanh(e / (2 + e)) with e = exp(-|x|)."""
    e = power_of_two(-abs(x) * LOG2E)
    s = e / (_TWO + e)
    q = s * s
    series = ((((((_L7 * q + _L6) * q + _L5) * q + _L4) * q + _L3) * q + _L2) * q + _L1) * q + _ONE
    return max(x, _ZERO) + _TWO * s * series


@njit(fastmath=EXACT, cache=True)
@no_type_check
def excess(x):  # noqa: ANN001, ANN201
    """exp(x) - 1 - x to the last digits, near 0 too; x at most 88."""
    shifted = min(max(x * LOG2E, _LOWEST), _HIGHEST) + _MAGIC
    k = shifted - _MAGIC
    r = x - k * _LN2_HIGH - k * _LN2_LOW
    near = r * r * ((((((_E8 * r + _E7) * r + _E6) * r + _E5) * r + _E4) * r + _E3) * r + _E2)
    scale = _scaled(_ONE, shifted)  # pyright: ignore[reportCallIssue]
    return near if k == _ZERO else scale * (near + r) + (scale - _ONE) - x


@njit(fastmath=FAST, error_model="numpy", cache=True, nogil=True)
@no_type_check
def rms_norm(residual, weight, eps, out):  # noqa: ANN001, ANN201
    """out = weight residual / RMS; [row, d_model]."""
    rows, width = residual.shape
    for row in range(rows):
        read, written = residual[row], out[row]
        total = _ZERO
        for i in range(width):
            total += read[i] * read[i]
        scale = _ONE / np.sqrt(total / np.float32(width) + eps)
        for i in range(width):
            written[i] = weight[i] * (read[i] * scale)


@njit(fastmath=FAST, error_model="numpy", cache=True, nogil=True)
@no_type_check
def convolve(uz, weight, bias, x):  # noqa: ANN001, ANN201
    """x = SiLU of the causal convolution of uz's first half; uz [copy, position, 2 channel], weight
    [tap, channel].
    """
    copies, length, channels = x.shape
    taps = weight.shape[0]
    for copy in range(copies):
        for t in range(length):
            written = x[copy, t]
            for c in range(channels):
                written[c] = bias[c]
            for k in range(max(0, taps - 1 - t), taps):
                w, read = weight[k], uz[copy, t - taps + 1 + k, :channels]
                for c in range(channels):
                    written[c] += w[c] * read[c]
            for c in range(channels):
                written[c] = silu(written[c])


@njit(fastmath=FAST, error_model="numpy", cache=True, nogil=True)
@no_type_check
def scan_and_gate(uz, low, raw, bias, rate, skip, x):  # noqa: ANN001, ANN201
    """x becomes (C . h + D x) SiLU(z), h = 2^(dt rate) h + dt x B, dt = softplus(raw + bias).

    uz [copy, position, 2 channel], z its second half; low [copy, position, rank + 2 state], B and C
    its end; raw and x [copy, position, channel]; rate = A log2(e) [state, channel]; skip = D.
    """
    copies, length, channels = x.shape
    n_states = rate.shape[0]
    first = low.shape[2] - 2 * n_states
    h, rates = np.empty((n_states, BLOCK), np.float32), np.empty((n_states, BLOCK), np.float32)
    step, put, out = (
        np.empty(BLOCK, np.float32),
        np.empty(BLOCK, np.float32),
        np.empty(BLOCK, np.float32),
    )
    for begin in range(0, channels, BLOCK):
        width = min(BLOCK, channels - begin)
        for n in range(n_states):
            for c in range(width):
                rates[n, c] = rate[n, begin + c]
        for copy in range(copies):
            h[:] = _ZERO
            for t in range(length):
                read, gate = (
                    x[copy, t, begin : begin + width],
                    uz[copy, t, channels + begin : channels + begin + width],
                )
                given, shift = raw[copy, t, begin : begin + width], bias[begin : begin + width]
                passed = skip[begin : begin + width]
                for c in range(width):
                    step[c] = softplus(given[c] + shift[c])
                for c in range(width):
                    put[c] = step[c] * read[c]
                    out[c] = passed[c] * read[c]
                for n in range(0, n_states, 2):
                    rate_0, h_0, rate_1, h_1 = rates[n], h[n], rates[n + 1], h[n + 1]
                    b_0, c_0 = low[copy, t, first + n], low[copy, t, first + n_states + n]
                    b_1, c_1 = low[copy, t, first + n + 1], low[copy, t, first + n_states + n + 1]
                    for c in range(width):
                        now = power_of_two(step[c] * rate_0[c]) * h_0[c] + put[c] * b_0
                        then = power_of_two(step[c] * rate_1[c]) * h_1[c] + put[c] * b_1
                        h_0[c] = now
                        h_1[c] = then
                        out[c] += c_0 * now + c_1 * then
                for c in range(width):
                    read[c] = out[c] * silu(gate[c])


@njit(fastmath=FAST, error_model="numpy", cache=True, nogil=True)
@no_type_check
def add_excess(first, d, mean, p, total, largest):  # noqa: ANN001, ANN201
    """total += sum_v p (exp(x) - 1 - x) and largest = max x, x = d - mean; d [copy, scored, word]
    is of the words from `first` on, p [scored, vocabulary], the others [copy, scored].
    """
    copies, scored, words = d.shape
    for copy in range(copies):
        for s in range(scored):
            row, weights, centre = d[copy, s], p[s, first : first + words], mean[copy, s]
            found, top = _ZERO, largest[copy, s]
            for v in range(words):
                found += weights[v] * excess(row[v] - centre)
            for v in range(words):
                top = max(top, row[v] - centre)
            total[copy, s] += found
            largest[copy, s] = top
