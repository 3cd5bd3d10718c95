"""Pooling as layers; the equations stand in `backends/reference/`, one file each."""

import numpy as np

from scratchnet.checks import check_pool2d, check_whole
from scratchnet.geometry import Padding, plain_int, window_geometry
from scratchnet.layers.base import Layer
from scratchnet.layers.shapes import image_shape


class _Pool2D(Layer):
    """What max and average pooling share: where the windows sit."""

    def __init__(self, size: int, stride: int | None = None, padding: Padding = "valid"):
        super().__init__()
        owner = type(self).__name__
        self.size = size = check_whole(owner, "size", size)
        self.stride = check_whole(owner, "stride", size if stride is None else stride)
        self.padding = plain_int(padding)
        check_pool2d(owner, "x", (1, size, size, 1), size, self.stride, self.padding)

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        H, W, C = image_shape(type(self).__name__, input_shape)
        where = window_geometry(H, W, self.size, self.stride, self.padding)
        return where.Ho, where.Wo, C

    def __repr__(self) -> str:
        details = f"{self.size}"
        if self.stride != self.size:
            details += f", stride={self.stride}"
        if self.padding != "valid":
            details += f", padding={self.padding!r}"
        return f"{type(self).__name__}({details})"


class MaxPool2D(_Pool2D):
    """The largest value of each size x size window; stride defaults to size.

    (N, H, W, C) -> (N, Ho, Wo, C). Padded cells never win; the gradient of a tie goes to the first
    of the tied pixels in reading order.
    """

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        y, argmax = self.ops.maxpool2d_forward(x, self.size, self.stride, self.padding)
        if training:
            self.argmax, self.x_shape = argmax, x.shape
        return y

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray:
        x_shape = self.remembered("x_shape")
        return self.ops.maxpool2d_backward(
            dy, self.argmax, x_shape, self.size, self.stride, self.padding
        )


class AvgPool2D(_Pool2D):
    """The mean of each size x size window; stride defaults to size.

    (N, H, W, C) -> (N, Ho, Wo, C). Padded cells do not count.
    """

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        y = self.ops.avgpool2d_forward(x, self.size, self.stride, self.padding)
        if training:
            self.x_shape = x.shape
        return y

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray:
        x_shape = self.remembered("x_shape")
        return self.ops.avgpool2d_backward(dy, x_shape, self.size, self.stride, self.padding)

    def flops(self, input_shape: tuple[int, ...]) -> int:
        Ho, Wo, C = self.output_shape(input_shape)
        return Ho * Wo * C * self.size**2


class GlobalAvgPool2D(Layer):
    """The mean of each channel over the image: (N, H, W, C) -> (N, C)."""

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        y = self.ops.globalavgpool2d_forward(x)
        if training:
            self.x_shape = x.shape
        return y

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray:
        return self.ops.globalavgpool2d_backward(dy, self.remembered("x_shape"))

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (image_shape("GlobalAvgPool2D", input_shape)[2],)

    def flops(self, input_shape: tuple[int, ...]) -> int:
        H, W, C = image_shape("GlobalAvgPool2D", input_shape)
        return H * W * C

    def __repr__(self) -> str:
        return "GlobalAvgPool2D()"
