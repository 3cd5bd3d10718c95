"""Rectified linear unit: y = max(x, 0).

One pass, cut among the threads: it runs at the speed of memory, and a NaN passes through.
"""

import numpy as np
from numba import njit, prange

from scratchnet.backends.cpu.loops import CHUNKS, flat, piece
from scratchnet.backends.cpu.memory import empty
from scratchnet.checks import check_float_array, check_like


def relu_forward(x: np.ndarray) -> np.ndarray:
    """x of any shape, float32 or float64  ->  y like x. Raises TypeError for other dtypes."""
    check_float_array("relu", "x", x)
    y = empty(x.shape, x.dtype)
    _forward(flat(x), y.reshape(-1))
    return y


@njit(parallel=True, cache=True)
def _forward(x, y):
    zero = x.dtype.type(0)
    for chunk in prange(CHUNKS):
        lo, hi = piece(x.size, chunk)
        xs, ys = x[lo:hi], y[lo:hi]
        for e in range(xs.size):
            ys[e] = zero if xs[e] <= zero else xs[e]  # a NaN is not <= 0, and stays


def relu_backward(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    """dy, y alike  ->  dx = dy where y > 0, else 0: at the kink itself the gradient is 0."""
    check_float_array("relu", "y", y)
    check_like("relu", "dy", dy, y.shape, y.dtype)
    dx = empty(dy.shape, dy.dtype)
    _backward(flat(dy), flat(y), dx.reshape(-1))
    return dx


@njit(parallel=True, cache=True)
def _backward(dy, y, dx):
    zero = y.dtype.type(0)
    for chunk in prange(CHUNKS):
        lo, hi = piece(y.size, chunk)
        dys, ys, dxs = dy[lo:hi], y[lo:hi], dx[lo:hi]
        for e in range(ys.size):
            dxs[e] = dys[e] if ys[e] > zero else zero
