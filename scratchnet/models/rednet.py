"""RedNet: residual bottlenecks with an involution where ResNet has its 3x3 convolution.

A bottleneck narrows the channels with a 1x1 convolution, mixes the pixels with an involution, and
widens again with a 1x1 convolution. Source: Li et al. 2021, "Involution", section 4.1 and table 1;
the residual bottleneck, He et al. 2016, figure 5.
"""

import numpy as np

from scratchnet.initializers import generator, he_normal
from scratchnet.layers import (
    BatchNorm,
    Conv2D,
    Dense,
    GlobalAvgPool2D,
    Involution2D,
    Layer,
    MaxPool2D,
    ReLU,
    Residual,
    Sequential,
)

DEPTHS = {
    26: (1, 2, 4, 1),
    38: (2, 3, 5, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
MOMENTUM, EPS = 0.9, 1e-5


def rednet(
    depth: int, classes: int = 1000, *, rng: np.random.Generator | None = None
) -> Sequential:
    """The RedNet of Li et al. for large images, (N, H, W, 3) -> (N, classes).

    depth    26, 38, 50, 101 or 152; with 1000 classes 9.23, 12.39, 15.54, 25.65 and 33.98 million
             trainable parameters
    raises   ValueError for another depth
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth must be one of {', '.join(map(str, DEPTHS))}, got {depth!r}")
    rng = generator(rng)
    layers: list[Layer] = [
        *convolution_norm_relu(3, 32, 3, rng, stride=2),
        *involution_norm_relu(32, 3, rng),
        *convolution_norm_relu(32, 64, 3, rng),
        MaxPool2D(3, stride=2, padding=1),
    ]
    channels = 64
    for stage, blocks in enumerate(DEPTHS[depth]):
        mid = 64 * 2**stage
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers += bottleneck(channels, mid, 4 * mid, 7, rng, stride=stride)
            channels = 4 * mid
    return Sequential(*layers, GlobalAvgPool2D(), Dense(channels, classes, rng=rng))


def bottleneck(
    channels: int,
    mid: int,
    out: int,
    kernel_size: int,
    rng: np.random.Generator,
    *,
    stride: int = 1,
    group_channels: int = 16,
) -> list[Layer]:
    """A residual block, channels -> mid -> out, and the ReLU after it.

    The last norm starts with gamma 0, so that at first the block hands its input on.
    """
    last = BatchNorm(out, MOMENTUM, EPS)
    last.gamma.value[...] = 0
    body = Sequential(
        *convolution_norm_relu(channels, mid, 1, rng),
        *involution_norm_relu(mid, kernel_size, rng, stride=stride, group_channels=group_channels),
        Conv2D(mid, out, 1, bias=False, initializer=he_normal, rng=rng),
        last,
    )
    shortcut = None
    if stride != 1 or channels != out:
        shortcut = Sequential(
            Conv2D(channels, out, 1, stride, bias=False, initializer=he_normal, rng=rng),
            BatchNorm(out, MOMENTUM, EPS),
        )
    return [Residual(body, shortcut), ReLU()]


def convolution_norm_relu(
    channels: int, out: int, kernel_size: int, rng: np.random.Generator, *, stride: int = 1
) -> list[Layer]:
    """A convolution without bias, batch norm, ReLU: (N, H, W, channels) -> (N, Ho, Wo, out)."""
    return [
        Conv2D(
            channels,
            out,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            bias=False,
            initializer=he_normal,
            rng=rng,
        ),
        BatchNorm(out, MOMENTUM, EPS),
        ReLU(),
    ]


def involution_norm_relu(
    channels: int,
    kernel_size: int,
    rng: np.random.Generator,
    *,
    stride: int = 1,
    group_channels: int = 16,
) -> list[Layer]:
    """An involution in groups of `group_channels`, batch norm and ReLU; the channels stay."""
    return [
        Involution2D(
            channels,
            kernel_size,
            groups=channels // group_channels,
            reduction=4,
            stride=stride,
            reduce_bias=False,
            momentum=MOMENTUM,
            eps=EPS,
            rng=rng,
        ),
        BatchNorm(channels, MOMENTUM, EPS),
        ReLU(),
    ]
