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
        return get_backend(self.backend).softmax_cross_entropy_backward(
            dloss, self.probabilities, self.labels, self.label_smoothing
        )
