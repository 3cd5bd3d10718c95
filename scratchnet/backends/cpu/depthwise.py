"""Depthwise convolution: as many groups as channels, so that each channel has a kernel of its own.

    y[n,i,j,c] = bias[c] + sum_{u,v} x[n, r(i,u), s(j,v), c] * weight[u,v,c]

No sum runs over channels, so there is no matrix product to make. Vectors lie along the channels,
which are neighbours in memory; forward keeps a window's sums of LANES channels in registers. An
image is padded once, into scratch that stays in the cache, and belongs to one thread; the windows'
gradients are added up in such scratch as well.
"""

import numpy as np
from numba import get_num_threads, get_thread_id, njit, prange

from scratchnet.backends.cpu.direct import LANES, pad_image, padded_shape
from scratchnet.backends.cpu.loops import CHUNKS, SUMS, piece
from scratchnet.backends.cpu.memory import empty, zeros
from scratchnet.backends.cpu.vectors import fma, load, store
from scratchnet.geometry import Geometry


def is_depthwise(x: np.ndarray, weight: np.ndarray) -> bool:
    """Whether each of several input channels has an output channel to itself."""
    return weight.shape[2] == 1 and weight.shape[3] == x.shape[3] > 1


def depthwise_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    stride: int,
    dilation: int,
    geometry: Geometry,
) -> np.ndarray:
    """x (N, H, W, C), weight (K, K, 1, C), bias (C,) or None  ->  (N, Ho, Wo, C)."""
    C = x.shape[3]
    y = empty((x.shape[0], geometry.Ho, geometry.Wo, C), x.dtype)
    _forward(
        np.ascontiguousarray(x), geometry.top, geometry.left,
        np.ascontiguousarray(weight[:, :, 0]),
        np.zeros(C, x.dtype) if bias is None else np.ascontiguousarray(bias),
        stride, dilation, empty((get_num_threads(), *padded_shape(x, geometry)), x.dtype), y,
    )  # fmt: skip
    return y


@njit(parallel=True, cache=True)
def _forward(x, top, left, weight, bias, stride, dilation, images, y):
    N, Ho, Wo, C = y.shape
    row = images.shape[2] * C
    weights = weight.reshape(-1)
    for n in prange(N):
        image = images[get_thread_id()]
        pad_image(x[n], top, left, image)
        pixels, out = image.reshape(-1), y[n].reshape(-1)
        for i in range(Ho):
            for j in range(Wo):
                first, to = i * stride * row + j * stride * C, (i * Wo + j) * C
                _sum_window(pixels, first, row, dilation, weights, weight.shape, bias, out, to)


@njit(cache=True)
def _sum_window(pixels, first, row, dilation, weights, shape, bias, out, to):
    """out[to : to + C] of the window that begins at pixels[first], LANES channels at a time."""
    K, _, C = shape
    for c in range(0, C - LANES + 1, LANES):
        total = load(bias, c, LANES)
        for u in range(K):
            for v in range(K):
                window = load(pixels, first + dilation * (u * row + v * C) + c, LANES)
                total = fma(window, load(weights, (u * K + v) * C + c, LANES), total)
        store(out, to + c, total)
    for c in range(C // LANES * LANES, C):
        total = bias[c]
        for u in range(K):
            for v in range(K):
                tap = pixels[first + dilation * (u * row + v * C) + c]
                total += tap * weights[(u * K + v) * C + c]
        out[to + c] = total


def depthwise_backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    stride: int,
    dilation: int,
    geometry: Geometry,
    need_dx: bool,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """dy (N, Ho, Wo, C)  ->  dx like x (None where need_dx is False), dweight, dbias (C,)."""
    K, _, _, C = weight.shape
    dx = empty(x.shape if need_dx else (0, 0, 0, 0), x.dtype)
    dweights = zeros((CHUNKS, K, K, C), x.dtype)
    dbiases = zeros((CHUNKS, C), x.dtype)
    scratch = empty((2, get_num_threads(), *padded_shape(x, geometry)), x.dtype)
    _backward(
        np.ascontiguousarray(dy), np.ascontiguousarray(x), geometry.top, geometry.left,
        np.ascontiguousarray(weight[:, :, 0]), stride, dilation, need_dx,
        scratch[0], scratch[1], dx, dweights, dbiases,
    )  # fmt: skip
    dweight = dweights.sum(axis=0).reshape(weight.shape)
    return dx if need_dx else None, dweight, dbiases.sum(axis=0)


@njit(parallel=True, cache=True, fastmath=SUMS)
def _backward(
    dy, x, top, left, weight, stride, dilation, need_dx, images, dimages, dx, dweights, dbiases
):
    """Each chunk of images belongs to one thread, with its sums."""
    N, Ho, Wo, C = dy.shape
    _, H, W, _ = x.shape
    K = weight.shape[0]
    for chunk in prange(CHUNKS):
        image, dimage = images[get_thread_id()], dimages[get_thread_id()]
        dbias = dbiases[chunk]
        lo, hi = piece(N, chunk)
        for n in range(lo, hi):
            pad_image(x[n], top, left, image)
            dimage[:] = 0
            for i in range(Ho):
                for j in range(Wo):
                    dys = dy[n, i, j]
                    for c in range(C):
                        dbias[c] += dys[c]
                    for u in range(K):
                        for v in range(K):
                            r, s = i * stride + u * dilation, j * stride + v * dilation
                            xs, dws = image[r, s], dweights[chunk, u, v]
                            for c in range(C):
                                dws[c] += xs[c] * dys[c]
                            if need_dx:
                                dxs, ws = dimage[r, s], weight[u, v]
                                for c in range(C):
                                    dxs[c] += dys[c] * ws[c]
            if need_dx:
                dx[n] = dimage[top : top + H, left : left + W]
