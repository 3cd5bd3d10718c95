"""Convolution, ReLU and max pooling as one step of a `Sequential`, without arrays in between."""

import numpy as np

from scratchnet.layers.activations import ReLU
from scratchnet.layers.base import Layer
from scratchnet.layers.conv import Conv2D
from scratchnet.layers.pooling import MaxPool2D


def can_fuse(conv: Conv2D, relu: ReLU, pool: MaxPool2D | None = None) -> bool:
    """The fused operators know plain convolutions and windows that do not overlap."""
    plain = conv.stride == conv.dilation == conv.groups == 1
    return plain and (pool is None or (pool.stride == pool.size <= 15 and pool.padding == "valid"))


class FusedConv2D(Layer):
    """relu(conv(x)), pooled if there is a pool: the layers keep their parameters, shapes and names.

    (N, H, W, C) -> (N, Ho, Wo, O)
    """

    def __init__(self, conv: Conv2D, relu: ReLU, pool: MaxPool2D | None = None):
        super().__init__()
        self.conv = conv
        self.pool = pool

    @property
    def ops(self):
        return self.conv.ops

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        conv = self.conv
        conv.check_input(x)
        weights = conv.weight.value, conv.bias_value
        argmax = None
        if self.pool is None:
            y = self.ops.conv2d_relu_forward(x, *weights, conv.padding)
        else:
            self.pool.output_shape(conv.output_shape(x.shape[1:]))
            y, argmax = self.ops.conv2d_relu_maxpool2d_forward(
                x, *weights, conv.padding, self.pool.size
            )
        if training:
            self.x, self.y, self.argmax = x, y if argmax is None else None, argmax
        return y

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        x, conv = self.remembered("x"), self.conv
        weight = conv.weight.value
        if self.pool is None:
            dx, dweight, dbias = self.ops.conv2d_relu_backward(
                dy, x, weight, self.y, conv.padding, need_dx
            )
        else:
            dx, dweight, dbias = self.ops.conv2d_relu_maxpool2d_backward(
                dy, x, weight, self.argmax, conv.padding, self.pool.size, need_dx
            )
        conv.keep_gradients(dweight, dbias)
        return dx
