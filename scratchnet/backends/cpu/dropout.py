"""Inverted dropout: each value is dropped with probability rate, the others scaled up.

    y[e] = x[e] / (1 - rate) where uniform(seed, e) >= rate, else 0

Element e draws its own number from a counter, so that the threads share nothing, no mask is stored,
and every backend drops the same elements. The price is that backward draws the numbers again.
"""

import numpy as np
from numba import njit, prange

from scratchnet.backends.cpu.loops import CHUNKS, flat, piece
from scratchnet.backends.cpu.memory import empty
from scratchnet.checks import check_float_array, check_fraction


def dropout_forward(x: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """Drop values of x at random, the same ones for the same seed.

    x         any shape, float32 or float64
    rate      probability of a drop, in [0, 1)
    seed      whole number in [0, 2^64)
    returns   like x
    raises    ValueError, TypeError for another rate or dtype
    """
    check_float_array("dropout", "x", x)
    check_fraction("dropout", "rate", rate)
    y = empty(x.shape, x.dtype)
    _forward(flat(x), float(rate), np.uint64(seed), y.reshape(-1))
    return y


@njit(parallel=True, cache=True)
def _forward(x, rate, seed, y):
    zero, scale = x.dtype.type(0), x.dtype.type(1 / (1 - rate))
    for chunk in prange(CHUNKS):
        lo, hi = piece(x.size, chunk)
        xs, ys = x[lo:hi], y[lo:hi]
        for e in range(xs.size):
            keep = _uniform(seed, lo + e) >= rate
            ys[e] = xs[e] * (scale if keep else zero)


@njit(cache=True)
def _uniform(seed, e):
    """Number e of the stream `seed`, in [0, 1): SplitMix64."""
    z = seed + np.uint64(e + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)) * 2.0**-53


def dropout_backward(dy: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """dy of any shape  ->  dx like dy, dropped and scaled by the mask of the same seed."""
    return dropout_forward(dy, rate, seed)
