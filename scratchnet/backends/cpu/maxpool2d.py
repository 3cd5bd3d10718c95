"""Max pooling: the largest value of each window, channel by channel.

    y[n,i,j,c]      = max_{u,v} x[n, i*stride + u - top, j*stride + v - left, c]
    argmax[n,i,j,c] = the first tap u * size + v, in reading order, that reaches it

The threads share the output rows forward, the images backward; the comparisons compile to selects
over the channels, without a branch. Backward adds into the pixel that won, which overlapping
windows of one image may share: hence one thread an image. The usual 2 x 2 windows of an image of
few channels go through `narrow_maxpool2d`.
"""

import numpy as np
from numba import njit, prange

from scratchnet.backends.cpu.loops import CHUNKS, piece
from scratchnet.backends.cpu.memory import empty
from scratchnet.backends.cpu.narrow_maxpool2d import (
    CHANNELS,
    narrow_maxpool2d_backward,
    narrow_maxpool2d_forward,
)
from scratchnet.checks import check_argmax, check_image, check_pool2d, check_shape
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
    N, H, W, C = x.shape
    y = empty((N, geometry.Ho, geometry.Wo, C), x.dtype)
    argmax = empty(y.shape, np.uint8 if size <= 15 else np.uint16)
    x = np.ascontiguousarray(x)
    halves = size == stride == 2 and 2 * geometry.Ho <= H and 2 * geometry.Wo <= W
    if halves and C in CHANNELS:
        narrow_maxpool2d_forward(x, y, argmax)
    elif halves and C < 16:
        best, taps = empty((CHUNKS, H * W * C), x.dtype), empty((CHUNKS, H * W * C), np.uint8)
        _two_by_two(x, best, taps, y, argmax)
    else:
        _forward(x, size, stride, geometry.top, geometry.left, y, argmax)
    return y, argmax


@njit(parallel=True, cache=True)
def _two_by_two(x, best, taps, y, argmax):
    """The windows at every pixel, of which each second in each second row is kept.

    Four times the comparisons, but of whole images shifted against each other, which fill vectors
    also where a pixel has one channel.
    """
    N, H, W, C = x.shape
    _, Ho, Wo, _ = y.shape
    span = (2 * (Ho - 1) * W + 2 * Wo - 1) * C  # from the first window's first tap to the last's
    for chunk in prange(CHUNKS):
        lo, hi = piece(N, chunk)
        largest, tap = best[chunk], taps[chunk]
        for n in range(lo, hi):
            image = x[n].reshape(H * W * C)
            _largest_of_four(
                image[:span],
                image[C : C + span],
                image[W * C : W * C + span],
                image[W * C + C : W * C + C + span],
                largest,
                tap,
            )
            _every_second(largest.reshape(H, W, C), tap.reshape(H, W, C), y[n], argmax[n])


@njit(cache=True)
def _largest_of_four(x0, x1, x2, x3, largest, tap):
    """A later tap wins only if larger; a NaN always wins, so as not to hide."""
    tap0, tap1, tap2, tap3 = np.uint8(0), np.uint8(1), np.uint8(2), np.uint8(3)
    for e in range(x0.size):
        y, t = x0[e], tap0
        wins = (x1[e] > y) | (x1[e] != x1[e])
        y, t = x1[e] if wins else y, tap1 if wins else t
        wins = (x2[e] > y) | (x2[e] != x2[e])
        y, t = x2[e] if wins else y, tap2 if wins else t
        wins = (x3[e] > y) | (x3[e] != x3[e])
        largest[e], tap[e] = x3[e] if wins else y, tap3 if wins else t


@njit(cache=True)
def _every_second(largest, tap, y, argmax):
    Ho, Wo, C = y.shape
    for i in range(Ho):
        ys, taps = y[i], argmax[i]
        from_ys, from_taps = largest[2 * i], tap[2 * i]
        for j in range(Wo):
            for c in range(C):
                ys[j, c], taps[j, c] = from_ys[2 * j, c], from_taps[2 * j, c]


@njit(parallel=True, cache=True)
def _forward(x, size, stride, top, left, y, argmax):
    _, H, W, C = x.shape
    N, Ho, Wo, _ = y.shape
    for row in prange(N * Ho):
        n, i = row // Ho, row % Ho
        for j in range(Wo):
            ys, taps = y[n, i, j], argmax[n, i, j]
            ys[:] = -np.inf
            taps[:] = 0
            for u in range(size):
                for v in range(size):
                    r, s = i * stride + u - top, j * stride + v - left
                    if 0 <= r < H and 0 <= s < W:
                        _keep_larger(x[n, r, s], taps.dtype.type(u * size + v), ys, taps)


@njit(cache=True)
def _keep_larger(x, tap, y, argmax):
    """A pixel enters its window's maximum; a NaN always wins, so as not to hide."""
    for c in range(x.size):
        wins = (x[c] > y[c]) | (x[c] != x[c])
        y[c] = x[c] if wins else y[c]
        argmax[c] = tap if wins else argmax[c]


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
    check_shape("maxpool2d", "dy", dy, y_shape)
    check_argmax("maxpool2d", argmax, y_shape)
    dx = empty(x_shape, dy.dtype)
    dy, argmax = np.ascontiguousarray(dy), np.ascontiguousarray(argmax)
    _, H, W, C = x_shape
    halves = size == stride == 2 and 2 * geometry.Ho <= H and 2 * geometry.Wo <= W
    if halves and C in CHANNELS:
        narrow_maxpool2d_backward(dy, argmax, dx)
    else:
        _backward(dy, argmax, size, stride, geometry.top, geometry.left, dx)
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
