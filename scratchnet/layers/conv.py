"""Convolution as a layer; the equation stands in `backends/reference/conv2d.py`."""

import numpy as np

from scratchnet.checks import check_groups, check_image, check_whole
from scratchnet.geometry import Padding, plain_int, window_geometry
from scratchnet.initializers import Initializer, generator, glorot_uniform
from scratchnet.layers.base import Layer, Parameter
from scratchnet.layers.shapes import image_shape


class Conv2D(Layer):
    """Slide one K x K kernel over the image.

    (N, H, W, in_channels) -> (N, Ho, Wo, out_channels). Parameters: weight (K, K, in_channels /
    groups, out_channels), Glorot uniform by default, and bias (out_channels,), zeros.

    raises ValueError where the channels do not divide into the groups or a size is not accepted
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: Padding = "valid",
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        initializer: Initializer = glorot_uniform,
        rng: np.random.Generator | None = None,
    ):
        super().__init__()
        self.in_channels = in_channels = check_whole("Conv2D", "in_channels", in_channels)
        self.out_channels = out_channels = check_whole("Conv2D", "out_channels", out_channels)
        self.kernel_size = kernel_size = check_whole("Conv2D", "kernel_size", kernel_size)
        self.stride = stride = check_whole("Conv2D", "stride", stride)
        self.dilation = dilation = check_whole("Conv2D", "dilation", dilation)
        self.groups = groups = check_whole("Conv2D", "groups", groups)
        check_groups("Conv2D", "in_channels", in_channels, groups)
        check_groups("Conv2D", "out_channels", out_channels, groups)
        self.padding = padding = plain_int(padding)
        extent = dilation * (kernel_size - 1) + 1
        window_geometry(extent, extent, kernel_size, stride, padding, dilation)
        shape = (kernel_size, kernel_size, in_channels // groups, out_channels)
        self.weight = Parameter("weight", initializer(shape, generator(rng)))
        self.bias = Parameter("bias", np.zeros(out_channels, np.float32)) if bias else None
        self.own = [self.weight, self.bias] if bias else [self.weight]

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        self.check_input(x)
        y = self.ops.conv2d_forward(
            x, self.weight.value, self.bias_value, self.stride, self.padding, self.dilation
        )
        if training:
            self.x = x
        return y

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        x = self.remembered("x")
        dx, dweight, dbias = self.ops.conv2d_backward(
            dy, x, self.weight.value, self.stride, self.padding, self.dilation, need_dx
        )
        self.keep_gradients(dweight, dbias)
        return dx

    @property
    def bias_value(self) -> np.ndarray | None:
        return None if self.bias is None else self.bias.value

    def keep_gradients(self, dweight: np.ndarray, dbias: np.ndarray) -> None:
        self.weight.grad = dweight
        if self.bias is not None:
            self.bias.grad = dbias

    def check_input(self, x: np.ndarray) -> None:
        """The operator would read other groups off another channel count; the layer refuses it."""
        check_image("Conv2D", "x", x)
        if x.shape[3] != self.in_channels:
            raise ValueError(
                f"Conv2D: x must have {self.in_channels} channels, got {x.shape[3]} "
                f"(shape {tuple(x.shape)})"
            )

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        H, W, _ = image_shape("Conv2D", input_shape, self.in_channels)
        where = window_geometry(H, W, self.kernel_size, self.stride, self.padding, self.dilation)
        return where.Ho, where.Wo, self.out_channels

    def flops(self, input_shape: tuple[int, ...]) -> int:
        Ho, Wo, O = self.output_shape(input_shape)
        return Ho * Wo * O * self.kernel_size**2 * (self.in_channels // self.groups)

    def __repr__(self) -> str:
        details = f"{self.in_channels}, {self.out_channels}, {self.kernel_size}"
        for name, default in (("stride", 1), ("padding", "valid"), ("dilation", 1), ("groups", 1)):
            if getattr(self, name) != default:
                details += f", {name}={getattr(self, name)!r}"
        return f"Conv2D({details}{'' if self.bias else ', bias=False'})"
