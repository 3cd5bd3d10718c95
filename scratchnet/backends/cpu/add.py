"""Addition, where a residual block joins its two paths: y = a + b. One pass, cut among the threads;
backward moves nothing.
"""

import numpy as np
from numba import njit, prange

from scratchnet.backends.cpu.loops import CHUNKS, flat, piece
from scratchnet.backends.cpu.memory import empty
from scratchnet.checks import check_float_array, check_like


def add_forward(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a, b of one shape and dtype  ->  y alike. Raises ValueError, TypeError where they differ."""
    check_float_array("add", "a", a)
    check_like("add", "b", b, a.shape, a.dtype)
    y = empty(a.shape, a.dtype)
    _forward(flat(a), flat(b), y.reshape(-1))
    return y


@njit(parallel=True, cache=True)
def _forward(a, b, y):
    for chunk in prange(CHUNKS):
        lo, hi = piece(y.size, chunk)
        one, other, ys = a[lo:hi], b[lo:hi], y[lo:hi]
        for e in range(ys.size):
            ys[e] = one[e] + other[e]


def add_backward(dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """dy  ->  da = dy, db = dy: the sum hands its gradient to both."""
    check_float_array("add", "dy", dy)
    return dy, dy
