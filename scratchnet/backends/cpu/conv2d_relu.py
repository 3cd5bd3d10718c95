"""Convolution and ReLU as one operator.

    y = relu(conv2d(x, weight, bias))

The ReLU is the epilogue of the convolution, row by row, while the row is in the first cache.
"""

import numpy as np

from scratchnet.backends.cpu.conv2d import conv2d_backward, convolve_plain
from scratchnet.backends.cpu.pointwise import is_pointwise, pointwise_forward
from scratchnet.backends.cpu.relu import relu_backward
from scratchnet.checks import check_plain_conv2d
from scratchnet.geometry import Padding


def conv2d_relu_forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, padding: Padding = "valid"
) -> np.ndarray:
    """x (N, H, W, C), weight (K, K, C, O), bias (O,) or None  ->  y (N, Ho, Wo, O)."""
    geometry = check_plain_conv2d("conv2d_relu", x, weight, bias, padding)
    if is_pointwise(x, weight, geometry):
        return pointwise_forward(x, weight, bias, 1, relu=True)
    return convolve_plain(x, weight, bias, geometry, relu=True)


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
    return conv2d_backward(relu_backward(dy, y), x, weight, 1, padding, need_dx=need_dx)
