"""Numba kernels of hidden attention: single entries, whole rows, and maps streamed channel by channel.

Symbols as in hidden_attention.py. Every exponent is at most 0. Entries take differences of S, the running sum of dt in
float64; rows carry what each key has left from query to query, and need one exponential for each state and token.
"""

from typing import no_type_check

import numpy as np
from numba import njit

from interp_core.scan_kernels import FAST, exponential

ROWS = 8  # queries of a block: what keys before it have written is decayed to its start once, for all of them


@njit(fastmath=FAST, error_model="numpy", cache=True, nogil=True)
@no_type_check
def entries(first, last, S, dt, A, B, C, batch, query, key, out):  # noqa: ANN001, ANN201
    """out[p, c] = alpha[c, query p, key p] for pairs first..last; A [state, channel], S and dt [batch, position,
    channel].

    A key after its query gives 0."""
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
def _block_of_rows(start, stop, dt, A, B, C, kept, near, passed, weight, own, alpha):  # noqa: ANN001, ANN202
    """Rows start..stop of one channel's alpha into alpha[row - start]; states come in fours.

    `kept` [state, position] holds exp(A (S_i - S_j)) dt_j B_j of every key j before the block, for i the last token
    before it, and leaves with the same for i the block's last token. `near` [state * ROWS] holds the block's own keys.
    """
    n_states = A.shape[0]
    for n in range(n_states):
        passed[n] = 1.0
        for j in range(ROWS):
            near[n * ROWS + j] = 0.0
    for i in range(start, stop):
        row, own_key = alpha[i - start], i - start
        for n in range(n_states):
            weight[n] = exponential(A[n] * dt[i])
            passed[n] *= weight[n]
        for j in range(ROWS):
            own[j] = 0.0
        for n in range(0, n_states, 4):
            f0, f1, f2, f3 = weight[n], weight[n + 1], weight[n + 2], weight[n + 3]
            c0, c1, c2, c3 = C[i, n], C[i, n + 1], C[i, n + 2], C[i, n + 3]
            b0, b1, b2, b3 = dt[i] * B[i, n], dt[i] * B[i, n + 1], dt[i] * B[i, n + 2], dt[i] * B[i, n + 3]
            at = n * ROWS
            for j in range(
                ROWS
            ):  # of known length, and without a store of one element: both would cost more than the sum
                r0 = b0 if j == own_key else near[at + j] * f0
                r1 = b1 if j == own_key else near[at + ROWS + j] * f1
                r2 = b2 if j == own_key else near[at + 2 * ROWS + j] * f2
                r3 = b3 if j == own_key else near[at + 3 * ROWS + j] * f3
                near[at + j], near[at + ROWS + j] = r0, r1
                near[at + 2 * ROWS + j], near[at + 3 * ROWS + j] = r2, r3
                own[j] += c0 * r0 + c1 * r1 + c2 * r2 + c3 * r3
        for j in range(start):
            row[j] = 0.0
        for n in range(0, n_states, 4):
            w0, w1 = C[i, n] * passed[n], C[i, n + 1] * passed[n + 1]
            w2, w3 = C[i, n + 2] * passed[n + 2], C[i, n + 3] * passed[n + 3]
            k0, k1, k2, k3 = kept[n], kept[n + 1], kept[n + 2], kept[n + 3]
            for j in range(start):
                row[j] += w0 * k0[j] + w1 * k1[j] + w2 * k2[j] + w3 * k3[j]
        for j in range(start, i + 1):
            row[j] = own[j - start]
    for n in range(n_states):
        k_n, factor = kept[n], passed[n]
        for j in range(start):
            moved = k_n[j] * factor
            # What has decayed to nothing stays nothing: numbers below the normal ones cost a hundred times as much.
            k_n[j] = moved if abs(moved) > 1e-30 else moved * 0
        for j in range(start, stop):
            k_n[j] = near[n * ROWS + j - start]


@njit(fastmath=FAST, error_model="numpy", cache=True, nogil=True)
@no_type_check
def matrices(first, last, dt, A, B, C, out):  # noqa: ANN001, ANN201
    """out[c] = the whole alpha of channels first..last of one sequence; dt [channel, position], A [channel, state],
    B and C [position, state]; above the diagonal nothing is written."""
    length, n_states = dt.shape[1], A.shape[1]
    kept, near = np.empty((n_states, length), dt.dtype), np.empty(n_states * ROWS, dt.dtype)
    passed, weight, own = np.empty(n_states, dt.dtype), np.empty(n_states, dt.dtype), np.empty(ROWS, dt.dtype)
    for c in range(first, last):
        for start in range(0, length, ROWS):
            stop = min(start + ROWS, length)
            _block_of_rows(start, stop, dt[c], A[c], B, C, kept, near, passed, weight, own, out[c, start:stop])


@njit(fastmath=FAST, error_model="numpy", cache=True, nogil=True)
@no_type_check
def stream(first, last, dt, A, B, C, starts, key, group, size, shares):  # noqa: ANN001, ANN201
    """Sums over channels first..last of one sequence, and each channel's share at wanted pairs.

    size[i, j] += |alpha[c, i, j]|; the wanted keys of query i are key[starts[i] :
    starts[i + 1]], and shares[group, c] += |alpha[c, i, key]| / sum_j |alpha[c, i, j]|.
    """
    length, n_states = dt.shape[1], A.shape[1]
    kept, near = np.empty((n_states, length), dt.dtype), np.empty(n_states * ROWS, dt.dtype)
    passed, weight, own = np.empty(n_states, dt.dtype), np.empty(n_states, dt.dtype), np.empty(ROWS, dt.dtype)
    alpha = np.empty((ROWS, length), dt.dtype)
    for c in range(first, last):
        for start in range(0, length, ROWS):
            stop = min(start + ROWS, length)
            _block_of_rows(start, stop, dt[c], A[c], B, C, kept, near, passed, weight, own, alpha)
            for i in range(start, stop):
                row, of_size = alpha[i - start], size[i]
                total = dt[c, 0] * 0
                for j in range(i + 1):
                    value = abs(row[j])
                    total += value
                    of_size[j] += value
                if total > 0:
                    for p in range(starts[i], starts[i + 1]):
                        if key[p] <= i:
                            shares[group[p], c] += abs(row[key[p]]) / total
