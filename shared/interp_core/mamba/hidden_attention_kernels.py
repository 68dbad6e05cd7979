"""Numba kernels of hidden attention: single entries, whole rows, and maps streamed channel by
channel.

Symbols as in hidden_attention.py. Every exponent is at most 0. Entries take differences of S, the
running sum of dt in float64; rows carry what each key has left from query to query, and need one
exponential for each state and token.
"""

from typing import no_type_check

import numpy as np
from numba import njit

from interp_core.mamba.scan_kernels import FAST, exponential

# queries of a block: what keys before it have written is decayed to its start once, for all of them
ROWS = 8
# what has decayed below stays nothing: numbers below the normal ones cost a hundred times as much
TINY = 1e-30


@njit(fastmath=FAST, error_model="numpy", cache=True, nogil=True)
@no_type_check
def entries(first, last, S, dt, A, B, C, batch, query, key, out):  # noqa: ANN001, ANN201
    """out[p, c] = alpha[c, query p, key p] for pairs first..last; A [state, channel], S and dt
    [batch, position, channel].

    A key after its query gives 0.
    """
    channels, n_states = dt.shape[2], A.shape[0]
    away = np.empty(channels, dt.dtype)
    for p in range(first, last):
        row, i, j = batch[p], query[p], key[p]
        now, then, step, to = S[row, i], S[row, j], dt[row, j], out[p]
        for c in range(channels):
            to[c] = 0.0
        if j > i:
            continue
        for c in range(channels):
            away[c] = now[c] - then[c]
        for n in range(n_states):
            a_n, weight = A[n], C[row, i, n] * B[row, j, n]
            for c in range(channels):
                to[c] += weight * exponential(away[c] * a_n[c])
        for c in range(channels):
            to[c] *= step[c]


@njit(fastmath=FAST, error_model="numpy", cache=True, nogil=True)
@no_type_check
def _decays(dt, A, decay):  # noqa: ANN001, ANN202
    """decay[n, i] = exp(A[n] dt[i]) of one channel."""
    for n in range(len(A)):
        a_n, to = A[n], decay[n]
        for i in range(len(dt)):
            to[i] = exponential(a_n * dt[i])


@njit(fastmath=FAST, error_model="numpy", cache=True, nogil=True)
@no_type_check
def _near(start, dt, decay, B, C, near, passed, weight, alpha):  # noqa: ANN001, ANN202
    """The block's own keys: alpha[r, start :] for its ROWS queries, 0 after the query.

    `near` [state, ROWS] leaves with exp(A (S_i - S_j)) dt_j B_j for i the block's last token,
    `passed` [state] with the block's whole decay, `weight` [ROWS, state] with C_i times the decay
    from the block's start to query i.
    """
    one = dt[0] * 0 + 1
    for r in range(ROWS):
        for j in range(ROWS):
            alpha[r, start + j] = 0.0
    for n in range(0, len(decay), 4):
        n0, n1, n2, n3 = near[n], near[n + 1], near[n + 2], near[n + 3]
        p0, p1, p2, p3 = one, one, one, one
        for j in range(ROWS):
            n0[j], n1[j], n2[j], n3[j] = 0.0, 0.0, 0.0, 0.0
        for r in range(ROWS):
            i, row = start + r, alpha[r]
            f0, f1, f2, f3 = decay[n, i], decay[n + 1, i], decay[n + 2, i], decay[n + 3, i]
            c0, c1, c2, c3 = C[n, i], C[n + 1, i], C[n + 2, i], C[n + 3, i]
            b0, b1, b2, b3 = (
                dt[i] * B[n, i],
                dt[i] * B[n + 1, i],
                dt[i] * B[n + 2, i],
                dt[i] * B[n + 3, i],
            )
            p0, p1, p2, p3 = p0 * f0, p1 * f1, p2 * f2, p3 * f3
            weight[r, n], weight[r, n + 1], weight[r, n + 2], weight[r, n + 3] = (
                c0 * p0,
                c1 * p1,
                c2 * p2,
                c3 * p3,
            )
            for j in range(
                ROWS
            ):  # of known length, and without a store of one element: both would cost more
                r0 = b0 if j == r else n0[j] * f0
                r1 = b1 if j == r else n1[j] * f1
                r2 = b2 if j == r else n2[j] * f2
                r3 = b3 if j == r else n3[j] * f3
                n0[j], n1[j], n2[j], n3[j] = r0, r1, r2, r3
                row[start + j] += c0 * r0 + c1 * r1 + c2 * r2 + c3 * r3
        passed[n], passed[n + 1], passed[n + 2], passed[n + 3] = p0, p1, p2, p3


@njit(fastmath=FAST, error_model="numpy", cache=True, nogil=True)
@no_type_check
def _far(first, start, kept, weight, alpha):  # noqa: ANN001, ANN202
    """Keys before the block: alpha[r, : start] = sum_n weight[r, n] kept[n, : start] for four
    queries from `first`.
    """
    a0, a1, a2, a3 = alpha[first], alpha[first + 1], alpha[first + 2], alpha[first + 3]
    u, v, w, x = weight[first], weight[first + 1], weight[first + 2], weight[first + 3]
    for j in range(start):
        a0[j], a1[j], a2[j], a3[j] = 0.0, 0.0, 0.0, 0.0
    for n in range(0, len(kept), 4):
        k0, k1, k2, k3 = kept[n], kept[n + 1], kept[n + 2], kept[n + 3]
        u0, u1, u2, u3 = u[n], u[n + 1], u[n + 2], u[n + 3]
        v0, v1, v2, v3 = v[n], v[n + 1], v[n + 2], v[n + 3]
        w0, w1, w2, w3 = w[n], w[n + 1], w[n + 2], w[n + 3]
        x0, x1, x2, x3 = x[n], x[n + 1], x[n + 2], x[n + 3]
        for j in range(start):
            y0, y1, y2, y3 = k0[j], k1[j], k2[j], k3[j]
            a0[j] += u0 * y0 + u1 * y1 + u2 * y2 + u3 * y3
            a1[j] += v0 * y0 + v1 * y1 + v2 * y2 + v3 * y3
            a2[j] += w0 * y0 + w1 * y1 + w2 * y2 + w3 * y3
            a3[j] += x0 * y0 + x1 * y1 + x2 * y2 + x3 * y3


@njit(fastmath=FAST, error_model="numpy", cache=True, nogil=True)
@no_type_check
def _keep(start, near, passed, kept):  # noqa: ANN001, ANN202
    """Decay `kept` [state, position] to the block's last token, and add the block's own keys."""
    tiny = kept.dtype.type(TINY)
    for n in range(0, len(kept), 4):
        k0, k1, k2, k3 = kept[n], kept[n + 1], kept[n + 2], kept[n + 3]
        n0, n1, n2, n3 = near[n], near[n + 1], near[n + 2], near[n + 3]
        p0, p1, p2, p3 = passed[n], passed[n + 1], passed[n + 2], passed[n + 3]
        for j in range(start):
            y0, y1, y2, y3 = k0[j] * p0, k1[j] * p1, k2[j] * p2, k3[j] * p3
            k0[j] = y0 if abs(y0) > tiny else y0 * 0
            k1[j] = y1 if abs(y1) > tiny else y1 * 0
            k2[j] = y2 if abs(y2) > tiny else y2 * 0
            k3[j] = y3 if abs(y3) > tiny else y3 * 0
        for j in range(ROWS):
            k0[start + j], k1[start + j], k2[start + j], k3[start + j] = n0[j], n1[j], n2[j], n3[j]


@njit(fastmath=FAST, error_model="numpy", cache=True, nogil=True)
@no_type_check
def _block(start, dt, decay, B, C, near, passed, weight, kept, alpha):  # noqa: ANN001, ANN202
    """ROWS rows of one channel's alpha from `start` into alpha [ROWS, position]; states come in
    fours.

    `kept` [state, position] holds exp(A (S_i - S_j)) dt_j B_j of every key j before the block, for
    i the last token before it, and leaves with the same for i the block's last token.
    """
    _near(start, dt, decay, B, C, near, passed, weight, alpha)
    _far(0, start, kept, weight, alpha)
    _far(4, start, kept, weight, alpha)
    _keep(start, near, passed, kept)


@njit(error_model="numpy", cache=True, nogil=True)
@no_type_check
def _room(dt, n_states):  # noqa: ANN001, ANN202
    """Room for one channel: decay, near, passed, weight, kept, alpha."""
    length, kind = dt.shape[1], dt.dtype
    return (
        np.empty((n_states, length), kind),
        np.empty((n_states, ROWS), kind),
        np.empty(n_states, kind),
        np.empty((ROWS, n_states), kind),
        np.empty((n_states, length), kind),
        np.empty((ROWS, length), kind),
    )


@njit(fastmath=FAST, error_model="numpy", cache=True, nogil=True)
@no_type_check
def matrices(first, last, dt, A, B, C, out):  # noqa: ANN001, ANN201
    """out[c] = the whole alpha of channels first..last of one sequence, 0 above the diagonal.

    dt [channel, position] and B, C [state, position] are padded with zeros to a multiple of ROWS
    positions, A [channel, state], B and C to a multiple of four states.
    """
    length = out.shape[1]
    decay, near, passed, weight, kept, alpha = _room(dt, A.shape[1])
    for c in range(first, last):
        _decays(dt[c], A[c], decay)
        for start in range(0, length, ROWS):
            _block(start, dt[c], decay, B, C, near, passed, weight, kept, alpha)
            for i in range(start, min(start + ROWS, length)):
                out[c, i, : i + 1] = alpha[i - start, : i + 1]


@njit(fastmath=FAST, error_model="numpy", cache=True, nogil=True)
@no_type_check
def stream(first, last, dt, A, B, C, starts, key, group, size, shares):  # noqa: ANN001, ANN201
    """Sums over channels first..last of one sequence, and each channel's share at wanted pairs;
    inputs as above.

    size[i, j] += |alpha[c, i, j]|, size as padded as dt; the wanted keys of query i are
    key[starts[i] : starts[i + 1]], and shares[group, c] += |alpha[c, i, key]| / sum_j |alpha[c, i,
    j]|.
    """
    decay, near, passed, weight, kept, alpha = _room(dt, A.shape[1])
    totals = np.empty(ROWS, dt.dtype)
    for c in range(first, last):
        _decays(dt[c], A[c], decay)
        for start in range(0, dt.shape[1], ROWS):
            _block(start, dt[c], decay, B, C, near, passed, weight, kept, alpha)
            for r in range(0, ROWS, 2):
                row, after, of_row, of_after = (
                    alpha[r],
                    alpha[r + 1],
                    size[start + r],
                    size[start + r + 1],
                )
                total, total_after = dt[c, 0] * 0, dt[c, 0] * 0
                for j in range(start + ROWS):
                    here, below = abs(row[j]), abs(after[j])
                    total += here
                    total_after += below
                    of_row[j] += here
                    of_after[j] += below
                totals[r], totals[r + 1] = total, total_after
            for i in range(start, min(start + ROWS, len(starts) - 1)):
                total = totals[i - start]
                if total > 0:
                    for p in range(starts[i], starts[i + 1]):
                        if key[p] <= i:
                            shares[group[p], c] += abs(alpha[i - start, key[p]]) / total
