"""Flattening: the same memory under another shape; nothing runs."""

import math

from scratchnet.backends.cuda.arrays import Array, on_device
from scratchnet.checks import check_float_array, check_shape


def flatten_forward(x: Array) -> Array:
    """x (N, ...)  ->  y (N, product of the rest)."""
    x = on_device(x)
    check_float_array("flatten", "x", x)
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def flatten_backward(dy: Array, x_shape: tuple[int, ...]) -> Array:
    """dy (N, product of the rest)  ->  dx of shape x_shape."""
    dy = on_device(dy)
    check_shape("flatten", "dy", dy, (x_shape[0], math.prod(x_shape[1:])))
    return dy.reshape(tuple(x_shape))
