"""A scale and a shift for each channel: what batch normalisation is in evaluation.

    y[..., c] = gamma[c] * x[..., c] + beta[c]

One pass over rows of channels, cut among the threads; backward makes all three gradients in one
pass, with partial sums for each chunk of rows.
"""

import numpy as np
from numba import njit, prange

from scratchnet.backends.cpu.loops import CHUNKS, SUMS, channel_rows, fold, piece
from scratchnet.backends.cpu.memory import empty
from scratchnet.checks import check_like, check_per_channel


def channel_affine_forward(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Scale and shift each channel.

    x             (..., C)   float32 or float64
    gamma, beta   (C,)       same dtype
    returns       like x
    raises        ValueError, TypeError where shapes or dtypes do not fit
    """
    check_per_channel("channel_affine", x, gamma=gamma, beta=beta)
    rows, r = channel_rows(x)
    y = empty(x.shape, x.dtype)
    _forward(rows, np.tile(gamma, r), np.tile(beta, r), y.reshape(rows.shape))
    return y


@njit(parallel=True, cache=True)
def _forward(x, gamma, beta, y):
    M, C = x.shape
    for chunk in prange(CHUNKS):
        lo, hi = piece(M, chunk)
        for m in range(lo, hi):
            xs, ys = x[m], y[m]
            for c in range(C):
                ys[c] = gamma[c] * xs[c] + beta[c]


def channel_affine_backward(
    dy: np.ndarray, x: np.ndarray, gamma: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy like x  ->  dx = dy * gamma like x, dgamma = sum(dy * x) (C,), dbeta = sum(dy) (C,)."""
    check_per_channel("channel_affine", x, gamma=gamma)
    check_like("channel_affine", "dy", dy, x.shape, x.dtype)
    rows, r = channel_rows(x)
    dx = empty(x.shape, x.dtype)
    dgamma = empty((CHUNKS, rows.shape[1]), x.dtype)
    dbeta = empty((CHUNKS, rows.shape[1]), x.dtype)
    drows = np.ascontiguousarray(dy).reshape(rows.shape)
    _backward(drows, rows, np.tile(gamma, r), dx.reshape(rows.shape), dgamma, dbeta)
    return dx, fold(dgamma, r), fold(dbeta, r)


@njit(parallel=True, cache=True, fastmath=SUMS)
def _backward(dy, x, gamma, dx, dgamma, dbeta):
    M, C = x.shape
    for chunk in prange(CHUNKS):
        lo, hi = piece(M, chunk)
        dgammas, dbetas = dgamma[chunk], dbeta[chunk]
        dgammas[:] = 0
        dbetas[:] = 0
        for m in range(lo, hi):
            dys, xs, dxs = dy[m], x[m], dx[m]
            for c in range(C):
                dxs[c] = dys[c] * gamma[c]
                dgammas[c] += dys[c] * xs[c]
                dbetas[c] += dys[c]
