"""Convolution with a window of one pixel: a matrix product over all pixels of the batch.

    y[m, :]  = bias + x[m, :] @ weight          m = 1 .. M, the pixels that a window starts at
    dx[m, :] = dy[m, :] @ weight.T
    dweight  = sum_m x[m, :].T @ dy[m, :]       dbias = sum_m dy[m, :]

Nothing is padded, and no image has borders, so that the pixels run in blocks of ROWS, which the
first cache holds: forward reads x and writes y once, and backward reads each block of dy once for
all of its products. Each of CHUNKS chunks of pixels has its own sums, which are added in order.
"""

import numpy as np
from numba import get_num_threads, get_thread_id, njit, prange

from scratchnet.backends.cpu.direct import column_panels
from scratchnet.backends.cpu.loops import CHUNKS, piece
from scratchnet.backends.cpu.memory import empty, zeros
from scratchnet.backends.cpu.products import STEP, multiply
from scratchnet.backends.cpu.tiles import COLUMNS
from scratchnet.geometry import Geometry

ROWS = 64  # pixels of a block


def is_pointwise(x: np.ndarray, weight: np.ndarray, geometry: Geometry) -> bool:
    """Whether the window is one pixel, of all channels, and never stands on the padding."""
    K, _, per_group, _ = weight.shape
    return K == 1 and per_group == x.shape[3] and not any(geometry[2:])


def pointwise_forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, stride: int, relu: bool
) -> np.ndarray:
    """y (N, Ho, Wo, O) of x (N, H, W, C), weight (1, 1, C, O), cut off below 0 if relu."""
    pixels = _every(x, stride)
    O = weight.shape[3]
    y = empty((*pixels.shape[:3], O), x.dtype)
    _forward(
        pixels.reshape(-1), column_panels(weight[0, 0]), COLUMNS[x.itemsize],
        np.zeros(O, x.dtype) if bias is None else np.ascontiguousarray(bias),
        relu or bias is not None, relu, _tiles(x.dtype), y.reshape(-1, O),
    )  # fmt: skip
    return y


def pointwise_backward(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, stride: int, need_dx: bool
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """dy (N, Ho, Wo, O)  ->  dx like x (None where need_dx is False), dweight, dbias (O,)."""
    pixels = _every(x, stride)
    C, O = weight.shape[2:]
    pitch = -(-O // STEP) * STEP + STEP  # a power of two would put all rows in one set of the cache
    dpixels = empty(pixels.shape if need_dx else (0, 0, 0, C), x.dtype)
    dweights = zeros((CHUNKS, C, pitch), x.dtype)
    dbiases = zeros((CHUNKS, pitch), x.dtype)
    _backward(
        np.ascontiguousarray(dy).reshape(-1, O), pixels.reshape(-1),
        column_panels(weight[0, 0].T), COLUMNS[x.itemsize],
        zeros((get_num_threads(), ROWS, pitch), x.dtype), _tiles(x.dtype),
        dpixels.reshape(-1, C), dweights, dbiases,
    )  # fmt: skip
    dx = dpixels if need_dx else None
    if need_dx and stride > 1:
        dx = zeros(x.shape, x.dtype)
        dx[:, ::stride, ::stride] = dpixels
    dweight = np.ascontiguousarray(dweights.sum(axis=0)[:, :O])
    return dx, dweight.reshape(weight.shape), dbiases.sum(axis=0)[:O]


def _every(x: np.ndarray, stride: int) -> np.ndarray:
    """The pixels that windows start at, contiguous."""
    if stride == 1:
        return np.ascontiguousarray(x)
    some = x[:, ::stride, ::stride]
    pixels = empty(some.shape, x.dtype)
    pixels[...] = some
    return pixels


def _tiles(dtype: np.dtype) -> np.ndarray:
    return empty((get_num_threads(), ROWS * COLUMNS[dtype.itemsize]), dtype)


@njit(parallel=True, cache=True)
def _forward(x, panels, width, bias, finish, relu, tiles, y):
    M, O = y.shape
    C = x.size // M
    zero = y.dtype.type(0)
    for chunk in prange(CHUNKS):
        lo, hi = piece(M, chunk)
        for first in range(lo, hi, ROWS):
            last = min(first + ROWS, hi)
            _product(x, first * C, C, C, panels, width, tiles[get_thread_id()], first, last, y)
            if finish:
                for m in range(first, last):
                    ys = y[m]
                    for o in range(O):
                        value = ys[o] + bias[o]
                        ys[o] = zero if relu and value <= zero else value  # a NaN stays


@njit(cache=True)
def _product(a, a0, a_row, inner, panels, width, tile, first, last, c):
    """c[first:last] = the rows of a from a0 on @ panels; part of a vector goes through a tile."""
    columns, flat = c.shape[1], c.reshape(-1)
    for j in range(0, columns, width):
        part, start = min(width, columns - j), first * columns + j
        if part % STEP == 0:
            multiply(
                a, a0, a_row, 1, panels, j * inner, width,
                flat, start, columns, last - first, inner, part, False,
            )  # fmt: skip
        else:
            multiply(
                a, a0, a_row, 1, panels, j * inner, width,
                tile, 0, width, last - first, inner, width, False,
            )  # fmt: skip
            for m in range(last - first):
                source, target = tile[m * width :], flat[start + m * columns :]
                for e in range(part):
                    target[e] = source[e]


@njit(parallel=True, cache=True)
def _backward(dy, x, panels, width, blocks, tiles, dx, dweights, dbiases):
    M, O = dy.shape
    C, pitch = x.size // M, blocks.shape[2]
    columns = pitch - STEP
    one = np.ones(1, dy.dtype)
    for chunk in prange(CHUNKS):
        rows_of_dy = blocks[get_thread_id()]
        block = rows_of_dy.reshape(-1)
        dweight, dbias = dweights[chunk].reshape(-1), dbiases[chunk]
        lo, hi = piece(M, chunk)
        for first in range(lo, hi, ROWS):
            rows = min(ROWS, hi - first)
            for m in range(rows):
                source, target = dy[first + m], rows_of_dy[m]
                for o in range(O):
                    target[o] = source[o]
            multiply(one, 0, 0, 0, block, 0, pitch, dbias, 0, pitch, 1, rows, columns, True)
            multiply(
                x, first * C, 1, C, block, 0, pitch,
                dweight, 0, pitch, C, rows, columns, True,
            )  # fmt: skip
            if dx.size:
                _product(
                    block, 0, pitch, O, panels, width, tiles[get_thread_id()],
                    first, first + rows, dx,
                )  # fmt: skip
