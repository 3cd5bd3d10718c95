"""An involution whose kernels have one number behind them: one hidden channel and one group.

The report's involutions are of this kind. With t[e] the one hidden value of the pixel at e, its
kernel is t[e] * span_weight + span_bias, and

    y[e]  = sum_k (t[e] * span_weight[k] + span_bias[k]) * x[e + offset[k]]
    dx[e] = sum_k span_weight[k] * (dy * t)[e - offset[k]] + span_bias[k] * dy[e - offset[k]]
    dt[e] = dy[e] * sum_k span_weight[k] * x[e + offset[k]]
    dspan_weight[k] = sum_e (dy * t)[e] * x[e + offset[k]]
    dspan_bias[k]   = sum_e dy[e] * x[e + offset[k]]

so no kernel is stored anywhere: a tap of it is two numbers in registers. An image is laid out as
one long padded row, its channels side by side and every pixel's t repeated for each of them; then
a tap is a fixed offset, borders need no test, and even a 7 x 7 image of one channel fills a vector.
The threads share the images. Sums over the batch are kept for each of CHUNKS chunks of images, and
added in order. The price is a little arithmetic on the padding.
"""

import numpy as np
from numba import njit, prange

from scratchnet.backends.cpu.loops import CHUNKS, SUMS, piece
from scratchnet.backends.cpu.memory import empty
from scratchnet.backends.cpu.vectors import fma, lane_sum, load, splat, store

LANES = 64  # four AVX-512 registers of float32: enough sums side by side to hide an fma's latency


def reduce_to_one(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """h[n,i,j] = x[n,i,j] @ weight + bias: x (N, H, W, C), weight (C,), bias (1,) -> (N, H, W)."""
    h = empty(x.shape[:3], x.dtype)
    _reduce_to_one(x, weight, bias, h)
    return h


@njit(parallel=True, cache=True, fastmath=SUMS)
def _reduce_to_one(x, weight, bias, h):
    N, H, W, C = x.shape
    for n in prange(N):
        pixels, hs = x[n].reshape(H * W, C), h[n].reshape(H * W)
        if C == 1:
            for p in range(H * W):
                hs[p] = pixels[p, 0] * weight[0] + bias[0]
        else:
            for p in range(H * W):
                total = bias[0]
                for c in range(C):
                    total += pixels[p, c] * weight[c]
                hs[p] = total


def narrow_involution_forward(
    x: np.ndarray,
    h: np.ndarray,
    norm: np.ndarray,
    span_weight: np.ndarray,
    span_bias: np.ndarray,
    K: int,
    dilation: int,
) -> np.ndarray:
    """The window sums of x (N, H, W, C), given h of `reduce_to_one`.

    norm                     (4,)       mean, inv_std, gamma, beta
    span_weight, span_bias   (K * K,)
    returns                  like x
    """
    _, H, W, C = x.shape
    pitch, start, offsets = _layout(W, C, K, dilation)
    y = empty(x.shape, x.dtype)
    work = empty((CHUNKS, 3, _row_size(H, pitch, start)), x.dtype)
    _forward(x, h, norm, span_weight, span_bias, offsets, pitch, start, work, y)
    return y


@njit(parallel=True, cache=True)
def _forward(x, h, norm, span_weight, span_bias, offsets, pitch, start, work, y):
    N, H, W, C = x.shape
    for chunk in prange(CHUNKS):
        lo, hi = piece(N, chunk)
        work[chunk] = 0
        xs, ts, ys = work[chunk]
        for n in range(lo, hi):
            _lay_out(x[n].reshape(H, W * C), xs, start, pitch)
            _hidden(h[n], norm, C, ts, start, pitch)
            _window_sums(xs, ts, span_weight, span_bias, offsets, start, start + H * pitch, ys)
            _take_in(ys, start, pitch, y[n].reshape(H, W * C))


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
    h: np.ndarray,
    norm: np.ndarray,
    reduce_weight: np.ndarray,
    span_weight: np.ndarray,
    span_bias: np.ndarray,
    K: int,
    dilation: int,
    need_dx: bool,
) -> tuple[np.ndarray | None, ...]:
    """dy like x  ->  dx like x or None, dreduce_weight (C,), dreduce_bias (1,), dgamma (1,),
    dbeta (1,), dspan_weight (K * K,), dspan_bias (K * K,).
    """
    _, H, W, C = x.shape
    pitch, start, offsets = _layout(W, C, K, dilation)
    dx = empty(x.shape if need_dx else (0, H, W, C), x.dtype)
    dz = empty(h.shape, x.dtype)
    work = empty((CHUNKS, 6, _row_size(H, pitch, start)), x.dtype)
    # What each chunk adds to dspan_weight, dspan_bias, dgamma, dbeta, dreduce_weight, dreduce_bias.
    partial = empty((CHUNKS, 2 * K * K + 3 + C), x.dtype)
    _to_hidden(dy, x, h, norm, span_weight, span_bias, offsets, pitch, start, work, dx, dz, partial)
    dnorm = partial[:, 2 * K * K : 2 * K * K + 2].sum(axis=0)
    _to_input(dz, x, h, norm, dnorm, reduce_weight, dx, partial[:, 2 * K * K + 2 :])
    total = partial.sum(axis=0)
    dspan_weight, dspan_bias, dgamma, dbeta, dreduce_weight, dreduce_bias = np.split(
        total, np.cumsum([K * K, K * K, 1, 1, C])
    )
    return (
        dx if need_dx else None,
        dreduce_weight,
        dreduce_bias,
        dgamma,
        dbeta,
        dspan_weight,
        dspan_bias,
    )


@njit(parallel=True, cache=True)
def _to_hidden(
    dy, x, h, norm, span_weight, span_bias, offsets, pitch, start, work, dx, dz, partial
):
    """From dy back to dz, the gradient before the ReLU, and along the window sum to dx."""
    N, H, W, C = x.shape
    taps = offsets.size
    for chunk in prange(CHUNKS):
        lo, hi = piece(N, chunk)
        sums = partial[chunk]
        sums[:] = 0
        work[chunk] = 0
        xs, ts, dys, dyts, sums_x, dxs = work[chunk]
        stop = start + H * pitch
        for n in range(lo, hi):
            _lay_out(x[n].reshape(H, W * C), xs, start, pitch)
            _lay_out(dy[n].reshape(H, W * C), dys, start, pitch)
            _hidden(h[n], norm, C, ts, start, pitch)
            _weigh(xs, dys, ts, span_weight, offsets, start, stop, sums_x, dyts)
            _tap_gradients(xs, dys, dyts, offsets, start, stop, sums)
            if dx.size:
                _spread(dys, dyts, span_weight, span_bias, offsets, start, stop, dxs)
                _take_in(dxs, start, pitch, dx[n].reshape(H, W * C))
            _hidden_gradient(dys, sums_x, ts, h[n], norm, C, start, pitch, dz[n], sums[2 * taps :])


@njit(cache=True)
def _weigh(x, dy, t, span_weight, offsets, start, stop, sums_x, dyt):
    """sums_x[e] = sum_k span_weight[k] * x[e + offset[k]], and dyt = dy * t."""
    zero = splat(x.dtype.type(0), LANES)
    for e in range(start, stop, LANES):
        total = zero
        for k in range(offsets.size):
            total = fma(load(x, e + offsets[k], LANES), splat(span_weight[k], LANES), total)
        store(sums_x, e, total)
        store(dyt, e, fma(load(dy, e, LANES), load(t, e, LANES), zero))


@njit(cache=True)
def _tap_gradients(x, dy, dyt, offsets, start, stop, sums):
    """Add this image's part of dspan_weight, then of dspan_bias."""
    taps = offsets.size
    for k in range(taps):
        dweight = splat(x.dtype.type(0), LANES)
        dbias = dweight
        for e in range(start, stop, LANES):
            x_k = load(x, e + offsets[k], LANES)
            dweight = fma(load(dyt, e, LANES), x_k, dweight)
            dbias = fma(load(dy, e, LANES), x_k, dbias)
        sums[k] += lane_sum(dweight)
        sums[taps + k] += lane_sum(dbias)


@njit(cache=True)
def _spread(dy, dyt, span_weight, span_bias, offsets, start, stop, dx):
    """The window sums' share of dx, gathered: what each tap of each neighbour gives back."""
    for e in range(start, stop, LANES):
        total = splat(dx.dtype.type(0), LANES)
        for k in range(offsets.size):
            total = fma(load(dyt, e - offsets[k], LANES), splat(span_weight[k], LANES), total)
            total = fma(load(dy, e - offsets[k], LANES), splat(span_bias[k], LANES), total)
        store(dx, e, total)


@njit(cache=True, fastmath=SUMS)
def _hidden_gradient(dy, sums_x, t, h, norm, C, start, pitch, dz, sums):
    """dz where the ReLU was open, and this image's part of dgamma and dbeta."""
    mean, inv_std = norm[0], norm[1]
    H, W = h.shape
    dgamma = dbeta = zero = h.dtype.type(0)
    for i in range(H):
        first = start + i * pitch
        dys, sums_xs, ts = dy[first:], sums_x[first:], t[first:]
        hs, dzs = h[i], dz[i]
        for j in range(W):
            dt = zero
            if C == 1:
                dt = dys[j] * sums_xs[j]
            else:
                for c in range(C):
                    dt += dys[j * C + c] * sums_xs[j * C + c]
            dzs[j] = dt if ts[j * C] > zero else zero
        for j in range(W):
            dgamma += dzs[j] * ((hs[j] - mean) * inv_std)
            dbeta += dzs[j]
    sums[0] += dgamma
    sums[1] += dbeta


@njit(parallel=True, cache=True, fastmath=SUMS)
def _to_input(dz, x, h, norm, dnorm, reduce_weight, dx, partial):
    """From dz through the norm to dh, and from there into dx and the gradients of `reduce`."""
    N, H, W, C = x.shape
    M = h.dtype.type(N * H * W)
    mean, inv_std, gamma = norm[0], norm[1], norm[2]
    dgamma, dbeta = dnorm[0] / M, dnorm[1] / M
    for chunk in prange(CHUNKS):
        lo, hi = piece(N, chunk)
        sums = partial[chunk]
        sums[:] = 0
        for n in range(lo, hi):
            hs, dzs, pixels = h[n].reshape(H * W), dz[n].reshape(H * W), x[n].reshape(H * W, C)
            for p in range(H * W):
                xhat = (hs[p] - mean) * inv_std
                dzs[p] = gamma * inv_std * (dzs[p] - dbeta - xhat * dgamma)  # now it is dh
            for p in range(H * W):
                sums[C] += dzs[p]
                for c in range(C):
                    sums[c] += dzs[p] * pixels[p, c]
            if dx.size:
                dpixels = dx[n].reshape(H * W, C)
                for p in range(H * W):
                    for c in range(C):
                        dpixels[p, c] += dzs[p] * reduce_weight[c]


def _layout(W: int, C: int, K: int, dilation: int) -> tuple[int, int, np.ndarray]:
    """Elements from row to row, before the first, and from a window's centre to each tap.

    The margin between two rows serves as right padding of the one and left padding of the next.
    """
    margin = dilation * (K // 2)
    pitch = (W + margin) * C
    steps = (np.arange(K) - K // 2) * dilation
    offsets = (steps[:, None] * pitch + steps * C).ravel()
    return pitch, margin * (pitch + C), offsets


def _row_size(H: int, pitch: int, start: int) -> int:
    """Elements of a padded image laid out as one row, in whole vectors."""
    return 2 * start + -(-H * pitch // LANES) * LANES


@njit(cache=True)
def _lay_out(image, padded, start, pitch):
    H, row = image.shape
    for i in range(H):
        source, target = image[i], padded[start + i * pitch :]
        for e in range(row):
            target[e] = source[e]


@njit(cache=True)
def _take_in(padded, start, pitch, image):
    H, row = image.shape
    for i in range(H):
        source, target = padded[start + i * pitch :], image[i]
        for e in range(row):
            target[e] = source[e]


@njit(cache=True)
def _hidden(h, norm, C, t, start, pitch):
    """t = relu(gamma * (h - mean) * inv_std + beta), once for each channel."""
    mean, inv_std, gamma, beta = norm[0], norm[1], norm[2], norm[3]
    scale = gamma * inv_std
    zero = t.dtype.type(0)
    H, W = h.shape
    for i in range(H):
        source, target = h[i], t[start + i * pitch :]
        for j in range(W):
            z = (source[j] - mean) * scale + beta
            value = zero if z <= zero else z
            if C == 1:
                target[j] = value
            else:
                for c in range(C):
                    target[j * C + c] = value
