"""An involution whose kernels have one number behind them: one hidden channel and one group.

The report's involutions are of this kind. With t[e] the one hidden value of the pixel at e, its
kernel is t[e] * span_weight + span_bias, and

    y[e]  = sum_k (t[e] * span_weight[k] + span_bias[k]) * x[e + offset[k]]
    dx[e] = sum_k span_weight[k] * (dy * t)[e - offset[k]] + span_bias[k] * dy[e - offset[k]]
    dt[e] = dy[e] * sum_k span_weight[k] * x[e + offset[k]]     summed over the pixel's channels
    dspan_weight[k] = sum_e (dy * t)[e] * x[e + offset[k]]
    dspan_bias[k]   = sum_e dy[e] * x[e + offset[k]]

so no kernel is stored anywhere: a tap of it is two numbers in registers. An image is laid out as
one long padded row, channels side by side, and a pixel's h, t and dt stand there once for each
channel. Then a tap is a fixed offset, borders need no test, and even a 7 x 7 image of one channel
fills a vector. A sum over a pixel's channels is one over the 2C - 1 nearest elements, with weight 0
for those of other pixels; as C divides LANES, these weights are the same for every vector.

The threads share the images. Sums over the batch are kept for each of CHUNKS chunks of images, and
added in order. h is computed again where it is needed: that is cheaper than to fetch it. The price
is arithmetic on the padding, and some 2C - 1 where C would do.
"""

from functools import lru_cache

import numpy as np
from numba import njit, prange

from scratchnet.backends.cpu.loops import CHUNKS, piece
from scratchnet.backends.cpu.memory import empty
from scratchnet.backends.cpu.vectors import (
    fma,
    lane_sum,
    load,
    relu,
    splat,
    store,
    where_positive,
)

LANES = 48  # three AVX-512 registers of float32: sums side by side hide an fma's latency
CHANNELS = (1, 2, 3, 4)  # divisors of LANES for which 2C - 1 is not yet much


def narrow_statistics(
    x: np.ndarray, reduce_weight: np.ndarray, reduce_bias: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """mean and 1 / sqrt(variance + eps) of h = x @ reduce_weight + reduce_bias: (1,), (1,).

    x (N, H, W, C), reduce_weight (C, 1), reduce_bias (1,). As in `batchnorm`, the variance is that
    of the deviations, whose own mean is taken off.
    """
    N, H, W, C = x.shape
    reduce_weight = reduce_weight.reshape(-1)
    image = x.reshape(N, H * W * C)
    work = empty((CHUNKS, 2 * LANES + _whole_vectors(H * W * C)), x.dtype)
    partial = empty((2, CHUNKS), x.dtype)
    centre = np.zeros(1, x.dtype)
    for _ in range(2):
        _deviations(image, reduce_weight, reduce_bias, centre, work, partial)
        first, second = partial.sum(axis=1) / x.dtype.type(N * H * W * C)
        centre += first
    return centre, np.array([1 / np.sqrt(max(second - first * first, 0) + eps)], x.dtype)


@njit(parallel=True, cache=True)
def _deviations(x, reduce_weight, reduce_bias, centre, work, partial):
    """Per chunk the sums of h - centre and of its square, over all elements."""
    N, size = x.shape
    C = reduce_weight.size
    whole = size // LANES * LANES
    zero = x.dtype.type(0)
    for chunk in prange(CHUNKS):
        lo, hi = piece(N, chunk)
        work[chunk] = 0
        xs = work[chunk]
        weights = _across_channels(reduce_weight, C)
        first = second = splat(zero, LANES)
        first_rest = second_rest = zero
        for n in range(lo, hi):
            _lay_out(x[n : n + 1], xs[LANES : LANES + size].reshape(1, size))
            for e in range(LANES, LANES + size, LANES):
                h = _over_channels(xs, e, weights, reduce_bias[0], C)
                deviation = fma(h, splat(x.dtype.type(1), LANES), splat(-centre[0], LANES))
                if e < LANES + whole:
                    first = fma(deviation, splat(x.dtype.type(1), LANES), first)
                    second = fma(deviation, deviation, second)
                else:
                    store(xs, e, deviation)
                    for rest in xs[e : LANES + size]:
                        first_rest += rest
                        second_rest += rest * rest
        partial[0, chunk] = lane_sum(first) + first_rest
        partial[1, chunk] = lane_sum(second) + second_rest


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
    N, H, W, C = x.shape
    pitch, start, size, offsets = _layout(H, W, C, K, dilation)
    y = empty(x.shape, x.dtype)
    _forward(
        x.reshape(N, H, W * C),
        reduce_weight.reshape(-1),
        reduce_bias,
        norm.reshape(-1),
        span_weight.reshape(-1),
        span_bias,
        offsets,
        pitch,
        start,
        empty((CHUNKS, 3, size), x.dtype),
        y.reshape(N, H, W * C),
    )
    return y


@njit(parallel=True, cache=True)
def _forward(
    x, reduce_weight, reduce_bias, norm, span_weight, span_bias, offsets, pitch, start, work, y
):
    N, H, _ = x.shape
    C = reduce_weight.size
    stop = start + H * pitch
    for chunk in prange(CHUNKS):
        lo, hi = piece(N, chunk)
        work[chunk] = 0
        xs, ts, ys = work[chunk, 0], work[chunk, 1], work[chunk, 2]
        weights = _across_channels(reduce_weight, C)
        for n in range(lo, hi):
            _lay_out(x[n], xs[start:stop].reshape(H, pitch))
            _hidden(xs, weights, reduce_bias, C, norm, start, stop, ts)
            _window_sums(xs, ts, span_weight, span_bias, offsets, start, stop, ys)
            _lay_out(ys[start:stop].reshape(H, pitch), y[n])


@njit(cache=True)
def _hidden(x, weights, bias, C, norm, start, stop, t):
    """t = relu(gamma * (h - mean) * inv_std + beta)."""
    minus_mean = splat(-norm[0], LANES)
    scale, beta = splat(norm[2] * norm[1], LANES), splat(norm[3], LANES)
    one = splat(x.dtype.type(1), LANES)
    for e in range(start, stop, LANES):
        h = _over_channels(x, e, weights, bias[0], C)
        store(t, e, relu(fma(fma(h, one, minus_mean), scale, beta)))


@njit(cache=True)
def _window_sums(x, t, span_weight, span_bias, offsets, start, stop, y):
    for e in range(start, stop, LANES):
        t_e = load(t, e, LANES)
        total = splat(x.dtype.type(0), LANES)
        for k in range(offsets.size):
            weight = fma(t_e, splat(span_weight[k], LANES), splat(span_bias[k], LANES))
            total = fma(weight, load(x, e + offsets[k], LANES), total)
        store(y, e, total)


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
    reduce_weight, norm, span_weight = (
        array.reshape(-1) for array in (reduce_weight, norm, span_weight)
    )
    pitch, start, size, offsets = _layout(H, W, C, K, dilation)
    rows = x.reshape(N, H, W * C)
    dzs = empty((N, size), x.dtype)
    dxs = empty((N, size) if need_dx else (0, 0), x.dtype)
    work = empty((CHUNKS, 5, size), x.dtype)
    dspan = empty((CHUNKS, 2, K * K), x.dtype)
    dnorm = empty((CHUNKS, 2 * LANES), x.dtype)
    _to_hidden(
        dy.reshape(N, H, W * C), rows, reduce_weight, reduce_bias, norm, span_weight, span_bias,
        offsets, pitch, start, work, dzs, dxs, dspan, dnorm,
    )  # fmt: skip
    # Every pixel was counted once for each channel.
    dgamma, dbeta = dnorm.sum(axis=0).reshape(2, LANES).sum(axis=1, keepdims=True) / x.dtype.type(C)
    dx = empty(x.shape if need_dx else (0, H, W, C), x.dtype)
    dreduce = empty((CHUNKS, 2 * LANES), x.dtype)
    _to_input(
        dzs, dxs, rows, reduce_weight, reduce_bias, norm,
        np.concatenate([dgamma, dbeta]) / x.dtype.type(N * H * W),
        pitch, start, work, dx.reshape(-1, H, W * C), dreduce,
    )  # fmt: skip
    dweight_and_bias = dreduce.sum(axis=0).reshape(2, -1, C).sum(axis=1)
    dspan_weight, dspan_bias = dspan.sum(axis=0)
    return (
        dx if need_dx else None,
        dweight_and_bias[0][:, None],
        dweight_and_bias[1].sum(keepdims=True) / x.dtype.type(C),
        dgamma,
        dbeta,
        dspan_weight[None],
        dspan_bias,
    )


@njit(parallel=True, cache=True)
def _to_hidden(
    dy, x, reduce_weight, reduce_bias, norm, span_weight, span_bias,
    offsets, pitch, start, work, dz, dx, dspan, dnorm,
):  # fmt: skip
    """From dy along the kernels to dz, the gradient before the ReLU, along the windows to dx."""
    N, H, _ = x.shape
    C = reduce_weight.size
    stop = start + H * pitch
    for chunk in prange(CHUNKS):
        lo, hi = piece(N, chunk)
        work[chunk] = 0
        dspan[chunk] = 0
        dnorm[chunk] = 0
        xs, ts, dys = work[chunk, 0], work[chunk, 1], work[chunk, 2]
        dyts, dts = work[chunk, 3], work[chunk, 4]
        weights = _across_channels(reduce_weight, C)
        ones = _across_channels(np.ones_like(reduce_weight), C)
        for n in range(lo, hi):
            _lay_out(x[n], xs[start:stop].reshape(H, pitch))
            _lay_out(dy[n], dys[start:stop].reshape(H, pitch))
            _hidden(xs, weights, reduce_bias, C, norm, start, stop, ts)
            _kernel_gradients(xs, dys, ts, span_weight, offsets, start, stop, dyts, dts)
            _tap_gradients(xs, dys, dyts, offsets, start, stop, dspan[chunk])
            _norm_gradients(
                xs, ts, dts, weights, ones, reduce_bias, C, norm, start, stop, dz[n], dnorm[chunk]
            )
            if dx.size:
                _spread(dys, dyts, span_weight, span_bias, offsets, start, stop, dx[n])


@njit(cache=True)
def _kernel_gradients(x, dy, t, span_weight, offsets, start, stop, dyt, dt):
    """dyt = dy * t, and the part of dt from each element."""
    zero = splat(x.dtype.type(0), LANES)
    for e in range(start, stop, LANES):
        total = zero
        for k in range(offsets.size):
            total = fma(load(x, e + offsets[k], LANES), splat(span_weight[k], LANES), total)
        dy_e = load(dy, e, LANES)
        store(dt, e, fma(dy_e, total, zero))
        store(dyt, e, fma(dy_e, load(t, e, LANES), zero))


@njit(cache=True)
def _tap_gradients(x, dy, dyt, offsets, start, stop, dspan):
    """Add this image's part of dspan_weight and dspan_bias."""
    for k in range(offsets.size):
        dweight = splat(x.dtype.type(0), LANES)
        dbias = dweight
        for e in range(start, stop, LANES):
            x_k = load(x, e + offsets[k], LANES)
            dweight = fma(load(dyt, e, LANES), x_k, dweight)
            dbias = fma(load(dy, e, LANES), x_k, dbias)
        dspan[0, k] += lane_sum(dweight)
        dspan[1, k] += lane_sum(dbias)


@njit(cache=True)
def _norm_gradients(x, t, dt, weights, ones, bias, C, norm, start, stop, dz, dnorm):
    """dz where the ReLU was open, and this image's part of dgamma and dbeta, lane by lane."""
    zero, one = splat(x.dtype.type(0), LANES), splat(x.dtype.type(1), LANES)
    minus_mean, inv_std = splat(-norm[0], LANES), splat(norm[1], LANES)
    dgamma, dbeta = load(dnorm, 0, LANES), load(dnorm, LANES, LANES)
    for e in range(start, stop, LANES):
        dt_e = _over_channels(dt, e, ones, x.dtype.type(0), C)
        dz_e = where_positive(load(t, e, LANES), dt_e)
        h = _over_channels(x, e, weights, bias[0], C)
        xhat = fma(fma(h, one, minus_mean), inv_std, zero)
        dgamma = fma(dz_e, xhat, dgamma)
        dbeta = fma(dz_e, one, dbeta)
        store(dz, e, dz_e)
    store(dnorm, 0, dgamma)
    store(dnorm, LANES, dbeta)


@njit(cache=True)
def _spread(dy, dyt, span_weight, span_bias, offsets, start, stop, dx):
    """The window sums' share of dx, gathered: what each tap of each neighbour gives back."""
    for e in range(start, stop, LANES):
        total = splat(dx.dtype.type(0), LANES)
        for k in range(offsets.size):
            total = fma(load(dyt, e - offsets[k], LANES), splat(span_weight[k], LANES), total)
            total = fma(load(dy, e - offsets[k], LANES), splat(span_bias[k], LANES), total)
        store(dx, e, total)


@njit(parallel=True, cache=True)
def _to_input(dz, dxs, x, reduce_weight, reduce_bias, norm, dnorm, pitch, start, work, dx, dreduce):
    """From dz through the norm to dh, and from there to the gradients of `reduce` and to dx."""
    N, H, row = x.shape
    C = reduce_weight.size
    stop = start + H * pitch
    for chunk in prange(CHUNKS):
        lo, hi = piece(N, chunk)
        work[chunk] = 0
        dreduce[chunk] = 0
        xs, pixel = work[chunk, 0], work[chunk, 1]
        pixel[start:stop].reshape(H, pitch)[:, :row] = 1  # and 0 on the margins
        weights = _across_channels(reduce_weight, C)
        for n in range(lo, hi):
            _lay_out(x[n], xs[start:stop].reshape(H, pitch))
            _reduce_gradients(
                dz[n], xs, pixel, weights, reduce_bias, C, norm, dnorm, start, stop, dreduce[chunk]
            )
            if dx.size:
                _add_scaled(dz[n], weights[(C - 1) * LANES :], start, stop, dxs[n])
                _lay_out(dxs[n][start:stop].reshape(H, pitch), dx[n])


@njit(cache=True)
def _reduce_gradients(dz, x, pixel, weights, bias, C, norm, dnorm, start, stop, dreduce):
    """dz becomes dh = gamma * inv_std * (dz - dbeta / M - xhat * dgamma / M)."""
    zero, one = splat(x.dtype.type(0), LANES), splat(x.dtype.type(1), LANES)
    minus_mean, scale = splat(-norm[0], LANES), splat(norm[2] * norm[1], LANES)
    minus_dgamma, minus_dbeta = splat(-dnorm[0] * norm[1], LANES), splat(-dnorm[1], LANES)
    dweight, dbias = load(dreduce, 0, LANES), load(dreduce, LANES, LANES)
    for e in range(start, stop, LANES):
        h = _over_channels(x, e, weights, bias[0], C)
        dz_e = fma(load(dz, e, LANES), one, minus_dbeta)
        dz_e = fma(fma(h, one, minus_mean), minus_dgamma, dz_e)
        dh = fma(fma(dz_e, scale, zero), load(pixel, e, LANES), zero)
        dweight = fma(dh, load(x, e, LANES), dweight)
        dbias = fma(dh, one, dbias)
        store(dz, e, dh)
    store(dreduce, 0, dweight)
    store(dreduce, LANES, dbias)


@njit(cache=True)
def _add_scaled(dh, weight, start, stop, dx):
    """dx += dh * reduce_weight: the kernel's share of dx."""
    weight_e = load(weight, 0, LANES)
    for e in range(start, stop, LANES):
        store(dx, e, fma(load(dh, e, LANES), weight_e, load(dx, e, LANES)))


@njit(cache=True)
def _across_channels(weight, C):
    """For each shift d from -(C - 1) to C - 1, in LANES elements the weight of element e + d in the
    sum over the channels of e's pixel: 0 where e + d is of another pixel.
    """
    weights = np.zeros((2 * C - 1) * LANES, weight.dtype)
    for d in range(1 - C, C):
        for e in range(LANES):
            if 0 <= e % C + d < C:
                weights[(d + C - 1) * LANES + e] = weight[e % C + d]
    return weights


@njit(cache=True)
def _over_channels(x, e, weights, bias, C):
    """bias + the weighted sum over each element's pixel."""
    total = splat(bias, LANES)
    for d in range(2 * C - 1):
        total = fma(load(weights, d * LANES, LANES), load(x, e + d - C + 1, LANES), total)
    return total


@lru_cache
def _layout(H: int, W: int, C: int, K: int, dilation: int) -> tuple[int, int, int, np.ndarray]:
    """Elements from row to row, before the first, in all, and from a window's centre to each tap.

    The margin between two rows serves as right padding of the one and left padding of the next.
    """
    margin = dilation * (K // 2)
    pitch = (W + margin) * C
    steps = (np.arange(K) - K // 2) * dilation
    offsets = (steps[:, None] * pitch + steps * C).ravel()
    start = margin * (pitch + C) + C
    return pitch, start, 2 * start + _whole_vectors(H * pitch), offsets


def _whole_vectors(count: int) -> int:
    return -(-count // LANES) * LANES


@njit(cache=True)
def _lay_out(source, target):
    """Copy rows between an image and its padded row; the shorter ones say how much."""
    for i in range(source.shape[0]):
        for e in range(min(source.shape[1], target.shape[1])):
            target[i, e] = source[i, e]
