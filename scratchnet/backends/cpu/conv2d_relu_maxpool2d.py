"""Convolution, ReLU and max pooling as one operator: the block of the report's networks.

    y = maxpool2d(relu(conv2d(x, weight, bias)), size)

Forward: a band of `size` rows is convolved into scratch and pooled from there, so that the arrays
in between never reach memory. Backward: of the size * size pixels of a cell one has a gradient, and
none where the ReLU was closed. dweight is therefore a sum over the winners alone, at a quarter or
less of the multiply-adds of a dense convolution:

    dweight[u,v,:,o] += dy[n,i,j,o] * x[n, r + u, s + v, :]

where (r, s) is the first pixel of the window of the winner of n, i, j, o. The vectors run over the
channels of x, so it takes a vector of them; with fewer, dz is spread out in the cache, as it is for
dx. Images are shared out among the threads, for dweight in CHUNKS sums that are added in order: the
bits do not depend on the number of threads.
"""

import numpy as np
from numba import get_num_threads, get_thread_id, njit, prange

from scratchnet.backends.cpu.conv2d import (
    conv2d_backward,
    convolve_plain,
    input_gradient,
    turn,
)
from scratchnet.backends.cpu.direct import (
    CHUNKS,
    column_panels,
    convolve_band,
    correlate,
    image_tables,
    pad_image,
    padded_shape,
)
from scratchnet.backends.cpu.maxpool2d import maxpool2d_backward, maxpool2d_forward
from scratchnet.backends.cpu.memory import empty, zeros
from scratchnet.backends.cpu.pooling import clear, pool_band, spread_image
from scratchnet.backends.cpu.tiles import COLUMNS, ROWS, VECTOR_BYTES, scaled_tile
from scratchnet.backends.cpu.winograd import suits, winograd_convolve
from scratchnet.checks import check_argmax, check_like, check_plain_conv2d, check_pool2d
from scratchnet.geometry import Geometry, Padding

LARGEST = 15  # window whose taps a byte can number; a larger one is pooled as an array of its own


def conv2d_relu_maxpool2d_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    padding: Padding,
    size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Convolve, cut off below 0, keep the largest of each size x size cell.

    x         (N, H, W, C)          float32 or float64
    weight    (K, K, C, O)          same dtype
    bias      (O,) or None          same dtype
    returns   y (N, Ho, Wo, O), argmax (N, Ho, Wo, O) uint8 (uint16 where size > 15): the winning
              tap u * size + v of the cell, or size * size where y is 0 and the ReLU closed
    raises    ValueError, TypeError where shapes or dtypes do not fit
    """
    op = "conv2d_relu_maxpool2d"
    geometry = check_plain_conv2d(op, x, weight, bias, padding)
    N, H, W, C = x.shape
    K, _, _, O = weight.shape
    pooled = check_pool2d(op, "z", (N, geometry.Ho, geometry.Wo, O), size, size, "valid")
    if size > LARGEST:
        y, argmax = maxpool2d_forward(convolve_plain(x, weight, bias, geometry, True), size, size)
        argmax[~(y > 0)] = size * size
        return y, argmax
    if suits(x, weight, geometry):
        return winograd_convolve(x, weight, bias, geometry, relu=True, size=size)
    pixels, taps, run = image_tables(W, C, K, 1, 1, geometry)
    panels = column_panels(weight.reshape(-1, O))
    width = COLUMNS[x.itemsize]
    Op = -(-O // width) * width
    image_shape = padded_shape(x, geometry)
    threads = get_num_threads()
    y = empty((N, pooled.Ho, pooled.Wo, O), x.dtype)
    argmax = empty(y.shape, np.uint8)
    _forward(
        np.ascontiguousarray(x), geometry.top, geometry.left, pixels, taps, run, panels, width,
        np.zeros(O, x.dtype) if bias is None else np.ascontiguousarray(bias),
        size, geometry.Wo,
        empty((threads, *image_shape), x.dtype),
        empty((threads, size * geometry.Wo + ROWS, Op), x.dtype),
        y, argmax,
    )  # fmt: skip
    return y, argmax


@njit(parallel=True, cache=True)
def _forward(
    x, top, left, pixels, taps, run, panels, width, bias, size, z_width, images, bands, y, argmax
):
    """Each image belongs to one thread, and so does its scratch."""
    for n in prange(x.shape[0]):
        thread = get_thread_id()
        pad_image(x[n], top, left, images[thread])
        _forward_image(
            images[thread], pixels, taps, run, panels, width, bias, size, z_width, bands[thread],
            y[n], argmax[n],
        )  # fmt: skip


@njit(cache=True)
def _forward_image(
    image, pixels, taps, run, panels, width, bias, size, z_width, z, y, argmax
):  # fmt: skip
    """Band by band: the sums of `size` rows into z, then one row of y and argmax."""
    for i in range(y.shape[0]):
        first, last = i * size * z_width, (i + 1) * size * z_width
        convolve_band(
            image.reshape(-1), pixels, first, last, taps, run, panels, width, z.reshape(-1)
        )
        pool_band(z, z_width, width // 2, bias, size, y[i], argmax[i])


def conv2d_relu_maxpool2d_backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    argmax: np.ndarray,
    padding: Padding,
    size: int,
    need_dx: bool = True,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """The winner of each cell takes its gradient to the convolution; a closed ReLU takes none.

    dy, argmax (N, Ho, Wo, O)  ->  dx like x (None where need_dx is False), dweight, dbias
    """
    op = "conv2d_relu_maxpool2d"
    geometry = check_plain_conv2d(op, x, weight, None, padding)
    N, H, W, C = x.shape
    K, _, _, O = weight.shape
    pooled = check_pool2d(op, "z", (N, geometry.Ho, geometry.Wo, O), size, size, "valid")
    check_like(op, "dy", dy, (N, pooled.Ho, pooled.Wo, O), x.dtype)
    check_argmax(op, argmax, dy.shape)
    if size > LARGEST:
        opened = argmax < size * size
        dz_shape = (N, geometry.Ho, geometry.Wo, O)
        taps = np.where(opened, argmax, 0).astype(argmax.dtype)
        dz = maxpool2d_backward(np.where(opened, dy, 0), taps, dz_shape, size, size)
        return conv2d_backward(dz, x, weight, 1, padding, need_dx=need_dx)
    x, dy, argmax = map(np.ascontiguousarray, (x, dy, argmax))
    lanes = VECTOR_BYTES // x.itemsize
    dx = _dx(dy, argmax, weight, x.shape, geometry, size) if need_dx else None
    if K != 3 or C % lanes:
        return dx, *correlate(x, dy, K, 1, 1, geometry, argmax, size)
    image_shape = padded_shape(x, geometry)
    tap = np.arange(size * size)
    cell_taps = (tap // size * image_shape[1] + tap % size) * C
    window = np.arange(K * K)
    window_taps = (window // K * image_shape[1] + window % K) * C
    threads = get_num_threads()
    cells = pooled.Ho * pooled.Wo
    dweights = zeros((CHUNKS, O, K * K, C), x.dtype)
    dbiases = zeros((CHUNKS, O), x.dtype)
    _sum_winners(
        dy, x, argmax, geometry.top, geometry.left, size, lanes,
        cell_taps, window_taps, window * C,
        empty((threads, *image_shape), x.dtype),
        empty((threads, O * cells), x.dtype),
        empty((threads, O * cells), np.int64),
        empty((threads, O), np.int64),
        dweights, dbiases,
    )  # fmt: skip
    dweight = dweights.sum(axis=0).reshape(O, K * K * C).T.reshape(weight.shape)
    return dx, np.ascontiguousarray(dweight), dbiases.sum(axis=0)


def _dx(
    dy: np.ndarray,
    argmax: np.ndarray,
    weight: np.ndarray,
    x_shape: tuple,
    geometry: Geometry,
    size: int,
) -> np.ndarray:
    """A convolution of dz, which Winograd's form spreads out image by image."""
    turned, inverse = turn(weight, x_shape, 1, geometry)
    if suits(dy, turned, inverse) and min(inverse[2:]) >= 0:
        return winograd_convolve(dy, turned, None, inverse, False, argmax=argmax, size=size)[0]
    dz = empty((dy.shape[0], geometry.Ho, geometry.Wo, dy.shape[3]), dy.dtype)
    _spread(dy, argmax, VECTOR_BYTES // dy.itemsize, size, dz)
    return input_gradient(dz, weight, x_shape, 1, geometry)


@njit(parallel=True, cache=True)
def _spread(dy, argmax, lanes, size, dz):
    """Each image belongs to one thread."""
    for n in prange(dy.shape[0]):
        spread_image(dy[n], argmax[n], lanes, size, 0, 0, dz[n])


@njit(parallel=True, cache=True)
def _sum_winners(
    dy, x, argmax, top, left, size, lanes, cell_taps, window_taps, weight_taps,
    images, value_lists, start_lists, count_lists, dweights, dbiases,
):  # fmt: skip
    """Each chunk of images belongs to one thread, with its sums of dweight and dbias."""
    N = x.shape[0]
    for chunk in prange(CHUNKS):
        thread = get_thread_id()
        for n in range(chunk * N // CHUNKS, (chunk + 1) * N // CHUNKS):
            pad_image(x[n], top, left, images[thread])
            _add_dweight(
                dy[n], argmax[n], images[thread], size, lanes, cell_taps, window_taps, weight_taps,
                value_lists[thread], start_lists[thread], count_lists[thread],
                dweights[chunk].reshape(-1), dbiases[chunk],
            )  # fmt: skip


@njit(cache=True)
def _add_dweight(
    dy, argmax, image, size, lanes, cell_taps, window_taps, weight_taps,
    values, starts, counts, dweight, dbias,
):  # fmt: skip
    """The winners of each output channel, then their windows, weighted, into its dweight."""
    Ho, Wo, O = dy.shape
    _, Wp, C = image.shape
    longest = values.size // O
    clear(counts)
    for i in range(Ho):
        for j in range(Wo):
            cell = (i * Wp + j) * size * C
            for o in range(O):
                tap = argmax[i, j, o]
                at = o * longest + counts[o]
                values[at] = dy[i, j, o]
                starts[at] = cell + cell_taps[min(tap, size * size - 1)]
                counts[o] += tap < size * size
    pixels = image.reshape(-1)
    for o in range(O):
        first = o * longest
        last = first + counts[o]
        for e in range(first, last):
            dbias[o] += values[e]
        for c in range(0, C, lanes):
            scaled_tile(
                values, starts, first, last, pixels, c, window_taps,
                dweight, o * weight_taps.size * C + c, weight_taps, 9, 1,
            )  # fmt: skip
