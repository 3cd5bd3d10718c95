"""Involution as a layer made of named parts; its walk there and back, part by part, stands in
`backends/reference/generated_involution.py`.
"""

import numpy as np

from scratchnet.checks import check_groups, check_image, check_whole
from scratchnet.geometry import involution_geometry, plain_int
from scratchnet.initializers import generator
from scratchnet.layers.activations import ReLU
from scratchnet.layers.base import Layer
from scratchnet.layers.conv import Conv2D
from scratchnet.layers.norm import BatchNorm
from scratchnet.layers.shapes import image_shape


class Involution2D(Layer):
    """Generate a K x K kernel from every pixel, shared by a group's channels, and apply it there.

    (N, H, W, channels) -> (N, ceil(H / stride), ceil(W / stride), channels). Parts: `reduce`
    (1x1, channels to channels / reduction, at least 1), `norm`, `relu`, `span` (1x1 to
    groups * K * K). Li et al. 2021 have groups = channels / 16, reduction 4 and no bias in
    `reduce`, whose norm would take it off again.

    raises ValueError where K is even, or the channels do not divide into the groups
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        groups: int = 1,
        reduction: int = 2,
        stride: int = 1,
        dilation: int = 1,
        *,
        reduce_bias: bool = True,
        momentum: float = 0.99,
        eps: float = 1e-3,
        rng: np.random.Generator | None = None,
    ):
        super().__init__()
        rng = generator(rng)
        self.channels = channels = check_whole("Involution2D", "channels", channels)
        self.groups = groups = check_whole("Involution2D", "groups", groups)
        self.reduction = reduction = check_whole("Involution2D", "reduction", reduction)
        self.stride = stride = check_whole("Involution2D", "stride", stride)
        self.dilation = dilation = check_whole("Involution2D", "dilation", dilation)
        check_groups("Involution2D", "channels", channels, groups)
        self.kernel_size = kernel_size = plain_int(kernel_size)
        involution_geometry(1, 1, kernel_size, stride, dilation)
        hidden = max(1, channels // reduction)
        self.reduce = Conv2D(channels, hidden, 1, bias=reduce_bias, rng=rng)
        self.norm = BatchNorm(hidden, momentum, eps)
        self.relu = ReLU()
        self.span = Conv2D(hidden, groups * kernel_size**2, 1, rng=rng)
        self.add_parts(
            {"reduce": self.reduce, "norm": self.norm, "relu": self.relu, "span": self.span}
        )

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        check_image("Involution2D", "x", x)
        self.output_shape(x.shape[1:])
        statistics = (None, None) if training else self.norm.running_statistics()
        y, mean, inv_std = self.ops.generated_involution_forward(
            x, *self._values(), self.kernel_size, self.stride, self.dilation, self.norm.eps,
            *statistics,
        )  # fmt: skip
        if training:
            self.x, self.mean, self.inv_std = x, mean, inv_std
            self.norm.update_running(mean, inv_std)
        return y

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        x = self.remembered("x")
        dx, dreduce_weight, dreduce_bias, dgamma, dbeta, dspan_weight, dspan_bias = (
            self.ops.generated_involution_backward(
                dy,
                x,
                *self._values(),
                self.mean,
                self.inv_std,
                self.kernel_size,
                self.stride,
                self.dilation,
                need_dx,
            )  # fmt: skip
        )
        self.reduce.keep_gradients(dreduce_weight, dreduce_bias)
        self.norm.gamma.grad, self.norm.beta.grad = dgamma, dbeta
        self.span.keep_gradients(dspan_weight, dspan_bias)
        return dx

    def kernels(self, x: np.ndarray) -> np.ndarray:
        """The kernels that the layer generates for x, in evaluation: (N, Ho, Wo, G, K, K)."""
        p = (
            x
            if self.stride == 1
            else self.ops.avgpool2d_forward(x, self.stride, self.stride, "ceil")
        )
        for part in self.parts.values():
            p = part.forward(p)
        return p.reshape(*p.shape[:3], self.groups, self.kernel_size, self.kernel_size)

    def _values(self) -> tuple[np.ndarray | None, ...]:
        return (
            self.reduce.weight.value,
            self.reduce.bias_value,
            self.norm.gamma.value,
            self.norm.beta.value,
            self.span.weight.value,
            self.span.bias_value,
        )

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        H, W, C = image_shape("Involution2D", input_shape, self.channels)
        where = involution_geometry(H, W, self.kernel_size, self.stride, self.dilation)
        return where.Ho, where.Wo, C

    def flops(self, input_shape: tuple[int, ...]) -> int:
        Ho, Wo, C = self.output_shape(input_shape)
        generation = self.reduce.flops((Ho, Wo, C)) + self.span.flops(
            (Ho, Wo, self.span.in_channels)
        )
        return generation + Ho * Wo * C * self.kernel_size**2

    def leaves(self):
        yield self

    def __repr__(self) -> str:
        return (
            f"Involution2D({self.channels}, kernel_size={self.kernel_size}, groups={self.groups}, "
            f"reduction={self.reduction}, stride={self.stride}, dilation={self.dilation})"
        )
