"""Networks of one size: the report's convolution made as small as its involution, and the reverse.

The report's twins differ 24 to 66 times in parameters and over a hundred times in multiply-adds, so
that their accuracies say little about the operators. Here one of the two is given the other's size.
Channels, kernel sizes and groups are the choice that comes nearest in both counts, within an eighth
of each.
"""

import numpy as np

from scratchnet.initializers import generator
from scratchnet.layers import Conv2D, Involution2D, Layer, MaxPool2D, ReLU, Sequential
from scratchnet.models.report import (
    INPUT_SHAPES,
    check_dataset,
    convolution_features,
    is_small,
    with_head,
)

SMALL_CHANNELS = {"mnist": (2, 2), "fashion-mnist": (1, 6, 1), "cifar10": (1, 6, 3)}
SMALL_CHANNELS["glyphs"] = SMALL_CHANNELS["mnist"]
WIDE_GROUPS = {"mnist": (4, 2), "fashion-mnist": (8, 1), "cifar10": (8, 1)}  # and the reduction
WIDE_GROUPS["glyphs"] = WIDE_GROUPS["mnist"]


def small_convolution(dataset: str, *, rng: np.random.Generator | None = None) -> Sequential:
    """The report's convolution network with as few channels as make it as small as the involution.

    raises ValueError for a data set that the report does not have
    """
    check_dataset(dataset)
    rng = generator(rng)
    features = convolution_features(dataset, SMALL_CHANNELS[dataset], rng)
    return with_head(dataset, features, rng)


def wide_involution(dataset: str, *, rng: np.random.Generator | None = None) -> Sequential:
    """The report's convolution network, each 3x3 convolution as 1x1 and involution.

    The 1x1 convolution has the channels of the 3x3 convolution, the involution its window.
    raises ValueError for a data set that the report does not have
    """
    check_dataset(dataset)
    rng = generator(rng)
    C = INPUT_SHAPES[dataset][2]

    def pair(channels: int, out: int) -> list[Layer]:
        groups, reduction = WIDE_GROUPS[dataset]
        mixing = Conv2D(channels, out, 1, rng=rng)
        return [mixing, Involution2D(out, 3, groups, reduction, rng=rng), ReLU()]

    features = [*pair(C, 32), MaxPool2D(2), *pair(32, 64), MaxPool2D(2)]
    if not is_small(dataset):
        features += pair(64, 64)
    return with_head(dataset, features, rng)
