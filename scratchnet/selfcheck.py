"""What `scratchnet gradcheck` checks: every layer, and the loss, on small inputs not square."""

from collections.abc import Callable
from functools import partial

import numpy as np

from scratchnet.gradcheck import Report, check_gradients, gradcheck
from scratchnet.layers import (
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    Involution2D,
    MaxPool2D,
    ReLU,
    Residual,
    Sequential,
    WindowAttention2D,
)
from scratchnet.losses import SoftmaxCrossEntropy


def gradient_checks(backend: str, seed: int) -> dict[str, Callable[[], Report]]:
    """By name, a function that checks and returns the report or raises GradientMismatch."""
    rng = np.random.default_rng(seed)
    image, rows = rng.standard_normal((2, 6, 5, 4)), rng.standard_normal((4, 6))
    layers = {
        "dense": (Dense(6, 3, rng=rng), rows),
        "convolution": (Conv2D(4, 3, 3, rng=rng), image),
        "convolution, stride 2, 2 groups": (
            Conv2D(4, 6, 3, stride=2, padding="same", groups=2, rng=rng),
            image,
        ),
        "convolution, ReLU and max pool": (
            Sequential(Conv2D(4, 3, 3, rng=rng), ReLU(), MaxPool2D(2)),
            image,
        ),
        "involution": (Involution2D(4, 3, rng=rng), image),
        "involution, stride 2, 2 groups": (
            Involution2D(4, 3, groups=2, stride=2, rng=rng),
            image,
        ),
        "involution in a residual": (
            Residual(Sequential(Involution2D(4, rng=rng), BatchNorm(4))),
            image,
        ),
        "window attention": (WindowAttention2D(4, 3, groups=2, rng=rng), image),
        "batch norm": (BatchNorm(4), image),
        "max pool": (MaxPool2D(2), image),
        "average pool": (AvgPool2D(3, stride=2, padding="same"), image),
        "global average pool": (GlobalAvgPool2D(), image),
        "ReLU": (ReLU(), image),
        "dropout": (Dropout(0.5, rng=rng), image),
        "flatten": (Flatten(), image),
    }
    checks = {
        name: partial(gradcheck, layer.to(backend), x, seed=seed)
        for name, (layer, x) in layers.items()
    }
    loss = SoftmaxCrossEntropy(label_smoothing=0.1).to(backend)
    labels = rng.integers(6, size=len(rows))
    checks["softmax cross-entropy"] = partial(
        check_gradients,
        lambda logits: loss.forward(logits, labels),
        lambda dy, logits: loss.backward(dy),
        {"logits": rows},
        seed=seed,
    )
    return checks
