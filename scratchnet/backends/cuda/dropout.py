"""Inverted dropout: a thread owns one element at a time, and draws its number from its index.

    y[e] = x[e] / (1 - rate) where uniform(seed, e) >= rate, else 0

No state and no order: any thread can make any element's number, the same one as on a CPU, and
backward makes it again instead of reading a mask.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from scratchnet.backends.cuda.arrays import Array, empty, on_device
from scratchnet.backends.cuda.device import at, cuda, launch_over, numba_type, uniform
from scratchnet.backends.cuda.recording import Changing, readable
from scratchnet.checks import check_float_array, check_fraction


def dropout_forward(x: Array, rate: float, seed: int | Changing) -> Array:
    """x of any shape, rate in [0, 1), seed in [0, 2^64)  ->  like x."""
    x = on_device(x)
    check_float_array("dropout", "x", x)
    check_fraction("dropout", "rate", rate)
    y = empty(x.shape, x.dtype)
    kernel = _kernel(numba_type(x.dtype))
    scale = x.dtype.type(1 / (1 - rate))
    seed = readable(seed, 1, np.dtype(np.uint64))
    launch_over(x.size, kernel, x, y, np.float64(rate), scale, seed)
    return y


def dropout_backward(dy: Array, rate: float, seed: int | Changing) -> Array:
    """dy of any shape  ->  dx like dy, by the mask of the same seed."""
    return dropout_forward(dy, rate, seed)


@lru_cache
def _kernel(dtype: Any) -> Any:
    one, zero = dtype(1), dtype(0)

    @cuda.jit
    def dropout(x, y, rate, scale, seed, count):
        for e in range(cuda.grid(1), count, cuda.gridsize(1)):
            keep = one if uniform(seed[0], e) >= rate else zero
            y[at(e)] = x[at(e)] * keep * scale

    return dropout
