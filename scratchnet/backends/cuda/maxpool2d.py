"""Max pooling: a thread owns one output; backward, a thread owns one pixel.

    y[n,i,j,c]  = max_{u,v} x[n, i*stride + u - top, j*stride + v - left, c]
    dx[n,r,s,c] = sum over the windows (i, j) that hold (r, s) and whose argmax names it, of dy

Neighbouring threads own neighbouring channels, so every access of a warp is one run of memory.
Backward gathers: a pixel asks the windows that it lies in, instead of windows adding to a pixel.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from scratchnet.backends.cuda.arrays import Array, empty, on_device
from scratchnet.backends.cuda.device import at, cuda, launch_over, numba_type
from scratchnet.checks import check_argmax, check_image, check_pool2d, check_shape
from scratchnet.geometry import Geometry, Padding


def maxpool2d_forward(
    x: Array, size: int, stride: int, padding: Padding = "valid"
) -> tuple[Array, Array]:
    """x (N, H, W, C)  ->  y (N, Ho, Wo, C), argmax likewise: uint8, uint16 where size > 15."""
    x = on_device(x)
    check_image("maxpool2d", "x", x)
    geometry = check_pool2d("maxpool2d", "x", x.shape, size, stride, padding)
    return pool(x, size, stride, geometry)


def maxpool2d_backward(
    dy: Array,
    argmax: Array,
    x_shape: tuple[int, int, int, int],
    size: int,
    stride: int,
    padding: Padding = "valid",
) -> Array:
    """dy, argmax (N, Ho, Wo, C)  ->  dx of shape x_shape."""
    dy, argmax = on_device(dy, argmax)
    geometry = check_pool2d("maxpool2d", "x_shape", x_shape, size, stride, padding)
    N, H, W, C = x_shape
    check_shape("maxpool2d", "dy", dy, (N, geometry.Ho, geometry.Wo, C))
    check_argmax("maxpool2d", argmax, dy.shape)
    dx = empty(x_shape, dy.dtype)
    kernel = _backward_kernel(numba_type(dy.dtype), H, W, C, size, stride, geometry)
    launch_over(dx.size, kernel, dy, argmax, dx)
    return dx


def pool(
    x: Array, size: int, stride: int, geometry: Geometry, mark_closed: bool = False
) -> tuple[Array, Array]:
    """y and argmax; mark_closed gives size * size for argmax where y is not above 0."""
    N, H, W, C = x.shape
    y = empty((N, geometry.Ho, geometry.Wo, C), x.dtype)
    argmax = empty(y.shape, np.uint8 if size <= 15 else np.uint16)
    dtype = numba_type(x.dtype)
    kernel = _forward_kernel(dtype, H, W, C, size, stride, geometry, mark_closed)
    launch_over(y.size, kernel, x, y, argmax)
    return y, argmax


@lru_cache
def _forward_kernel(
    dtype: Any, H: int, W: int, C: int, size: int, stride: int, where: Geometry, mark_closed: bool
) -> Any:
    Ho, Wo, top, left = where.Ho, where.Wo, where.top, where.left
    lowest = dtype(-np.inf)

    @cuda.jit
    def maxpool2d(x, y, argmax, count):
        for e in range(cuda.grid(1), count, cuda.gridsize(1)):
            c, pixel = at(e) % C, at(e) // C
            j, i, n = at(pixel) % Wo, at(pixel) // Wo % Ho, at(pixel) // (Wo * Ho)
            best, winner = lowest, 0
            for u in range(size):
                for v in range(size):
                    r, s = i * stride + u - top, j * stride + v - left
                    if r >= 0 and r < H and s >= 0 and s < W:
                        value = x[at(((n * H + r) * W + s) * C + c)]
                        if value > best or value != value:  # a NaN must not hide behind a number
                            best, winner = value, u * size + v
            if mark_closed and not best > 0:
                winner = size * size
            y[at(e)] = best
            argmax[at(e)] = winner

    return maxpool2d


@lru_cache
def _backward_kernel(
    dtype: Any, H: int, W: int, C: int, size: int, stride: int, where: Geometry
) -> Any:
    Ho, Wo, top, left = where.Ho, where.Wo, where.top, where.left
    zero = dtype(0)

    @cuda.jit
    def maxpool2d_gradient(dy, argmax, dx, count):
        for e in range(cuda.grid(1), count, cuda.gridsize(1)):
            c, pixel = at(e) % C, at(e) // C
            s, r, n = at(pixel) % W, at(pixel) // W % H, at(pixel) // (W * H)
            total = zero
            for u in range(size):
                i = r + top - u
                if i >= 0 and i % stride == 0 and i // stride < Ho:
                    for v in range(size):
                        j = s + left - v
                        if j >= 0 and j % stride == 0 and j // stride < Wo:
                            window = at(((n * Ho + i // stride) * Wo + j // stride) * C + c)
                            if argmax[window] == u * size + v:
                                total += dy[window]
            dx[at(e)] = total

    return maxpool2d_gradient
