"""Softmax and cross-entropy as one operator: the mean over the batch of -sum_k target[k] log p[k].

    p[n,k]      = exp(logits[n,k]) / sum_k exp(logits[n,k])
    target[n,k] = (1 - label_smoothing) * [k == labels[n]] + label_smoothing / classes
    loss        = -mean_n sum_k target[n,k] * log p[n,k]

The largest logit is taken off first, which changes nothing but keeps exp from overflowing.
Sources: Goodfellow et al. 2016, section 6.2.2.3; label smoothing, Szegedy et al. 2016, section 7.
"""

import numpy as np

from scratchnet.checks import check_labels


def softmax_cross_entropy_forward(
    logits: np.ndarray, labels: np.ndarray, label_smoothing: float = 0.0
) -> tuple[float, np.ndarray]:
    """The mean loss of a batch, and the probabilities that backward needs.

    logits            (N, classes)   float32 or float64
    labels            (N,)           whole numbers in [0, classes)
    label_smoothing   in [0, 1)
    returns           loss in nats, probabilities (N, classes)
    raises            ValueError, TypeError where shapes, dtypes or labels do not fit
    """
    check_labels("softmax_cross_entropy", logits, labels, label_smoothing)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    log_p = shifted - log_sum
    target = _target(logits.shape, labels, label_smoothing, logits.dtype)
    terms = np.zeros_like(log_p)  # 0 log 0 counts as 0: a logit of -inf rules its class out
    np.multiply(target, log_p, out=terms, where=target > 0)
    return float(-terms.sum(axis=1).mean()), np.exp(log_p)


def softmax_cross_entropy_backward(
    dloss: float, probabilities: np.ndarray, labels: np.ndarray, label_smoothing: float = 0.0
) -> np.ndarray:
    """dloss  ->  dlogits (N, classes) = dloss * (p - target) / N."""
    check_labels("softmax_cross_entropy", probabilities, labels, label_smoothing)
    target = _target(probabilities.shape, labels, label_smoothing, probabilities.dtype)
    N = probabilities.shape[0]
    return ((probabilities - target) * (dloss / N)).astype(probabilities.dtype)


def _target(
    shape: tuple[int, int], labels: np.ndarray, label_smoothing: float, dtype: np.dtype
) -> np.ndarray:
    N, classes = shape
    target = np.full(shape, label_smoothing / classes, dtype)
    target[np.arange(N), labels] += 1 - label_smoothing
    return target
