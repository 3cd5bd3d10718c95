"""Small residual networks whose windows are involutions, one for each data set of the report.

The report ends on "a more refined design could bridge the gap". This is one, on RedNet's pattern:
convolutions as a stem, which give the involutions channels to work on, then bottlenecks that narrow
the channels, mix the pixels by an involution and widen again, with batch norm throughout, and the
mean over the image before the last layer. In the stem the norm stands after the ReLU and, at the
end of the stem, the pool: these are one operator with the convolution then, and the norm behind the
pool sees a quarter of the pixels. None has more parameters than the report's convolution network of
its data set. Source of the pattern: Li et al. 2021, section 4.1; kernels of 3 x 3 and a stem at
full resolution are ours, as these images are a fiftieth of theirs.
"""

from dataclasses import dataclass

import numpy as np

from scratchnet.initializers import generator, he_normal
from scratchnet.layers import (
    BatchNorm,
    Conv2D,
    Dense,
    GlobalAvgPool2D,
    Layer,
    MaxPool2D,
    ReLU,
    Sequential,
)
from scratchnet.models.rednet import EPS, MOMENTUM, bottleneck
from scratchnet.models.report import CLASSES, INPUT_SHAPES, check_dataset


@dataclass(frozen=True)
class Plan:
    """What a compact network is made of.

    stem     output channels of its 3x3 convolutions; a 2x2 max pool follows
    stages   (blocks, channels inside, channels outside); from the second on, stride 2 at the start
    """

    stem: tuple[int, ...]
    stages: tuple[tuple[int, int, int], ...]


PLANS = {
    "mnist": Plan((16, 32), ((2, 16, 32), (5, 32, 64))),
    "fashion-mnist": Plan((32, 64), ((2, 32, 64), (4, 64, 128))),
    "cifar10": Plan((32, 64), ((4, 32, 64), (6, 64, 128), (3, 96, 192))),
}
PLANS["glyphs"] = PLANS["mnist"]
KERNEL_SIZE = 3
GROUP_CHANNELS = 16


def compact_involution(dataset: str, *, rng: np.random.Generator | None = None) -> Sequential:
    """The compact involution network of a data set, (N, H, W, C) -> (N, 10).

    raises ValueError for a data set that the report does not have
    """
    check_dataset(dataset)
    rng = generator(rng)
    plan = PLANS[dataset]
    channels = INPUT_SHAPES[dataset][2]
    layers: list[Layer] = []
    for number, out in enumerate(plan.stem, 1):
        pool = [MaxPool2D(2)] if number == len(plan.stem) else []
        convolution = Conv2D(channels, out, 3, padding=1, initializer=he_normal, rng=rng)
        layers += [convolution, ReLU(), *pool, BatchNorm(out, MOMENTUM, EPS)]
        channels = out
    for stage, (blocks, mid, out) in enumerate(plan.stages):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers += bottleneck(
                channels, mid, out, KERNEL_SIZE, rng, stride=stride, group_channels=GROUP_CHANNELS
            )
            channels = out
    return Sequential(*layers, GlobalAvgPool2D(), Dense(channels, CLASSES, rng=rng))
