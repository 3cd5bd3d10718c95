"""Convolution and ReLU as one operator, which a fast backend runs without a pass in between.

    y = relu(conv2d(x, weight, bias))

Here it is what it says; the layers are the ones of the model, one after the other.
"""

import numpy as np

from scratchnet.backends.reference.conv2d import conv2d_backward, conv2d_forward
from scratchnet.backends.reference.relu import relu_backward, relu_forward
from scratchnet.checks import check_plain_conv2d
from scratchnet.geometry import Padding


def conv2d_relu_forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, padding: Padding = "valid"
) -> np.ndarray:
    """x (N, H, W, C), weight (K, K, C, O), bias (O,) or None  ->  y (N, Ho, Wo, O)."""
    check_plain_conv2d("conv2d_relu", x, weight, bias, padding)
    return relu_forward(conv2d_forward(x, weight, bias, 1, padding))


def conv2d_relu_backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    y: np.ndarray,
    padding: Padding = "valid",
    need_dx: bool = True,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """dy, y (N, Ho, Wo, O)  ->  dx like x (None where need_dx is False), dweight, dbias."""
    check_plain_conv2d("conv2d_relu", x, weight, None, padding)
    dx, dweight, dbias = conv2d_backward(relu_backward(dy, y), x, weight, 1, padding)
    return (dx if need_dx else None), dweight, dbias
