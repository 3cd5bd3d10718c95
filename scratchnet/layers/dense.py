"""The dense layer and the flattening before it."""

import math

import numpy as np

from scratchnet.checks import check_float_array, check_whole
from scratchnet.initializers import Initializer, generator, glorot_uniform
from scratchnet.layers.base import Layer, Parameter


class Dense(Layer):
    """x @ weight + bias over the last axis: (..., in_features) -> (..., out_features).

    Parameters: weight (in_features, out_features), Glorot uniform by default, and bias
    (out_features,), zeros.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        initializer: Initializer = glorot_uniform,
        rng: np.random.Generator | None = None,
    ):
        super().__init__()
        self.in_features = check_whole("Dense", "in_features", in_features)
        self.out_features = check_whole("Dense", "out_features", out_features)
        shape = (in_features, out_features)
        self.weight = Parameter("weight", initializer(shape, generator(rng)))
        self.bias = Parameter("bias", np.zeros(out_features, np.float32)) if bias else None
        self.own = [self.weight, self.bias] if bias else [self.weight]

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        bias = None if self.bias is None else self.bias.value
        y = self.ops.dense_forward(x, self.weight.value, bias)
        if training:
            self.x = x
        return y

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        x = self.remembered("x")
        dx, self.weight.grad, dbias = self.ops.dense_backward(dy, x, self.weight.value, need_dx)
        if self.bias is not None:
            self.bias.grad = dbias
        return dx

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        if not input_shape or input_shape[-1] != self.in_features:
            raise ValueError(
                f"Dense: a sample must have shape (..., {self.in_features}), "
                f"got {tuple(input_shape)}"
            )
        return (*input_shape[:-1], self.out_features)

    def flops(self, input_shape: tuple[int, ...]) -> int:
        return math.prod(input_shape[:-1]) * self.in_features * self.out_features

    def __repr__(self) -> str:
        bias = "" if self.bias else ", bias=False"
        return f"Dense({self.in_features}, {self.out_features}{bias})"


class Flatten(Layer):
    """Each sample's values in one row: (N, ...) -> (N, product of the rest)."""

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        check_float_array("Flatten", "x", x)
        if training:
            self.x_shape = x.shape
        return self.ops.flatten_forward(x)

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray:
        return self.ops.flatten_backward(dy, self.remembered("x_shape"))

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (math.prod(input_shape),)

    def __repr__(self) -> str:
        return "Flatten()"
