"""The networks of the report: layers, counts, names, and the table that shows them."""

import math

import numpy as np
import pytest

from scratchnet import BatchNorm, Conv2D, Flatten, ReLU, Residual, Sequential
from scratchnet.models import INPUT_SHAPES, NETWORKS, OPERATORS, rednet, report_network, summary

PARAMETERS = {
    ("mnist", "convolution"): 34_826,
    ("mnist", "involution"): 544,
    ("fashion-mnist", "convolution"): 257_162,
    ("fashion-mnist", "involution"): 3_916,
    ("cifar10", "convolution"): 319_178,
    ("cifar10", "involution"): 13_074,
    ("glyphs", "convolution"): 34_826,
    ("glyphs", "involution"): 544,
    ("mnist", "attention"): 530,
    ("fashion-mnist", "attention"): 3_895,
    ("cifar10", "attention"): 13_191,
}
# Convolutions: pixels * outputs * 9 * inputs. Involutions, G = 1 and one hidden channel: pixels *
# (channels + 9 + 9 * channels). Then the dense layers.
MULTIPLY_ADDS = {
    ("mnist", "convolution"): 26**2 * 32 * 9 + 11**2 * 64 * 9 * 32 + 1600 * 10,
    ("mnist", "involution"): (28**2 + 14**2) * (1 + 9 + 9) + 49 * 10,
    ("fashion-mnist", "convolution"): (
        28**2 * 32 * 9 + 14**2 * 64 * 9 * 32 + 7**2 * 64 * 9 * 64 + 3136 * 64 + 640
    ),
    ("fashion-mnist", "involution"): (28**2 + 14**2 + 7**2) * 19 + 49 * 64 + 640,
    ("cifar10", "convolution"): (
        32**2 * 32 * 9 * 3 + 16**2 * 64 * 9 * 32 + 8**2 * 64 * 9 * 64 + 4096 * 64 + 640
    ),
    ("cifar10", "involution"): (32**2 + 16**2 + 8**2) * (3 + 9 + 27) + 192 * 64 + 640,
}


def network(dataset, operator, seed=0):
    return report_network(dataset, operator, rng=np.random.default_rng(seed))


def trainable(model):
    return sum(p.value.size for p in model.parameters() if p.trainable)


@pytest.mark.parametrize(("dataset", "operator"), PARAMETERS)
def test_trainable_parameters(dataset, operator):
    assert trainable(network(dataset, operator)) == PARAMETERS[dataset, operator]


@pytest.mark.parametrize(("dataset", "operator"), MULTIPLY_ADDS)
def test_multiply_adds(dataset, operator):
    model = network(dataset, operator)
    assert model.flops(INPUT_SHAPES[dataset]) == MULTIPLY_ADDS[dataset, operator]


@pytest.mark.parametrize("dataset", INPUT_SHAPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_ten_logits_for_an_image_and_a_gradient_for_every_parameter(dataset, name):
    model = NETWORKS[name](dataset, rng=np.random.default_rng(0)).to("reference")
    shape = INPUT_SHAPES[dataset]
    x = np.random.default_rng(0).random((2, *shape), np.float32)
    logits = model.forward(x, training=True)
    assert logits.shape == (2, 10) == (2, *model.output_shape(shape))
    assert logits.dtype == np.float32
    model.backward(logits, need_dx=False)
    for parameter in model.parameters():
        if parameter.trainable:
            assert parameter.grad.shape == parameter.value.shape
            assert np.isfinite(parameter.grad).all()


SMALL_HEAD = "Flatten Dropout Dense"
HEAD = "Flatten Dense ReLU Dense"


@pytest.mark.parametrize(
    ("dataset", "operator", "layers"),
    [
        ("mnist", "convolution", 2 * "Conv2D ReLU MaxPool2D " + SMALL_HEAD),
        ("mnist", "involution", 2 * "Involution2D MaxPool2D " + SMALL_HEAD),
        ("cifar10", "convolution", 2 * "Conv2D ReLU MaxPool2D " + "Conv2D ReLU " + HEAD),
        ("cifar10", "involution", 2 * "Involution2D ReLU MaxPool2D " + "Involution2D ReLU " + HEAD),
    ],
)
def test_layers_in_the_order_of_the_report(dataset, operator, layers):
    model = network(dataset, operator)
    assert [type(layer).__name__ for layer in model.layers] == layers.split()


def test_parameters_are_named_by_the_place_of_their_layer():
    names = [p.name for p in network("cifar10", "involution").parameters()]
    assert names[:2] == ["0.reduce.weight", "0.reduce.bias"]
    assert names[-4:] == ["9.weight", "9.bias", "11.weight", "11.bias"]
    names = [p.name for p in network("mnist", "convolution").parameters()]
    assert names == ["0.weight", "0.bias", "3.weight", "3.bias", "8.weight", "8.bias"]


def test_the_seed_decides_the_weights():
    a, b, c = (network("mnist", "convolution", seed).state() for seed in (1, 1, 2))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    assert (a["0.weight"] != c["0.weight"]).any()


@pytest.mark.parametrize(("dataset", "operator"), PARAMETERS)
def test_first_losses_are_near_those_of_guessing(dataset, operator):
    model = network(dataset, operator).to("reference")
    x = np.random.default_rng(1).random((16, *INPUT_SHAPES[dataset]), np.float32)
    logits = model.forward(x, training=True).astype(np.float64)
    loss = -(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).mean()
    assert loss < 2 * math.log(10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cifar", "convolution"), "dataset must be one of mnist, fashion-mnist, cifar10, glyphs"),
        (
            ("mnist", "transformer"),
            "operator must be one of convolution, involution, attention, got 'transformer'",
        ),
    ],
)
def test_unknown_names(arguments, message):
    with pytest.raises(ValueError, match=message):
        report_network(*arguments)


@pytest.mark.parametrize("dataset", INPUT_SHAPES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_summary_lists_every_layer_with_its_shape_and_totals(dataset, operator):
    model = network(dataset, operator)
    shape = INPUT_SHAPES[dataset]
    lines = summary(model, shape).splitlines()
    assert lines[0].split("  ")[0] == "layer"
    for title in ("output shape", "parameters", "multiply-adds"):
        assert title in lines[0]
    rows = lines[3 : 3 + len(model.layers)]
    for layer, row in zip(model.layers, rows, strict=True):
        inner = shape
        shape = layer.output_shape(shape)
        assert row.startswith(repr(layer))
        assert f"  {' x '.join(map(str, shape))}  " in row
        assert row.split()[-2:] == [f"{trainable(layer):,}", f"{layer.flops(inner):,}"]
    total = next(line for line in lines if line.startswith("total"))
    flops = model.flops(INPUT_SHAPES[dataset])
    assert total.split() == ["total", f"{PARAMETERS[dataset, operator]:,}", f"{flops:,}"]
    untrained = sum(p.value.size for p in model.parameters() if not p.trainable)
    assert (f"and {untrained} values of running statistics" in lines[-1]) == (untrained > 0)


def test_summary_shows_both_branches_of_a_residual_block():
    body = Sequential(Conv2D(2, 4, 1, stride=2), BatchNorm(4))
    model = Sequential(Residual(body, Conv2D(2, 4, 1, stride=2)), ReLU(), Flatten())
    table = summary(model, (4, 6, 2)).splitlines()
    assert [line.split("  ")[0] for line in table[3:5]] == ["Residual", ""]
    assert [line.strip().split("  ")[0] for line in table[3:9]] == [
        "Residual",
        "Conv2D(2, 4, 1, stride=2)",
        "BatchNorm(4, momentum=0.99, eps=0.001)",
        "Conv2D(2, 4, 1, stride=2)",
        "ReLU()",
        "Flatten()",
    ]
    assert "24" in table[8]
    assert table[-1].startswith("and 8 values")


def test_summary_refuses_an_input_that_does_not_fit():
    with pytest.raises(ValueError, match=r"Conv2D: a sample must have shape \(H, W, 1\)"):
        summary(network("mnist", "convolution"), (28, 28, 3))
    with pytest.raises(TypeError, match=r"input_shape must be such as \(28, 28, 1\), got 28"):
        summary(network("mnist", "convolution"), 28)


# Li et al. 2021, table 1, gives 9.2, 12.4, 15.5, 25.6 and 34.0 million; the exact counts and the
# multiply-adds are those of the layers of the authors' code, added up by hand.
REDNET = {
    26: (9_233_166, 1.685),
    38: (12_386_986, 2.167),
    50: (15_540_806, 2.649),
    101: (25_652_950, 4.659),
    152: (33_984_582, 6.679),
}


@pytest.mark.parametrize("depth", REDNET)
def test_rednet_has_the_parameters_and_multiply_adds_of_the_paper(depth):
    parameters, giga = REDNET[depth]
    model = rednet(depth, rng=np.random.default_rng(0))
    assert trainable(model) == parameters
    assert round(model.flops((224, 224, 3)) / 1e9, 3) == giga


def test_rednet_runs_forward_and_backward():
    model = rednet(26, classes=5, rng=np.random.default_rng(0)).to("reference")
    x = np.random.default_rng(1).random((2, 32, 40, 3), np.float32)
    y = model.forward(x, training=True)
    assert y.shape == (2, 5)
    assert model.backward(np.ones_like(y)).shape == x.shape
    assert all(np.isfinite(p.grad).all() for p in model.parameters() if p.trainable)


def test_rednet_names_the_depths_it_knows():
    with pytest.raises(ValueError, match="depth must be one of 26, 38, 50, 101, 152, got 34"):
        rednet(34)
