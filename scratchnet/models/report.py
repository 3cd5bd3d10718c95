"""The six networks of the student report, and a pair for the embedded glyphs.

Each data set has twins: the same network with 3x3 convolutions or with 3x3 involutions. Trainable
parameters: mnist 34,826 and 544, fashion-mnist 257,162 and 3,916, cifar10 319,178 and 13,074.
"""

import numpy as np

from scratchnet.initializers import generator
from scratchnet.layers import (
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    Involution2D,
    Layer,
    MaxPool2D,
    ReLU,
    Sequential,
    WindowAttention2D,
)

OPERATORS = ("convolution", "involution")  # the report's twins
ANCESTORS = ("attention",)
INPUT_SHAPES = {
    "mnist": (28, 28, 1),
    "fashion-mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "glyphs": (28, 28, 1),
}
CLASSES = 10


def report_network(
    dataset: str, operator: str, *, rng: np.random.Generator | None = None
) -> Sequential:
    """A network of the report, its weights drawn from rng.

    dataset    "mnist", "fashion-mnist", "cifar10" or "glyphs"
    operator   "convolution" or "involution"; or "attention", of which the report speaks in section
               2.2 but which it did not train: the involution network with each involution replaced
    raises     ValueError for another name
    """
    check_dataset(dataset)
    if operator not in (*OPERATORS, *ANCESTORS):
        raise ValueError(
            f"operator must be one of {', '.join((*OPERATORS, *ANCESTORS))}, got {operator!r}"
        )
    rng = generator(rng)
    if operator == "convolution":
        channels = (32, 64) if is_small(dataset) else (32, 64, 64)
        features = convolution_features(dataset, channels, rng)
    else:
        layer = Involution2D if operator == "involution" else WindowAttention2D
        features = window_features(dataset, layer, rng)
    return with_head(dataset, features, rng)


def check_dataset(dataset: str) -> None:
    """raises ValueError for a data set that the report does not have"""
    if dataset not in INPUT_SHAPES:
        raise ValueError(f"dataset must be one of {', '.join(INPUT_SHAPES)}, got {dataset!r}")


def is_small(dataset: str) -> bool:
    """Whether the data set's networks are those of MNIST: two blocks and one dense layer."""
    return dataset in ("mnist", "glyphs")


def convolution_features(
    dataset: str, channels: tuple[int, ...], rng: np.random.Generator
) -> list[Layer]:
    """The layers before the head: 3x3 convolutions with so many channels, ReLU, pools."""
    C = INPUT_SHAPES[dataset][2]
    if is_small(dataset):
        a, b = channels
        return [
            Conv2D(C, a, 3, rng=rng), ReLU(), MaxPool2D(2),
            Conv2D(a, b, 3, rng=rng), ReLU(), MaxPool2D(2),
        ]  # fmt: skip
    a, b, c = channels
    return [
        Conv2D(C, a, 3, padding="same", rng=rng), ReLU(), MaxPool2D(2),
        Conv2D(a, b, 3, padding="same", rng=rng), ReLU(), MaxPool2D(2),
        Conv2D(b, c, 3, padding="same", rng=rng), ReLU(),
    ]  # fmt: skip


def window_features(
    dataset: str, layer: type[Involution2D] | type[WindowAttention2D], rng: np.random.Generator
) -> list[Layer]:
    """The layers before the head, of an operator that keeps the number of channels."""
    C = INPUT_SHAPES[dataset][2]
    if is_small(dataset):
        return [layer(C, 3, rng=rng), MaxPool2D(2), layer(C, 3, rng=rng), MaxPool2D(2)]
    return [
        layer(C, 3, rng=rng), ReLU(), MaxPool2D(2),
        layer(C, 3, rng=rng), ReLU(), MaxPool2D(2),
        layer(C, 3, rng=rng), ReLU(),
    ]  # fmt: skip


def with_head(dataset: str, features: list[Layer], rng: np.random.Generator) -> Sequential:
    """The layers, then those that turn what they put out into ten logits."""
    features = [*features, Flatten()]
    shape: tuple[int, ...] = INPUT_SHAPES[dataset]
    for layer in features:
        shape = layer.output_shape(shape)
    (flat,) = shape
    if is_small(dataset):
        return Sequential(*features, Dropout(0.5, rng=rng), Dense(flat, CLASSES, rng=rng))
    return Sequential(*features, Dense(flat, 64, rng=rng), ReLU(), Dense(64, CLASSES, rng=rng))
