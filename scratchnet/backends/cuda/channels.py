"""Sums and moments of each channel over every row (..., C), in two launches and no atomics.

A block takes 32 channels, or as many as there are, and every so-many-th row: its threads' x axis
runs over channels, which are neighbours in memory, and its y axis over rows. A thread adds up its
own rows in registers, the block's threads of one channel join in shared memory, halving their
number each time, and the block writes one partial result per channel. A second kernel joins the
blocks' partials the same way. Who adds what depends on the shape alone: the same bits every run.

Moments take one pass. The textbook's E[x^2] - E[x]^2 loses everything in float32 where the mean is
1e4; instead every thread takes off its own first value before it squares, which leaves numbers of
the size of the deviation, and parts are joined by Chan's formula:

    mean = mean_a + d * n_b / n,  M2 = M2_a + M2_b + d^2 * n_a * n_b / n,  d = mean_b - mean_a

Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm", equation 2.1.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from scratchnet.backends.cuda.arrays import Array, empty
from scratchnet.backends.cuda.device import SIMULATED, THREADS, at, cuda, launch, numba_type
from scratchnet.backends.cuda.matrix_product import add_chunks

_BLOCKS = 4 if SIMULATED else 528


def sums_over_rows(
    term: Callable, arrays: tuple[Array, ...], C: int, extra: tuple[Array, ...] = ()
) -> list[Array]:
    """Two sums for each channel: term(arrays, extra, e, c) gives both summands of element e."""
    dtype = arrays[0].dtype
    lanes, chunks = _layout(arrays[0].size // C, C)
    partial = empty(chunks * 2 * C, dtype)
    kernel = _sums_kernel(term, numba_type(dtype), lanes)
    blocks, threads = (-(-C // lanes), chunks), (lanes, THREADS // lanes)
    extra = extra or (partial,)
    launch(kernel, blocks, threads, arrays, extra, partial, arrays[0].size // C, C)
    return add_chunks(partial, chunks, [C, C])


def moments(x: Array, eps: float) -> tuple[Array, Array]:
    """mean (C,) and inv_std (C,) = 1 / sqrt(biased variance + eps)."""
    C = x.shape[-1]
    rows = x.size // C
    lanes, chunks = _layout(rows, C)
    partial = empty(chunks * 3 * C, x.dtype)
    dtype = numba_type(x.dtype)
    blocks, threads = (-(-C // lanes), chunks), (lanes, THREADS // lanes)
    launch(_moments_kernel(dtype, lanes), blocks, threads, x, partial, rows, C)
    mean, inv_std = empty(C, x.dtype), empty(C, x.dtype)
    eps = x.dtype.type(eps)
    slices = min(1 << (chunks - 1).bit_length(), THREADS)
    kernel = _join_moments_kernel(dtype, THREADS // slices)
    blocks = -(-C * slices // THREADS)
    launch(kernel, blocks, THREADS, partial, mean, inv_std, eps, chunks, C)
    return mean, inv_std


def _layout(rows: int, C: int) -> tuple[int, int]:
    """Threads of a block along the channels, and blocks along the rows."""
    lanes = min(1 << (C - 1).bit_length(), 4 if SIMULATED else 32)
    across = -(-C // lanes)
    rows_at_once = THREADS // lanes
    return lanes, max(1, min(-(-rows // (4 * rows_at_once)), _BLOCKS // across))


@lru_cache
def _sums_kernel(term: Callable, dtype: Any, lanes: int) -> Any:
    zero = dtype(0)
    high = THREADS // lanes

    @cuda.jit
    def sums(arrays, extra, partial, rows, C):
        first_sums = cuda.shared.array(THREADS, dtype)
        second_sums = cuda.shared.array(THREADS, dtype)
        tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
        c = cuda.blockIdx.x * lanes + tx
        t = ty * lanes + tx
        first, second = zero, zero
        if c < C:
            for row in range(cuda.blockIdx.y * high + ty, rows, cuda.gridDim.y * high):
                one, other = term(arrays, extra, at(row * C + c), at(c))
                first += one
                second += other
        first_sums[t] = first
        second_sums[t] = second
        half = high // 2
        while half > 0:
            cuda.syncthreads()
            if ty < half:
                first_sums[t] += first_sums[t + half * lanes]
                second_sums[t] += second_sums[t + half * lanes]
            half //= 2
        if ty == 0 and c < C:
            partial[at(cuda.blockIdx.y * 2 * C + c)] = first_sums[t]
            partial[at((cuda.blockIdx.y * 2 + 1) * C + c)] = second_sums[t]

    return sums


@cuda.jit(device=True)
def _join(count, mean, m2, other_count, other_mean, other_m2):
    """Count, mean and sum of squared deviations of two parts together."""
    total = count + other_count
    if total == 0:
        return count, mean, m2
    distance = other_mean - mean
    share = other_count / total
    return total, mean + distance * share, m2 + other_m2 + distance * distance * count * share


@lru_cache
def _join_moments(lanes: int) -> Callable:
    """The slices t // lanes of a block join, halving their number until the first holds all."""
    high = THREADS // lanes

    @cuda.jit(device=True)
    def join(counts, means, m2s, t):
        half = high // 2
        while half > 0:
            cuda.syncthreads()
            if t < half * lanes:
                other = t + half * lanes
                counts[t], means[t], m2s[t] = _join(
                    counts[t], means[t], m2s[t], counts[other], means[other], m2s[other]
                )
            half //= 2

    return join


@lru_cache
def _moments_kernel(dtype: Any, lanes: int) -> Any:
    zero, one = dtype(0), dtype(1)
    high = THREADS // lanes
    join = _join_moments(lanes)

    @cuda.jit
    def moments(x, partial, rows, C):
        counts = cuda.shared.array(THREADS, dtype)
        means = cuda.shared.array(THREADS, dtype)
        m2s = cuda.shared.array(THREADS, dtype)
        tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
        c = cuda.blockIdx.x * lanes + tx
        t = ty * lanes + tx
        first_row = cuda.blockIdx.y * high + ty
        count, total, squares, shift = zero, zero, zero, zero
        if c < C and first_row < rows:
            shift = x[at(first_row * C + c)]
            for row in range(first_row, rows, cuda.gridDim.y * high):
                value = x[at(row * C + c)] - shift
                total += value
                squares += value * value
                count += one
            total /= count
            squares -= total * total * count
        counts[t] = count
        means[t] = shift + total
        m2s[t] = squares
        join(counts, means, m2s, t)
        if ty == 0 and c < C:
            partial[at(cuda.blockIdx.y * 3 * C + c)] = counts[t]
            partial[at((cuda.blockIdx.y * 3 + 1) * C + c)] = means[t]
            partial[at((cuda.blockIdx.y * 3 + 2) * C + c)] = m2s[t]

    return moments


@lru_cache
def _join_moments_kernel(dtype: Any, lanes: int) -> Any:
    zero, one = dtype(0), dtype(1)
    slices = THREADS // lanes
    join = _join_moments(lanes)

    @cuda.jit
    def join_moments(partial, mean, inv_std, eps, chunks, C):
        counts = cuda.shared.array(THREADS, dtype)
        means = cuda.shared.array(THREADS, dtype)
        m2s = cuda.shared.array(THREADS, dtype)
        t = cuda.threadIdx.x
        c = cuda.blockIdx.x * lanes + t % lanes
        count, center, m2 = zero, zero, zero
        if c < C:
            for chunk in range(t // lanes, chunks, slices):
                start = chunk * 3 * C + c
                count, center, m2 = _join(
                    count, center, m2,
                    partial[at(start)], partial[at(start + C)], partial[at(start + 2 * C)],
                )  # fmt: skip
        counts[t] = count
        means[t] = center
        m2s[t] = m2
        join(counts, means, m2s, t)
        if t < lanes and c < C:
            variance = m2s[t] / counts[t]
            if variance < 0:  # what is left of it is rounding
                variance = zero
            mean[at(c)] = means[t]
            inv_std[at(c)] = one / math.sqrt(variance + eps)

    return join_moments
