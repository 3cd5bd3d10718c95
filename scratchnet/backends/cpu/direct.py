"""Convolution without a matrix of windows: the rows of the product are read where they lie.

    z[p, o] = sum_{t, e} image[pixel[p] + tap[t] + e] * weight[t, e, o]

The image is padded once, into scratch that stays in the cache. `pixel[p]` is where the window of
output p starts, `tap[t]` how far from there a row of taps lies; with dilation 1 the K taps of a row
and their channels are one run of K * C numbers. A band of output rows is convolved into scratch,
and its epilogue (bias, ReLU, pooling) runs while it is in the first cache. Images are shared out
among the threads; each output element is summed by one thread, in one order.

It reaches nine tenths of the machine's multiply-adds, at any stride and padding; it does them all,
where Winograd's form does fewer.
"""

import numpy as np
from numba import get_num_threads, get_thread_id, njit, prange

from scratchnet.backends.cpu.memory import empty, zeros
from scratchnet.backends.cpu.pooling import spread_image
from scratchnet.backends.cpu.tiles import COLUMNS, ROWS, product_tile
from scratchnet.backends.cpu.vectors import load, store
from scratchnet.geometry import Geometry

CHUNKS = 8  # sums of dweight that images are shared out to, however many threads there are
LANES = 16
BAND = 4096  # numbers of dz that are summed over at a time: they stay in the first cache


def image_tables(
    W: int, C: int, K: int, stride: int, dilation: int, geometry: Geometry
) -> tuple[np.ndarray, np.ndarray, int]:
    """Where windows and their rows of taps start in the padded image, and the run of a row.

    returns pixels (Ho * Wo + ROWS,), taps (K,) or (K * K,), run; a tile may read ROWS past the end
    """
    padded_row = (W + geometry.left + geometry.right) * C
    i = np.arange(geometry.Ho)[:, None] * stride * padded_row
    j = np.arange(geometry.Wo) * stride * C
    pixels = np.append((i + j).ravel(), np.zeros(ROWS, np.int64))
    rows = np.arange(K) * dilation * padded_row
    if dilation == 1:
        return pixels, rows, K * C
    return pixels, (rows[:, None] + np.arange(K) * dilation * C).ravel(), C


def column_panels(matrix: np.ndarray) -> np.ndarray:
    """(k, n) cut into panels of a tile's width, the last filled up with 0: flat (panels, k, width).

    A tile then reads one run of memory, which the first cache holds whatever n is.
    """
    k, n = matrix.shape
    width = COLUMNS[matrix.dtype.itemsize]
    panels = np.zeros((-(-n // width), k, width), matrix.dtype)
    for first in range(0, n, width):
        part = matrix[:, first : first + width]
        panels[first // width, :, : part.shape[1]] = part
    return panels.reshape(-1)


@njit(cache=True)
def copy_run(source, start, count, out, to):
    """out[to : to + count] = source[start : start + count].

    By vectors, which the compiler does not dare where the arrays might overlap.
    """
    for e in range(0, count - LANES + 1, LANES):
        store(out, to + e, load(source, start + e, LANES))
    for e in range(count // LANES * LANES, count):
        out[to + e] = source[start + e]


@njit(cache=True)
def pad_image(x, top, left, padded):
    """x (H, W, C) into the middle of padded (Hp, Wp, C), zero around."""
    H, W, C = x.shape
    Hp, Wp, _ = padded.shape
    zero = x.dtype.type(0)
    source, out = x.reshape(-1), padded.reshape(-1)
    for r in range(Hp):
        first = r * Wp * C
        inside = top <= r < top + H
        begin, end = (left * C, (left + W) * C) if inside else (0, 0)
        for e in range(begin):
            out[first + e] = zero
        copy_run(source, (r - top) * W * C, end - begin, out, first + begin)
        for e in range(end, Wp * C):
            out[first + e] = zero


@njit(cache=True)
def convolve_band(image, pixels, first, last, taps, run, panels, width, z):
    """Outputs first..last of one image: z[(p - first), panel * width + :], flat."""
    depth = taps.size * run
    count = panels.size // (depth * width)
    for panel in range(count):
        for p in range(first, last, ROWS):
            product_tile(
                image, 0, pixels, p, taps, run, 1,
                panels, panel * depth * width, width,
                z, (p - first) * count * width + panel * width, count * width, False, ROWS, 2,
            )  # fmt: skip


def convolve(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    stride: int,
    dilation: int,
    geometry: Geometry,
    relu: bool,
) -> np.ndarray:
    """y (N, Ho, Wo, O) = conv2d(x, weight (K, K, C, O), bias), cut off below 0 if relu."""
    N, H, W, C = x.shape
    K, _, _, O = weight.shape
    y = empty((N, geometry.Ho, geometry.Wo, O), x.dtype)
    width = COLUMNS[x.itemsize]
    threads = get_num_threads()
    _convolve(
        np.ascontiguousarray(x), geometry.top, geometry.left,
        *image_tables(W, C, K, stride, dilation, geometry),
        column_panels(weight.reshape(-1, O)), width,
        np.zeros(O, x.dtype) if bias is None else np.ascontiguousarray(bias), relu,
        empty((threads, *padded_shape(x, geometry)), x.dtype),
        empty((threads, geometry.Wo + ROWS, -(-O // width) * width), x.dtype),
        y,
    )  # fmt: skip
    return y


@njit(parallel=True, cache=True)
def _convolve(x, top, left, pixels, taps, run, panels, width, bias, relu, images, bands, y):
    """Each image belongs to one thread, and so does its scratch."""
    for n in prange(x.shape[0]):
        thread = get_thread_id()
        pad_image(x[n], top, left, images[thread])
        _convolve_image(
            images[thread], pixels, taps, run, panels, width, bias, relu, bands[thread], y[n]
        )


@njit(cache=True)
def _convolve_image(image, pixels, taps, run, panels, width, bias, relu, z, y):
    """Row by row: the sums into z (Wo + ROWS, Op), then bias and ReLU into y (Ho, Wo, O)."""
    Ho, Wo, O = y.shape
    zero = y.dtype.type(0)
    for i in range(Ho):
        convolve_band(
            image.reshape(-1), pixels, i * Wo, (i + 1) * Wo, taps, run, panels, width,
            z.reshape(-1),
        )  # fmt: skip
        for j in range(Wo):
            for o in range(O):
                value = z[j, o] + bias[o]
                y[i, j, o] = zero if relu and value <= zero else value  # a NaN stays


def correlate(
    x: np.ndarray,
    dy: np.ndarray,
    K: int,
    stride: int,
    dilation: int,
    geometry: Geometry,
    argmax: np.ndarray | None = None,
    size: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """dweight (K, K, C, O) and dbias (O,) of convolve: each tap's pixels times dy, summed.

    Given an argmax, dy is the gradient of a max pool of windows of size, and is spread out first.
    """
    N, H, W, C = x.shape
    O = dy.shape[3]
    threads = get_num_threads()
    taps = tap_rows(W, C, K, dilation, geometry)
    width = COLUMNS[x.itemsize]
    Op = -(-O // width) * width
    dweights = zeros((CHUNKS, taps.size, Op), x.dtype)
    dbiases = zeros((CHUNKS, O), x.dtype)
    _correlate(
        np.ascontiguousarray(x), np.ascontiguousarray(dy), geometry.top, geometry.left,
        taps, stride, width,
        np.empty((0, 0, 0, 0), np.uint8) if argmax is None else np.ascontiguousarray(argmax), size,
        empty((threads, *padded_shape(x, geometry)), x.dtype),
        zeros((threads, geometry.Ho, geometry.Wo, Op), x.dtype),
        dweights, dbiases,
    )  # fmt: skip
    dweight = dweights.sum(axis=0)[: K * K * C, :O]
    return np.ascontiguousarray(dweight).reshape(K, K, C, O), dbiases.sum(axis=0)


def tap_rows(W: int, C: int, K: int, dilation: int, geometry: Geometry) -> np.ndarray:
    """Where each number of a window lies from its start, filled up to whole tiles with the last."""
    padded_row = (W + geometry.left + geometry.right) * C
    u, v, c = np.ogrid[:K, :K, :C]
    rows = (u * padded_row + v * C) * dilation + c
    return np.pad(rows.ravel(), (0, -rows.size % ROWS), "edge")


def padded_shape(x: np.ndarray, geometry: Geometry) -> tuple[int, int, int]:
    """(H, W, C) of one image with its border of zeros."""
    _, H, W, C = x.shape
    return H + geometry.top + geometry.bottom, W + geometry.left + geometry.right, C


@njit(parallel=True, cache=True)
def _correlate(
    x, dy, top, left, taps, stride, width, argmax, size, images, gradients, dweights, dbiases
):
    """Each chunk of images belongs to one thread, with its sums."""
    N = x.shape[0]
    for chunk in prange(CHUNKS):
        image, dz = images[get_thread_id()], gradients[get_thread_id()]
        for n in range(chunk * N // CHUNKS, (chunk + 1) * N // CHUNKS):
            pad_image(x[n], top, left, image)
            if argmax.size > 0:
                spread_image(dy[n], argmax[n], width // 2, size, 0, 0, dz)
            else:
                place(dy[n], dz)
            _correlate_image(image, stride, taps, dz, width, dweights[chunk], dbiases[chunk])


@njit(cache=True)
def place(dy, dz):
    """dy (Ho, Wo, O) into the first corner of dz, whose rest stays."""
    Ho, Wo, O = dy.shape
    for i in range(Ho):
        for j in range(Wo):
            for o in range(O):
                dz[i, j, o] = dy[i, j, o]


@njit(cache=True)
def add_pixels(dz, total):
    """total (O,) += the sum of dz (Ho, Wo, Op) over its pixels."""
    Ho, Wo, _ = dz.shape
    for i in range(Ho):
        for j in range(Wo):
            for o in range(total.size):
                total[o] += dz[i, j, o]


@njit(cache=True)
def _correlate_image(image, stride, taps, dz, width, dweight, dbias):
    """Band by band, so that dz is in the first cache while all taps pass by."""
    Ho, Wo, Op = dz.shape
    rows = max(1, BAND // (Wo * Op))
    for first in range(0, Ho, rows):
        last = min(first + rows, Ho)
        band = dz[first:last]
        add_pixels(band, dbias)
        _correlate_band(image, first, last, stride, taps, band, width, dweight)


@njit(cache=True)
def _correlate_band(image, first, last, stride, taps, band, width, dweight):
    """dweight[t, :] += sum_{i,j} image[row i, pixel j, tap t] * band[i - first, j, :]."""
    _, Wo, Op = band.shape
    _, Wp, C = image.shape
    starts = np.arange(first, last) * (stride * Wp * C)
    pixels, dz, out = image.reshape(-1), band.reshape(-1), dweight.reshape(-1)
    for column in range(0, Op, width):
        for t in range(0, taps.size, ROWS):
            product_tile(
                pixels, 0, taps, t, starts, Wo, stride * C,
                dz, column, Op, out, t * Op + column, Op, True, ROWS, 2,
            )  # fmt: skip
