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

from scratchnet.backends.cuda.arrays import Array, empty, on_device
from scratchnet.backends.cuda.device import ACCESS, at, cuda
from scratchnet.backends.cuda.matrix_product import (
    Matrix,
    multiply,
    multiply_long,
    store_rows,
    stored,
    vector_of,
    with_ones_below,
)
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
    """The sizes of a convolution of x (N, H, W, C) by weight (K, K, C / G, O)."""
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
    vector = vector_of(sizes.O // sizes.G)
    store = store_rows(sizes.O, vector, x.dtype, bias is not None, open_above_zero)
    multiply(
        window(sizes), weight_rows(sizes), store, x.dtype, (x,), (weight,), out,
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
    """dx, dweight, dbias. gradient(dy, n, i, j, o, out, first) reads dy through what came after."""
    N, (K, _, per_group, O) = x.shape[0], weight.shape
    G = sizes.G
    dx = None
    if need_dx:
        dx, store = empty(x.shape, x.dtype), store_rows(sizes.C, vector_of(per_group), x.dtype)
        multiply(
            seen(sizes, gradient), weight_columns(sizes), store, x.dtype,
            dy, (weight,), (dx,), N * sizes.H * sizes.W, per_group, K * K * (O // G), G,
        )  # fmt: skip
    dweight, dbias = multiply_long(
        with_ones_below(window_columns(sizes), K * K * per_group, x.dtype),
        gradient_rows(sizes, gradient), x.dtype, (x,), dy,
        (K * K * per_group, 1), O // G, N * sizes.Ho * sizes.Wo, G,
    )  # fmt: skip
    return dx, dweight.reshape(weight.shape), dbias


@lru_cache
def plain_gradient(sizes: Windows) -> Callable:
    """dy as it is."""
    Ho, Wo, O = sizes.Ho, sizes.Wo, sizes.O
    vector = vector_of(O // sizes.G)
    load, _ = ACCESS[vector]

    @cuda.jit(device=True)
    def gradient(dy, n, i, j, o, out, first):
        values = load(dy[0], at(((n * Ho + i) * Wo + j) * O + o))
        for q in range(vector):
            out[first + q] = values[q]

    return gradient


@lru_cache
def output_place(sizes: Windows) -> Callable:
    """Of output p = (n, i, j): its window's first row and column, and that pixel's index in x."""
    H, W, C, _, _, G, stride, _, Ho, Wo, top, left = sizes

    @cuda.jit(device=True)
    def place(p, group):
        n, ij = at(p) // (Ho * Wo), at(p) % (Ho * Wo)
        r, s = at(ij) // Wo * stride - top, at(ij) % Wo * stride - left
        return at(r), at(s), at(((n * H + r) * W + s) * C + group * (C // G))

    return place


@lru_cache
def tap_of(sizes: Windows) -> Callable:
    """Of tap q = (u, v, c) in a group: rows, columns and elements from the window's first."""
    _, W, C, _, K, G, _, dilation, *_ = sizes
    per_group = C // G

    @cuda.jit(device=True)
    def tap(q, group):
        c, uv = at(q) % per_group, at(q) // per_group
        u, v = at(uv) // K * dilation, at(uv) % K * dilation
        return at(u), at(v), at((u * W + v) * C + c)

    return tap


@lru_cache
def read_pixel(sizes: Windows) -> Callable:
    """What the window at a place sees through a tap; nothing outside the image."""
    H, W = sizes.H, sizes.W
    vector = vector_of(sizes.C // sizes.G)
    load, _ = ACCESS[vector]

    @cuda.jit(device=True)
    def pixel(x, place, tap, out, first):
        if at(place[0] + tap[0]) < H and at(place[1] + tap[1]) < W:
            values = load(x, at(place[2] + tap[2]))
            for q in range(vector):
                out[first + q] = values[q]

    return pixel


@lru_cache
def window(sizes: Windows) -> Matrix:
    """A[(n,i,j), (u,v,c)]: neighbouring channels are neighbours in memory."""
    pixel = read_pixel(sizes)

    @cuda.jit(device=True)
    def read(arrays, line, step, out, first):
        pixel(arrays[0], line, step, out, first)

    vector = vector_of(sizes.C // sizes.G)
    return Matrix(output_place(sizes), tap_of(sizes), read, True, vector)


@lru_cache
def window_columns(sizes: Windows) -> Matrix:
    """A[(u,v,c), (n,i,j)]."""
    pixel = read_pixel(sizes)

    @cuda.jit(device=True)
    def read(arrays, line, step, out, first):
        pixel(arrays[0], step, line, out, first)

    vector = vector_of(sizes.C // sizes.G)
    return Matrix(tap_of(sizes), output_place(sizes), read, False, vector)


@lru_cache
def seen(sizes: Windows, gradient: Callable) -> Matrix:
    """A[(n,r,s), (u,v,o)]: the gradient of the output that met pixel (r, s) through tap (u, v)."""
    H, W, _, O, K, G, stride, dilation, Ho, Wo, top, left = sizes
    per_group = O // G

    @cuda.jit(device=True)
    def line_of(m, group):
        n, rs = at(m) // (H * W), at(m) % (H * W)
        return at(at(rs) // W + top), at(at(rs) % W + left), at(n)

    @cuda.jit(device=True)
    def step_of(k, group):
        o, tap = at(k) % per_group, at(k) // per_group
        u, v = at(tap) // K, at(tap) % K
        return at(u * dilation), at(v * dilation), at(group * per_group + o)

    @cuda.jit(device=True)
    def read(arrays, line, step, out, first):
        # what is negative wraps, and lies beyond every image even when divided
        r, s = at(line[0] - step[0]), at(line[1] - step[1])
        i, j = r // stride, s // stride
        if r % stride == 0 and s % stride == 0 and i < Ho and j < Wo:
            gradient(arrays, line[2], i, j, step[2], out, first)

    return Matrix(line_of, step_of, read, True, vector_of(per_group))


@lru_cache
def gradient_rows(sizes: Windows, gradient: Callable) -> Matrix:
    """B[(n,i,j), o]."""
    Ho, Wo = sizes.Ho, sizes.Wo
    per_group = sizes.O // sizes.G

    @cuda.jit(device=True)
    def line_of(n, group):
        return at(group * per_group + n), at(0), at(0)

    @cuda.jit(device=True)
    def step_of(k, group):
        n, ij = at(k) // (Ho * Wo), at(k) % (Ho * Wo)
        return at(n), at(at(ij) // Wo), at(at(ij) % Wo)

    @cuda.jit(device=True)
    def read(arrays, line, step, out, first):
        gradient(arrays, step[0], step[1], step[2], line[0], out, first)

    return Matrix(line_of, step_of, read, False, vector_of(per_group))


def weight_rows(sizes: Windows) -> Matrix:
    """B[(u,v,c), o] of weight (K, K, C / G, O)."""
    per_group = sizes.O // sizes.G
    return stored(1, sizes.O, per_group, vector_of(per_group))


@lru_cache
def weight_columns(sizes: Windows) -> Matrix:
    """B[(u,v,o), c] = weight[u,v,c,o]."""
    O, per_group = sizes.O, sizes.O // sizes.G
    channels = sizes.C // sizes.G
    by_rows = stored(O, 1, per_group, vector_of(per_group))

    @cuda.jit(device=True)
    def step_of(k, group):
        o, tap = at(k) % per_group, at(k) // per_group
        return at(tap * (channels * O) + o), at(0), at(0)

    return by_rows._replace(step=step_of)
