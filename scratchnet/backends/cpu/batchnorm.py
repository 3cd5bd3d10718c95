"""Batch normalisation: each channel shifted to mean 0 and scaled to variance 1, then mapped on.

    mean[c]    = mean over all axes but the last of x
    inv_std[c] = 1 / sqrt(mean((x - mean)^2) + eps)
    y          = gamma * (x - mean) * inv_std + beta

Two passes forward, two backward, each over rows of channels cut among the threads. The variance is
that of the deviations d from a centre, the mean of a sample of SAMPLE rows, so that it stays exact
where the mean is large:

    mean = centre + mean(d)        variance = mean(d^2) - mean(d)^2

The difference cancels little: mean(d) is a fraction of the standard deviation, or, where the sample
caught rows far off, at most sqrt(M / SAMPLE) of them, as these rows widen the variance too.
"""

import numpy as np
from numba import njit, prange

from scratchnet.backends.cpu.loops import CHUNKS, SUMS, channel_rows, fold, piece
from scratchnet.backends.cpu.memory import empty
from scratchnet.backends.cpu.vectors import fma, load, splat, store
from scratchnet.checks import check_like, check_number, check_per_channel

SAMPLE = 64
LANES = 16


def batchnorm_forward(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalise each channel over the batch, as in the module's equations.

    x             (..., C)   float32 or float64
    gamma, beta   (C,)       same dtype
    eps           above 0, in units of variance
    returns       y like x, mean (C,), inv_std (C,)
    raises        ValueError, TypeError where shapes or dtypes do not fit
    """
    check_per_channel("batchnorm", x, gamma=gamma, beta=beta)
    check_number("batchnorm", "eps", eps, 0, above=True)
    mean, inv_std = batch_statistics(x, eps)
    rows, r = channel_rows(x)
    y = empty(x.shape, x.dtype)
    _normalise(
        rows, np.tile(mean, r), np.tile(gamma * inv_std, r), np.tile(beta, r), y.reshape(rows.shape)
    )
    return y, mean, inv_std


def batch_statistics(x: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """The mean and 1 / sqrt(variance + eps) of each channel of x (..., C): (C,), (C,)."""
    rows, r = channel_rows(x)
    M = x.size // x.shape[-1]
    centre = rows.reshape(M, -1)[:: max(1, M // SAMPLE)].mean(axis=0)
    partial = empty((2, CHUNKS, rows.shape[1]), x.dtype)
    _deviations(rows, np.tile(centre, r), partial[0], partial[1])
    shift = fold(partial[0], r) / M
    variance = np.maximum(fold(partial[1], r) / M - np.square(shift), 0)
    return centre + shift, (1 / np.sqrt(variance + eps)).astype(x.dtype)


@njit(parallel=True, cache=True)
def _deviations(x, centre, first, second):
    """Per chunk and channel the sums of x - centre and of its square.

    Eight rows at a time: a sum that goes to memory and back with every row waits for itself.
    """
    M, C = x.shape
    for chunk in prange(CHUNKS):
        lo, hi = piece(M, chunk)
        firsts, seconds = first[chunk], second[chunk]
        firsts[:] = 0
        seconds[:] = 0
        for m in range(lo, hi, 8):
            _add_deviations(x[m : min(m + 8, hi)], centre, firsts, seconds)


@njit(cache=True)
def _add_deviations(x, centre, firsts, seconds):
    (M, C), flat = x.shape, x.reshape(-1)
    one, minus = splat(x.dtype.type(1), LANES), splat(x.dtype.type(-1), LANES)
    for c in range(0, C - LANES + 1, LANES):
        first, second = load(firsts, c, LANES), load(seconds, c, LANES)
        shift = load(centre, c, LANES)
        for m in range(M):
            deviation = fma(shift, minus, load(flat, m * C + c, LANES))
            first = fma(deviation, one, first)
            second = fma(deviation, deviation, second)
        store(firsts, c, first)
        store(seconds, c, second)
    for c in range(C // LANES * LANES, C):
        for m in range(M):
            deviation = x[m, c] - centre[c]
            firsts[c] += deviation
            seconds[c] += deviation * deviation


@njit(parallel=True, cache=True)
def _normalise(x, mean, scale, beta, y):
    M, C = x.shape
    for chunk in prange(CHUNKS):
        lo, hi = piece(M, chunk)
        for m in range(lo, hi):
            xs, ys = x[m], y[m]
            for c in range(C):
                ys[c] = (xs[c] - mean[c]) * scale[c] + beta[c]


def batchnorm_backward(
    dy: np.ndarray, x: np.ndarray, gamma: np.ndarray, mean: np.ndarray, inv_std: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of a batch normalisation, as the reference derives them.

        dgamma = sum(dy * xhat)        dbeta = sum(dy)        xhat = (x - mean) * inv_std
        dx     = gamma * inv_std * (dy - dbeta / M - xhat * dgamma / M)

    dy like x  ->  dx like x, dgamma (C,), dbeta (C,)
    """
    check_per_channel("batchnorm", x, gamma=gamma, mean=mean, inv_std=inv_std)
    check_like("batchnorm", "dy", dy, x.shape, x.dtype)
    rows, r = channel_rows(x)
    drows = np.ascontiguousarray(dy).reshape(rows.shape)
    M = x.size // x.shape[-1]
    means, inv_stds = np.tile(mean, r), np.tile(inv_std, r)
    partial = empty((2, CHUNKS, rows.shape[1]), x.dtype)
    _parameter_gradients(drows, rows, means, inv_stds, partial[0], partial[1])
    dgamma, dbeta = fold(partial[0], r), fold(partial[1], r)
    dx = empty(x.shape, x.dtype)
    _input_gradient(
        drows,
        rows,
        means,
        np.tile(gamma * inv_std, r),
        np.tile(dbeta / M, r),
        np.tile(inv_std * dgamma / M, r),
        dx.reshape(rows.shape),
    )
    return dx, dgamma, dbeta


@njit(parallel=True, cache=True, fastmath=SUMS)
def _parameter_gradients(dy, x, mean, inv_std, dgamma, dbeta):
    M, C = x.shape
    for chunk in prange(CHUNKS):
        lo, hi = piece(M, chunk)
        dgammas, dbetas = dgamma[chunk], dbeta[chunk]
        dgammas[:] = 0
        dbetas[:] = 0
        for m in range(lo, hi):
            dys, xs = dy[m], x[m]
            for c in range(C):
                dgammas[c] += dys[c] * ((xs[c] - mean[c]) * inv_std[c])
                dbetas[c] += dys[c]


@njit(parallel=True, cache=True, fastmath=SUMS)
def _input_gradient(dy, x, mean, scale, dbeta, dgamma, dx):
    """dbeta and dgamma come divided by M, dgamma also by the standard deviation."""
    M, C = x.shape
    for chunk in prange(CHUNKS):
        lo, hi = piece(M, chunk)
        for m in range(lo, hi):
            dys, xs, dxs = dy[m], x[m], dx[m]
            for c in range(C):
                dxs[c] = scale[c] * (dys[c] - dbeta[c] - (xs[c] - mean[c]) * dgamma[c])
