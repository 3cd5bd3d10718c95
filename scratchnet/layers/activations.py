"""Layers without parameters that act on each value: ReLU and dropout."""

import numpy as np

from scratchnet.checks import check_fraction
from scratchnet.initializers import generator
from scratchnet.layers.base import Layer


class ReLU(Layer):
    """max(x, 0), for x of any shape."""

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        y = self.ops.relu_forward(x)
        if training:
            self.y = y
        return y

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray:
        return self.ops.relu_backward(dy, self.remembered("y"))

    def __repr__(self) -> str:
        return "ReLU()"


class Dropout(Layer):
    """In training, drop each value with probability rate and scale up the others.

    Each training forward draws a new mask from the layer's own generator, which is seeded by rng.
    raises ValueError where rate is not in [0, 1)
    """

    def __init__(self, rate: float, *, rng: np.random.Generator | None = None):
        super().__init__()
        check_fraction("Dropout", "rate", rate)
        self.rate = rate
        rng = generator(rng)
        self.generator = np.random.default_rng(rng.integers(2**63))

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        if not training:
            return x
        self.seed, self.shape = self.ops.changing(self._draw), x.shape
        return self.ops.dropout_forward(x, self.rate, self.seed)

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray:
        seed = self.remembered("seed")
        if dy.shape != self.shape:
            raise ValueError(f"Dropout: dy must have shape {self.shape} like x, got {dy.shape}")
        return self.ops.dropout_backward(dy, self.rate, seed)

    def _draw(self) -> int:
        return int(self.generator.integers(2**63))

    def generators(self) -> list[np.random.Generator]:
        return [self.generator]

    def __repr__(self) -> str:
        return f"Dropout({self.rate})"
