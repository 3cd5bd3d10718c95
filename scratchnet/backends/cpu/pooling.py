"""The epilogue of a convolution that a ReLU and a max pooling follow."""

import numpy as np
from numba import njit


@njit(cache=True)
def pool_band(z, z_width, bias, size, y, argmax):
    """The epilogue of a band: z (size * z_width, >= O)  ->  y, argmax (Wo, O).

    The bias and the ReLU keep order, so that they may follow the maximum.
    """
    Wo, O = y.shape
    zero = y.dtype.type(0)
    closed = np.uint8(size * size)
    for j in range(Wo):
        best, tap = y[j], argmax[j]
        best[:] = z[j * size, :O]
        tap[:] = 0
        for t in range(1, size * size):
            row = z[t // size * z_width + j * size + t % size, :O]
            number = np.uint8(t)
            for o in range(O):
                larger = (row[o] > best[o]) | (row[o] != row[o])  # a NaN must not hide
                best[o] = row[o] if larger else best[o]
                tap[o] = number if larger else tap[o]
        for o in range(O):
            value = best[o] + bias[o]
            tap[o] = tap[o] if value > zero else closed
            best[o] = zero if value <= zero else value  # a NaN is not <= 0, and stays
