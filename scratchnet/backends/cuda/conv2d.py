"""Convolution: three tiled products over windows that are never unfolded.

    y[(n,i,j), o]       = sum_{(u,v,c)} window[(n,i,j), (u,v,c)] * weight[(u,v,c), o]
    dx[(n,r,s), c]      = sum_{(u,v,o)} seen[(n,r,s), (u,v,o)] * weight[(u,v,c), o]
    dweight[(u,v,c), o] = sum_{(n,i,j)} window[(n,i,j), (u,v,c)] * dy[(n,i,j), o]

`window` is the K*K-fold copy of the image that an im2col would write. Here it is a function: the
product asks for an element and gets the pixel, or 0 outside the image. So is `seen`, which finds
for each pixel the outputs that met it through tap (u, v); dx is thereby a gather and each of its
elements has one owner. dbias is one more row of dweight, below the taps, a window of ones.

Everything but the batch size is a constant of the compiled kernel, so that taking an index apart
costs a multiplication and a shift; the price is a compilation for each shape of layer. With a
stride, dx multiplies the zeros between the outputs too.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from scratchnet.backends.cuda.arrays import Array, empty, on_device
from scratchnet.backends.cuda.device import at, cuda, numba_type
from scratchnet.backends.cuda.matrix_product import Matrix, multiply, multiply_long, store_rows
from scratchnet.checks import check_conv2d, check_like
from scratchnet.geometry import Geometry, Padding


class Windows(NamedTuple):
    """A convolution's sizes, but for the batch: what its kernels are compiled for."""

    H: int
    W: int
    C: int
    O: int
    K: int
    G: int
    stride: int
    dilation: int
    Ho: int
    Wo: int
    top: int
    left: int


def windows(
    x: Array, weight: Array, geometry: Geometry, stride: int = 1, dilation: int = 1
) -> Windows:
    _, H, W, C = x.shape
    K, _, per_group, O = weight.shape
    return Windows(
        H, W, C, O, K, C // per_group, stride, dilation,
        geometry.Ho, geometry.Wo, geometry.top, geometry.left,
    )  # fmt: skip


def conv2d_forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: int = 1,
    padding: Padding = "valid",
    dilation: int = 1,
) -> Array:
    """x (N, H, W, C), weight (K, K, C / G, O), bias (O,) or None  ->  (N, Ho, Wo, O)."""
    x, weight, bias = on_device(x, weight, bias)
    geometry = check_conv2d("conv2d", x, weight, bias, stride, padding, dilation)
    return convolve(x, weight, bias, windows(x, weight, geometry, stride, dilation))


def conv2d_backward(
    dy: Array,
    x: Array,
    weight: Array,
    stride: int = 1,
    padding: Padding = "valid",
    dilation: int = 1,
    need_dx: bool = True,
) -> tuple[Array | None, Array, Array]:
    """dy (N, Ho, Wo, O)  ->  dx like x (None where need_dx is False), dweight, dbias (O,)."""
    dy, x, weight = on_device(dy, x, weight)
    geometry = check_conv2d("conv2d", x, weight, None, stride, padding, dilation)
    sizes = windows(x, weight, geometry, stride, dilation)
    check_like("conv2d", "dy", dy, (x.shape[0], sizes.Ho, sizes.Wo, sizes.O), x.dtype)
    return gradients((dy,), plain_gradient(sizes), x, weight, sizes, need_dx)


def convolve(
    x: Array, weight: Array, bias: Array | None, sizes: Windows, open_above_zero: bool = False
) -> Array:
    """The forward product, and a ReLU in its registers where asked for."""
    y = empty((x.shape[0], sizes.Ho, sizes.Wo, sizes.O), x.dtype)
    out = (y,) if bias is None else (y, bias)
    per_group, K = sizes.C // sizes.G, sizes.K
    store = store_rows(sizes.O, x.dtype, bias is not None, open_above_zero)
    multiply(
        window(sizes, x.dtype), weight_rows(sizes), store, x.dtype, (x,), (weight,), out,
        y.size // sizes.O, sizes.O // sizes.G, K * K * per_group, sizes.G,
    )  # fmt: skip
    return y


def gradients(
    dy: tuple[Array, ...],
    gradient: Callable,
    x: Array,
    weight: Array,
    sizes: Windows,
    need_dx: bool,
) -> tuple[Array | None, Array, Array]:
    """dx, dweight, dbias. gradient(dy, n, i, j, o) reads dy through what came after."""
    N, (K, _, per_group, O) = x.shape[0], weight.shape
    G = sizes.G
    dx = None
    if need_dx:
        dx, store = empty(x.shape, x.dtype), store_rows(sizes.C, x.dtype)
        multiply(
            seen(sizes, gradient, x.dtype), weight_columns(sizes), store, x.dtype,
            dy, (weight,), (dx,), N * sizes.H * sizes.W, per_group, K * K * (O // G), G,
        )  # fmt: skip
    dweight, dbias = multiply_long(
        window_columns_and_ones(sizes, x.dtype), gradient_rows(sizes, gradient), x.dtype,
        (x,), dy, (K * K * per_group, 1), O // G, N * sizes.Ho * sizes.Wo, G,
    )  # fmt: skip
    return dx, dweight.reshape(weight.shape), dbias


@lru_cache
def plain_gradient(sizes: Windows) -> Callable:
    """dy as it is."""
    Ho, Wo, O = sizes.Ho, sizes.Wo, sizes.O

    @cuda.jit(device=True)
    def gradient(dy, n, i, j, o):
        return dy[0][at(((n * Ho + i) * Wo + j) * O + o)]

    return gradient


@lru_cache
def read_pixel(sizes: Windows, dtype: np.dtype) -> Callable:
    """The pixel that output p = (n, i, j) sees at tap q = (u, v, c), c within the group."""
    H, W, C, _, K, G, stride, dilation, Ho, Wo, top, left = sizes
    per_group = C // G
    zero = numba_type(dtype)(0)

    @cuda.jit(device=True)
    def pixel(x, p, q, group):
        c, tap = q % per_group, q // per_group
        u, v = tap // K, tap % K
        n, ij = p // (Ho * Wo), p % (Ho * Wo)
        r = ij // Wo * stride + u * dilation - top
        s = ij % Wo * stride + v * dilation - left
        if r < 0 or r >= H or s < 0 or s >= W:
            return zero
        return x[at(((n * H + r) * W + s) * C + group * per_group + c)]

    return pixel


@lru_cache
def window(sizes: Windows, dtype: np.dtype) -> Matrix:
    """A[(n,i,j), (u,v,c)]: neighbouring channels are neighbours in memory."""
    pixel = read_pixel(sizes, dtype)

    @cuda.jit(device=True)
    def read(arrays, m, k, group):
        return pixel(arrays[0], m, k, group)

    return Matrix(read, along_k=True)


@lru_cache
def window_columns_and_ones(sizes: Windows, dtype: np.dtype) -> Matrix:
    """A[(u,v,c), (n,i,j)], and one row of ones below."""
    pixel = read_pixel(sizes, dtype)
    taps = sizes.K * sizes.K * (sizes.C // sizes.G)
    one = numba_type(dtype)(1)

    @cuda.jit(device=True)
    def read(arrays, m, k, group):
        if m == taps:
            return one
        return pixel(arrays[0], k, m, group)

    return Matrix(read, along_k=False)


@lru_cache
def seen(sizes: Windows, gradient: Callable, dtype: np.dtype) -> Matrix:
    """A[(n,r,s), (u,v,o)]: the gradient of the output that met pixel (r, s) through tap (u, v)."""
    H, W, _, O, K, G, stride, dilation, Ho, Wo, top, left = sizes
    per_group = O // G
    zero = numba_type(dtype)(0)

    @cuda.jit(device=True)
    def read(arrays, m, k, group):
        o, tap = k % per_group, k // per_group
        u, v = tap // K, tap % K
        n, rs = m // (H * W), m % (H * W)
        i = rs // W + top - u * dilation
        j = rs % W + left - v * dilation
        if i < 0 or j < 0 or i % stride != 0 or j % stride != 0:
            return zero
        i //= stride
        j //= stride
        if i >= Ho or j >= Wo:
            return zero
        return gradient(arrays, n, i, j, group * per_group + o)

    return Matrix(read, along_k=True)


@lru_cache
def gradient_rows(sizes: Windows, gradient: Callable) -> Matrix:
    """B[(n,i,j), o]."""
    Ho, Wo = sizes.Ho, sizes.Wo
    per_group = sizes.O // sizes.G

    @cuda.jit(device=True)
    def read(arrays, k, n, group):
        image, ij = k // (Ho * Wo), k % (Ho * Wo)
        return gradient(arrays, image, ij // Wo, ij % Wo, group * per_group + n)

    return Matrix(read, along_k=False)


@lru_cache
def weight_rows(sizes: Windows) -> Matrix:
    """B[(u,v,c), o] of weight (K, K, C / G, O)."""
    O, per_group = sizes.O, sizes.O // sizes.G

    @cuda.jit(device=True)
    def read(arrays, k, n, group):
        return arrays[0][at(k * O + group * per_group + n)]

    return Matrix(read, along_k=False)


@lru_cache
def weight_columns(sizes: Windows) -> Matrix:
    """B[(u,v,o), c] = weight[u,v,c,o]."""
    O, per_group = sizes.O, sizes.O // sizes.G
    channels = sizes.C // sizes.G

    @cuda.jit(device=True)
    def read(arrays, k, n, group):
        o, tap = k % per_group, k // per_group
        return arrays[0][at((tap * channels + n) * O + group * per_group + o)]

    return Matrix(read, along_k=True)
