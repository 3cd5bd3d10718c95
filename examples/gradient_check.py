"""Check an operator of your own: is the backward you derived the derivative of your forward?

The operator here is Swish, y = x * sigmoid(beta * x), with a beta for each channel to be learned.
Its two gradients, with s = sigmoid(beta * x):

    dx    = dy * (s + beta * x * s * (1 - s))
    dbeta = sum over all pixels of  dy * x^2 * s * (1 - s)

First the two functions are checked, then a layer made of them inside a network. Then a term is
dropped, and the check has to say where.

    python examples/gradient_check.py
"""

import sys

import numpy as np

import scratchnet as sn
from scratchnet.gradcheck import GradientMismatch, check_gradients, gradcheck
from scratchnet.layers import Layer, Parameter


def swish_forward(x, beta):
    """x (N, H, W, C), beta (C,)  ->  y like x."""
    return x / (1 + np.exp(-beta * x))


def swish_backward(dy, x, beta):
    """dy like x  ->  dx like x, dbeta (C,)."""
    s = 1 / (1 + np.exp(-beta * x))
    dx = dy * (s + beta * x * s * (1 - s))
    dbeta = (dy * x**2 * s * (1 - s)).sum(axis=(0, 1, 2))
    return dx, dbeta


def forgetful_backward(dy, x, beta):
    """The product rule, half remembered: the sigmoid depends on x, too."""
    s = 1 / (1 + np.exp(-beta * x))
    return dy * s, swish_backward(dy, x, beta)[1]


class Swish(Layer):
    """The operator as a layer: a parameter, and what backward needs."""

    def __init__(self, channels: int):
        super().__init__()
        self.beta = Parameter("beta", np.ones(channels, np.float32))
        self.own = [self.beta]

    def forward(self, x, training=False):
        if training:
            self.x = x
        return swish_forward(x, self.beta.value)

    def backward(self, dy, need_dx=True):
        dx, self.beta.grad = swish_backward(dy, self.remembered("x"), self.beta.value)
        return dx


rng = np.random.default_rng(0)
# Neither square nor with as many images as channels: a swapped axis must not go unnoticed.
x, beta = rng.standard_normal((2, 5, 4, 3)), rng.uniform(0.5, 2, 3)

print("The functions:\n")
print(check_gradients(swish_forward, swish_backward, {"x": x, "beta": beta}))

print("\nA network with the layer in it:\n")
network = sn.Sequential(sn.Involution2D(3, rng=rng), Swish(3), sn.Conv2D(3, 2, 3, rng=rng))
print(gradcheck(network, x))

print("\nWith a term dropped from dx:\n")
try:
    check_gradients(swish_forward, forgetful_backward, {"x": x, "beta": beta})
except GradientMismatch as mismatch:
    print(mismatch)
else:
    sys.exit("the check has missed the dropped term")
