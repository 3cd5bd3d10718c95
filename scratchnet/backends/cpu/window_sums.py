"""The window sums of an involution, one image and one group of channels at a time.

    out[p, c]        = sum_{u,v} kernel[u*K + v, p] * source[pixel at tap (u, v) of p, c]
    dsource[q, c]    = sum_{u,v} kernel[u*K + v, p] * dout[p, c]    over the p whose tap is q
    dkernel[u*K+v, p] = sum_c dout[p, c] * source[pixel at tap (u, v) of p, c]

The first two are one loop: a walk over the taps of a position, along rows and columns, says which
tap meets which pixel, so that borders, stride and dilation cost nothing in the loop and nothing is
padded. A group's channels lie side by side, rounded up to whole vectors of LANES with zeros; the
kernels lie tap by tap, `pitch` numbers from one tap to the next, as the product that makes them
leaves them. Arrays are flat.
"""

from functools import lru_cache
from math import gcd

import numpy as np
from numba import njit

from scratchnet.backends.cpu.vectors import broadcast, fma, lane_sum, load, splat, store

LANES = 16


def whole(count: int) -> int:
    """count rounded up to whole vectors."""
    return -(-count // LANES) * LANES


def kernel_pitch(pixels: int) -> int:
    """Numbers from one tap to the next: a whole page would put all taps in one set of the cache."""
    return whole(pixels) + LANES


@lru_cache
def walks(
    size: int, out: int, K: int, stride: int, dilation: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Along one axis, the taps of each output, the taps that reach each pixel, and tap ranges.

    returns   forward (out, 5), backward (size, 5): how many taps, the first, the step from tap to
              tap, the first pixel (output), the step from pixel to pixel; and (K, 2): the first
              output whose tap lies on the image, and the one after the last
    """
    before = dilation * (K // 2)
    forward = np.zeros((out, 5), np.int64)
    backward = np.zeros((size, 5), np.int64)
    ranges = np.zeros((K, 2), np.int64)
    for i in range(out):
        taps = [u for u in range(K) if 0 <= i * stride + u * dilation - before < size]
        forward[i] = len(taps), taps[0], 1, i * stride + taps[0] * dilation - before, dilation
    step = stride // gcd(stride, dilation)
    for r in range(size):
        reach = ((u, r + before - u * dilation) for u in range(K))
        taps = [(u, i // stride) for u, i in reach if i % stride == 0 and 0 <= i // stride < out]
        if taps:
            backward[r] = len(taps), taps[0][0], step, taps[0][1], -step * dilation // stride
    for u in range(K):
        outputs = [i for i in range(out) if 0 <= i * stride + u * dilation - before < size]
        if outputs:
            ranges[u] = outputs[0], outputs[-1] + 1
    return forward, backward, ranges


@njit(cache=True)
def _walk(table, i):
    return table[i, 0], table[i, 1], table[i, 2], table[i, 3], table[i, 4]


@njit(cache=True)
def window_sums(source, width, kernel, pitch, K, rows, columns, lanes, kernel_of_source, out):
    """out[p] = the sum over p's walk; the kernel is that of p, or of the source pixel."""
    row_pixels = columns.shape[0]
    for i in range(rows.shape[0]):
        taps_u, u0, u_step, r0, r_step = _walk(rows, i)
        for j in range(row_pixels):
            taps_v, v0, v_step, s0, s_step = _walk(columns, j)
            p = i * row_pixels + j
            q = r0 * width + s0
            k = (u0 * K + v0) * pitch + (q if kernel_of_source else p)
            k_row = u_step * K * pitch + (r_step * width if kernel_of_source else 0)
            k_step = v_step * pitch + (s_step if kernel_of_source else 0)
            x_row, x_step = r_step * width * lanes, s_step * lanes
            for c in range(0, lanes, LANES):
                x = q * lanes + c
                # Constants unroll the loops: a third faster for K = 3, a sixth for K = 7.
                if taps_u == taps_v == 3:
                    total = _taps(source, x, x_row, x_step, kernel, k, k_row, k_step, 3, 3)
                elif taps_v == 7:
                    total = _taps(source, x, x_row, x_step, kernel, k, k_row, k_step, taps_u, 7)
                else:
                    total = _taps(
                        source, x, x_row, x_step, kernel, k, k_row, k_step, taps_u, taps_v
                    )
                store(out, p * lanes + c, total)


@njit(cache=True, inline="always")
def _taps(source, x, x_row, x_step, kernel, k, k_row, k_step, taps_u, taps_v):
    total = splat(source.dtype.type(0), LANES)
    for a in range(taps_u):
        for b in range(taps_v):
            weight = broadcast(kernel, k + a * k_row + b * k_step, LANES)
            total = fma(weight, load(source, x + a * x_row + b * x_step, LANES), total)
    return total


@njit(cache=True)
def kernel_gradients(
    dout, source, width, pitch, K, stride, dilation, rows, Wo, ranges, lanes, dkernel
):
    """dkernel[tap, p], 0 where the tap lies outside the image."""
    zero = splat(dkernel.dtype.type(0), LANES)
    dkernel[: K * K * pitch] = 0
    for i in range(rows.shape[0]):
        taps_u, u0, _, r0, _ = _walk(rows, i)
        for a in range(taps_u):
            r = r0 + a * dilation
            for v in range(K):
                shift = r * width + (v - K // 2) * dilation
                tap = ((u0 + a) * K + v) * pitch + i * Wo
                for j in range(ranges[v, 0], ranges[v, 1]):
                    p, q = (i * Wo + j) * lanes, (shift + j * stride) * lanes
                    total = zero
                    for c in range(0, lanes, LANES):
                        total = fma(load(dout, p + c, LANES), load(source, q + c, LANES), total)
                    dkernel[np.uint64(tap + j)] = lane_sum(total)


@njit(cache=True)
def take_group(image, g, size, lanes, group):
    """Channels g * size and on of each pixel (pixels, C), side by side, the rest of lanes 0."""
    (pixels, C), flat, zero = image.shape, image.reshape(-1), image.dtype.type(0)
    for p in range(pixels):
        source, target = p * C + g * size, p * lanes
        for c in range(0, size - LANES + 1, LANES):
            store(group, target + c, load(flat, source + c, LANES))
        for c in range(size // LANES * LANES, lanes):
            group[np.uint64(target + c)] = flat[np.uint64(source + c)] if c < size else zero


@njit(cache=True)
def put_group(group, lanes, g, size, image, add):
    """Back into channels g * size and on of each pixel, or added to them."""
    (pixels, C), flat, zero = image.shape, image.reshape(-1), image.dtype.type(0)
    one = splat(image.dtype.type(1), LANES)
    for p in range(pixels):
        source, target = p * lanes, p * C + g * size
        for c in range(0, size - LANES + 1, LANES):
            channels = load(group, source + c, LANES)
            if add:
                channels = fma(channels, one, load(flat, target + c, LANES))
            store(flat, target + c, channels)
        for c in range(size // LANES * LANES, size):
            e = np.uint64(target + c)
            flat[e] = group[np.uint64(source + c)] + (flat[e] if add else zero)
