"""Compact involution networks: a refined design in no more parameters than the report's convolutions.

A convolution as stem, then the bottlenecks of RedNet: 1x1 convolutions mix the channels, an
involution mixes the pixels, batch normalisation follows each, and a shortcut goes around. Trainable
parameters, beside those of the report's convolution networks: mnist 21,818 (34,826), fashion-mnist
130,478 (257,162), cifar10 273,382 (319,178). Sources: Li et al. 2021, "Involution", section 4.1; Li
et al. choose 7 x 7 kernels and groups of 16 channels for large images; here they are 5 x 5 and 8.
"""

from typing import NamedTuple

import numpy as np

from scratchnet.layers import Dense, GlobalAvgPool2D, Layer, MaxPool2D, Sequential
from scratchnet.models.rednet import bottleneck, convolution_norm_relu
from scratchnet.models.report import CLASSES, INPUT_SHAPES

KERNEL_SIZE = 5
GROUP_CHANNELS = 8


class Stage(NamedTuple):
    """Blocks of one size: how many, their inner and outer channels, the stride of the first."""

    blocks: int
    mid: int
    out: int
    stride: int


# The channels of the stem's 3x3 convolutions, then the stages.
PLANS = {
    "mnist": ((16,), (Stage(2, 16, 32, 1), Stage(3, 32, 64, 2))),
    "glyphs": ((16,), (Stage(2, 16, 32, 1), Stage(3, 32, 64, 2))),
    "fashion-mnist": ((32,), (Stage(3, 32, 64, 1), Stage(5, 64, 128, 2))),
    "cifar10": ((32, 32), (Stage(4, 32, 64, 1), Stage(7, 64, 128, 2), Stage(2, 80, 160, 2))),
}


def compact_network(dataset: str, *, rng: np.random.Generator | None = None) -> Sequential:
    """A compact involution network for a data set, its weights drawn from rng.

    dataset   "mnist", "fashion-mnist", "cifar10" or "glyphs"
    raises    ValueError for another name
    """
    if dataset not in PLANS:
        raise ValueError(f"dataset must be one of {', '.join(PLANS)}, got {dataset!r}")
    rng = rng or np.random.default_rng()
    stem, stages = PLANS[dataset]
    channels = INPUT_SHAPES[dataset][2]
    layers: list[Layer] = []
    for out in stem:
        layers += convolution_norm_relu(channels, out, 3, rng)
        channels = out
    layers.append(MaxPool2D(2))
    for stage in stages:
        for block in range(stage.blocks):
            stride = stage.stride if block == 0 else 1
            layers += bottleneck(
                channels, stage.mid, stage.out, KERNEL_SIZE, rng,
                stride=stride, group_channels=GROUP_CHANNELS,
            )  # fmt: skip
            channels = stage.out
    return Sequential(*layers, GlobalAvgPool2D(), Dense(channels, CLASSES, rng=rng))
