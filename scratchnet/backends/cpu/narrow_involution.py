"""An involution whose kernels have one number behind them: one hidden channel and one group.

The report's involutions are of this kind. With t[e] the one hidden value of the pixel at e, its
kernel is kernel[e, k] = t[e] * span_weight[k] + span_bias[k], and

    y[e]          = sum_k kernel[e, k] * x[e + offset[k]]
    dx[e]         = sum_k (kernel[., k] * dy)[e - offset[k]]
    dkernel[e, k] = dy[e] * x[e + offset[k]]     summed over the pixel's channels
    dt[e]         = sum_k dkernel[e, k] * span_weight[k]
    dspan_weight[k], dspan_bias[k] = sum_e t[e] * dkernel[e, k], sum_e dkernel[e, k]

so no kernel is stored anywhere: a tap of it is made in a register. An image is laid out with zeros
around it, a plane for each channel, so that borders need no test and a tap is a fixed offset. LANES
pixels of a row are done at a time; the last of them may stand beyond the row's end, where x and dy
read as 0.

The threads share the images. Sums over the batch are kept for each of CHUNKS chunks of images, and
added in order. h and t are computed again where they are needed: that is cheaper than to fetch
them.
"""

from functools import lru_cache

import numpy as np
from numba import njit, prange

from scratchnet.backends.cpu.loops import CHUNKS, piece
from scratchnet.backends.cpu.memory import empty
from scratchnet.backends.cpu.planes import (
    beside,
    dot,
    fma_each,
    load_pixels,
    load_planes,
    prefetch_pixels,
    splat_each,
    store_pixels,
    store_planes,
    zeros_like,
)
from scratchnet.backends.cpu.vectors import (
    broadcast,
    first_lanes,
    fma,
    lane_sum,
    load,
    relu,
    splat,
    store,
    where_positive,
)

LANES = 16  # float32 in an AVX-512 register
TAPS = 3  # whose sums stay in registers for an image, beside all that they are made of
CHANNELS = (1, 2, 3, 4)  # so few that registers hold a vector for each


def narrow_statistics(
    x: np.ndarray, reduce_weight: np.ndarray, reduce_bias: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """mean and 1 / sqrt(variance + eps) of h = x @ reduce_weight + reduce_bias: (1,), (1,).

    x (N, H, W, C), reduce_weight (C, 1), reduce_bias (1,). One pass: the deviations are those from
    the first image's mean. As that image is a part of the batch, the two means are at most
    sqrt(N) standard deviations apart, and taking the distance off again costs few digits.
    """
    mean, inv_std = np.empty(1, x.dtype), np.empty(1, x.dtype)
    partial = np.empty((CHUNKS, 2), x.dtype)
    # A tuple, here and below: the compiler must know C, which is its length.
    _statistics(x, tuple(reduce_weight.ravel()), reduce_bias, eps, partial, mean, inv_std)
    return mean, inv_std


@njit(parallel=True, cache=True)
def _statistics(x, reduce_weight, reduce_bias, eps, partial, mean, inv_std):
    N, H, W, _ = x.shape
    size = H * W
    centre = _deviations(x, 0, size, reduce_weight, reduce_bias[0])[0] / x.dtype.type(size)
    for chunk in prange(CHUNKS):
        lo, hi = piece(N, chunk)
        partial[chunk] = _deviations(
            x, lo * size, hi * size, reduce_weight, reduce_bias[0] - centre
        )
    first = second = x.dtype.type(0)
    for chunk in range(CHUNKS):
        first += partial[chunk, 0]
        second += partial[chunk, 1]
    M = x.dtype.type(N * size)
    mean[0] = centre + first / M
    inv_std[0] = 1 / np.sqrt(np.maximum(second / M - (first / M) ** 2, 0) + eps)


@njit(cache=True)
def _deviations(x, lo, hi, reduce_weight, bias):
    """The sums of x @ reduce_weight + bias and of its square, over the pixels from lo to hi."""
    weights = splat_each(reduce_weight, LANES)
    first = second = splat(x.dtype.type(0), LANES)
    for pixel in range(lo, hi, LANES):
        x_e = load_pixels(x, pixel * len(reduce_weight), hi - pixel, weights)
        # The bias is cut off, not the sum: for that LLVM 22 reads whole vectors behind x's end.
        deviation = dot(x_e, weights, first_lanes(splat(bias, LANES), hi - pixel))
        first = fma(deviation, splat(x.dtype.type(1), LANES), first)
        second = fma(deviation, deviation, second)
    return lane_sum(first), lane_sum(second)


def narrow_involution_forward(
    x: np.ndarray,
    norm: np.ndarray,
    reduce_weight: np.ndarray,
    reduce_bias: np.ndarray,
    span_weight: np.ndarray,
    span_bias: np.ndarray,
    K: int,
    dilation: int,
) -> np.ndarray:
    """The window sums of x (N, H, W, C).

    norm                         (4, 1)   mean, inv_std, gamma, beta
    reduce_weight, reduce_bias   (C, 1), (1,)
    span_weight, span_bias       (1, K * K), (K * K,)
    returns                      like x
    """
    pitch, start, size, offsets = _layout(*x.shape[1:3], K, dilation)
    y = empty(x.shape, x.dtype)
    work = empty((CHUNKS, x.shape[3], size), x.dtype)
    _forward(
        x, tuple(reduce_weight.ravel()), reduce_bias, norm.reshape(-1), span_weight.reshape(-1),
        span_bias, offsets, pitch, start, work, y,
    )  # fmt: skip
    return y


@njit(parallel=True, cache=True)
def _forward(
    x, reduce_weight, reduce_bias, norm, span_weight, span_bias, offsets, pitch, start, work, y
):
    N, H, W, C = x.shape
    for chunk in prange(CHUNKS):
        lo, hi = piece(N, chunk)
        work[chunk] = 0
        xs = work[chunk]
        weights = splat_each(reduce_weight, LANES)
        bias = splat(reduce_bias[0] - norm[0], LANES)
        scale, beta = splat(norm[2] * norm[1], LANES), splat(norm[3], LANES)
        for n in range(lo, hi):
            _lay_out(x, n, pitch, start, weights, xs)
            for i in range(H):
                for j in range(0, W, LANES):
                    e = start + i * pitch + j
                    x_e = load_planes(xs, e, weights)
                    t = relu(fma(dot(x_e, weights, bias), scale, beta))
                    total = zeros_like(x_e)
                    for k in range(span_weight.size):
                        kernel = fma(
                            t, broadcast(span_weight, k, LANES), broadcast(span_bias, k, LANES)
                        )
                        total = fma_each(kernel, load_planes(xs, e + offsets[k], weights), total)
                    store_pixels(y, ((n * H + i) * W + j) * C, W - j, total)


def narrow_involution_backward(
    dy: np.ndarray,
    x: np.ndarray,
    norm: np.ndarray,
    reduce_weight: np.ndarray,
    reduce_bias: np.ndarray,
    span_weight: np.ndarray,
    span_bias: np.ndarray,
    K: int,
    dilation: int,
    need_dx: bool,
) -> tuple[np.ndarray | None, ...]:
    """dy like x  ->  dx like x or None, dreduce_weight (C, 1), dreduce_bias, dgamma, dbeta (1,),
    dspan_weight (1, K * K), dspan_bias (K * K,).
    """
    N, H, W, C = x.shape
    pitch, start, size, offsets = _layout(H, W, K, dilation)
    dx = empty(x.shape if need_dx else (0, H, W, C), x.dtype)
    dz = empty((N, H, _whole_vectors(W)), x.dtype)
    work = empty((CHUNKS, 2 * C + 2, size), x.dtype)
    taps = offsets.size
    hidden_sums = empty((CHUNKS, 2 * taps + 2, LANES), x.dtype)
    input_sums = empty((CHUNKS, C + 1, LANES), x.dtype)
    of_hidden, of_input = np.empty(2 * taps + 2, x.dtype), np.empty(C + 1, x.dtype)
    _backward(
        dy, x, tuple(reduce_weight.ravel()), reduce_bias, norm.reshape(-1),
        span_weight.reshape(-1), span_bias, offsets, pitch, start, work, dz, dx,
        hidden_sums, input_sums, of_hidden, of_input,
    )  # fmt: skip
    dspan_weight, dspan_bias = of_hidden[: K * K], of_hidden[taps : taps + K * K]
    dgamma, dbeta = of_hidden[-2:-1], of_hidden[-1:]
    return (
        dx if need_dx else None,
        of_input[:C, None],
        of_input[C:],
        dgamma,
        dbeta,
        dspan_weight[None],
        dspan_bias,
    )


@njit(cache=True)
def _backward(
    dy, x, reduce_weight, reduce_bias, norm, span_weight, span_bias, offsets, pitch, start,
    work, dz, dx, hidden_sums, input_sums, of_hidden, of_input,
):  # fmt: skip
    """of_hidden: dspan_weight, dspan_bias, dgamma, dbeta, of_input: dreduce_weight, dreduce_bias,
    one after the other; the taps with those that fill up.
    """
    N, H, W, _ = x.shape
    span = np.zeros(2 * offsets.size, x.dtype)
    span[: span_weight.size] = span_weight
    span[offsets.size : offsets.size + span_bias.size] = span_bias
    _to_hidden(
        dy, x, reduce_weight, reduce_bias, norm, span,
        offsets, pitch, start, work, dz, dx, hidden_sums,
    )  # fmt: skip
    _add_up(hidden_sums, of_hidden)
    per_pixel = of_hidden[span.size :] / x.dtype.type(N * H * W)
    _to_input(dz, x, reduce_weight, reduce_bias, norm, per_pixel, dx, input_sums)
    _add_up(input_sums, of_input)


@njit(cache=True)
def _add_up(sums, totals):
    """Sums (CHUNKS, R, LANES) over chunks and lanes, in order: (R,)."""
    one = splat(sums.dtype.type(1), LANES)
    for row in range(totals.size):
        total = splat(sums.dtype.type(0), LANES)
        for chunk in range(CHUNKS):
            total = fma(load(sums[chunk, row], 0, LANES), one, total)
        totals[row] = lane_sum(total)


@njit(parallel=True, cache=True)
def _to_hidden(
    dy, x, reduce_weight, reduce_bias, norm, span,
    offsets, pitch, start, work, dz, dx, sums,
):  # fmt: skip
    """From dy along the kernels to dz, the gradient before the ReLU, along the windows to dx."""
    N, H, W, C = x.shape
    for chunk in prange(CHUNKS):
        lo, hi = piece(N, chunk)
        work[chunk] = 0
        sums[chunk] = 0
        xs, dys, t, dt = work[chunk, :C], work[chunk, C : 2 * C], work[chunk, -2], work[chunk, -1]
        dspan, dnorm = sums[chunk, : span.size], sums[chunk, span.size :]
        weights = splat_each(reduce_weight, LANES)
        for n in range(lo, hi):
            _lay_out(x, n, pitch, start, weights, xs)
            _lay_out(dy, n, pitch, start, weights, dys)
            _hidden(xs, weights, reduce_bias, norm, H, W, pitch, start, t)
            dt[:] = 0
            for k in range(0, offsets.size, TAPS):
                _kernel_gradients(
                    xs, dys, t, weights, span, offsets, k, H, W, pitch, start, dt, dspan
                )
            _norm_gradients(xs, t, dt, weights, reduce_bias, norm, pitch, start, dz[n], dnorm)
            if dx.size:
                _spread(dys, t, weights, span, offsets, n, pitch, start, dx)


@njit(cache=True)
def _hidden(x, weights, reduce_bias, norm, H, W, pitch, start, t):
    """t = relu(gamma * (h - mean) * inv_std + beta)."""
    bias = splat(reduce_bias[0] - norm[0], LANES)
    scale, beta = splat(norm[2] * norm[1], LANES), splat(norm[3], LANES)
    for i in range(H):
        for e in range(start + i * pitch, start + i * pitch + W, LANES):
            x_e = load_planes(x, e, weights)
            store(t, e, relu(fma(dot(x_e, weights, bias), scale, beta)))


@njit(cache=True)
def _kernel_gradients(xs, dys, t, like, span, offsets, k, H, W, pitch, start, dt, dspan):
    """What the TAPS taps from k on add to dt and, lane by lane, to dspan."""
    taps, first, second, third = offsets.size, offsets[k], offsets[k + 1], offsets[k + 2]
    zero, one = splat(xs.dtype.type(0), LANES), splat(xs.dtype.type(1), LANES)
    weight = splat_each((span[k], span[k + 1], span[k + 2]), LANES)
    dweight = load_planes(dspan[k : k + TAPS], 0, weight)
    dbias = load_planes(dspan[taps + k : taps + k + TAPS], 0, weight)
    for i in range(H):
        for e in range(start + i * pitch, start + i * pitch + W, LANES):
            dy_e = load_planes(dys, e, like)
            dkernel = beside(
                dot(dy_e, load_planes(xs, e + first, like), zero),
                dot(dy_e, load_planes(xs, e + second, like), zero),
                dot(dy_e, load_planes(xs, e + third, like), zero),
            )
            dweight = fma_each(load(t, e, LANES), dkernel, dweight)
            dbias = fma_each(one, dkernel, dbias)
            store(dt, e, dot(dkernel, weight, load(dt, e, LANES)))
    store_planes(dspan[k : k + TAPS], 0, dweight)
    store_planes(dspan[taps + k : taps + k + TAPS], 0, dbias)


@njit(cache=True)
def _norm_gradients(xs, t, dt, weights, reduce_bias, norm, pitch, start, dz, dnorm):
    """dz where the ReLU was open, and this image's part of dgamma and dbeta, lane by lane."""
    H, width = dz.shape
    zero, one = splat(xs.dtype.type(0), LANES), splat(xs.dtype.type(1), LANES)
    bias, inv_std = splat(reduce_bias[0] - norm[0], LANES), splat(norm[1], LANES)
    dgamma, dbeta = load(dnorm, 0, LANES), load(dnorm, LANES, LANES)
    for i in range(H):
        for j in range(0, width, LANES):
            e = start + i * pitch + j
            dz_e = where_positive(load(t, e, LANES), load(dt, e, LANES), zero)
            xhat = fma(dot(load_planes(xs, e, weights), weights, bias), inv_std, zero)
            dgamma = fma(dz_e, xhat, dgamma)
            dbeta = fma(dz_e, one, dbeta)
            store(dz, i * width + j, dz_e)
    store(dnorm, 0, dgamma)
    store(dnorm, LANES, dbeta)


@njit(cache=True)
def _spread(dys, t, like, span, offsets, n, pitch, start, dx):
    """The window sums' share of dx, gathered: what each tap of each neighbour gives back."""
    _, H, W, C = dx.shape
    taps = offsets.size
    for i in range(H):
        for j in range(0, W, LANES):
            total = zeros_like(like)
            for k in range(taps):
                e = start + i * pitch + j - offsets[k]
                kernel = fma(
                    load(t, e, LANES), broadcast(span, k, LANES), broadcast(span, taps + k, LANES)
                )
                total = fma_each(kernel, load_planes(dys, e, like), total)
            store_pixels(dx, ((n * H + i) * W + j) * C, W - j, total)


@njit(parallel=True, cache=True)
def _to_input(dz, x, reduce_weight, reduce_bias, norm, dnorm, dx, sums):
    """From dz through the norm to dh = gamma * inv_std * (dz - dbeta / M - xhat * dgamma / M), and
    from there to the gradients of `reduce` and to dx.
    """
    N, H, W, C = x.shape
    width = dz.shape[2]
    for chunk in prange(CHUNKS):
        lo, hi = piece(N * H, chunk)
        weights = splat_each(reduce_weight, LANES)
        one = splat(x.dtype.type(1), LANES)
        bias = splat(reduce_bias[0] - norm[0], LANES)
        scale = norm[2] * norm[1]
        of_dz = splat(scale, LANES)
        of_deviation = splat(-scale * norm[1] * dnorm[0], LANES)
        constant = splat(-scale * dnorm[1], LANES)
        dweight, dbias = zeros_like(weights), splat(x.dtype.type(0), LANES)
        for row in range(lo, hi):
            for j in range(0, W, LANES):
                pixel = (row * W + j) * C
                x_e = load_pixels(x, pixel, W - j, weights)
                dh = fma(load(dz, row * width + j, LANES), of_dz, constant)
                dh = fma(dot(x_e, weights, bias), of_deviation, dh)
                dh = first_lanes(dh, W - j)
                dweight = fma_each(dh, x_e, dweight)
                dbias = fma(dh, one, dbias)
                if dx.size:
                    dx_e = load_pixels(dx, pixel, W - j, weights)
                    store_pixels(dx, pixel, W - j, fma_each(dh, weights, dx_e))
        store_planes(sums[chunk], 0, dweight)
        store(sums[chunk, C], 0, dbias)


@njit(cache=True)
def _lay_out(x, n, pitch, start, like, planes):
    """Copy image n into planes, whose rows are pitch apart, and send for the next image."""
    _, H, W, C = x.shape
    for i in range(H):
        for j in range(0, W, LANES):
            here = ((n * H + i) * W + j) * C
            prefetch_pixels(x, here + H * W * C, like)
            store_planes(planes, start + i * pitch + j, load_pixels(x, here, W - j, like))


@lru_cache
def _layout(H: int, W: int, K: int, dilation: int) -> tuple[int, int, int, np.ndarray]:
    """Elements from row to row, before the first, in all, and from a window's centre to each tap.

    The margin between two rows serves as right padding of the one and left padding of the next.
    Rows start on a vector. Taps are filled up to a multiple of TAPS, by some that weigh nothing.
    """
    margin = dilation * (K // 2)
    pitch = _whole_vectors(W + margin)
    steps = (np.arange(K) - K // 2) * dilation
    offsets = np.zeros(-(-K * K // TAPS) * TAPS, np.int64)
    offsets[: K * K] = (steps[:, None] * pitch + steps).ravel()
    start = _whole_vectors(margin * (pitch + 1))
    return pitch, start, 2 * start + H * pitch, offsets


def _whole_vectors(count: int) -> int:
    return -(-count // LANES) * LANES
