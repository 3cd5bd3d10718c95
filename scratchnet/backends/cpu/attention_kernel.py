"""The kernels of windowed self-attention: queries compared with the keys of their window.

    score[n,i,j,g,u,v] = sum_{c in g} q[n,i,j,c] * (k[n, r(i,u), s(j,v), c] + position[u,v,c])
                         / sqrt(C / G)
    kernel = softmax over the window's cells on the image

One row of pixels belongs to one thread, which owns all its kernels. Backward gathers: a row of dk
asks the rows whose windows reach it, so that no two threads write to one pixel, at the price of
reading each dscore twice.
"""

import math

import numpy as np
from numba import njit, prange

from scratchnet.backends.cpu.loops import SUMS
from scratchnet.backends.cpu.memory import empty
from scratchnet.checks import check_attention_kernel, check_like


def attention_kernel_forward(
    q: np.ndarray,
    k: np.ndarray,
    position: np.ndarray | None,
    K: int,
    groups: int,
    dilation: int = 1,
) -> np.ndarray:
    """Compare each pixel's query with the keys of its window, as in the module's equations.

    q, k (N, H, W, C), position (K, K, C) or None  ->  kernel (N, H, W, G, K, K)
    raises ValueError, TypeError where shapes or dtypes do not fit
    """
    check_attention_kernel(q, k, position, K, groups, dilation)
    kernel = empty((*q.shape[:3], groups, K, K), q.dtype)
    _scores(*_contiguous(q, k, position, K), dilation, kernel)
    _softmax(kernel)
    return kernel


@njit(parallel=True, cache=True, fastmath=SUMS)
def _scores(q, k, position, dilation, score):
    N, H, W, G, K, _ = score.shape
    per_group = q.shape[3] // G
    scale = 1 / math.sqrt(per_group)
    for row in prange(N * H):
        n, i = row // H, row % H
        for j in range(W):
            for u in range(K):
                r = i + (u - K // 2) * dilation
                for v in range(K):
                    s = j + (v - K // 2) * dilation
                    if not (0 <= r < H and 0 <= s < W):
                        score[n, i, j, :, u, v] = -np.inf
                        continue
                    for g in range(G):
                        lo, hi = g * per_group, (g + 1) * per_group
                        qs, ks, ps = q[n, i, j, lo:hi], k[n, r, s, lo:hi], position[u, v, lo:hi]
                        dot = q.dtype.type(0)
                        for c in range(qs.size):
                            dot += qs[c] * (ks[c] + ps[c])
                        score[n, i, j, g, u, v] = dot * scale


@njit(parallel=True, cache=True)
def _softmax(score):
    """Turn scores into kernels, in place. No fastmath: -inf must become 0, NaN stay NaN."""
    N, H, W, G, K, _ = score.shape
    for row in prange(N * H):
        n, i = row // H, row % H
        for j in range(W):
            for g in range(G):
                cells = score[n, i, j, g]
                highest = cells.max()
                total = score.dtype.type(0)
                for u in range(K):
                    for v in range(K):
                        cells[u, v] = math.exp(cells[u, v] - highest)
                        total += cells[u, v]
                for u in range(K):
                    for v in range(K):
                        cells[u, v] /= total


def attention_kernel_backward(
    dkernel: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    position: np.ndarray | None,
    kernel: np.ndarray,
    dilation: int = 1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The gradients for queries, keys and positions, as the reference derives them.

    dkernel, kernel (N, H, W, G, K, K)  ->  dq, dk like q, dposition like position (None without)
    """
    G, K = kernel.shape[3], kernel.shape[5]
    check_attention_kernel(q, k, position, K, G, dilation)
    check_like("attention_kernel", "kernel", kernel, (*q.shape[:3], G, K, K), q.dtype)
    check_like("attention_kernel", "dkernel", dkernel, kernel.shape, q.dtype)
    arrays = _contiguous(q, k, position, K)
    dscore, dq, dk = (empty(shape, q.dtype) for shape in (kernel.shape, q.shape, q.shape))
    _dscores(np.ascontiguousarray(dkernel), np.ascontiguousarray(kernel), q.shape[3] // G, dscore)
    _dqueries_and_keys(dscore, *arrays, dilation, dq, dk)
    if position is None:
        return dq, dk, None
    dposition = empty(position.shape, q.dtype)
    _dpositions(dscore, arrays[0], dposition)
    return dq, dk, dposition


@njit(parallel=True, cache=True, fastmath=SUMS)
def _dscores(dkernel, kernel, per_group, dscore):
    N, H, W, G, K, _ = kernel.shape
    scale = 1 / math.sqrt(per_group)
    for row in prange(N * H):
        n, i = row // H, row % H
        for j in range(W):
            for g in range(G):
                ks, dks = kernel[n, i, j, g], dkernel[n, i, j, g]
                mean = kernel.dtype.type(0)
                for u in range(K):
                    for v in range(K):
                        mean += dks[u, v] * ks[u, v]
                for u in range(K):
                    for v in range(K):
                        dscore[n, i, j, g, u, v] = ks[u, v] * (dks[u, v] - mean) * scale


@njit(parallel=True, cache=True, fastmath=SUMS)
def _dqueries_and_keys(dscore, q, k, position, dilation, dq, dk):
    """Row (n, i) of dq and of dk; dk looks up who reached it: tap (K-1-u, K-1-v) of cell (r, s)."""
    N, H, W, G, K, _ = dscore.shape
    per_group = q.shape[3] // G
    for row in prange(N * H):
        n, i = row // H, row % H
        for j in range(W):
            dq[n, i, j] = 0
            dk[n, i, j] = 0
            for u in range(K):
                r = i + (u - K // 2) * dilation
                if not 0 <= r < H:
                    continue
                for v in range(K):
                    s = j + (v - K // 2) * dilation
                    if not 0 <= s < W:
                        continue
                    for g in range(G):
                        lo, hi = g * per_group, (g + 1) * per_group
                        ks, ps, dqs = k[n, r, s, lo:hi], position[u, v, lo:hi], dq[n, i, j, lo:hi]
                        qs, dks = q[n, r, s, lo:hi], dk[n, i, j, lo:hi]
                        asked = dscore[n, i, j, g, u, v]
                        reached = dscore[n, r, s, g, K - 1 - u, K - 1 - v]
                        for c in range(dqs.size):
                            dqs[c] += asked * (ks[c] + ps[c])
                            dks[c] += reached * qs[c]


@njit(parallel=True, cache=True, fastmath=SUMS)
def _dpositions(dscore, q, dposition):
    """One tap a thread, summed over all pixels in order."""
    N, H, W, G, K, _ = dscore.shape
    per_group = q.shape[3] // G
    for cell in prange(K * K):
        u, v = cell // K, cell % K
        dposition[u, v] = 0
        for n in range(N):
            for i in range(H):
                for j in range(W):
                    for g in range(G):
                        lo, hi = g * per_group, (g + 1) * per_group
                        qs, dps = q[n, i, j, lo:hi], dposition[u, v, lo:hi]
                        for c in range(qs.size):
                            dps[c] += dscore[n, i, j, g, u, v] * qs[c]


def _contiguous(
    q: np.ndarray, k: np.ndarray, position: np.ndarray | None, K: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays as the compiled loops take them; no positions are positions of 0."""
    if position is None:
        position = np.zeros((K, K, q.shape[3]), q.dtype)
    return np.ascontiguousarray(q), np.ascontiguousarray(k), np.ascontiguousarray(position)
