"""What training makes small; see `backends/reference/softmax_cross_entropy.py` for the equation."""

import numpy as np

from scratchnet.backends import get_backend
from scratchnet.checks import check_fraction
from scratchnet.layers.base import DEFAULT_BACKEND


class SoftmaxCrossEntropy:
    """Mean cross-entropy of the softmax of logits, in nats.

    forward(logits (N, classes), labels (N,)) -> loss; backward() -> dlogits (N, classes).
    raises ValueError where label_smoothing is not in [0, 1), or a label is out of range
    """

    def __init__(self, label_smoothing: float = 0.0):
        check_fraction("SoftmaxCrossEntropy", "label_smoothing", label_smoothing)
        self.label_smoothing = label_smoothing
        self.backend = DEFAULT_BACKEND

    def to(self, backend: str) -> "SoftmaxCrossEntropy":
        """Let another backend do the arithmetic. Returns the loss."""
        get_backend(backend)
        self.backend = backend
        return self

    def forward(self, logits: np.ndarray, labels: np.ndarray) -> float:
        loss, self.probabilities = get_backend(self.backend).softmax_cross_entropy_forward(
            logits, labels, self.label_smoothing
        )
        self.labels = labels
        return loss

    def backward(self, dloss: float = 1.0) -> np.ndarray:
        if not hasattr(self, "probabilities"):
            raise RuntimeError(f"{type(self).__name__}.backward needs a forward before it")
        return get_backend(self.backend).softmax_cross_entropy_backward(
            dloss, self.probabilities, self.labels, self.label_smoothing
        )


class SoftmaxTwiceCrossEntropy(SoftmaxCrossEntropy):
    """The cross-entropy of softmax(softmax(logits)), a mistake: of a network that ends in a softmax
    before a loss that has its own. For p = softmax(logits),

        dlogits = p * (dp - sum(dp * p))

    As p lies in [0, 1], the second softmax is nearly flat: with ten classes the loss cannot fall
    below log(1 + 9 / e) = 1.46, and where p is near 0 or 1 nearly no gradient comes through. NumPy
    computes the inner softmax, wherever the rest is.
    """

    def forward(self, logits: np.ndarray, labels: np.ndarray) -> float:
        ops = get_backend(self.backend)
        logits = ops.to_host(logits)
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        self.inner = shifted / shifted.sum(axis=1, keepdims=True)
        return super().forward(ops.to_device(self.inner), labels)

    def backward(self, dloss: float = 1.0) -> np.ndarray:
        ops = get_backend(self.backend)
        dp = ops.to_host(super().backward(dloss))
        return ops.to_device(self.inner * (dp - (dp * self.inner).sum(axis=1, keepdims=True)))
