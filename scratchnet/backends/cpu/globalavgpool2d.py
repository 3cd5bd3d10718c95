"""Global average pooling: y[n,c] = mean_{i,j} x[n,i,j,c].

The threads share the images; an image is read, or written, once.
"""

import numpy as np
from numba import njit, prange

from scratchnet.backends.cpu.loops import SUMS
from scratchnet.backends.cpu.memory import empty
from scratchnet.checks import check_image, check_image_shape, check_shape


def globalavgpool2d_forward(x: np.ndarray) -> np.ndarray:
    """x (N, H, W, C) float32 or float64  ->  (N, C). Raises ValueError, TypeError otherwise."""
    check_image("globalavgpool2d", "x", x)
    N, H, W, C = x.shape
    y = empty((N, C), x.dtype)
    _forward(np.ascontiguousarray(x).reshape(N, H * W, C), y)
    return y


@njit(parallel=True, cache=True, fastmath=SUMS)
def _forward(x, y):
    N, pixels, C = x.shape
    for n in prange(N):
        ys = y[n]
        ys[:] = 0
        for p in range(pixels):
            xs = x[n, p]
            for c in range(C):
                ys[c] += xs[c]
        for c in range(C):
            ys[c] /= y.dtype.type(pixels)


def globalavgpool2d_backward(dy: np.ndarray, x_shape: tuple[int, int, int, int]) -> np.ndarray:
    """dy (N, C)  ->  dx of shape x_shape: dx[n,i,j,c] = dy[n,c] / (H * W)."""
    check_image_shape("globalavgpool2d", "x_shape", x_shape)
    N, H, W, C = x_shape
    check_shape("globalavgpool2d", "dy", dy, (N, C))
    dx = empty(x_shape, dy.dtype)
    _backward(np.ascontiguousarray(dy), dx.reshape(N, H * W, C))
    return dx


@njit(parallel=True, cache=True)
def _backward(dy, dx):
    N, pixels, C = dx.shape
    for n in prange(N):
        dys = dy[n] / dy.dtype.type(pixels)
        for p in range(pixels):
            dxs = dx[n, p]
            for c in range(C):
                dxs[c] = dys[c]
