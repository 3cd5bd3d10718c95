"""Products of a few rows with a large matrix: one pass over the matrix as it lies, no packing.

    y = x @ weight + bias       dx = dy @ weight.T       dweight = x.T @ dy

A number of the matrix meets only as many others as there are rows, so that reading it is all the
work; cutting it into panels first would be twice as much again. Each of CHUNKS runs of rows of the
matrix has its own sums, which are added in order.
"""

import numpy as np
from numba import njit, prange

from scratchnet.backends.cpu.loops import CHUNKS, SUMS, piece
from scratchnet.backends.cpu.memory import empty

ROWS = 8  # so many rows of x at most


def thin_forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """x (M, k) @ weight (k, n) + bias (n,) or None."""
    parts = empty((CHUNKS, len(x), weight.shape[1]), x.dtype)
    _forward(np.ascontiguousarray(x), np.ascontiguousarray(weight), parts)
    y = empty(parts.shape[1:], x.dtype)
    np.sum(parts, axis=0, out=y)
    if bias is not None:
        y += bias
    return y


@njit(parallel=True, cache=True, fastmath=SUMS)
def _forward(x, weight, parts):
    M, n = parts.shape[1:]
    for chunk in prange(CHUNKS):
        lo, hi = piece(weight.shape[0], chunk)
        parts[chunk] = 0
        fours = lo + (hi - lo) // 4 * 4
        for k in range(lo, fours, 4):
            w0, w1, w2, w3 = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
            for m in range(M):
                x0, x1, x2, x3 = x[m, k], x[m, k + 1], x[m, k + 2], x[m, k + 3]
                total = parts[chunk, m]
                for j in range(n):
                    total[j] += x0 * w0[j] + x1 * w1[j] + x2 * w2[j] + x3 * w3[j]
        for k in range(fours, hi):
            for m in range(M):
                total = parts[chunk, m]
                for j in range(n):
                    total[j] += x[m, k] * weight[k, j]


def thin_backward(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, need_dx: bool
) -> tuple[np.ndarray | None, np.ndarray]:
    """dx (M, k) or None, dweight (k, n) of dy (M, n)."""
    dx = empty(x.shape if need_dx else (0, x.shape[1]), x.dtype)
    dweight = empty(weight.shape, x.dtype)
    _backward(
        np.ascontiguousarray(dy), np.ascontiguousarray(x), np.ascontiguousarray(weight), dx, dweight
    )
    return dx if need_dx else None, dweight


@njit(parallel=True, cache=True, fastmath=SUMS)
def _backward(dy, x, weight, dx, dweight):
    (M, n), zero = dy.shape, x.dtype.type(0)
    for chunk in prange(CHUNKS):
        lo, hi = piece(weight.shape[0], chunk)
        for k in range(lo, hi):
            weights, out = weight[k], dweight[k]
            for m in range(dx.shape[0]):
                row, total = dy[m], zero
                for j in range(n):
                    total += row[j] * weights[j]
                dx[m, k] = total
            row, factor = dy[0], x[0, k]
            for j in range(n):
                out[j] = factor * row[j]
            for m in range(1, M):
                row, factor = dy[m], x[m, k]
                for j in range(n):
                    out[j] += factor * row[j]
