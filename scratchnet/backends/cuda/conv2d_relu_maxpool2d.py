"""Convolution, ReLU and max pooling, the block of the report's networks, as one kernel.

    y = maxpool2d(relu(conv2d(x, weight, bias)), size)

For 2 x 2 cells the product numbers its rows cell by cell: rows 4p .. 4p + 3 are the four pixels of
cell p. A thread's four neighbouring sums are then one cell, and the thread that made them keeps the
largest: neither the convolution's output nor the ReLU's is ever in memory. Other sizes take two
kernels, convolution with ReLU and a pooling that marks closed cells.

Backward reads dy through pool and ReLU: pixel (i, j) of the convolution gets its cell's gradient if
argmax names it, else 0. `size * size` names none.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from scratchnet.backends.cuda.arrays import Array, empty, on_device
from scratchnet.backends.cuda.conv2d import (
    Windows,
    convolve,
    gradients,
    output_place,
    weight_rows,
    window,
    windows,
)
from scratchnet.backends.cuda.device import ACCESS, at, cuda, numba_type
from scratchnet.backends.cuda.matrix_product import Matrix, multiply, vector_of
from scratchnet.backends.cuda.maxpool2d import pool
from scratchnet.checks import check_argmax, check_like, check_plain_conv2d, check_pool2d
from scratchnet.geometry import Padding, window_geometry


def conv2d_relu_maxpool2d_forward(
    x: Array, weight: Array, bias: Array | None, padding: Padding, size: int
) -> tuple[Array, Array]:
    """x (N, H, W, C), weight (K, K, C, O), bias (O,) or None  ->  y, argmax (N, Ho, Wo, O)."""
    x, weight, bias = on_device(x, weight, bias)
    op = "conv2d_relu_maxpool2d"
    geometry = check_plain_conv2d(op, x, weight, bias, padding)
    sizes = windows(x, weight, geometry)
    N = x.shape[0]
    cells = check_pool2d(op, "x", (N, sizes.Ho, sizes.Wo, sizes.O), size, size, "valid")
    if size != 2:
        z = convolve(x, weight, bias, sizes, open_above_zero=True)
        return pool(z, size, size, cells, mark_closed=True)
    y = empty((N, cells.Ho, cells.Wo, sizes.O), x.dtype)
    argmax = empty(y.shape, np.uint8)
    out = (y, argmax) if bias is None else (y, argmax, bias)
    multiply(
        _windows_by_cell(sizes), weight_rows(sizes),
        _store_cells(sizes.O, x.dtype, bias is not None), x.dtype, (x,), (weight,), out,
        4 * y.size // sizes.O, sizes.O, sizes.K * sizes.K * sizes.C,
    )  # fmt: skip
    return y, argmax


def conv2d_relu_maxpool2d_backward(
    dy: Array,
    x: Array,
    weight: Array,
    argmax: Array,
    padding: Padding,
    size: int,
    need_dx: bool = True,
) -> tuple[Array | None, Array, Array]:
    """dy, argmax (N, Ho, Wo, O)  ->  dx like x (None where need_dx is False), dweight, dbias."""
    dy, x, weight, argmax = on_device(dy, x, weight, argmax)
    op = "conv2d_relu_maxpool2d"
    geometry = check_plain_conv2d(op, x, weight, None, padding)
    sizes = windows(x, weight, geometry)
    cells = window_geometry(sizes.Ho, sizes.Wo, size, size)
    check_like(op, "dy", dy, (x.shape[0], cells.Ho, cells.Wo, sizes.O), x.dtype)
    check_argmax(op, argmax, dy.shape)
    gradient = _through_pool(sizes, size)
    return gradients((dy, argmax), gradient, x, weight, sizes, need_dx)


@lru_cache
def _windows_by_cell(sizes: Windows) -> Matrix:
    """A[m, (u,v,c)], where row m is pixel m % 4 of cell m // 4."""
    place = output_place(sizes)
    Ho, Wo = sizes.Ho, sizes.Wo
    cells_high, cells_wide = Ho // 2, Wo // 2

    @cuda.jit(device=True)
    def line_of(m, group):
        cell, tap = at(m) // 4, at(m) % 4
        row, column = at(cell) // cells_wide, at(cell) % cells_wide
        n, i = at(row) // cells_high, at(row) % cells_high * 2 + tap // 2
        return place((n * Ho + i) * Wo + column * 2 + tap % 2, group)

    return window(sizes)._replace(line=line_of)


@lru_cache
def _store_cells(O: int, dtype: np.dtype, has_bias: bool) -> Callable:
    """out = (y, argmax), or (y, argmax, bias). The first of tied pixels wins; a NaN always does."""
    zero = numba_type(dtype)(0)

    @cuda.jit(device=True)
    def store(out, chunk, group, m, n, square, M, N):
        for j in range(4):
            if n + j < N:
                best, winner = square[j], 0
                for i in range(1, 4):
                    value = square[4 * i + j]
                    if value > best or value != value:
                        best, winner = value, i
                if has_bias:
                    best += out[2][at(n + j)]
                if not best > 0:
                    winner = 4
                if best <= 0:
                    best = zero
                e = at(at(m) // 4 * O + n + j)
                out[0][e] = best
                out[1][e] = winner

    return store


@lru_cache
def _through_pool(sizes: Windows, size: int) -> Callable:
    O = sizes.O
    cells_high, cells_wide = sizes.Ho // size, sizes.Wo // size
    vector = vector_of(O)
    load, _ = ACCESS[vector]

    @cuda.jit(device=True)
    def gradient(arrays, n, i, j, o, out, first):
        row, column = at(i) // size, at(j) // size
        named = at(i) % size * size + at(j) % size
        if row < cells_high and column < cells_wide:
            e = at(((n * cells_high + row) * cells_wide + column) * O + o)
            dy, argmax = load(arrays[0], e), load(arrays[1], e)
            for q in range(vector):
                if argmax[q] == named:
                    out[first + q] = dy[q]

    return gradient
