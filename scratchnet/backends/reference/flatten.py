"""Flatten: each sample's values in one row, in memory order."""

import math

import numpy as np

from scratchnet.checks import check_float_array, check_shape


def flatten_forward(x: np.ndarray) -> np.ndarray:
    """x (N, ...) float32 or float64  ->  (N, product of the rest). Raises TypeError otherwise."""
    check_float_array("flatten", "x", x)
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def flatten_backward(dy: np.ndarray, x_shape: tuple[int, ...]) -> np.ndarray:
    """dy (N, rest)  ->  dx of shape x_shape."""
    check_shape("flatten", "dy", dy, (x_shape[0], math.prod(x_shape[1:])))
    return dy.reshape(x_shape)
