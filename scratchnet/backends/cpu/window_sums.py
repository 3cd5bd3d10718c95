"""The window sums of an involution, one image and one group of channels at a time.

    out[c, p]     = sum_k kernel[k, p] * source[c, p + shift[k]]
    dsource[c, q] = sum_k kernel[k, q - shift[k]] * dout[c, q - shift[k]]
    dkernel[k, p] = sum_c dout[c, p] * source[c, p + shift[k]]

A vector is LANES pixels. Each channel, and each tap of the kernels, is a plane of Ho * Wo pixels in
reading order, so that a tap is a shift along the plane, and a vector of kernels, once loaded, meets
all channels of the group, however few they are. With stride s the image falls into s * s phases, of
every s-th row and column, a plane each; a tap stays in one of them. Where a window leaves the image
the shift ends on another row, or on the zeros that surround each plane: there `mask` is 0, with
which the kernels and their gradients are multiplied. (An infinity or NaN at the border thus spoils
two rows.) Arrays are flat; plane number i of an array begins at margin + i * pitch.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit

from scratchnet.backends.cpu.memory import empty, zeros
from scratchnet.backends.cpu.vectors import (
    columns_to_rows,
    fma,
    load,
    rows_to_columns,
    splat,
    store,
)

LANES = 16
TILE = 8  # channels that are transposed at once


def whole(count: int) -> int:
    """count rounded up to whole vectors."""
    return -(-count // LANES) * LANES


class Planes(NamedTuple):
    """Where planes lie: numbers of a plane, whole vectors, and zeros before each and after it."""

    size: int
    margin: int

    @property
    def pitch(self) -> int:
        return self.size + self.margin

    def numbers(self, count: int) -> int:
        """Of an array of so many planes."""
        return self.margin + count * self.pitch


@lru_cache
def tap_tables(
    H: int, W: int, K: int, stride: int, dilation: int, dtype: np.dtype
) -> tuple[Planes, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The planes, and for each tap k where the sums begin to read.

    returns   planes; forward (K * K, 2): the first of kernel[k] and of source; backward (K * K, 2):
              the first of kernel[k] and of dout, ordered by the phase of dsource that they add to;
              starts (stride^2 + 1,): where in backward each phase's taps begin; mask
              (K * K * planes.size,)
    """
    Ho, Wo = -(-H // stride), -(-W // stride)
    u, v = (index.ravel() * dilation - dilation * (K // 2) for index in np.indices((K, K)))
    shift, phase = u // stride * Wo + v // stride, u % stride * stride + v % stride
    planes = Planes(whole(Ho * Wo), whole(int(np.abs(shift).max()) + 1))
    taps = planes.margin + np.arange(K * K) * planes.pitch
    forward = np.stack([taps, planes.margin + phase * planes.pitch + shift], axis=1)
    order = np.argsort(phase, kind="stable")
    backward = np.stack([taps - shift, planes.margin - shift], axis=1)[order]
    starts = np.searchsorted(phase[order], np.arange(stride * stride + 1))
    i, j = np.indices((Ho, Wo)).reshape(2, 1, -1) * stride
    r, s = i + u[:, None], j + v[:, None]
    mask = np.zeros((K * K, planes.size), dtype)
    mask[:, : Ho * Wo] = (r >= 0) & (r < H) & (s >= 0) & (s < W)
    return planes, forward, backward, starts, mask.reshape(-1)


@njit(cache=True)
def window_sums(kernel, source, taps, source_pitch, size, channels, out, out0, out_pitch):
    """out[c, p] = the sum over taps of kernel[taps[k, 0] + p] * source[c, taps[k, 1] + p]."""
    for p in range(0, size, LANES):
        for c in range(0, channels - 7, 8):
            _eight_channels(
                kernel, source, taps, p, c * source_pitch, source_pitch,
                out, out0 + c * out_pitch + p, out_pitch,
            )  # fmt: skip
        for c in range(channels // 8 * 8, channels):
            total = splat(out.dtype.type(0), LANES)
            for k in range(taps.shape[0]):
                pixel = load(source, taps[k, 1] + c * source_pitch + p, LANES)
                total = fma(load(kernel, taps[k, 0] + p, LANES), pixel, total)
            store(out, out0 + c * out_pitch + p, total)


@njit(cache=True)
def _eight_channels(kernel, source, taps, p, s0, step, out, o0, out_step):
    t0 = t1 = t2 = t3 = t4 = t5 = t6 = t7 = splat(out.dtype.type(0), LANES)
    for k in range(taps.shape[0]):
        weight, s = load(kernel, taps[k, 0] + p, LANES), taps[k, 1] + s0 + p
        t0 = fma(weight, load(source, s, LANES), t0)
        t1 = fma(weight, load(source, s + step, LANES), t1)
        t2 = fma(weight, load(source, s + 2 * step, LANES), t2)
        t3 = fma(weight, load(source, s + 3 * step, LANES), t3)
        t4 = fma(weight, load(source, s + 4 * step, LANES), t4)
        t5 = fma(weight, load(source, s + 5 * step, LANES), t5)
        t6 = fma(weight, load(source, s + 6 * step, LANES), t6)
        t7 = fma(weight, load(source, s + 7 * step, LANES), t7)
    store(out, o0, t0)
    store(out, o0 + out_step, t1)
    store(out, o0 + 2 * out_step, t2)
    store(out, o0 + 3 * out_step, t3)
    store(out, o0 + 4 * out_step, t4)
    store(out, o0 + 5 * out_step, t5)
    store(out, o0 + 6 * out_step, t6)
    store(out, o0 + 7 * out_step, t7)


@njit(cache=True)
def kernel_gradients(
    dout, margin, pitch, source, taps, source_pitch, mask, size, channels, dkernel
):
    """dkernel[taps[k, 0] + p] = sum_c dout[c, p] * source[c, taps[k, 1] + p], times the mask."""
    zero = splat(dkernel.dtype.type(0), LANES)
    for p in range(0, size, LANES):
        d = margin + p
        for c in range(0, channels - 7, 8):
            _eight_products(
                dout, d + c * pitch, pitch, source, taps, p, c * source_pitch, source_pitch,
                dkernel, c > 0,
            )  # fmt: skip
        for k in range(taps.shape[0]):
            first = taps[k, 0] + p
            total = load(dkernel, first, LANES) if channels >= 8 else zero
            for c in range(channels // 8 * 8, channels):
                pixel = load(source, taps[k, 1] + c * source_pitch + p, LANES)
                total = fma(load(dout, d + c * pitch, LANES), pixel, total)
            store(dkernel, first, fma(total, load(mask, k * size + p, LANES), zero))


@njit(cache=True)
def _eight_products(dout, d, pitch, source, taps, p, s0, step, dkernel, add):
    """One vector of every tap: the eight of dout stay in registers."""
    d0 = load(dout, d, LANES)
    d1 = load(dout, d + pitch, LANES)
    d2 = load(dout, d + 2 * pitch, LANES)
    d3 = load(dout, d + 3 * pitch, LANES)
    d4 = load(dout, d + 4 * pitch, LANES)
    d5 = load(dout, d + 5 * pitch, LANES)
    d6 = load(dout, d + 6 * pitch, LANES)
    d7 = load(dout, d + 7 * pitch, LANES)
    for k in range(taps.shape[0]):
        first, s = taps[k, 0] + p, taps[k, 1] + s0 + p
        total = splat(dkernel.dtype.type(0), LANES)
        if add:
            total = load(dkernel, first, LANES)
        total = fma(d0, load(source, s, LANES), total)
        total = fma(d1, load(source, s + step, LANES), total)
        total = fma(d2, load(source, s + 2 * step, LANES), total)
        total = fma(d3, load(source, s + 3 * step, LANES), total)
        total = fma(d4, load(source, s + 4 * step, LANES), total)
        total = fma(d5, load(source, s + 5 * step, LANES), total)
        total = fma(d6, load(source, s + 6 * step, LANES), total)
        total = fma(d7, load(source, s + 7 * step, LANES), total)
        store(dkernel, first, total)


@njit(cache=True)
def mask_kernels(kernel, margin, pitch, mask, size):
    """Each tap's plane times its mask."""
    zero = splat(kernel.dtype.type(0), LANES)
    for k in range(mask.size // size):
        for p in range(0, size, LANES):
            first = margin + k * pitch + p
            weight = load(mask, k * size + p, LANES)
            store(kernel, first, fma(load(kernel, first, LANES), weight, zero))


def split_phases(x: np.ndarray, stride: int) -> np.ndarray:
    """x (N, H, W, C)  ->  (N, stride^2, Ho * Wo, C), filled up with 0; for stride 1 x itself."""
    N, H, W, C = x.shape
    if stride == 1:
        return np.ascontiguousarray(x).reshape(N, 1, H * W, C)
    phases = zeros((N, stride, stride, -(-H // stride), -(-W // stride), C), x.dtype)
    for a, b in np.ndindex(stride, stride):
        phase = x[:, a::stride, b::stride]
        phases[:, a, b, : phase.shape[1], : phase.shape[2]] = phase
    return phases.reshape(N, stride * stride, -1, C)


def join_phases(phases: np.ndarray, stride: int, shape: tuple[int, ...]) -> np.ndarray:
    """Back into an image of that shape (N, H, W, C)."""
    N, H, W, C = shape
    if stride == 1:
        return phases.reshape(shape)
    phases = phases.reshape(N, stride, stride, -(-H // stride), -(-W // stride), C)
    x = empty(shape, phases.dtype)
    for a, b in np.ndindex(stride, stride):
        phase = x[:, a::stride, b::stride]
        phase[...] = phases[:, a, b, : phase.shape[1], : phase.shape[2]]
    return x


@njit(cache=True)
def take_group(pixels, first, channels, planes, start, pitch):
    """Channels first and on of each pixel (pixels, C), each into a plane, from start on."""
    (P, C), flat = pixels.shape, pixels.reshape(-1)
    tiled, wide = P // LANES * LANES, channels // TILE * TILE
    for p in range(0, tiled, LANES):
        for c in range(0, wide, TILE):
            columns_to_rows(flat, p * C + first + c, C, planes, start + c * pitch + p, pitch)
    for p in range(0 if wide < channels else tiled, P):
        for c in range(wide if p < tiled else 0, channels):
            planes[np.uint64(start + c * pitch + p)] = flat[np.uint64(p * C + first + c)]


@njit(cache=True)
def put_group(planes, start, pitch, pixels, first, channels):
    """Back from the planes into channels first and on of the pixels."""
    (P, C), flat = pixels.shape, pixels.reshape(-1)
    tiled, wide = P // LANES * LANES, channels // TILE * TILE
    for p in range(0, tiled, LANES):
        for c in range(0, wide, TILE):
            rows_to_columns(planes, start + c * pitch + p, pitch, flat, p * C + first + c, C)
    for p in range(0 if wide < channels else tiled, P):
        for c in range(wide if p < tiled else 0, channels):
            flat[np.uint64(p * C + first + c)] = planes[np.uint64(start + c * pitch + p)]


@njit(cache=True)
def tap_by_tap(kernel, margin, pitch, taps):
    """Kernels (pixels, K * K), each tap into a plane."""
    for k in range(kernel.shape[1]):
        tap = taps[margin + k * pitch :]
        for p in range(kernel.shape[0]):
            tap[p] = kernel[p, k]


@njit(cache=True)
def pixel_by_pixel(taps, margin, pitch, kernel):
    """Back from the planes into kernels (pixels, K * K)."""
    for k in range(kernel.shape[1]):
        tap = taps[margin + k * pitch :]
        for p in range(kernel.shape[0]):
            kernel[p, k] = tap[p]
