"""Softmax and cross-entropy: one block takes the whole batch, a thread one row at a time.

    p[n,k] = exp(logits[n,k] - max) / sum        loss = -mean_n sum_k target[n,k] * log p[n,k]

A batch's logits are a few kilobytes, so one launch that needs no second to join its blocks is worth
more than many blocks. The rows' losses meet in shared memory, in a fixed order. The loss stays on
the GPU until someone asks for its number. Backward, a thread owns one logit at a time.

Labels that come from the host are checked there. Those already on the GPU are not, since that would
wait for it: a label out of range makes the loss NaN.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np

from scratchnet.backends.cuda.arrays import Array, borrowed, empty, on_device
from scratchnet.backends.cuda.device import SIMULATED, at, cuda, launch, launch_over, numba_type
from scratchnet.checks import check_labels

_BLOCK = 16 if SIMULATED else 256


def softmax_cross_entropy_forward(
    logits: Array, labels: Array, label_smoothing: float = 0.0
) -> tuple[Array, Array]:
    """logits (N, classes), labels (N,)  ->  loss (), probabilities (N, classes)."""
    logits, labels = borrowed(logits), borrowed(labels)
    check_labels("softmax_cross_entropy", logits, labels, label_smoothing)
    logits, labels = on_device(logits, labels)
    N, classes = logits.shape
    loss, probabilities = empty((), logits.dtype), empty(logits.shape, logits.dtype)
    kernel = _forward_kernel(numba_type(logits.dtype))
    smoothing = logits.dtype.type(label_smoothing)
    launch(kernel, 1, _BLOCK, logits, labels, probabilities, loss, smoothing, N, classes)
    return loss, probabilities


def softmax_cross_entropy_backward(
    dloss: float, probabilities: Array, labels: Array, label_smoothing: float = 0.0
) -> Array:
    """dloss  ->  dlogits (N, classes) = dloss * (p - target) / N."""
    probabilities, labels = borrowed(probabilities), borrowed(labels)
    check_labels("softmax_cross_entropy", probabilities, labels, label_smoothing)
    probabilities, labels = on_device(probabilities, labels)
    dtype = probabilities.dtype
    dlogits = empty(probabilities.shape, dtype)
    factor = dtype.type(float(dloss) / probabilities.shape[0])
    kernel = _backward_kernel(numba_type(dtype))
    smoothing, classes = dtype.type(label_smoothing), probabilities.shape[1]
    launch_over(dlogits.size, kernel, probabilities, labels, dlogits, factor, smoothing, classes)
    return dlogits


@lru_cache
def _forward_kernel(dtype: Any) -> Any:
    zero, one = dtype(0), dtype(1)
    nothing = dtype(np.nan)

    @cuda.jit
    def softmax_cross_entropy(logits, labels, probabilities, loss, smoothing, N, classes):
        losses = cuda.shared.array(_BLOCK, dtype)
        t = cuda.threadIdx.x
        mine = zero
        share = smoothing / dtype(classes)
        for n in range(t, N, _BLOCK):
            largest = logits[at(n * classes)]
            for k in range(1, classes):
                value = logits[at(n * classes + k)]
                if value > largest or value != value:
                    largest = value
            total = zero
            for k in range(classes):
                total += math.exp(logits[at(n * classes + k)] - largest)
            log_total = math.log(total)
            row = zero
            for k in range(classes):
                log_p = logits[at(n * classes + k)] - largest - log_total
                probabilities[at(n * classes + k)] = math.exp(log_p)
                target = share + (one - smoothing if k == labels[at(n)] else zero)
                if target > zero:
                    row -= target * log_p
            if labels[at(n)] < 0 or labels[at(n)] >= classes:
                row = nothing
            mine += row
        losses[t] = mine
        half = _BLOCK // 2
        while half > 0:
            cuda.syncthreads()
            if t < half:
                losses[t] += losses[t + half]
            half //= 2
        if t == 0:
            loss[0] = losses[0] / dtype(N)

    return softmax_cross_entropy


@lru_cache
def _backward_kernel(dtype: Any) -> Any:
    zero, one = dtype(0), dtype(1)

    @cuda.jit
    def softmax_gradient(probabilities, labels, dlogits, factor, smoothing, classes, count):
        for e in range(cuda.grid(1), count, cuda.gridsize(1)):
            n, k = at(e) // at(classes), at(e) % at(classes)
            hit = one if k == labels[n] else zero
            target = smoothing / dtype(classes) + (one - smoothing) * hit
            dlogits[at(e)] = (probabilities[at(e)] - target) * factor

    return softmax_gradient
