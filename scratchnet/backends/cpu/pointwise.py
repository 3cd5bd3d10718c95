"""Convolution with a window of one pixel: a matrix product over all pixels of the batch.

    y[m, :]  = bias + x[m, :] @ weight          m = 1 .. M, the pixels that a window starts at
    dx[m, :] = dy[m, :] @ weight.T
    dweight  = sum_m x[m, :].T @ dy[m, :]       dbias = sum_m dy[m, :]

Nothing is padded, and no image has borders, so that the pixels run in blocks of ROWS, which the
first cache holds: forward reads x and writes y once, and backward reads each block of dy once for
all of its products. Each of CHUNKS chunks of pixels has its own sums, which are added in order.
Where there are many weights and few pixels, as late in a RedNet, CHUNKS copies of the sums are most
of what is moved: there the threads share the columns of y and dx, and the rows of dweight.
"""

import numpy as np
from numba import get_num_threads, get_thread_id, njit, prange

from scratchnet.backends.cpu.direct import column_panels
from scratchnet.backends.cpu.loops import CHUNKS, piece
from scratchnet.backends.cpu.matmul import DEPTH, pack, steps
from scratchnet.backends.cpu.memory import empty, zeros
from scratchnet.backends.cpu.products import STEP, multiply
from scratchnet.backends.cpu.tiles import COLUMNS
from scratchnet.geometry import Geometry

ROWS = 64  # pixels of a block
WIDE = 1 << 16  # weights, from which on the threads share them instead of the pixels,
FEW = 256  # if there are so many for each pixel
CHANNELS = 32  # rows of dweight that belong together


def is_pointwise(x: np.ndarray, weight: np.ndarray, geometry: Geometry) -> bool:
    """Whether the window is one pixel, of all channels, and never stands on the padding."""
    K, _, per_group, _ = weight.shape
    return K == 1 and per_group == x.shape[3] and not any(geometry[2:])


def pointwise_forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, stride: int, relu: bool
) -> np.ndarray:
    """y (N, Ho, Wo, O) of x (N, H, W, C), weight (1, 1, C, O), cut off below 0 if relu."""
    pixels = _every(x, stride)
    C, O = weight.shape[2:]
    y = empty((*pixels.shape[:3], O), x.dtype)
    if _is_wide(weight, pixels):
        _wide_product(pixels.reshape(-1, C), weight[0, 0], y.reshape(-1, O), bias, relu)
        return y
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
    if _is_wide(weight, pixels):
        return _wide_backward(np.ascontiguousarray(dy), pixels, x.shape, weight, stride, need_dx)
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


def _is_wide(weight: np.ndarray, pixels: np.ndarray) -> bool:
    """Whether there are many weights, and few pixels to share out: few products with a weight."""
    M = pixels.size // pixels.shape[3]
    return weight.size >= max(WIDE, FEW * M)


def _wide_product(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, bias: np.ndarray | None, relu: bool
) -> None:
    """c (M, n) = a (M, k) @ b (k, n) + bias, cut off below 0 if relu: the threads share columns."""
    (M, k), n = a.shape, b.shape[1]
    width = COLUMNS[a.itemsize]
    panels = empty((-(-n // width), k, width), a.dtype)
    pack(*steps(b), n, panels)
    _by_columns(
        a.reshape(-1), M, panels,
        np.zeros(n, a.dtype) if bias is None else np.ascontiguousarray(bias), relu,
        empty((get_num_threads(), ROWS * width), a.dtype), c,
    )  # fmt: skip


@njit(parallel=True, cache=True)
def _by_columns(a, M, panels, bias, relu, tiles, c):
    """Each panel of columns and block of rows belongs to one thread; sums wait in its tile."""
    count, k, width = panels.shape
    n = c.shape[1]
    flat = panels.reshape(-1)
    zero = c.dtype.type(0)
    blocks = -(-M // ROWS)
    for task in prange(count * blocks):
        panel, first = task // blocks, task % blocks * ROWS
        tile = tiles[get_thread_id()]
        rows = min(ROWS, M - first)
        eights = rows // 8 * 8
        multiply(
            a, first * k, k, 1, flat, panel * k * width, width,
            tile, 0, width, eights, k, width, False,
        )  # fmt: skip
        if eights < rows:
            start = rows - 8 if rows > 8 else 0  # some rows twice, which is less than one by one
            multiply(
                a, (first + start) * k, k, 1, flat, panel * k * width, width,
                tile, start * width, width, rows - start, k, width, False,
            )  # fmt: skip
        j = panel * width
        part = min(width, n - j)
        for m in range(rows):
            source, target, shift = (
                tile[m * width :],
                c[first + m, j : j + part],
                bias[j : j + part],
            )
            for e in range(part):
                value = source[e] + shift[e]
                target[e] = zero if relu and value <= zero else value  # a NaN stays


def _wide_backward(
    dy: np.ndarray,
    pixels: np.ndarray,
    x_shape: tuple,
    weight: np.ndarray,
    stride: int,
    need_dx: bool,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """What `pointwise_backward` returns, of the pixels (N, Ho, Wo, C) that windows start at."""
    C, O = weight.shape[2:]
    M = pixels.size // C
    pitch = -(-O // STEP) * STEP + STEP
    rows_of_dy = empty((M, pitch), dy.dtype)
    dweight = empty((C, pitch - STEP), dy.dtype)
    dbias = empty((pitch - STEP,), dy.dtype)
    _pitched(dy.reshape(M, O), rows_of_dy)
    _by_rows(pixels.reshape(-1), rows_of_dy, C, dweight, dbias)
    dx = None
    if need_dx:
        dx = empty(pixels.shape, dy.dtype)
        _wide_product(dy.reshape(M, O), weight[0, 0].T, dx.reshape(M, C), None, False)
        if stride > 1:
            dpixels, dx = dx, zeros(x_shape, dy.dtype)
            dx[:, ::stride, ::stride] = dpixels
    return dx, np.ascontiguousarray(dweight[:, :O]).reshape(weight.shape), dbias[:O]


@njit(parallel=True, cache=True)
def _pitched(dy, rows):
    """dy (M, O) in rows (M, pitch), filled up with 0."""
    M, O = dy.shape
    for m in prange(M):
        source, target = dy[m], rows[m]
        for o in range(O):
            target[o] = source[o]
        for o in range(O, target.size):
            target[o] = 0


@njit(parallel=True, cache=True)
def _by_rows(x, dy, C, dweight, dbias):
    """dweight (C, columns) = x.T @ dy and dbias: the threads share the channels of x."""
    M, pitch = dy.shape
    columns = pitch - STEP
    one = np.ones(1, dy.dtype)
    flat, out = dy.reshape(-1), dweight.reshape(-1)
    blocks = -(-C // CHANNELS)
    for block in prange(blocks + 1):
        if block == blocks:
            multiply(one, 0, 0, 0, flat, 0, pitch, dbias, 0, pitch, 1, M, columns, False)
        else:
            c = block * CHANNELS
            for first in range(0, M, DEPTH):
                multiply(
                    x, first * C + c, 1, C, flat, first * pitch, pitch,
                    out, c * columns, columns, min(CHANNELS, C - c), min(DEPTH, M - first),
                    columns, first > 0,
                )  # fmt: skip


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
