"""The small arithmetic between operators, on the GPU; see HELPERS in `backends/__init__.py`."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from scratchnet.backends import host
from scratchnet.backends.cuda.arrays import Array, borrowed, empty, on_device, to_host
from scratchnet.backends.cuda.device import (
    THREADS,
    at,
    cuda,
    launch,
    launch_over,
    numba_type,
)
from scratchnet.checks import check_labels


def normalised(images: Array, factor: Array, offset: Array) -> Array:
    """images * factor + offset: (N, H, W, C) of any dtype, (H * W * C,) both  ->  float32.

    Bytes go up, not floats: a fourth as many, and the host has nothing to compute.
    """
    images, factor, offset = on_device(images, factor, offset)
    x = empty(images.shape, np.float32)
    launch_over(x.size, _normalise, images, factor, offset, x, factor.size)
    return x


def inv_std_of(variance: Array, eps: float) -> Array:
    """1 / sqrt(variance + eps), of the variance's dtype."""
    variance = on_device(variance)
    inv_std = empty(variance.shape, variance.dtype)
    kernel = _inv_std_kernel(numba_type(variance.dtype))
    launch_over(variance.size, kernel, variance, inv_std, variance.dtype.type(eps))
    return inv_std


def fold_norm(gamma: Array, beta: Array, mean: Array, inv_std: Array) -> tuple[Array, Array]:
    """scale, shift with gamma * (x - mean) * inv_std + beta = scale * x + shift."""
    gamma, beta, mean, inv_std = on_device(gamma, beta, mean, inv_std)
    scale, shift = empty(gamma.shape, gamma.dtype), empty(gamma.shape, gamma.dtype)
    launch_over(gamma.size, _fold, gamma, beta, mean, inv_std, scale, shift)
    return scale, shift


def update_running(
    running_mean: Array,
    running_var: Array,
    mean: Array,
    inv_std: Array,
    momentum: float,
    eps: float,
) -> None:
    """running = momentum * running + (1 - momentum) * batch, in place, for mean and variance."""
    number = running_mean.dtype.type
    kernel = _running_kernel(numba_type(running_mean.dtype))
    numbers = number(momentum), number(1 - momentum), number(eps)
    launch_over(mean.size, kernel, running_mean, running_var, mean, inv_std, *numbers)


def norm_of(arrays: Sequence[Array]) -> float:
    """The root of the sum of all squares; waits for the GPU."""
    squares = [_sum_of_squares(array) for array in arrays]  # all launched before one is waited for
    total = sum(map(float, squares))
    return math.sqrt(total) if math.isfinite(total) else host.norm_of(list(map(to_host, arrays)))


def scale_all(arrays: Sequence[Array], factor: float) -> None:
    """Multiply each array by the factor, in place."""
    for array in arrays:
        launch_over(array.size, _scale, array, array.dtype.type(factor))


def count_correct(logits: Array, labels: Array) -> Array:
    """How many rows of logits (N, classes) are largest at their label: one number on the GPU."""
    logits, labels = borrowed(logits), borrowed(labels)
    check_labels("count_correct", logits, labels, 0.0)
    logits, labels = on_device(logits, labels)
    count = empty((), np.int64)
    launch(_count, 1, THREADS, logits, labels, count, *logits.shape)
    return count


def _sum_of_squares(array: Array) -> Array:
    total = empty((), array.dtype)
    launch(_squares_kernel(numba_type(array.dtype)), 1, THREADS, array, total, array.size)
    return total


@cuda.jit
def _normalise(images, factor, offset, x, per_image, count):
    for e in range(cuda.grid(1), count, cuda.gridsize(1)):
        k = at(e) % at(per_image)
        x[at(e)] = np.float32(images[at(e)]) * factor[k] + offset[k]


@lru_cache
def _inv_std_kernel(dtype: Any) -> Any:
    one = dtype(1)

    @cuda.jit
    def inv_std_of(variance, inv_std, eps, count):
        for e in range(cuda.grid(1), count, cuda.gridsize(1)):
            inv_std[at(e)] = one / math.sqrt(variance[at(e)] + eps)

    return inv_std_of


@cuda.jit
def _fold(gamma, beta, mean, inv_std, scale, shift, count):
    for e in range(cuda.grid(1), count, cuda.gridsize(1)):
        k = at(e)
        scale[k] = gamma[k] * inv_std[k]
        shift[k] = beta[k] - gamma[k] * inv_std[k] * mean[k]


@lru_cache
def _running_kernel(dtype: Any) -> Any:
    zero, one = dtype(0), dtype(1)

    @cuda.jit
    def update_running(running_mean, running_var, mean, inv_std, momentum, rest, eps, count):
        for e in range(cuda.grid(1), count, cuda.gridsize(1)):
            k = at(e)
            variance = one / (inv_std[k] * inv_std[k]) - eps
            if variance < 0:
                variance = zero
            running_mean[k] = momentum * running_mean[k] + rest * mean[k]
            running_var[k] = momentum * running_var[k] + rest * variance

    return update_running


@cuda.jit
def _scale(array, factor, count):
    for e in range(cuda.grid(1), count, cuda.gridsize(1)):
        array[at(e)] *= factor


@lru_cache
def _squares_kernel(dtype: Any) -> Any:
    zero = dtype(0)

    @cuda.jit
    def sum_of_squares(array, total, count):
        sums = cuda.shared.array(THREADS, dtype)
        t = cuda.threadIdx.x
        mine = zero
        for e in range(t, count, THREADS):
            mine += array[at(e)] * array[at(e)]
        sums[t] = mine
        half = THREADS // 2
        while half > 0:
            cuda.syncthreads()
            if t < half:
                sums[t] += sums[t + half]
            half //= 2
        if t == 0:
            total[0] = sums[0]

    return sum_of_squares


@cuda.jit
def _count(logits, labels, count, N, classes):
    counts = cuda.shared.array(THREADS, np.int64)
    t = cuda.threadIdx.x
    mine = 0
    for n in range(t, N, THREADS):
        best = 0
        for k in range(1, classes):
            if logits[at(n * classes + k)] > logits[at(n * classes + best)]:
                best = k
        if best == labels[at(n)]:
            mine += 1
    counts[t] = mine
    half = THREADS // 2
    while half > 0:
        cuda.syncthreads()
        if t < half:
            counts[t] += counts[t + half]
        half //= 2
    if t == 0:
        count[0] = counts[0]
