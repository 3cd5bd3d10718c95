"""Windowed self-attention as a layer: an involution whose kernels come from comparing pixels.

The equations of its kernel stand in `backends/reference/attention_kernel.py`, those of what the
kernel does in `backends/reference/involution.py`.
"""

import numpy as np

from scratchnet.checks import check_groups, check_image, check_whole
from scratchnet.geometry import involution_geometry, plain_int
from scratchnet.initializers import generator
from scratchnet.layers.base import Layer, Parameter
from scratchnet.layers.conv import Conv2D
from scratchnet.layers.shapes import image_shape


class WindowAttention2D(Layer):
    """Each pixel attends to the K x K window around it; groups are its heads.

    (N, H, W, channels) -> alike. Parts: `query`, `key`, `value` (1x1, channels to channels), and
    the parameter `position` (K, K, channels), relative positions that start at 0, unless
    positions=False. Source: Ramachandran et al. 2019, "Stand-Alone Self-Attention".

    raises ValueError where K is even, or the channels do not divide into the groups
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        groups: int = 1,
        dilation: int = 1,
        positions: bool = True,
        *,
        rng: np.random.Generator | None = None,
    ):
        super().__init__()
        rng = generator(rng)
        self.channels = channels = check_whole("WindowAttention2D", "channels", channels)
        self.groups = groups = check_whole("WindowAttention2D", "groups", groups)
        self.dilation = dilation = check_whole("WindowAttention2D", "dilation", dilation)
        check_groups("WindowAttention2D", "channels", channels, groups)
        self.kernel_size = kernel_size = plain_int(kernel_size)
        involution_geometry(1, 1, kernel_size, 1, dilation)
        self.query = Conv2D(channels, channels, 1, rng=rng)
        self.key = Conv2D(channels, channels, 1, rng=rng)
        self.value = Conv2D(channels, channels, 1, rng=rng)
        self.position = None
        if positions:
            start = np.zeros((kernel_size, kernel_size, channels), np.float32)
            self.position = Parameter("position", start)
            self.own = [self.position]
        self.add_parts({"query": self.query, "key": self.key, "value": self.value})

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        check_image("WindowAttention2D", "x", x)
        q, k, v = (part.forward(x, training) for part in self.parts.values())
        kernel = self.ops.attention_kernel_forward(
            q, k, self.position_value, self.kernel_size, self.groups, self.dilation
        )
        if training:
            self.q, self.k, self.v, self.kernel = q, k, v, kernel
        return self.ops.involution_forward(v, kernel, 1, self.dilation)

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        q = self.remembered("q")
        dv, dkernel = self.ops.involution_backward(dy, self.v, self.kernel, 1, self.dilation)
        dq, dk, dposition = self.ops.attention_kernel_backward(
            dkernel, q, self.k, self.position_value, self.kernel, self.dilation
        )
        if self.position is not None:
            self.position.grad = dposition
        along_q = self.query.backward(dq, need_dx)
        along_k = self.key.backward(dk, need_dx)
        along_v = self.value.backward(dv, need_dx)
        if not need_dx:
            return None
        return self.ops.add_forward(self.ops.add_forward(along_q, along_k), along_v)

    def kernels(self, x: np.ndarray) -> np.ndarray:
        """The kernels that x makes, in evaluation: (N, H, W, G, K, K)."""
        return self.ops.attention_kernel_forward(
            self.query.forward(x), self.key.forward(x), self.position_value,
            self.kernel_size, self.groups, self.dilation,
        )  # fmt: skip

    @property
    def position_value(self) -> np.ndarray | None:
        return None if self.position is None else self.position.value

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        return image_shape("WindowAttention2D", input_shape, self.channels)

    def flops(self, input_shape: tuple[int, ...]) -> int:
        H, W, C = self.output_shape(input_shape)
        mixing = sum(part.flops(input_shape) for part in self.parts.values())
        return mixing + 2 * H * W * C * self.kernel_size**2  # comparing, then summing the window

    def leaves(self):
        yield self

    def __repr__(self) -> str:
        return (
            f"WindowAttention2D({self.channels}, kernel_size={self.kernel_size}, "
            f"groups={self.groups}, dilation={self.dilation})"
        )
