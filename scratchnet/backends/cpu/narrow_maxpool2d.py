"""Max pooling of few channels over windows of 2 x 2 that do not overlap.

Two neighbouring pixels of C channels are loaded as one of 2C: half of its planes are the left taps
of LANES windows, the other half the right ones. Taps are numbered in the floats' type while they
are compared. The threads share the images.
"""

import numpy as np
from numba import njit, prange

from scratchnet.backends.cpu.loops import CHUNKS, piece
from scratchnet.backends.cpu.planes import (
    beside,
    half,
    load_pixels,
    splat_each,
    store_pixels,
    where_equal,
    where_wins,
)

LANES = 16  # float32 in an AVX-512 register
CHANNELS = range(1, 7)  # with more, shuffling them apart takes longer than it saves


def narrow_maxpool2d_forward(x: np.ndarray, y: np.ndarray, argmax: np.ndarray) -> None:
    """Fill y and argmax (N, Ho, Wo, C) from x (N, H, W, C), where 2 Ho <= H and 2 Wo <= W."""
    _forward(x, *_tap_numbers(x), y, argmax)


@njit(parallel=True, cache=True)
def _forward(x, tap0, tap1, tap2, tap3, y, argmax):
    N, H, W, C = x.shape
    _, Ho, Wo, _ = y.shape
    for chunk in prange(CHUNKS):
        lo, hi = piece(N, chunk)
        first, second = splat_each(tap0, LANES), splat_each(tap1, LANES)
        third, fourth = splat_each(tap2, LANES), splat_each(tap3, LANES)
        pair = beside(first, second)
        for n in range(lo, hi):
            for i in range(Ho):
                for j in range(0, Wo, LANES):
                    source = ((n * H + 2 * i) * W + 2 * j) * C
                    upper = load_pixels(x, source, Wo - j, pair)
                    lower = load_pixels(x, source + W * C, Wo - j, pair)
                    best, taps = half(upper, 0), first
                    best, taps = _keep_larger(half(upper, 1), second, best, taps)
                    best, taps = _keep_larger(half(lower, 0), third, best, taps)
                    best, taps = _keep_larger(half(lower, 1), fourth, best, taps)
                    target = ((n * Ho + i) * Wo + j) * C
                    store_pixels(y, target, Wo - j, best)
                    store_pixels(argmax, target, Wo - j, taps)


@njit(cache=True)
def _keep_larger(x, tap, best, taps):
    """A later tap wins only if larger; a NaN always wins, so as not to hide."""
    return where_wins(x, best, x, best), where_wins(x, best, tap, taps)


def narrow_maxpool2d_backward(dy: np.ndarray, argmax: np.ndarray, dx: np.ndarray) -> None:
    """Fill dx (N, H, W, C) from dy and argmax (N, Ho, Wo, C)."""
    _backward(dy, argmax, *_tap_numbers(dy), dx)


@njit(parallel=True, cache=True)
def _backward(dy, argmax, tap0, tap1, tap2, tap3, dx):
    """A window writes all its four pixels: the winner's gradient, and zeros."""
    N, H, W, C = dx.shape
    _, Ho, Wo, _ = dy.shape
    for chunk in prange(CHUNKS):
        lo, hi = piece(N, chunk)
        first, second = splat_each(tap0, LANES), splat_each(tap1, LANES)
        third, fourth = splat_each(tap2, LANES), splat_each(tap3, LANES)
        for n in range(lo, hi):
            dx[n, 2 * Ho :] = 0
            dx[n, :, 2 * Wo :] = 0
            for i in range(Ho):
                for j in range(0, Wo, LANES):
                    source = ((n * Ho + i) * Wo + j) * C
                    dys = load_pixels(dy, source, Wo - j, first)
                    taps = load_pixels(argmax, source, Wo - j, first)
                    upper = beside(where_equal(taps, first, dys), where_equal(taps, second, dys))
                    lower = beside(where_equal(taps, third, dys), where_equal(taps, fourth, dys))
                    target = ((n * H + 2 * i) * W + 2 * j) * C
                    store_pixels(dx, target, Wo - j, upper)
                    store_pixels(dx, target + W * C, Wo - j, lower)


def _tap_numbers(array: np.ndarray) -> list[tuple]:
    """The numbers 0 to 3, once for each channel: as tuples, so that the compiler knows C."""
    return [(array.dtype.type(tap),) * array.shape[3] for tap in range(4)]
