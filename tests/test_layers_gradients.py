"""Gradients of layers and of whole small networks, on every backend.

In a chain a layer's dx is checked through the parameters of the layers before it: a batch norm
that passes back too much, or nothing, shows in the weights in front of it.
"""

import numpy as np
import pytest

from scratchnet import (
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
    SoftmaxCrossEntropy,
    models,
)
from scratchnet.backends import BACKENDS
from scratchnet.gradcheck import check_gradients, gradcheck


def _rng():
    return np.random.default_rng(5)


def _involution(channels, **settings):
    return Involution2D(channels, rng=_rng(), **settings)


def _conv(*sizes, **settings):
    return Conv2D(*sizes, rng=_rng(), **settings)


def _bottleneck(stride):
    """RedNet's block: 1x1, involution, 1x1, each with its norm, beside a strided shortcut."""
    return Residual(
        Sequential(
            _conv(3, 4, 1, bias=False),
            BatchNorm(4),
            ReLU(),
            _involution(4, groups=2, stride=stride, reduce_bias=False),
            BatchNorm(4),
            ReLU(),
            _conv(4, 6, 1, bias=False),
            BatchNorm(6),
        ),
        Sequential(AvgPool2D(stride, padding="ceil"), _conv(3, 6, 1), BatchNorm(6)),
    )


# name -> (layer, shape of one sample)
LAYERS = {
    "conv2d": lambda: (_conv(4, 6, 3, stride=2, padding="same", groups=2), (7, 6, 4)),
    "conv2d dilated, no bias": lambda: (_conv(2, 3, 2, dilation=3, bias=False), (6, 7, 2)),
    "involution": lambda: (_involution(4, groups=2), (5, 4, 4)),
    "involution of one hidden channel": lambda: (_involution(2), (5, 4, 2)),
    "involution of one channel": lambda: (_involution(1), (5, 4, 1)),
    "involution, strided and odd": lambda: (_involution(3, kernel_size=5, stride=2), (7, 6, 3)),
    "involution, strided and dilated": lambda: (
        _involution(4, groups=4, reduction=4, stride=3, dilation=2, reduce_bias=False),
        (8, 7, 4),
    ),
    "batch norm": lambda: (BatchNorm(3), (4, 5, 3)),
    "batch norm of rows": lambda: (BatchNorm(3), (3,)),
    "max pool": lambda: (MaxPool2D(3, 2, padding=1), (6, 5, 2)),
    "average pool": lambda: (AvgPool2D(3, 2, padding="same"), (6, 5, 2)),
    "global average pool": lambda: (GlobalAvgPool2D(), (4, 5, 3)),
    "dense": lambda: (Dense(4, 3, rng=_rng()), (4,)),
    "relu": lambda: (ReLU(), (4, 5, 3)),
    "flatten": lambda: (Flatten(), (4, 5, 3)),
    "dropout": lambda: (Dropout(0.4, rng=_rng()), (4, 5, 3)),
    "residual": lambda: (Residual(_conv(3, 3, 3, padding="same")), (4, 5, 3)),
}

NETWORKS = {
    "norm behind a convolution": lambda: (
        Sequential(_conv(2, 3, 3), BatchNorm(3), ReLU(), _conv(3, 2, 1)),
        (5, 4, 2),
    ),
    "norm behind a norm": lambda: (
        Sequential(_conv(2, 3, 1), BatchNorm(3), BatchNorm(3), _conv(3, 2, 1)),
        (3, 4, 2),
    ),
    "norm behind a dense layer": lambda: (
        Sequential(Dense(4, 5, rng=_rng()), BatchNorm(5), ReLU(), Dense(5, 3, rng=_rng())),
        (4,),
    ),
    "involution and norm inside a residual": lambda: (
        Sequential(
            _conv(2, 4, 3, padding="same"),
            Residual(Sequential(_involution(4, groups=2), BatchNorm(4), ReLU())),
            _conv(4, 2, 1),
        ),
        (5, 6, 2),
    ),
    "involution behind an involution": lambda: (
        Sequential(_involution(2, kernel_size=5), ReLU(), _involution(2, stride=2), BatchNorm(2)),
        (7, 5, 2),
    ),
    "strided bottleneck": lambda: (Sequential(_conv(2, 3, 1), _bottleneck(2)), (5, 7, 2)),
    "bottleneck": lambda: (Sequential(_bottleneck(1), ReLU(), GlobalAvgPool2D()), (4, 5, 3)),
    "residual inside a residual": lambda: (
        Residual(Sequential(_conv(3, 3, 1), Residual(Sequential(BatchNorm(3), ReLU())))),
        (4, 3, 3),
    ),
    "the report's convolution block, twice": lambda: (
        Sequential(
            _conv(1, 3, 3), ReLU(), MaxPool2D(2), _conv(3, 4, 3, padding="same"), ReLU(),
            MaxPool2D(2), Flatten(), Dropout(0.5, rng=_rng()), Dense(4 * 2 * 3, 5, rng=_rng()),
        ),
        (10, 14, 1),
    ),
    "the report's involution block, twice": lambda: (
        Sequential(
            _involution(3), ReLU(), MaxPool2D(2), _involution(3), ReLU(), MaxPool2D(2),
            _involution(3), ReLU(), Flatten(), Dense(3 * 2 * 3, 4, rng=_rng()), ReLU(),
            Dense(4, 3, rng=_rng()),
        ),
        (10, 13, 3),
    ),
    "convolution, relu and what cannot be fused": lambda: (
        Sequential(
            _conv(2, 4, 3, stride=2, padding=1), ReLU(), MaxPool2D(3, 1), _conv(4, 4, 1, groups=2),
            ReLU(), AvgPool2D(2),
        ),
        (11, 9, 2),
    ),
}  # fmt: skip

every_backend = pytest.mark.parametrize("backend", BACKENDS)


def _check(build, backend, batch, **settings):
    layer, shape = build()
    x = np.random.default_rng(11).standard_normal((batch, *shape))
    for parameter in layer.parameters():  # gamma 1 and beta 0 are special: move everything
        moved = np.random.default_rng(13).standard_normal(parameter.value.shape)
        parameter.value += (0.3 * moved).astype(np.float32) if parameter.trainable else 0
    return gradcheck(layer.to(backend), x, **settings)


@every_backend
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name, backend):
    _check(LAYERS[name], backend, batch=3)


@every_backend
@pytest.mark.parametrize("name", NETWORKS)
def test_network(name, backend):
    _check(NETWORKS[name], backend, batch=3, elements=20)


@every_backend
def test_batch_of_one(backend):
    for name in ("conv2d", "involution", "batch norm", "batch norm of rows"):
        _check(LAYERS[name], backend, batch=1)


@every_backend
@pytest.mark.parametrize("operator", ["convolution", "involution"])
@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_network_of_the_report(dataset, operator, backend):
    # Moved parameters, as fresh biases of 0 put whole images on the kink of a ReLU.
    def build():
        return models.report_network(dataset, operator, rng=_rng()), models.INPUT_SHAPES[dataset]

    _check(build, backend, batch=2, elements=2, directions=1)


@every_backend
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_loss_at_the_end_of_a_network(backend, label_smoothing):
    network, shape = NETWORKS["involution and norm inside a residual"]()
    network = Sequential(network, GlobalAvgPool2D()).astype(np.float64).to(backend)
    loss = SoftmaxCrossEntropy(label_smoothing).to(backend)
    labels = np.array([0, 1, 1])

    def forward(x):
        return loss.forward(network.forward(x, training=True), labels)

    def backward(dloss, x):
        forward(x)
        return network.backward(loss.backward(dloss))

    x = np.random.default_rng(2).standard_normal((3, *shape))
    check_gradients(forward, backward, {"x": x})


@every_backend
def test_gradients_do_not_pile_up_over_steps(backend):
    """A second step gives what a fresh network gives, whatever the first one left behind."""
    build = NETWORKS["strided bottleneck"]
    used, fresh = (build()[0].astype(np.float64).to(backend) for _ in range(2))
    rng = np.random.default_rng(1)
    first, second = rng.standard_normal((2, 3, 5, 7, 2))
    dy = rng.standard_normal((3, 3, 4, 6))
    used.forward(first, training=True)
    used.backward(dy)
    for network in (used, fresh):
        network.forward(second, training=True)
    dx = used.backward(dy)
    np.testing.assert_array_equal(dx, fresh.backward(dy))
    for one, other in zip(used.parameters(), fresh.parameters(), strict=True):
        if one.trainable:
            np.testing.assert_array_equal(one.grad, other.grad, err_msg=one.name)
