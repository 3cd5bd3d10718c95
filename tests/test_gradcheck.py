"""The gradient check itself: it accepts right gradients, and names what is wrong with others."""

import copy
import re

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.backends import reference
from scratchnet.gradcheck import GradientMismatch, check_gradients, gradcheck

RNG_SHAPE = (3, 5, 4, 2)


def _x(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape or RNG_SHAPE)


def _square(x):
    return x * x


class Planted(sn.Layer):
    """A layer around another, whose backward can be spoilt."""

    def __init__(self, layer, spoil):
        super().__init__()
        self.layer, self.spoil = layer, spoil
        self.add_parts({"inner": layer})

    def forward(self, x, training=False):
        return self.layer.forward(x, training)

    def backward(self, dy, need_dx=True):
        return self.spoil(self.layer, self.layer.backward(dy))


def _planted(layer, spoil):
    return Planted(layer.to("reference"), spoil)


# Right gradients


def test_accepts_a_right_layer_and_prints_a_table():
    report = gradcheck(sn.Conv2D(2, 3, 3).to("reference"), _x())
    assert [row.name for row in report.rows] == ["x", "weight", "bias", "all together"]
    assert [row.elements for row in report.rows] == [50, 50, 3, 0]
    assert report.worst.error < 1e-6
    assert re.search(r"^weight +3 x 3 x 2 x 3 +[+-]\d\.\d{8}e[+-]\d\d ", str(report), re.M)
    assert "passed: the largest relative error is" in str(report)


def test_accepts_a_right_function():
    report = check_gradients(_square, lambda dy, x: 2 * x * dy, {"x": _x()})
    assert [row.name for row in report.rows] == ["x"]


def test_accepts_a_loss_that_is_a_number():
    labels = np.array([1, 0])

    def backward(dloss, logits):
        probabilities = reference.softmax_cross_entropy_forward(logits, labels)[1]
        return reference.softmax_cross_entropy_backward(dloss, probabilities, labels)

    def forward(logits):
        return reference.softmax_cross_entropy_forward(logits, labels)[0]

    check_gradients(forward, backward, {"logits": _x(2, 3)})


def test_accepts_gradients_beside_kinks():
    x = np.array([1e-7, -1e-7, 2e-6, -3e-6, 1.0, -1.0])
    check_gradients(reference.relu_forward, lambda dy, x: dy * (x > 0), {"x": x}, elements=0)


def test_accepts_gradients_that_are_zero():
    check_gradients(lambda x: 0 * x + 3, lambda dy, x: 0 * dy, {"x": _x()})


def test_repeats_the_numbers_that_a_dropout_draws():
    dropout = sn.Dropout(0.5, rng=np.random.default_rng(0)).to("reference")
    state = dropout.generators()[0].bit_generator.state
    gradcheck(sn.Sequential(sn.Flatten(), dropout).to("reference"), _x())
    assert dropout.generators()[0].bit_generator.state == state


def test_leaves_the_layer_as_it_was():
    net = sn.Sequential(sn.Conv2D(2, 3, 3), sn.BatchNorm(3)).to("reference")
    net.forward(_x().astype(np.float32), training=True)
    net.backward(np.ones((3, 3, 2, 3), np.float32))
    before = [(p.value.copy(), copy.copy(p.grad)) for p in net.parameters()]
    gradcheck(net, _x())
    with pytest.raises(GradientMismatch):
        gradcheck(Planted(net, lambda layer, dx: -dx), _x())
    for parameter, (value, gradient) in zip(net.parameters(), before, strict=True):
        assert parameter.value.dtype == np.float32
        np.testing.assert_array_equal(parameter.value, value)
        assert (parameter.grad is None) == (gradient is None)
        np.testing.assert_array_equal(parameter.grad, gradient)


def test_the_same_seed_gives_the_same_report():
    layer = sn.Dense(4, 3).to("reference")
    assert gradcheck(layer, _x(5, 4), seed=3) == gradcheck(layer, _x(5, 4), seed=3)
    assert gradcheck(layer, _x(5, 4), seed=3) != gradcheck(layer, _x(5, 4), seed=4)


# Wrong gradients


def test_names_the_array_the_index_and_both_numbers():
    def backward(dy, x):
        dx = 2 * x * dy
        dx[1, 2] *= 3
        return dx

    with pytest.raises(GradientMismatch) as caught:
        check_gradients(_square, backward, {"x": _x(2, 4)})
    message = str(caught.value)
    found = re.fullmatch(
        r"the gradient of x is wrong at index \(1, 2\): analytic (\S+), numeric (\S+)", message
    )
    assert found, message
    assert float(found[1]) == pytest.approx(3 * float(found[2]), rel=1e-6)


def test_finds_one_wrong_element_of_many():
    def backward(dy, x):
        dx = 2 * x * dy
        dx[777] += 0.1
        return dx

    with pytest.raises(GradientMismatch, match=r"x is wrong at index \(777,\)"):
        check_gradients(_square, backward, {"x": _x(1500)}, elements=5)


def test_catches_an_error_of_a_hundred_thousandth():
    with pytest.raises(GradientMismatch, match="the gradient of x is wrong"):
        check_gradients(_square, lambda dy, x: 2.00002 * x * dy, {"x": _x()}, elements=0)


def _negate(name):
    def spoil(layer, dx):
        for parameter in layer.parameters():
            if parameter.name.endswith(name):
                parameter.grad = -parameter.grad
        return dx

    return spoil


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.gamma", "1.beta"])
def test_catches_a_wrong_sign_in_any_parameter(name):
    # A ReLU between, or the bias would have no gradient before the norm.
    net = sn.Sequential(sn.Conv2D(2, 3, 1), sn.BatchNorm(3))
    if name == "0.bias":
        net = sn.Sequential(sn.Conv2D(2, 3, 1), sn.ReLU(), sn.BatchNorm(3))
    with pytest.raises(GradientMismatch, match=f"gradient of inner.{name} is wrong at index"):
        gradcheck(_planted(net, _negate(name)), _x())


@pytest.mark.parametrize("factor", [17, 0, -1, 1.001])
def test_catches_a_batch_norm_whose_dx_is_a_multiple(factor):
    scaled = Planted(sn.BatchNorm(2), lambda layer, dx: factor * dx)
    with pytest.raises(GradientMismatch, match="gradient of x is wrong"):
        gradcheck(scaled.to("reference"), _x())
    behind = sn.Sequential(sn.Conv2D(2, 2, 1), Planted(sn.BatchNorm(2), scaled.spoil), sn.ReLU())
    with pytest.raises(GradientMismatch, match="is wrong at index"):
        gradcheck(behind.to("reference"), _x())


def test_catches_a_gradient_of_relu_that_clips_dy_instead():
    with pytest.raises(GradientMismatch):
        check_gradients(
            reference.relu_forward, lambda dy, x: np.maximum(dy, 0), {"x": _x()}, seed=0
        )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_catches_gradients_that_are_not_finite(value):
    def spoil(layer, dx):
        layer.weight.grad[0, 1] = value
        return dx

    with pytest.raises(GradientMismatch, match=r"inner.weight is not finite: .* index \(0, 1\)"):
        gradcheck(_planted(sn.Dense(4, 3), spoil), _x(5, 4))


def test_catches_gradients_that_add_up():
    total = 0

    def spoil(layer, dx):
        nonlocal total
        total = total + layer.bias.grad
        layer.bias.grad = total
        return dx

    with pytest.raises(GradientMismatch, match="two gradients of inner.bias"):
        gradcheck(_planted(sn.Dense(4, 3), spoil), _x(5, 4))


def test_catches_a_backward_that_writes_into_dy():
    def backward(dy, x):
        dy *= 2 * x
        return dy

    with pytest.raises(GradientMismatch, match="changed dy in place"):
        check_gradients(_square, backward, {"x": np.full((2, 2), 0.5) + _x(2, 2) ** 2})


def test_catches_a_forward_that_writes_into_its_input():
    def forward(x):
        x += 0
        x[0] = 0
        return x * 1

    with pytest.raises(GradientMismatch, match="x was changed in place"):
        check_gradients(forward, lambda dy, x: dy, {"x": _x(3)})


def test_catches_a_forward_that_is_not_repeatable():
    rng = np.random.default_rng(0)
    with pytest.raises(GradientMismatch, match="another output the second time"):
        check_gradients(lambda x: x * rng.random(), lambda dy, x: dy, {"x": _x()})


def test_catches_another_shape_and_dtype():
    with pytest.raises(GradientMismatch, match=r"has shape \(2, 5, 4, 3\), x has shape \(3, "):
        check_gradients(_square, lambda dy, x: (2 * x * dy).transpose(3, 1, 2, 0), {"x": _x()})
    with pytest.raises(GradientMismatch, match="gradient of x is float32"):
        check_gradients(_square, lambda dy, x: (2 * x * dy).astype(np.float32), {"x": _x()})
    with pytest.raises(GradientMismatch, match="forward returned float32"):
        check_gradients(lambda x: x.astype(np.float32), lambda dy, x: dy, {"x": _x()})


def test_catches_gradients_that_are_missing_or_unknown():
    with pytest.raises(GradientMismatch, match="1 gradients for 2 inputs: a, b"):
        check_gradients(lambda a, b: a * b, lambda dy, a, b: dy * b, {"a": _x(), "b": _x()})
    with pytest.raises(GradientMismatch, match="a gradient of z, which is no input"):
        check_gradients(_square, lambda dy, x: {"z": dy}, {"x": _x()})
    with pytest.raises(GradientMismatch, match="nothing for b: None would say"):
        check_gradients(lambda a, b: a * b, lambda dy, a, b: {"a": dy * b}, {"a": _x(), "b": _x()})
    with pytest.raises(GradientMismatch, match="nothing to check"):
        check_gradients(_square, lambda dy, x: None, {"x": _x()})
    with pytest.raises(GradientMismatch, match="no gradient of x"):
        gradcheck(_planted(sn.ReLU(), lambda layer, dx: None), _x())


def test_a_sum_as_the_loss_would_not_have_seen_it():
    """Why the cotangent is random: with one of ones, batch norm has no gradient to scale."""
    x, gamma, beta = _x(6, 2), np.array([1.5, -2.0]), np.zeros(2)
    _, mean, inv_std = reference.batchnorm_forward(x, gamma, beta, 1e-3)
    ones = np.ones_like(x)
    dx, dgamma, _ = reference.batchnorm_backward(ones, x, gamma, mean, inv_std)
    np.testing.assert_allclose(17 * dx, 0, atol=1e-14)
    np.testing.assert_allclose(dgamma, 0, atol=1e-14)


def test_a_large_output_that_stays_hides_nothing():
    mask = np.triu(np.ones((4, 4), bool), 1)

    def forward(q):
        return np.where(mask, -1e9, q @ q.T)

    def backward(dy, q, factor=1.0):
        d = np.where(mask, 0, dy)
        return factor * (d @ q + d.T @ q)

    check_gradients(forward, backward, {"q": _x(4, 3)})
    with pytest.raises(GradientMismatch, match="gradient of q is wrong"):
        check_gradients(forward, lambda dy, q: backward(dy, q, 1.01), {"q": _x(4, 3)})


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_what_rounding_hides_does_not_pass(factor):
    def backward(dy, x):
        return 2 * factor * dy * x

    with pytest.raises(GradientMismatch, match=r"cannot be measured: the output reaches 1\.0e\+06"):
        check_gradients(lambda x: x**2 + 1e6, backward, {"x": _x(4, 5)})


def test_a_gradient_of_zero_passes():
    check_gradients(lambda x: 0 * x + 1e6, lambda dy, x: 0 * dy, {"x": _x(4, 5)})


def test_a_layer_needs_three_methods_only():
    class Scale:
        def __init__(self):
            self.factor = sn.Parameter("factor", np.array([1.5]))

        def parameters(self):
            return [self.factor]

        def forward(self, x, training):
            self.x = x
            return self.factor.value * x

        def backward(self, dy):
            self.factor.grad = np.array([(dy * self.x).sum()])
            return self.factor.value * dy

    report = gradcheck(Scale(), _x(4, 3))
    assert [row.name for row in report.rows] == ["x", "factor", "all together"]


def test_gradients_of_a_first_layer_are_checked_too():
    class Halved(sn.Dense):
        def backward(self, dy, need_dx=True):
            dx = super().backward(dy, need_dx)
            if not need_dx:
                self.weight.grad = self.weight.grad / 2
            return dx

    layer = Halved(3, 2).to("reference")
    with pytest.raises(GradientMismatch, match="weight is another where need_dx is False"):
        gradcheck(layer, _x(4, 3))
