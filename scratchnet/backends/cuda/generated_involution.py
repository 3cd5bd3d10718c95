"""An involution with the kernels that it generates; the equations stand in `backends/reference/`.

    h = p @ reduce_weight + reduce_bias          one tiled product
    mean, inv_std of h                           two launches, see `channels.py`
    y = involution(x, relu(norm(h)) @ span_weight + span_bias)

The last line is one kernel. It is the involution's own (`involution.py`), told to make its weights
instead of reading them: the block normalises the C / r numbers of its pixels into shared memory,
and its threads multiply them with span_weight, each for one tap and some pixels, straight into the
stage. K * K * G numbers for every pixel are never in memory, which at K = 7 is 3.7 times less
traffic. Backward makes them again for dx. There the block's halo is made twice, at its edges.

Not so for large C: making weights is C / 64 times the work of using them, and a tiled product does
it with fewer reads than a stage can. On an H200 the layer with 16 channels and K = 3 takes 36 µs
forward so and 44 with a product, 134 and 139 backward; with 64 channels and K = 7 it is 265 and
281, but 920 and 777 (README.md). Above FUSED_CHANNELS the kernels are a product and go through
memory. The gradient of the kernels goes through memory either way: both of what becomes of it,
dt = dkernel @ span_weight.T and dspan = t.T @ dkernel, are matrix products too.

t, dz and dh are never written by themselves: the products read h and what is left of its gradient
through norm and ReLU.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from scratchnet.backends.cuda.arrays import Array, empty, on_device
from scratchnet.backends.cuda.avgpool2d import avgpool2d_forward
from scratchnet.backends.cuda.batchnorm import input_gradient, normalised_and_gradient
from scratchnet.backends.cuda.channels import moments, sums_over_rows
from scratchnet.backends.cuda.dense import (
    columns_of,
    dense_forward,
    rows_of,
)
from scratchnet.backends.cuda.device import ACCESS, SIMULATED, at, cuda, far, numba_type
from scratchnet.backends.cuda.involution import (
    READ,
    Fill,
    Sizes,
    Weights,
    aggregate,
    finder,
    image_gradient,
    kernel_gradient,
    leader,
    sizes_of,
)
from scratchnet.backends.cuda.matrix_product import (
    PAD,
    Matrix,
    multiply,
    multiply_long,
    store_rows,
    vector_of,
    with_ones_below,
)
from scratchnet.checks import check_generated_involution, check_like, check_number

FUSED_CHANNELS = 16 if SIMULATED else 32


def generated_involution_forward(
    x: Array,
    reduce_weight: Array,
    reduce_bias: Array | None,
    gamma: Array,
    beta: Array,
    span_weight: Array,
    span_bias: Array,
    K: int,
    stride: int,
    dilation: int,
    eps: float,
    mean: Array | None = None,
    inv_std: Array | None = None,
) -> tuple[Array, Array, Array]:
    """x (N, H, W, C)  ->  y (N, Ho, Wo, C), mean, inv_std; all shapes as in the reference."""
    x, reduce_weight, reduce_bias, gamma, beta, span_weight, span_bias, mean, inv_std = on_device(
        x, reduce_weight, reduce_bias, gamma, beta, span_weight, span_bias, mean, inv_std
    )
    sizes = _sizes(
        x, reduce_weight, reduce_bias, gamma, beta, span_weight, span_bias, K, stride, dilation,
        mean, inv_std,
    )  # fmt: skip
    if mean is None:
        check_number("generated_involution", "eps", eps, 0, above=True)
    h = _reduced(x, reduce_weight, reduce_bias, stride)[1]
    if mean is None:
        mean, inv_std = moments(h, eps)
    branch = h, gamma, beta, mean, inv_std, span_weight, span_bias
    fill, source = _weights(branch, sizes)
    return aggregate(x, sizes, fill, source), mean, inv_std


def generated_involution_backward(
    dy: Array,
    x: Array,
    reduce_weight: Array,
    reduce_bias: Array | None,
    gamma: Array,
    beta: Array,
    span_weight: Array,
    span_bias: Array,
    mean: Array,
    inv_std: Array,
    K: int,
    stride: int,
    dilation: int,
    need_dx: bool = True,
) -> tuple[Array | None, ...]:
    """dy like y  ->  dx like x (None where need_dx is False), dreduce_weight, dreduce_bias, dgamma,
    dbeta, dspan_weight, dspan_bias."""
    dy, x, reduce_weight, reduce_bias, gamma, beta, span_weight, span_bias, mean, inv_std = (
        on_device(
            dy, x, reduce_weight, reduce_bias, gamma, beta, span_weight, span_bias, mean, inv_std
        )
    )
    sizes = _sizes(
        x, reduce_weight, reduce_bias, gamma, beta, span_weight, span_bias, K, stride, dilation,
        mean, inv_std,
    )  # fmt: skip
    C, (hidden, taps) = sizes.C, span_weight.shape[2:]
    check_like("generated_involution", "dy", dy, (x.shape[0], sizes.Ho, sizes.Wo, C), x.dtype)
    dtype = x.dtype
    p, h = _reduced(x, reduce_weight, reduce_bias, stride)
    pixels = h.size // hidden
    norm = gamma, beta, mean, inv_std

    dkernel = kernel_gradient(dy, x, sizes)
    dspan_weight, dspan_bias = multiply_long(
        with_ones_below(_activated_columns(hidden, dtype), hidden, dtype), columns_of(taps), dtype,
        (h, *norm), (dkernel,), (hidden, 1), taps, pixels,
    )  # fmt: skip
    dz = empty(h.shape, dtype)
    multiply(
        rows_of(taps), rows_of(taps), _store_open(hidden, dtype), dtype,
        (dkernel,), (span_weight,), (dz, h, *norm), pixels, hidden, taps,
    )  # fmt: skip
    dgamma, dbeta = sums_over_rows(normalised_and_gradient, (dz, h), hidden, (mean, inv_std))
    statistics = gamma, mean, inv_std, dgamma, dbeta
    dh = dz, h, *statistics
    dreduce_weight, dreduce_bias = multiply_long(
        with_ones_below(columns_of(C), C, dtype), _gradient_rows(hidden, dtype), dtype,
        (p,), dh, (C, 1), hidden, pixels,
    )  # fmt: skip
    dx = None
    if need_dx:
        dp = empty(p.shape, dtype)
        multiply(
            _gradient_factor(hidden, dtype), rows_of(hidden), store_rows(C, vector_of(C), dtype),
            dtype, dh, (reduce_weight,), (dp,), pixels, C, hidden,
        )  # fmt: skip
        fill, source = _weights((h, *norm, span_weight, span_bias), sizes)
        dx = image_gradient(dy, x.shape, sizes, fill, source, also=dp)
    return (
        dx,
        dreduce_weight.reshape(reduce_weight.shape),
        dreduce_bias,
        dgamma,
        dbeta,
        dspan_weight.reshape(span_weight.shape),
        dspan_bias,
    )


def _sizes(
    x: Array,
    reduce_weight: Array,
    reduce_bias: Array | None,
    gamma: Array,
    beta: Array,
    span_weight: Array,
    span_bias: Array,
    K: int,
    stride: int,
    dilation: int,
    mean: Array | None,
    inv_std: Array | None,
) -> Sizes:
    geometry = check_generated_involution(
        x, reduce_weight, reduce_bias, gamma, beta, span_weight, span_bias, K, stride, dilation,
        mean, inv_std,
    )  # fmt: skip
    return sizes_of(x, span_weight.shape[3] // K**2, K, stride, dilation, geometry)


def _reduced(
    x: Array, reduce_weight: Array, reduce_bias: Array | None, stride: int
) -> tuple[Array, Array]:
    """p, the image averaged over cells, and h, its channels reduced."""
    p = x if stride == 1 else avgpool2d_forward(x, stride, stride, "ceil")
    return p, dense_forward(p, reduce_weight.reshape(reduce_weight.shape[2:]), reduce_bias)


def _weights(branch: tuple[Array, ...], sizes: Sizes) -> tuple[Fill, tuple[Array, ...]]:
    """Where the involution finds its weights: made on the spot, or from memory for large C."""
    h, gamma, beta, mean, inv_std, span_weight, span_bias = branch
    hidden, taps = span_weight.shape[2:]
    if sizes.C <= FUSED_CHANNELS:
        return _make_weights(hidden), branch
    N = h.shape[0]
    kernel = empty((N, sizes.Ho, sizes.Wo, sizes.G, sizes.K, sizes.K), h.dtype)
    multiply(
        _activated_rows(hidden, h.dtype), columns_of(taps),
        store_rows(taps, vector_of(taps), h.dtype, has_bias=True), h.dtype,
        (h, gamma, beta, mean, inv_std), (span_weight,), (kernel, span_bias),
        h.size // hidden, taps, hidden,
    )  # fmt: skip
    return READ, (kernel,)


@cuda.jit(device=True)
def _normalised(h, gamma, beta, mean, inv_std):
    return gamma * (h - mean) * inv_std + beta


@lru_cache
def _activation(dtype: Any, vector: int) -> Callable:
    """t = relu(norm(h)) from hidden channel k on, of the pixel at e. A NaN stays one."""
    load, _ = ACCESS[vector]
    zero = dtype(0)

    @cuda.jit(device=True)
    def activated(branch, e, k, out, first):
        h, gamma, beta = load(branch[0], at(e + k)), load(branch[1], k), load(branch[2], k)
        mean, inv_std = load(branch[3], k), load(branch[4], k)
        for q in range(vector):
            z = _normalised(h[q], gamma[q], beta[q], mean[q], inv_std[q])
            out[first + q] = zero if z <= 0 else z

    return activated


@lru_cache
def _make_weights(hidden: int) -> Fill:
    """Weights made in the stage: span_bias[g,tap] + sum_k t[pixel,k] * span_weight[k,(g,tap)].

    Behind the weights the stage holds t of one row of outputs, pixel by pixel for each k, and a gap
    between one k and the next, so that threads which write neighbouring k find different banks. A
    thread makes one tap's weight for `together` outputs, so that it reads span_weight once for all
    of them.
    """

    def wide_of(across: int) -> int:
        """Columns in whole fours, so that weights are made for four at once."""
        return -(-across // 4) * 4

    @lru_cache
    def make(
        sizes: Sizes,
        dtype: Any,
        weights: Weights,
        rows: int,
        threads: int,
        first_t: int,
        cleared: bool,
    ) -> Callable:
        Ho, Wo, G = sizes.Ho, sizes.Wo, sizes.G
        across, groups, taps, row = weights.across, weights.groups, weights.taps, weights.size
        place_of, lead_of = finder(weights, weights.output), leader(sizes, weights.chunk > 1)
        wide = wide_of(across)
        together = 8 if wide % 8 == 0 else 4
        stretches = wide // together
        deep = max(n for n in range(1, 33) if hidden % n == 0)
        add_products = _add_products(deep, together, wide + PAD, G * taps)
        activated = _activation(dtype, 1)
        zero = dtype(0)

        @cuda.jit(device=True)
        def activate_row(stage, branch, row, left, t):
            value = cuda.local.array(1, dtype)
            e = at(t)
            while e < wide * hidden:
                pixel, k = at(e // hidden), at(e % hidden)
                j = at(left + pixel)
                value[0] = zero
                if j < Wo:
                    activated(branch, at((row * Wo + j) * hidden), k, value, 0)
                stage[far(first_t + at(k * (wide + PAD) + pixel))] = value[0]
                e = at(e + threads)

        @cuda.jit(device=True)
        def make_row(stage, branch, start, first_g, t):
            sums = cuda.local.array(together, dtype)
            first = at(first_g * taps)
            e = at(t)
            while e < groups * taps * stretches:
                pixel, tap = at(e % stretches * together), at(e // stretches)
                if first + tap < G * taps:
                    bias = branch[6][first + tap]
                    for i in range(together):
                        sums[i] = bias
                    for k in range(0, hidden, deep):
                        add_products(
                            stage,
                            branch[5],
                            first_t + pixel + k * (wide + PAD),
                            first + tap + k * (G * taps),
                            sums,
                        )
                    for i in range(together):
                        if pixel + i < across:
                            stage[far(start + place_of(pixel + i) + tap)] = sums[i]
                e = at(e + threads)

        @cuda.jit(device=True)
        def fill(stage, start, branch, n, i, left, first_g, t):
            for r in range(rows):
                if at(i + r) < Ho:
                    cuda.syncthreads()  # the row before is no longer read
                    activate_row(stage, branch, at(n * Ho + i + r), left, t)
                    cuda.syncthreads()
                    lead = lead_of(n, i + r, left, first_g)
                    make_row(stage, branch, start + r * row + lead, first_g, t)

        return fill

    return Fill(1, make, lambda across: (wide_of(across) + PAD) * hidden)


@lru_cache
def _add_products(times: int, together: int, t_step: int, weight_step: int) -> Callable:
    """sums += t * weight for `times` hidden channels, one after the other: twice half as many.

    So none is a loop, and all addresses are a thread's first plus a constant.
    """
    if times > 1:
        half = times // 2
        add_half = _add_products(half, together, t_step, weight_step)
        add_others = _add_products(times - half, together, t_step, weight_step)

        @cuda.jit(device=True)
        def add_products(stage, span_weight, t_at, weight_at, sums):
            add_half(stage, span_weight, t_at, weight_at, sums)
            add_others(
                stage, span_weight, t_at + half * t_step, weight_at + half * weight_step, sums
            )

        return add_products

    vector = vector_of(together)
    load, _ = ACCESS[vector]

    @cuda.jit(device=True)
    def add_product(stage, span_weight, t_at, weight_at, sums):
        weight = span_weight[far(weight_at)]
        for i in range(0, together, vector):
            values = load(stage, far(t_at + i))
            for q in range(vector):
                sums[i + q] += weight * values[q]

    return add_product


@lru_cache
def _activated_rows(hidden: int, dtype: np.dtype) -> Matrix:
    """A[pixel, k] = t."""
    rows = rows_of(hidden)
    activated = _activation(numba_type(dtype), rows.vector)

    @cuda.jit(device=True)
    def read(arrays, line, step, out, first):
        activated(arrays, line[0], step[0], out, first)

    return rows._replace(read=read)


@lru_cache
def _activated_columns(hidden: int, dtype: np.dtype) -> Matrix:
    """A[k, pixel] = t."""
    columns = columns_of(hidden)
    activated = _activation(numba_type(dtype), columns.vector)

    @cuda.jit(device=True)
    def read(arrays, line, step, out, first):
        activated(arrays, step[0], line[0], out, first)

    return columns._replace(read=read)


@lru_cache
def _store_open(hidden: int, dtype: np.dtype) -> Callable:
    """dz = dt where the ReLU let its pixel through; out = (dz, h, gamma, beta, mean, inv_std)."""
    vector = vector_of(hidden)
    load, store_vector = ACCESS[vector]
    zero = numba_type(dtype)(0)

    @cuda.jit(device=True)
    def store(out, chunk, group, m, n, square, M, N):
        for j in range(0, 4, vector):
            if n + j < N:
                k = at(n + j)
                gamma, beta, mean, inv_std = (
                    load(out[2], k), load(out[3], k), load(out[4], k), load(out[5], k),
                )  # fmt: skip
                for i in range(4):
                    if m + i < M:
                        e = at((m + i) * hidden + n + j)
                        h = load(out[1], e)
                        for q in range(vector):
                            z = _normalised(h[q], gamma[q], beta[q], mean[q], inv_std[q])
                            if not z > 0:
                                square[4 * i + j + q] = zero
                        store_vector(out[0], e, square, 4 * i + j)

    return store


@lru_cache
def _input_gradient(hidden: int, dtype: np.dtype) -> Callable:
    """dh from hidden channel k on, of the pixel at e.

    arrays = (dz, h, gamma, mean, inv_std, dgamma, dbeta)
    """
    number = numba_type(dtype)
    vector = vector_of(hidden)
    load, _ = ACCESS[vector]

    @cuda.jit(device=True)
    def gradient(arrays, e, k, out, first):
        pixels = number(at(arrays[0].size) // hidden)
        dz, h = load(arrays[0], at(e + k)), load(arrays[1], at(e + k))
        gamma, mean, inv_std = load(arrays[2], k), load(arrays[3], k), load(arrays[4], k)
        dgamma, dbeta = load(arrays[5], k), load(arrays[6], k)
        for q in range(vector):
            statistics = gamma[q], mean[q], inv_std[q], dgamma[q], dbeta[q]
            out[first + q] = input_gradient(dz[q], h[q], statistics, pixels)

    return gradient


@lru_cache
def _gradient_factor(hidden: int, dtype: np.dtype) -> Matrix:
    """A[pixel, k] = dh."""
    gradient = _input_gradient(hidden, dtype)

    @cuda.jit(device=True)
    def read(arrays, line, step, out, first):
        gradient(arrays, line[0], step[0], out, first)

    return rows_of(hidden)._replace(read=read)


@lru_cache
def _gradient_rows(hidden: int, dtype: np.dtype) -> Matrix:
    """B[pixel, k] = dh."""
    gradient = _input_gradient(hidden, dtype)

    @cuda.jit(device=True)
    def read(arrays, line, step, out, first):
        gradient(arrays, step[0], line[0], out, first)

    return columns_of(hidden)._replace(read=read)
