"""Layers made of layers: one after the other, or around a shortcut. No graph and no tape."""

import numpy as np

from scratchnet.layers.activations import ReLU
from scratchnet.layers.base import Layer
from scratchnet.layers.conv import Conv2D
from scratchnet.layers.fused import FusedConv2D, can_fuse
from scratchnet.layers.pooling import MaxPool2D


class Sequential(Layer):
    """Layers one after the other; backward goes through them in reverse.

    A convolution that a ReLU, or a ReLU and a max pooling, follows runs as one operator, which
    gives the same values, but for rounding, without writing the arrays in between. `steps` is what
    runs, `layers` what was asked for.
    """

    def __init__(self, *layers: Layer):
        super().__init__()
        self.layers = layers
        self.add_parts({str(i): layer for i, layer in enumerate(layers)})
        self.steps = _fuse(layers)

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        for step in self.steps:
            x = step.forward(x, training)
        return x

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        for i, step in reversed(list(enumerate(self.steps))):
            dy = step.backward(dy, need_dx or i > 0)
        return dy

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        for layer in self.layers:
            input_shape = layer.output_shape(input_shape)
        return tuple(input_shape)

    def flops(self, input_shape: tuple[int, ...]) -> int:
        total = 0
        for layer in self.layers:
            total += layer.flops(input_shape)
            input_shape = layer.output_shape(input_shape)
        return total

    def __repr__(self) -> str:
        return f"Sequential({', '.join(map(repr, self.layers))})"


class Residual(Layer):
    """body(x) + shortcut(x); without a shortcut, body(x) + x.

    Source: He et al. 2016, "Deep residual learning", equations 1 and 2.
    raises ValueError in output_shape and forward where the two paths differ in shape
    """

    def __init__(self, body: Layer, shortcut: Layer | None = None):
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.add_parts({"body": body} | ({"shortcut": shortcut} if shortcut else {}))

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        self.output_shape(x.shape[1:])
        along = x if self.shortcut is None else self.shortcut.forward(x, training)
        return self.ops.add_forward(self.body.forward(x, training), along)

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        dbody, dalong = self.ops.add_backward(dy)
        dx = self.body.backward(dbody, need_dx)
        if self.shortcut is not None:
            dalong = self.shortcut.backward(dalong, need_dx)
        return self.ops.add_forward(dx, dalong) if need_dx else None

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        body = self.body.output_shape(input_shape)
        along = self.shortcut.output_shape(input_shape) if self.shortcut else tuple(input_shape)
        if body != along:
            raise ValueError(f"Residual: the body puts out {body}, the shortcut {along}")
        return body

    def flops(self, input_shape: tuple[int, ...]) -> int:
        return sum(part.flops(input_shape) for part in self.parts.values())

    def __repr__(self) -> str:
        shortcut = f", {self.shortcut!r}" if self.shortcut else ""
        return f"Residual({self.body!r}{shortcut})"


def _fuse(layers: tuple[Layer, ...]) -> list[Layer]:
    """The layers, with each run of convolution, ReLU (and max pooling) as one step."""
    steps: list[Layer] = []
    i = 0
    while i < len(layers):
        run = layers[i : i + 3]
        kinds = [type(layer) for layer in run]  # a subclass may compute something else
        if kinds[:2] != [Conv2D, ReLU]:
            length = 1
        else:
            length = 3 if kinds[2:] == [MaxPool2D] else 2
        if length > 1 and can_fuse(*run[:length]):
            steps.append(FusedConv2D(*run[:length]))
        else:
            length = 1
            steps.append(run[0])
        i += length
    return steps
