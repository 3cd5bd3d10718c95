"""The loss as an object; the operator under it is tested with the others."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchnet import SoftmaxCrossEntropy
from scratchnet.backends import BACKENDS
from scratchnet.losses import SoftmaxTwiceCrossEntropy

LOGITS = np.log(np.array([[1, 2, 5], [4, 4, 2]], np.float32))
LABELS = np.array([2, 0])


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def test_loss_and_gradient_by_hand(backend):
    loss = SoftmaxCrossEntropy().to(backend)
    value = loss.forward(LOGITS, LABELS)
    assert value == pytest.approx(-(math.log(5 / 8) + math.log(4 / 10)) / 2)
    expected = np.array([[1 / 8, 2 / 8, -3 / 8], [-6 / 10, 4 / 10, 2 / 10]]) / 2
    np.testing.assert_allclose(loss.backward(), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(loss.backward(3.0), 3 * expected, rtol=1e-6, atol=1e-7)


def test_label_smoothing_by_hand(backend):
    loss = SoftmaxCrossEntropy(label_smoothing=0.3).to(backend)
    log_p = np.log(np.array([[1 / 8, 2 / 8, 5 / 8], [4 / 10, 4 / 10, 2 / 10]]))
    target = np.array([[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])
    value = loss.forward(LOGITS, LABELS)
    assert value == pytest.approx(-(target * log_p).sum() / 2)
    expected = (np.exp(log_p) - target) / 2
    np.testing.assert_allclose(loss.backward(), expected, rtol=1e-5, atol=1e-7)


@given(N=st.integers(1, 6), classes=st.integers(1, 7), seed=st.integers(0, 99))
def test_equal_logits_are_a_guess(N, classes, seed):
    loss = SoftmaxCrossEntropy().to("reference")
    labels = np.random.default_rng(seed).integers(classes, size=N)
    logits = np.full((N, classes), 3.0)
    assert loss.forward(logits, labels) == pytest.approx(math.log(classes), abs=1e-12)


def test_large_logits_stay_finite(backend):
    loss = SoftmaxCrossEntropy().to(backend)
    logits = np.array([[1e4, 0, -1e4], [-1e4, 1e4, 1e4]], np.float32)
    assert loss.forward(logits, np.array([2, 0])) == pytest.approx(2e4 + math.log(2) / 2)
    assert np.isfinite(loss.backward()).all()
    assert loss.forward(logits, np.array([0, 1])) == pytest.approx(math.log(2) / 2)


def test_the_loss_is_a_number_that_python_can_format(backend):
    value = SoftmaxCrossEntropy().to(backend).forward(LOGITS, LABELS)
    assert isinstance(value, float)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.array([0, 3]), ValueError, r"labels must lie in 0\.\.2, got 3"),
        (np.array([-1, 0]), ValueError, r"labels must lie in 0\.\.2, got -1"),
        (np.array([0]), ValueError, r"labels must have shape \(2,\) like logits, got \(1,\)"),
        (np.array([0.0, 1.0]), TypeError, "labels must be an array of whole numbers, got float64"),
        ([0, 1], TypeError, "labels must be an array of whole numbers, got list"),
    ],
)
def test_bad_labels(backend, labels, error, message):
    with pytest.raises(error, match=f"softmax_cross_entropy: {message}"):
        SoftmaxCrossEntropy().to(backend).forward(LOGITS, labels)


@pytest.mark.parametrize("smoothing", [-0.1, 1, 1.5, math.nan, "0.1", None])
def test_bad_label_smoothing(smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing must be a number in \[0, 1\), got"):
        SoftmaxCrossEntropy(smoothing)


def test_unknown_backends_are_refused():
    with pytest.raises(ValueError, match="backend must be one of"):
        SoftmaxCrossEntropy().to("gpu")


@pytest.mark.parametrize("kind", [SoftmaxCrossEntropy, SoftmaxTwiceCrossEntropy])
def test_backward_needs_a_forward(kind):
    with pytest.raises(RuntimeError, match=f"{kind.__name__}.backward needs a forward before it"):
        kind().backward()
