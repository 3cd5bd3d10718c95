"""Layers: shapes, names, what they remember, and what they refuse. Their arithmetic is a backend's,
tested operator by operator elsewhere.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchnet import (
    AvgPool2D,
    BatchNorm,
    CheckpointError,
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
)
from scratchnet.backends import BACKENDS
from scratchnet.layers.attention import WindowAttention2D

SIZES = st.integers(1, 4)
PADDINGS = st.sampled_from(["valid", "same", "ceil", 0, 1, 2])


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def seeded(seed=0):
    return np.random.default_rng(seed)


@st.composite
def convolutions(draw):
    G = draw(st.integers(1, 3))
    C, O = G * draw(SIZES), G * draw(SIZES)
    return C, Conv2D(
        C, O, draw(SIZES), draw(SIZES), draw(PADDINGS), draw(st.integers(1, 2)), G,
        draw(st.booleans()), rng=seeded(),
    )  # fmt: skip


@st.composite
def involutions(draw):
    G = draw(st.integers(1, 3))
    C = G * draw(SIZES)
    return C, Involution2D(
        C, draw(st.sampled_from([1, 3, 5])), G, draw(SIZES), draw(SIZES), draw(st.integers(1, 2)),
        reduce_bias=draw(st.booleans()), rng=seeded(),
    )  # fmt: skip


@st.composite
def attentions(draw):
    G = draw(st.integers(1, 2))
    C = G * draw(SIZES)
    K, dilation = draw(st.sampled_from([1, 3])), draw(st.integers(1, 2))
    return C, WindowAttention2D(C, K, G, dilation, draw(st.booleans()), rng=seeded())


@st.composite
def pools(draw):
    size = draw(SIZES)
    padding = draw(st.sampled_from(["valid", "same", "ceil", *range(size)]))
    stride = draw(st.none() | SIZES)
    return draw(SIZES), draw(st.sampled_from([MaxPool2D, AvgPool2D]))(size, stride, padding)


@st.composite
def simple_layers(draw):
    C = draw(SIZES)
    layers = [ReLU(), Dropout(0.5), BatchNorm(C), GlobalAvgPool2D(), Flatten(), Dense(C, 3)]
    return C, draw(st.sampled_from(layers))


@st.composite
def branches(draw):
    C, body = draw(convolutions())
    stride = draw(SIZES)
    shortcut = draw(st.sampled_from([None, Conv2D(C, body.out_channels, 1, stride, rng=seeded())]))
    return C, Residual(Sequential(body, BatchNorm(body.out_channels), ReLU()), shortcut)


any_layer = st.one_of(
    convolutions(), involutions(), attentions(), pools(), simple_layers(), branches()
)


@given(any_layer, st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
def test_output_shape_is_the_shape_of_the_output(drawn, N, H, W):
    C, layer = drawn
    layer.to("reference")
    x = normal(N, H, W, C)
    try:
        shape = layer.output_shape((H, W, C))
    except ValueError:
        with pytest.raises(ValueError):
            layer.forward(x, training=True)
        return
    y = layer.forward(x, training=True)
    assert y.shape == (N, *shape)
    assert y.dtype == np.float32
    dx = layer.backward(normal(*y.shape))
    assert dx.shape == x.shape
    for parameter in layer.parameters():
        if parameter.trainable:
            assert parameter.grad.shape == parameter.value.shape
    assert layer.flops((H, W, C)) >= 0


@given(
    C=SIZES,
    O=SIZES,
    K=st.integers(1, 3),
    size=st.none() | st.integers(1, 3),
    padding=PADDINGS,
    H=st.integers(5, 9),
    W=st.integers(5, 9),
    bias=st.booleans(),
)
def test_fused_steps_give_what_their_layers_give_in_a_row(C, O, K, size, padding, H, W, bias):
    layers = [Conv2D(C, O, K, padding=padding, bias=bias, rng=seeded()), ReLU()]
    layers += [] if size is None else [MaxPool2D(size)]
    model = Sequential(*layers).to("reference")
    assert len(model.steps) == 1
    x = normal(2, H, W, C)
    y = model.forward(x, training=True)
    dy = normal(*y.shape)
    dx = model.backward(dy)
    gradients = [p.grad for p in model.parameters()]
    np.testing.assert_array_equal(model.forward(x), y)
    row, d = x, dy
    for layer in layers:
        row = layer.forward(row, training=True)
    for layer in reversed(layers):
        d = layer.backward(d)
    np.testing.assert_array_equal(y, row)
    np.testing.assert_allclose(dx, d, rtol=1e-6, atol=1e-6)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        np.testing.assert_allclose(gradient, parameter.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "steps"),
    [
        ([Conv2D(2, 3, 3), ReLU(), MaxPool2D(2), ReLU()], 2),
        ([Conv2D(2, 3, 3), ReLU(), Conv2D(3, 3, 3), ReLU()], 2),
        ([Conv2D(2, 3, 3), MaxPool2D(2), ReLU()], 3),
        ([Conv2D(2, 3, 3, stride=2), ReLU(), MaxPool2D(2)], 3),
        ([Conv2D(2, 4, 3, groups=2), ReLU()], 2),
        ([Conv2D(2, 3, 3), ReLU(), MaxPool2D(2, padding="same")], 3),
        ([Conv2D(2, 3, 3), ReLU(), MaxPool2D(3, stride=2)], 3),
        ([Conv2D(2, 3, 3)], 1),
        ([], 0),
    ],
)
def test_what_is_fused(layers, steps):
    model = Sequential(*layers)
    assert len(model.steps) == steps
    assert list(model.layers) == layers


def test_a_convolution_whose_pool_overlaps_still_computes_every_layer():
    model = Sequential(Conv2D(2, 3, 3, rng=seeded()), ReLU(), MaxPool2D(3, stride=2))
    x = normal(1, 9, 8, 2)
    row = x
    for layer in model.to("reference").layers:
        row = layer.forward(row)
    np.testing.assert_array_equal(model.forward(x), row)


def every_kind():
    """One layer of each kind for images of four channels, as (name, layer)."""
    branch = Sequential(Conv2D(4, 4, 1, rng=seeded()), BatchNorm(4), ReLU(), Involution2D(4))
    layers = [
        Conv2D(4, 6, 3, padding="same", rng=seeded()),
        Involution2D(4, 3, groups=2, stride=2, rng=seeded()),
        WindowAttention2D(4, 3, groups=2, rng=seeded()),
        BatchNorm(4),
        MaxPool2D(2),
        AvgPool2D(3, stride=1, padding="same"),
        GlobalAvgPool2D(),
        Dense(4, 3, rng=seeded()),
        ReLU(),
        Flatten(),
        Dropout(0.5, rng=seeded()),
        Sequential(Conv2D(4, 6, 3, rng=seeded()), ReLU(), MaxPool2D(2)),
        Sequential(Conv2D(4, 6, 3, rng=seeded()), ReLU()),
        Residual(branch),
    ]
    return [pytest.param(layer, id=repr(layer)[:40]) for layer in layers]


@pytest.mark.parametrize("layer", every_kind())
@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_overwrites_and_evaluation_leaves_no_trace(backend, layer):
    layer.to(backend)
    x = normal(3, 6, 7, 4)
    y = layer.forward(x, training=True)
    dy = normal(*y.shape)
    dx = np.array(layer.backward(dy))
    gradients = {p.name: np.array(p.grad) for p in layer.parameters() if p.trainable}
    layer.forward(normal(2, 8, 6, 4, seed=1))
    np.testing.assert_array_equal(layer.backward(dy), dx)
    for parameter in layer.parameters():
        if parameter.trainable:
            np.testing.assert_array_equal(parameter.grad, gradients[parameter.name])
        else:
            assert parameter.grad is None


@pytest.mark.parametrize("layer", every_kind())
def test_evaluation_changes_nothing(layer):
    layer.to("reference")
    before = {name: value.copy() for name, value in layer.state().items()}
    x = normal(3, 6, 7, 4)
    first = layer.forward(x)
    np.testing.assert_array_equal(layer.forward(x), first)
    for name, value in layer.state().items():
        np.testing.assert_array_equal(value, before[name])


def test_backward_needs_a_training_forward():
    for layer in [
        Conv2D(4, 6, 3),
        Involution2D(4),
        WindowAttention2D(4),
        BatchNorm(4),
        MaxPool2D(2),
        AvgPool2D(2),
        GlobalAvgPool2D(),
        Dense(4, 3),
        ReLU(),
        Flatten(),
        Dropout(0.5),
        Sequential(Conv2D(4, 4, 3), ReLU(), MaxPool2D(2)),
        Sequential(Conv2D(4, 4, 3), ReLU()),
        Residual(Sequential(ReLU())),
    ]:
        layer.to("reference")
        y = layer.forward(normal(2, 6, 6, 4))
        with pytest.raises(RuntimeError, match=r"backward needs a forward\(x, training=True\)"):
            layer.backward(y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_layer_can_leave_out_the_gradient_of_its_input(backend):
    branch = Residual(Sequential(Conv2D(3, 3, 1, rng=seeded()), ReLU()), Conv2D(3, 3, 1))
    for first in (
        Conv2D(3, 4, 3, rng=seeded()),
        Involution2D(3, rng=seeded()),
        WindowAttention2D(3, rng=seeded()),
        branch,
        Sequential(Conv2D(3, 4, 3, rng=seeded()), ReLU(), MaxPool2D(2)),
    ):
        first.to(backend)
        y = first.forward(normal(2, 6, 5, 3), training=True)
        assert first.backward(normal(*y.shape)) is not None
        whole = [np.array(p.grad) for p in first.parameters() if p.trainable]
        assert first.backward(normal(*y.shape), need_dx=False) is None
        for gradient, parameter in zip(
            whole, [p for p in first.parameters() if p.trainable], strict=True
        ):
            np.testing.assert_allclose(parameter.grad, gradient, rtol=1e-5, atol=1e-5)


def small_network(seed=0):
    rng = seeded(seed)
    body = Sequential(
        Conv2D(4, 4, 1, bias=False, rng=rng),
        BatchNorm(4),
        ReLU(),
        Involution2D(4, 3, groups=2, reduce_bias=False, rng=rng),
    )
    return Sequential(
        Conv2D(2, 4, 3, padding="same", rng=rng),
        ReLU(),
        MaxPool2D(2),
        Residual(body),
        Flatten(),
        Dropout(0.5, rng=rng),
        Dense(36, 3, rng=rng),
    )


def test_names_of_parameters():
    assert [p.name for p in small_network().parameters()] == [
        "0.weight",
        "0.bias",
        "3.body.0.weight",
        "3.body.1.gamma",
        "3.body.1.beta",
        "3.body.1.running_mean",
        "3.body.1.running_var",
        "3.body.3.reduce.weight",
        "3.body.3.norm.gamma",
        "3.body.3.norm.beta",
        "3.body.3.norm.running_mean",
        "3.body.3.norm.running_var",
        "3.body.3.span.weight",
        "3.body.3.span.bias",
        "6.weight",
        "6.bias",
    ]
    untrained = [p.name.split(".")[-1] for p in small_network().parameters() if not p.trainable]
    assert untrained == ["running_mean", "running_var"] * 2
    attention = [p.name for p in WindowAttention2D(4).parameters()]
    assert attention[0] == "position" and "query.weight" in attention
    shortcut = Residual(ReLU(), Conv2D(1, 1, 1)).parameters()
    assert [p.name for p in shortcut] == ["shortcut.weight", "shortcut.bias"]


def test_layers_that_stand_in_two_networks_keep_their_names_in_each():
    first = small_network()
    names, before = list(first.state()), first.state()
    second = Sequential(Flatten(), *first.layers[:4])
    assert list(first.state()) == list(first.named_parameters()) == names
    assert list(second.state())[:3] == ["1.weight", "1.bias", "4.body.0.weight"]
    assert second.parameters()[0].name == "1.weight"
    for p in first.parameters():
        p.value[...] = 0
    first.load_state(before)
    np.testing.assert_array_equal(second.state()["1.weight"], before["0.weight"])


def test_leaves_are_the_layers_without_parts_in_order():
    kinds = [type(layer).__name__ for layer in small_network().leaves()]
    assert kinds == (
        ["Conv2D", "ReLU", "MaxPool2D", "Conv2D", "BatchNorm", "ReLU", "Involution2D", "Flatten"]
        + ["Dropout", "Dense"]
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_state_restores_the_evaluation_bit_for_bit(backend):
    trained = small_network().to(backend)
    x = 2 * normal(5, 6, 6, 2) + 3
    for step in range(3):
        y = trained.forward(x, training=True)
        trained.backward(normal(*y.shape, seed=step))
        for parameter in trained.parameters():
            if parameter.trainable:
                parameter.value -= 0.01 * parameter.grad
    fresh = small_network(seed=1).to(backend)
    assert (fresh.forward(x) != trained.forward(x)).any()
    fresh.load_state({name: value.copy() for name, value in trained.state().items()})
    np.testing.assert_array_equal(fresh.forward(x), trained.forward(x))


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing():
    model = small_network()
    state = {name: value + 1 for name, value in model.state().items()}
    before = {name: value.copy() for name, value in model.state().items()}
    state["6.weight"] = np.zeros((35, 3), np.float32)
    state["7.weight"] = state.pop("6.bias")
    with pytest.raises(CheckpointError) as refusal:
        model.load_state(state)
    for part in (
        "6.bias is missing",
        "7.weight is unknown",
        "6.weight has shape (35, 3) instead of (36, 3)",
    ):
        assert part in str(refusal.value)
    for name, value in model.state().items():
        np.testing.assert_array_equal(value, before[name])


def test_astype_converts_parameters_statistics_and_gradients():
    model = small_network().to("reference").astype(np.float64)
    assert {p.value.dtype for p in model.parameters()} == {np.dtype(np.float64)}
    x = normal(5, 6, 6, 2, dtype=np.float64)
    y = model.forward(x, training=True)
    assert y.dtype == np.float64
    assert model.backward(y).dtype == np.float64
    assert {p.grad.dtype for p in model.parameters() if p.trainable} == {np.dtype(np.float64)}
    assert {p.value.dtype for p in model.parameters()} == {np.dtype(np.float64)}
    with pytest.raises(TypeError, match="float32"):
        model.forward(x.astype(np.float32))


def test_to_moves_every_part_and_refuses_unknown_backends():
    model = small_network().to("reference")
    assert {p.backend for p in model.parameters()} == {"reference"}
    assert {layer.backend for layer in model.leaves()} == {"reference"}
    assert all(step.ops is model.ops for step in model.steps)
    with pytest.raises(ValueError, match="backend must be one of reference, cpu, .*got 'tpu'"):
        model.to("tpu")
    assert {p.backend for p in model.parameters()} == {"reference"}


def test_both_backends_agree_on_a_network():
    x = normal(5, 6, 6, 2)
    results = []
    for backend in BACKENDS:
        model = small_network().to(backend)
        y = model.forward(x, training=True)
        dx = model.backward(normal(*y.shape))
        evaluated = model.forward(x)
        results.append([y, dx, evaluated, *(p.grad for p in model.parameters() if p.trainable)])
    for a, b in zip(*results[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 3), (4, 5, 2, 3)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_running_statistics_follow_the_batches(backend, shape):
    layer = BatchNorm(3, momentum=0.7, eps=1e-3).to(backend)
    mean, var = np.zeros(3), np.ones(3)
    axes = tuple(range(len(shape) - 1))
    for step in range(4):
        x = 3 * normal(*shape, seed=step) + [0, 5, -2]
        layer.forward(x.astype(np.float32), training=True)
        mean = 0.7 * mean + 0.3 * x.mean(axis=axes)
        var = 0.7 * var + 0.3 * x.var(axis=axes)
    np.testing.assert_allclose(layer.running_mean.value, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.running_var.value, var, rtol=1e-4)
    layer.gamma.value[...] = [1, 2, 3]
    layer.beta.value[...] = [0, 1, -1]
    x = normal(*shape, seed=9)
    expected = (x - mean) / np.sqrt(var + 1e-3) * [1, 2, 3] + [0, 1, -1]
    np.testing.assert_allclose(layer.forward(x), expected, rtol=1e-4, atol=1e-4)


def test_a_constant_channel_has_a_running_variance_of_0():
    layer = BatchNorm(2, momentum=0.0, eps=1e-3).to("reference")
    x = np.stack([np.full(50, 7.0), np.linspace(-1, 1, 50)], axis=1).astype(np.float32)
    y = layer.forward(x, training=True)
    np.testing.assert_array_equal(y[:, 0], 0)
    assert 0 <= layer.running_var.value[0] < 1e-8
    np.testing.assert_allclose(layer.running_var.value[1], x[:, 1].var(), rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_running_statistics_inside_an_involution(backend):
    layer = Involution2D(4, 3, stride=2, momentum=0.5, rng=seeded()).to(backend)
    x = normal(3, 6, 8, 4) + 1
    p = x.reshape(3, 3, 2, 4, 2, 4).mean(axis=(2, 4))
    h = p @ layer.reduce.weight.value[0, 0] + layer.reduce.bias.value
    layer.forward(x, training=True)
    expected = 0.5 * h.mean(axis=(0, 1, 2))
    np.testing.assert_allclose(layer.norm.running_mean.value, expected, rtol=1e-4, atol=1e-5)
    expected = 0.5 + 0.5 * h.var(axis=(0, 1, 2))
    np.testing.assert_allclose(layer.norm.running_var.value, expected, rtol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_an_involution_applies_the_kernels_it_shows(stride):
    layer = Involution2D(4, 3, groups=2, stride=stride, rng=seeded()).to("reference")
    x = normal(2, 5, 7, 4)
    layer.forward(x, training=True)
    kernels = layer.kernels(x)
    assert kernels.shape == (2, *layer.output_shape((5, 7, 4))[:2], 2, 3, 3)
    expected = layer.ops.involution_forward(x, kernels, stride, 1)
    np.testing.assert_allclose(layer.forward(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("C", "K", "G"), [(3, 3, 1), (64, 3, 4), (64, 7, 4), (128, 7, 8)])
def test_a_new_involution_neither_mutes_nor_blows_up_its_input(C, K, G):
    variances = []
    for seed in range(3):
        layer = Involution2D(C, K, G, reduction=4 if G > 1 else 2, rng=seeded(seed))
        y = layer.to("reference").forward(normal(2, 8, 8, C, seed=seed), training=True)
        variances.append(y.var())
    assert 0.1 < np.mean(variances) < 10


@pytest.mark.parametrize(
    ("C", "K", "parameters", "multiply_adds"),
    [
        (32, 3, 434, None),
        (32, 7, 1_154, 2_608),
        (64, 3, 1_668, None),
        (64, 7, 4_388, 7_296),
        (128, 7, 17_096, 22_912),
        (256, 7, 67_472, 79_104),
        (512, 7, 268_064, 291_328),
    ],
)
def test_the_involution_of_the_paper_in_numbers(C, K, parameters, multiply_adds):
    layer = Involution2D(C, K, groups=C // 16, reduction=4, reduce_bias=False)
    assert sum(p.value.size for p in layer.parameters() if p.trainable) == parameters
    if multiply_adds is not None:
        assert layer.flops((1, 1, C)) == multiply_adds
        assert layer.flops((5, 3, C)) == 15 * multiply_adds


@pytest.mark.parametrize(
    ("layer", "shape", "multiply_adds"),
    [
        (Conv2D(3, 8, 3), (5, 6, 3), 3 * 4 * 8 * 9 * 3),
        (Conv2D(3, 8, 3, stride=2, padding="same"), (7, 5, 3), 4 * 3 * 8 * 9 * 3),
        (Conv2D(4, 6, 3, padding=1, groups=2), (5, 5, 4), 5 * 5 * 6 * 9 * 2),
        (Conv2D(1, 1, 3, dilation=2), (7, 7, 1), 3 * 3 * 9),
        (Involution2D(4, 3, stride=2), (5, 5, 4), 9 * (4 * 2 + 2 * 9 + 4 * 9)),
        (WindowAttention2D(4, 3), (5, 6, 4), 30 * (3 * 16 + 2 * 4 * 9)),
        (Dense(12, 5), (12,), 60),
        (Dense(3, 5), (4, 4, 3), 16 * 15),
        (AvgPool2D(2), (5, 5, 3), 2 * 2 * 3 * 4),
        (GlobalAvgPool2D(), (5, 5, 3), 75),
        (MaxPool2D(2), (4, 4, 3), 0),
        (Sequential(Conv2D(1, 2, 3), Conv2D(2, 1, 1)), (4, 4, 1), 4 * 18 + 4 * 2),
        (Residual(Conv2D(2, 2, 1), Conv2D(2, 2, 1)), (3, 3, 2), 2 * 9 * 4),
    ],
)
def test_multiply_adds_by_hand(layer, shape, multiply_adds):
    assert layer.flops(shape) == multiply_adds


def test_the_same_generator_gives_the_same_weights():
    a, b, c = (small_network(seed) for seed in (5, 5, 6))
    for name, value in a.state().items():
        np.testing.assert_array_equal(value, b.state()[name])
    assert (a.layers[0].weight.value != c.layers[0].weight.value).any()


def test_dropout_draws_a_new_mask_each_time_from_its_own_generator():
    x = np.ones((4, 100), np.float32)
    first, second = (Dropout(0.5, rng=seeded(3)).to("reference") for _ in range(2))
    masks = [np.array(first.forward(x, training=True)) for _ in range(2)]
    assert (masks[0] != masks[1]).any()
    for mask in masks:
        np.testing.assert_array_equal(second.forward(x, training=True), mask)
        assert set(np.unique(mask)) == {0, 2}
    np.testing.assert_array_equal(second.backward(x), masks[1])
    assert second.forward(x) is x


IMAGE = normal(2, 6, 6, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conv2D(4, 6, 3, groups=3), "in_channels 4 is not divisible by 3 groups"),
        (lambda: Conv2D(3, 4, 3, groups=3), "out_channels 4 is not divisible by 3 groups"),
        (lambda: Conv2D(0, 4, 3), "in_channels must be a whole number of at least 1, got 0"),
        (lambda: Conv2D(3, 4, 3, stride=0), "stride must be a whole number of at least 1, got 0"),
        (lambda: Conv2D(3, 4, 2.5), "kernel_size must be a whole number"),
        (lambda: Conv2D(3, 4, 3, padding="some"), 'padding must be "valid", "same"'),
        (lambda: Conv2D(3, 4, 3, padding=-1), "padding must be at least 0"),
        (lambda: Involution2D(4, 4), "the kernel size of an involution must be an odd int, got 4"),
        (lambda: Involution2D(4, 3, groups=3), "channels 4 is not divisible by 3 groups"),
        (lambda: Involution2D(4, reduction=0), "reduction must be a whole number"),
        (lambda: WindowAttention2D(4, 2), "must be an odd int, got 2"),
        (lambda: WindowAttention2D(4, 3, groups=3), "not divisible by 3 groups"),
        (lambda: BatchNorm(4, momentum=1.5), "momentum must be a number of at least 0 and at most"),
        (lambda: BatchNorm(4, eps=0), "eps must be a number above 0, got 0"),
        (lambda: MaxPool2D(0), "size must be a whole number of at least 1"),
        (lambda: MaxPool2D(2, padding=2), "padding must be smaller than the window of 2"),
        (lambda: AvgPool2D(2, stride=-1), "stride must be a whole number of at least 1"),
        (lambda: Dense(3, True), "out_features must be a whole number"),
        (lambda: Dropout(1), r"rate must be a number in \[0, 1\), got 1"),
        (lambda: Dropout("a"), r"rate must be a number in \[0, 1\), got 'a'"),
        (lambda: Dropout(np.nan), r"rate must be a number in \[0, 1\), got nan"),
    ],
)
def test_settings_that_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("layer", "x", "error", "message"),
    [
        (Conv2D(3, 4, 3), IMAGE, ValueError, "x must have 3 channels, got 4"),
        (Conv2D(4, 4, 3), IMAGE[0], ValueError, r"shape \(N, H, W, C\), got \(6, 6, 4\)"),
        (Conv2D(4, 4, 3), IMAGE.astype(np.float16), TypeError, "float32 or float64, got float16"),
        (Conv2D(4, 4, 3), IMAGE.astype(np.uint8), TypeError, "float32 or float64, got uint8"),
        (Conv2D(4, 4, 3), IMAGE.astype(np.float64), TypeError, "weight must be float64 like the"),
        (Conv2D(4, 4, 3), IMAGE.tolist(), TypeError, "x must be an array, got list"),
        (Conv2D(4, 4, 3), IMAGE[:0], ValueError, "no empty axis"),
        (Conv2D(4, 4, 7), IMAGE, ValueError, "window spans 7 pixels but the padded height is 6"),
        (Involution2D(3), IMAGE, ValueError, r"\(H, W, 3\), got \(6, 6, 4\)"),
        (Involution2D(4), IMAGE[0], ValueError, r"shape \(N, H, W, C\)"),
        (Involution2D(4), IMAGE.astype(np.float64), TypeError, "must be float64 like the input"),
        (WindowAttention2D(3), IMAGE, ValueError, "x must have 3 channels, got 4"),
        (BatchNorm(3), IMAGE, ValueError, r"gamma must have shape \(4,\), got \(3,\)"),
        (BatchNorm(4), IMAGE[0, 0, 0], ValueError, "channels|axes|shape"),
        (Dense(3, 2), IMAGE, ValueError, r"x must have shape \(..., 3\)"),
        (MaxPool2D(7), IMAGE, ValueError, "window spans 7 pixels"),
        (AvgPool2D(2), IMAGE[0], ValueError, r"shape \(N, H, W, C\)"),
        (GlobalAvgPool2D(), IMAGE[0], ValueError, r"shape \(N, H, W, C\)"),
        (ReLU(), IMAGE.astype(int), TypeError, "float32 or float64, got int64"),
        (Flatten(), IMAGE.astype(int), TypeError, "float32 or float64, got int64"),
        (Sequential(Conv2D(3, 4, 3), ReLU()), IMAGE, ValueError, "x must have 3 channels, got 4"),
        (Sequential(Conv2D(4, 4, 5), ReLU(), MaxPool2D(3)), IMAGE, ValueError, "window spans 3"),
        (Residual(Conv2D(4, 5, 1)), IMAGE, ValueError, r"puts out \(6, 6, 5\), the shortcut"),
    ],
)
def test_input_that_is_refused(backend, layer, x, error, message):
    with pytest.raises(error, match=message):
        layer.to(backend).forward(x, training=True)


def test_only_layers_go_into_a_sequential():
    with pytest.raises(TypeError, match="Sequential takes layers, got list"):
        Sequential([ReLU()])


@pytest.mark.parametrize("inside", [False, True])
def test_a_layer_in_two_places_is_refused(inside):
    relu = ReLU()
    second = Residual(Sequential(Dense(2, 2), relu)) if inside else relu
    with pytest.raises(ValueError, match=r"Sequential: ReLU\(\) stands in two places \(1 and 2\)"):
        Sequential(Dense(2, 2), relu, second)


@pytest.mark.parametrize(
    "make", [lambda rng: Dense(3, 2, rng=rng), lambda rng: Dropout(0.5, rng=rng)]
)
@pytest.mark.parametrize("rng", [0, 1, "seed"])
def test_a_seed_is_no_generator(make, rng):
    with pytest.raises(TypeError, match="rng must be a numpy.random.Generator"):
        make(rng)


def test_a_subclass_runs_its_own_forward():
    class Leaky(ReLU):
        def forward(self, x, training=False):
            return np.where(x > 0, x, x / 10)

    conv = Conv2D(2, 3, 3)
    model = Sequential(conv, Leaky())
    x = np.random.default_rng(0).standard_normal((1, 5, 5, 2)).astype(np.float32)
    np.testing.assert_array_equal(model.forward(x), Leaky().forward(conv.forward(x)))
    assert model.forward(x).min() < 0


def test_a_state_is_not_changed_by_training():
    layer = Dense(2, 2)
    state = layer.state()
    kept = state["weight"].copy()
    layer.weight.value += 1
    np.testing.assert_array_equal(state["weight"], kept)


def test_what_is_no_layer_is_refused():
    for make in (lambda: Residual(3), lambda: Residual(ReLU(), 3), lambda: Sequential(ReLU)):
        with pytest.raises(TypeError, match="takes layers, got"):
            make()


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: Conv2D(n(4), n(2), n(3), n(1), n(1), n(1), n(2), rng=seeded(1)),
        lambda n: Involution2D(n(4), n(3), n(2), n(2), n(2), n(1), rng=seeded(1)),
        lambda n: WindowAttention2D(n(4), n(3), n(2), n(1), rng=seeded(1)),
        lambda n: MaxPool2D(n(3), n(2), n(1)),
        lambda n: AvgPool2D(n(3), n(2), n(1)),
    ],
)
def test_settings_may_be_integers_of_numpy(make, kind):
    found = []
    for number in (int, kind):
        model = Sequential(make(number), ReLU(), MaxPool2D(2))
        y = model.forward(normal(2, 130, 7, 4), training=True)
        found.append((y, model.backward(np.ones_like(y))))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_a_state_of_other_kinds_changes_nothing():
    layer = Dense(2, 2, rng=seeded(1))
    before = layer.state()
    with pytest.raises(CheckpointError, match="bias holds <U1, which does not fit into float32"):
        layer.load_state({"weight": np.zeros((2, 2)), "bias": np.array(["x", "y"])})
    with pytest.raises(CheckpointError, match="weight holds complex128"):
        layer.load_state(before | {"weight": np.zeros((2, 2), complex)})
    np.testing.assert_array_equal(layer.weight.value, before["weight"])
    layer.load_state({"weight": [[1, 2], [3, 4]], "bias": [5, 6]})
    np.testing.assert_array_equal(layer.weight.value, [[1, 2], [3, 4]])


def test_weights_are_floats():
    for dtype in (int, np.float16):
        with pytest.raises(TypeError, match="dtype must be float32 or float64"):
            Dense(2, 2).astype(dtype)


def test_dropout_takes_the_gradient_of_what_it_put_out():
    layer = Dropout(0.5, rng=seeded(1))
    layer.forward(normal(2, 3), training=True)
    with pytest.raises(ValueError, match=r"dy must have shape \(2, 3\) like x, got \(5, 7\)"):
        layer.backward(normal(5, 7))
