"""Softmax and cross-entropy as one operator: the mean over the batch of -sum_k target[k] log p[k].

    p[n,k]      = exp(logits[n,k]) / sum_k exp(logits[n,k])
    target[n,k] = (1 - label_smoothing) * [k == labels[n]] + label_smoothing / classes
    loss        = -mean_n sum_k target[n,k] * log p[n,k]

The largest logit is taken off first, which changes nothing but keeps exp from overflowing. One
loop on one thread: a batch of logits is a few kilobytes, less than a thread takes to wake.
"""

import numpy as np
from numba import njit

from scratchnet.backends.cpu.memory import empty
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
    probabilities = empty(logits.shape, logits.dtype)
    loss = _forward(
        np.ascontiguousarray(logits), _int64(labels), float(label_smoothing), probabilities
    )
    return float(loss), probabilities


@njit(cache=True)
def _forward(logits, labels, label_smoothing, probabilities):
    N, classes = logits.shape
    zero = logits.dtype.type(0)
    smooth = logits.dtype.type(label_smoothing / classes)
    sharp = logits.dtype.type(1 - label_smoothing)
    loss = zero
    for n in range(N):
        largest = logits[n].max()
        p = probabilities[n]
        total = zero
        for k in range(classes):
            p[k] = np.exp(logits[n, k] - largest)
            total += p[k]
        log_total = np.log(total)
        log_p = zero
        for k in range(classes):
            p[k] /= total
            if smooth > 0:
                log_p += smooth * (logits[n, k] - largest - log_total)
        log_p += sharp * (logits[n, labels[n]] - largest - log_total)
        loss -= log_p
    return loss / logits.dtype.type(N)


def softmax_cross_entropy_backward(
    dloss: float, probabilities: np.ndarray, labels: np.ndarray, label_smoothing: float = 0.0
) -> np.ndarray:
    """dloss  ->  dlogits (N, classes) = dloss * (p - target) / N."""
    check_labels("softmax_cross_entropy", probabilities, labels, label_smoothing)
    dlogits = empty(probabilities.shape, probabilities.dtype)
    _backward(
        float(dloss),
        np.ascontiguousarray(probabilities),
        _int64(labels),
        float(label_smoothing),
        dlogits,
    )
    return dlogits


@njit(cache=True)
def _backward(dloss, probabilities, labels, label_smoothing, dlogits):
    N, classes = probabilities.shape
    scale = probabilities.dtype.type(dloss / N)
    smooth = probabilities.dtype.type(label_smoothing / classes)
    sharp = probabilities.dtype.type(1 - label_smoothing)
    for n in range(N):
        for k in range(classes):
            target = smooth + sharp if k == labels[n] else smooth
            dlogits[n, k] = (probabilities[n, k] - target) * scale


def _int64(labels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(labels, np.int64)
