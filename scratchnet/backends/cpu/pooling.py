"""Max pooling as the end of a convolution, and its gradient as the start of one.

    y = max over the cell of relu(z + bias)         dz = dy at the winner of the cell, else 0

Both work on one image, or a band of it, while it is in the cache. The bias and the ReLU keep the
order of numbers, so that they may follow the maximum; where adding the bias rounds two of them to
one, the reference names the first of them, this one the larger. A tap number of size * size says
that the ReLU was closed: then nobody wins. Whole vectors are compared and chosen from; the compiler
does not find this by itself, as the numbers and their taps differ in width.
"""

import numpy as np
from numba import njit

from scratchnet.backends.cpu.tiles import pooled_vector, spread_vector


@njit(cache=True)
def pool_band(z, z_width, lanes, bias, size, y, argmax):
    """z (size * z_width or more, Op), bias (O,)  ->  y, argmax (Wo, O)."""
    Wo, O = y.shape
    Op = z.shape[1]
    zero = y.dtype.type(0)
    closed = np.uint8(size * size)
    sums, best, tap = z.reshape(-1), y.reshape(-1), argmax.reshape(-1)
    whole = O // lanes * lanes
    for j in range(Wo):
        for o in range(0, whole, lanes):
            at = j * size * Op + o
            pooled_vector(sums, at, Op, z_width * Op, size, bias, o, best, tap, j * O + o)
        for o in range(whole, O):
            largest, winner = z[j * size, o], np.uint8(0)
            for t in range(1, size * size):
                value = z[t // size * z_width + j * size + t % size, o]
                if value > largest or value != value:  # a NaN must not hide
                    largest, winner = value, np.uint8(t)
            value = largest + bias[o]
            y[j, o] = zero if value <= zero else value  # a NaN is not <= 0, and stays
            argmax[j, o] = winner if value > zero else closed


@njit(cache=True)
def spread_image(dy, argmax, lanes, size, top, left, dz):
    """dy, argmax (Ho, Wo, O)  ->  dz (Hz, Wz, >= O): cell (0, 0) starts at pixel (top, left)."""
    Ho, Wo, O = dy.shape
    clear(dz)
    _, Wz, Op = dz.shape
    numbers, winners, out = dy.reshape(-1), argmax.reshape(-1), dz.reshape(-1)
    whole = O // lanes * lanes
    for i in range(Ho):
        for tap in range(size * size):
            row = top + i * size + tap // size
            for j in range(Wo):
                at = (row * Wz + left + j * size + tap % size) * Op
                first = (i * Wo + j) * O
                for o in range(0, whole, lanes):
                    spread_vector(numbers, winners, first + o, tap, out, at + o)
                for o in range(whole, O):
                    if winners[first + o] == tap:
                        out[at + o] = numbers[first + o]


@njit(cache=True)
def clear(array):
    """Zero, written as a loop: an assignment to a whole array takes a second to compile."""
    flat = array.reshape(-1)
    zero = array.dtype.type(0)
    for e in range(flat.size):
        flat[e] = zero
