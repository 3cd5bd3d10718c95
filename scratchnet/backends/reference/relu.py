"""Rectified linear unit: y = max(x, 0). Source: Glorot, Bordes and Bengio 2011, section 3.1."""

import numpy as np

from scratchnet.checks import check_float_array, check_like


def relu_forward(x: np.ndarray) -> np.ndarray:
    """x of any shape, float32 or float64  ->  y like x. Raises TypeError for other dtypes."""
    check_float_array("relu", "x", x)
    return np.maximum(x, 0)


def relu_backward(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    """dy, y alike  ->  dx = dy where y > 0, else 0: at the kink itself the gradient is 0."""
    check_float_array("relu", "y", y)
    check_like("relu", "dy", dy, y.shape, y.dtype)
    return np.where(y > 0, dy, 0)
