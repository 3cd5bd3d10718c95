"""Average pooling: the mean of each window's pixels, channel by channel.

    y[n,i,j,c] = sum_{u,v} x[n, i*stride + u - top, j*stride + v - left, c] / count[i,j]

count[i,j] is the number of the window's taps that lie on the image: padded cells do not count.
The threads share the output rows forward, the images backward, where windows of one image may add
into the same pixel; nothing is padded or counted in memory.
"""

import numpy as np
from numba import njit, prange

from scratchnet.backends.cpu.loops import SUMS
from scratchnet.backends.cpu.memory import empty
from scratchnet.checks import check_image, check_pool2d, check_shape
from scratchnet.geometry import Padding


def avgpool2d_forward(
    x: np.ndarray, size: int, stride: int, padding: Padding = "valid"
) -> np.ndarray:
    """Average each window over the pixels it has.

    x (N, H, W, C) float32 or float64  ->  (N, Ho, Wo, C)
    raises ValueError, TypeError where the window does not fit, or x is no float image
    """
    check_image("avgpool2d", "x", x)
    geometry = check_pool2d("avgpool2d", "x", x.shape, size, stride, padding)
    y = empty((x.shape[0], geometry.Ho, geometry.Wo, x.shape[3]), x.dtype)
    _forward(np.ascontiguousarray(x), size, stride, geometry.top, geometry.left, y)
    return y


@njit(parallel=True, cache=True, fastmath=SUMS)
def _forward(x, size, stride, top, left, y):
    _, H, W, _ = x.shape
    N, Ho, Wo, C = y.shape
    for row in prange(N * Ho):
        n, i = row // Ho, row % Ho
        first_row, last_row = _inside(i * stride - top, size, H)
        for j in range(Wo):
            first, last = _inside(j * stride - left, size, W)
            ys = y[n, i, j]
            ys[:] = 0
            for r in range(first_row, last_row):
                for s in range(first, last):
                    xs = x[n, r, s]
                    for c in range(C):
                        ys[c] += xs[c]
            count = y.dtype.type((last_row - first_row) * (last - first))
            for c in range(C):
                ys[c] /= count


@njit(cache=True)
def _inside(start, size, limit):
    """The part of start .. start + size that lies in 0 .. limit."""
    return max(start, 0), min(start + size, limit)


def avgpool2d_backward(
    dy: np.ndarray,
    x_shape: tuple[int, int, int, int],
    size: int,
    stride: int,
    padding: Padding = "valid",
) -> np.ndarray:
    """Share each gradient evenly among the pixels of its window.

    dy (N, Ho, Wo, C)  ->  dx of shape x_shape
    """
    geometry = check_pool2d("avgpool2d", "x_shape", x_shape, size, stride, padding)
    y_shape = (x_shape[0], geometry.Ho, geometry.Wo, x_shape[3])
    check_shape("avgpool2d", "dy", dy, y_shape)
    dx = empty(x_shape, dy.dtype)
    _backward(np.ascontiguousarray(dy), size, stride, geometry.top, geometry.left, dx)
    return dx


@njit(parallel=True, cache=True, fastmath=SUMS)
def _backward(dy, size, stride, top, left, dx):
    N, H, W, C = dx.shape
    _, Ho, Wo, _ = dy.shape
    for n in prange(N):
        dx[n] = 0
        for i in range(Ho):
            first_row, last_row = _inside(i * stride - top, size, H)
            for j in range(Wo):
                first, last = _inside(j * stride - left, size, W)
                dys = dy[n, i, j]
                share = dy.dtype.type(1) / dy.dtype.type((last_row - first_row) * (last - first))
                for r in range(first_row, last_row):
                    for s in range(first, last):
                        dxs = dx[n, r, s]
                        for c in range(C):
                            dxs[c] += dys[c] * share
