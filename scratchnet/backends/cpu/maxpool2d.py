"""Max pooling: the largest value of each window, channel by channel.

    y[n,i,j,c]      = max_{u,v} x[n, i*stride + u - top, j*stride + v - left, c]
    argmax[n,i,j,c] = the first tap u * size + v, in reading order, that reaches it

The threads share the output rows forward, the images backward; the comparisons compile to selects
over the channels, without a branch. Backward adds into the pixel that won, which overlapping
windows of one image may share: hence one thread an image.
"""

import numpy as np
from numba import njit, prange

from scratchnet.backends.cpu.memory import empty
from scratchnet.checks import check_argmax, check_image, check_like, check_pool2d
from scratchnet.geometry import Padding


def maxpool2d_forward(
    x: np.ndarray, size: int, stride: int, padding: Padding = "valid"
) -> tuple[np.ndarray, np.ndarray]:
    """Keep the largest value of each window, and which tap it came from.

    x         (N, H, W, C)     float32 or float64
    returns   y (N, Ho, Wo, C), argmax (N, Ho, Wo, C) uint8 (uint16 where size > 15)
    raises    ValueError, TypeError where the window does not fit, or x is no float image
    """
    check_image("maxpool2d", "x", x)
    geometry = check_pool2d("maxpool2d", "x", x.shape, size, stride, padding)
    y_shape = (x.shape[0], geometry.Ho, geometry.Wo, x.shape[3])
    y = empty(y_shape, x.dtype)
    argmax = empty(y_shape, np.uint8 if size <= 15 else np.uint16)
    _forward(np.ascontiguousarray(x), size, stride, geometry.top, geometry.left, y, argmax)
    return y, argmax


@njit(parallel=True, cache=True)
def _forward(x, size, stride, top, left, y, argmax):
    _, H, W, _ = x.shape
    N, Ho, Wo, C = y.shape
    for row in prange(N * Ho):
        n, i = row // Ho, row % Ho
        for j in range(Wo):
            ys, taps = y[n, i, j], argmax[n, i, j]
            ys[:] = -np.inf
            taps[:] = 0
            for u in range(size):
                r = i * stride + u - top
                if not 0 <= r < H:
                    continue
                for v in range(size):
                    s = j * stride + v - left
                    if 0 <= s < W:
                        _keep_larger(x[n, r, s], taps.dtype.type(u * size + v), ys, taps)


@njit(cache=True)
def _keep_larger(x, tap, y, argmax):
    """A pixel enters its window's maximum; a NaN always wins, so as not to hide."""
    for c in range(x.size):
        larger = (x[c] > y[c]) | (x[c] != x[c])
        y[c] = x[c] if larger else y[c]
        argmax[c] = tap if larger else argmax[c]


def maxpool2d_backward(
    dy: np.ndarray,
    argmax: np.ndarray,
    x_shape: tuple[int, int, int, int],
    size: int,
    stride: int,
    padding: Padding = "valid",
) -> np.ndarray:
    """Send each gradient to the pixel that won; of tied pixels, to the first in reading order.

    dy (N, Ho, Wo, C), argmax likewise  ->  dx of shape x_shape; windows that overlap add up
    """
    geometry = check_pool2d("maxpool2d", "x_shape", x_shape, size, stride, padding)
    y_shape = (x_shape[0], geometry.Ho, geometry.Wo, x_shape[3])
    check_like("maxpool2d", "dy", dy, y_shape, dy.dtype)
    check_argmax("maxpool2d", argmax, y_shape)
    dx = empty(x_shape, dy.dtype)
    _backward(
        np.ascontiguousarray(dy),
        np.ascontiguousarray(argmax),
        size,
        stride,
        geometry.top,
        geometry.left,
        dx,
    )
    return dx


@njit(parallel=True, cache=True)
def _backward(dy, argmax, size, stride, top, left, dx):
    N, H, W, C = dx.shape
    _, Ho, Wo, _ = dy.shape
    for n in prange(N):
        dx[n] = 0
        for i in range(Ho):
            for j in range(Wo):
                for c in range(C):
                    tap = np.int64(argmax[n, i, j, c])
                    r = i * stride + tap // size - top
                    s = j * stride + tap % size - left
                    if 0 <= r < H and 0 <= s < W:  # padding wins where all pixels are -inf
                        dx[n, r, s, c] += dy[n, i, j, c]
