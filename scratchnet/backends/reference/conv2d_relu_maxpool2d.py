"""Convolution, ReLU and max pooling as one operator: the block of the report's networks.

    y = maxpool2d(relu(conv2d(x, weight, bias)), size)

A fast backend runs it without writing the two arrays in between. Here it is what it says. The
windows do not overlap (stride = size), the convolution has stride 1.
"""

import numpy as np

from scratchnet.backends.reference.conv2d import conv2d_backward, conv2d_forward
from scratchnet.backends.reference.maxpool2d import maxpool2d_backward, maxpool2d_forward
from scratchnet.backends.reference.relu import relu_forward
from scratchnet.checks import check_argmax, check_like, check_plain_conv2d, check_pool2d
from scratchnet.geometry import Padding


def conv2d_relu_maxpool2d_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    padding: Padding,
    size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Convolve, cut off below 0, keep the largest of each size x size cell.

    x         (N, H, W, C)          float32 or float64
    weight    (K, K, C, O)          same dtype
    bias      (O,) or None          same dtype
    returns   y (N, Ho, Wo, O), argmax (N, Ho, Wo, O) uint8 (uint16 where size > 15): the winning
              tap u * size + v of the cell, or size * size where y is 0 and the ReLU lets no
              gradient through
    raises    ValueError, TypeError where shapes or dtypes do not fit
    """
    check_plain_conv2d("conv2d_relu_maxpool2d", x, weight, bias, padding)
    z = relu_forward(conv2d_forward(x, weight, bias, 1, padding))
    y, argmax = maxpool2d_forward(z, size, size)
    return y, np.where(y > 0, argmax, size * size).astype(argmax.dtype)


def conv2d_relu_maxpool2d_backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    argmax: np.ndarray,
    padding: Padding,
    size: int,
    need_dx: bool = True,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """The winner of each cell takes its gradient to the convolution; a closed ReLU takes none.

    dy, argmax (N, Ho, Wo, O)  ->  dx like x (None where need_dx is False), dweight, dbias
    """
    geometry = check_plain_conv2d("conv2d_relu_maxpool2d", x, weight, None, padding)
    z_shape = (x.shape[0], geometry.Ho, geometry.Wo, weight.shape[3])
    cells = check_pool2d("conv2d_relu_maxpool2d", "z", z_shape, size, size, "valid")
    y_shape = (x.shape[0], cells.Ho, cells.Wo, weight.shape[3])
    check_like("conv2d_relu_maxpool2d", "dy", dy, y_shape, x.dtype)
    check_argmax("conv2d_relu_maxpool2d", argmax, y_shape)
    open_dy = np.where(argmax < size * size, dy, 0)
    open_argmax = np.where(argmax < size * size, argmax, 0).astype(argmax.dtype)
    dz = maxpool2d_backward(open_dy, open_argmax, z_shape, size, size)
    return conv2d_backward(dz, x, weight, 1, padding, need_dx=need_dx)
