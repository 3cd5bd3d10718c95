"""Rectified linear unit, y = max(x, 0): a thread owns one element at a time."""

from functools import lru_cache
from typing import Any

from scratchnet.backends.cuda.arrays import Array, empty, on_device
from scratchnet.backends.cuda.device import at, cuda, launch_over, numba_type
from scratchnet.checks import check_float_array, check_like


def relu_forward(x: Array) -> Array:
    """x of any shape  ->  y like x."""
    x = on_device(x)
    check_float_array("relu", "x", x)
    y = empty(x.shape, x.dtype)
    launch_over(x.size, _forward_kernel(numba_type(x.dtype)), x, y)
    return y


def relu_backward(dy: Array, y: Array) -> Array:
    """dy, y alike  ->  dx = dy where y > 0, else 0."""
    dy, y = on_device(dy, y)
    check_float_array("relu", "y", y)
    check_like("relu", "dy", dy, y.shape, y.dtype)
    dx = empty(y.shape, y.dtype)
    launch_over(y.size, _backward_kernel(numba_type(y.dtype)), dy, y, dx)
    return dx


@lru_cache
def _forward_kernel(dtype: Any) -> Any:
    zero = dtype(0)

    @cuda.jit
    def relu(x, y, count):
        for e in range(cuda.grid(1), count, cuda.gridsize(1)):
            value = x[at(e)]
            y[at(e)] = zero if value <= 0 else value  # a NaN is not <= 0 and stays

    return relu


@lru_cache
def _backward_kernel(dtype: Any) -> Any:
    zero = dtype(0)

    @cuda.jit
    def relu_gradient(dy, y, dx, count):
        for e in range(cuda.grid(1), count, cuda.gridsize(1)):
            dx[at(e)] = dy[at(e)] if y[at(e)] > 0 else zero

    return relu_gradient
