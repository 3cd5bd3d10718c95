"""The six networks of the student report, and a pair for the embedded glyphs.

Each data set has twins: the same network with 3x3 convolutions or with 3x3 involutions. Trainable
parameters: mnist 34,826 and 544, fashion-mnist 257,162 and 3,916, cifar10 319,178 and 13,074.
"""

import numpy as np

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
)

OPERATORS = ("convolution", "involution")
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
    operator   "convolution" or "involution"
    raises     ValueError for another name
    """
    if dataset not in INPUT_SHAPES:
        raise ValueError(f"dataset must be one of {', '.join(INPUT_SHAPES)}, got {dataset!r}")
    if operator not in OPERATORS:
        raise ValueError(f"operator must be one of {', '.join(OPERATORS)}, got {operator!r}")
    rng = rng or np.random.default_rng()
    shape = INPUT_SHAPES[dataset]
    small = dataset in ("mnist", "glyphs")
    if operator == "convolution":
        features = _small_convolution(shape, rng) if small else _convolution(shape, rng)
    else:
        features = _small_involution(shape, rng) if small else _involution(shape, rng)
    for layer in features:
        shape = layer.output_shape(shape)
    (flat,) = shape
    head = _small_head(flat, rng) if small else _head(flat, rng)
    return Sequential(*features, *head)


def _small_convolution(shape: tuple[int, int, int], rng: np.random.Generator) -> list[Layer]:
    return [
        Conv2D(shape[2], 32, 3, rng=rng), ReLU(), MaxPool2D(2),
        Conv2D(32, 64, 3, rng=rng), ReLU(), MaxPool2D(2),
        Flatten(),
    ]  # fmt: skip


def _small_involution(shape: tuple[int, int, int], rng: np.random.Generator) -> list[Layer]:
    C = shape[2]
    return [
        Involution2D(C, 3, rng=rng), MaxPool2D(2),
        Involution2D(C, 3, rng=rng), MaxPool2D(2),
        Flatten(),
    ]  # fmt: skip


def _convolution(shape: tuple[int, int, int], rng: np.random.Generator) -> list[Layer]:
    return [
        Conv2D(shape[2], 32, 3, padding="same", rng=rng), ReLU(), MaxPool2D(2),
        Conv2D(32, 64, 3, padding="same", rng=rng), ReLU(), MaxPool2D(2),
        Conv2D(64, 64, 3, padding="same", rng=rng), ReLU(),
        Flatten(),
    ]  # fmt: skip


def _involution(shape: tuple[int, int, int], rng: np.random.Generator) -> list[Layer]:
    C = shape[2]
    return [
        Involution2D(C, 3, rng=rng), ReLU(), MaxPool2D(2),
        Involution2D(C, 3, rng=rng), ReLU(), MaxPool2D(2),
        Involution2D(C, 3, rng=rng), ReLU(),
        Flatten(),
    ]  # fmt: skip


def _small_head(features: int, rng: np.random.Generator) -> list[Layer]:
    return [Dropout(0.5, rng=rng), Dense(features, CLASSES, rng=rng)]


def _head(features: int, rng: np.random.Generator) -> list[Layer]:
    return [Dense(features, 64, rng=rng), ReLU(), Dense(64, CLASSES, rng=rng)]
