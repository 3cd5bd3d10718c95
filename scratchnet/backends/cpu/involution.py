"""Involution: a K x K kernel for every pixel, shared by the channels of a group.

    y[n,i,j,c] = sum_{u,v} kernel[n,i,j,g(c),u,v] * x[n, r(i,u), s(j,v), c]

The threads share the images; an image goes group by group. A group's pixels and kernels are first
laid out for `window_sums`, which keeps a pixel's sums in one register over all taps: a copy of what
each tap would otherwise fetch from far apart.
"""

import numpy as np
from numba import get_num_threads, get_thread_id, njit, prange

from scratchnet.backends.cpu.memory import empty
from scratchnet.backends.cpu.window_sums import (
    kernel_gradients,
    kernel_pitch,
    put_group,
    take_group,
    walks,
    whole,
    window_sums,
)
from scratchnet.checks import check_involution, check_like


def involution_forward(
    x: np.ndarray, kernel: np.ndarray, stride: int = 1, dilation: int = 1
) -> np.ndarray:
    """Sum each pixel's window with the pixel's own kernel, as in the module's equation.

    x         (N, H, W, C)            float32 or float64
    kernel    (N, Ho, Wo, G, K, K)    same dtype; Ho = ceil(H / stride), K odd, G divides C
    returns   (N, Ho, Wo, C)
    raises    ValueError, TypeError where shapes or dtypes do not fit
    """
    geometry = check_involution("involution", x, kernel, stride, dilation)
    N, H, W, C = x.shape
    Ho, Wo, (G, K) = geometry.Ho, geometry.Wo, kernel.shape[3:5]
    pitch, lanes = kernel_pitch(Ho * Wo), whole(C // G)
    rows, _, _ = walks(H, Ho, K, stride, dilation)
    columns, _, _ = walks(W, Wo, K, stride, dilation)
    work = empty((get_num_threads(), (H * W + Ho * Wo) * lanes + K * K * pitch), x.dtype)
    y = empty((N, Ho, Wo, C), x.dtype)
    _forward(
        np.ascontiguousarray(x).reshape(N, H * W, C),
        np.ascontiguousarray(kernel).reshape(N, Ho * Wo, G, K * K),
        W,
        K,
        pitch,
        lanes,
        rows,
        columns,
        work,
        y.reshape(N, Ho * Wo, C),
    )
    return y


@njit(parallel=True, cache=True)
def _forward(x, kernel, W, K, pitch, lanes, rows, columns, work, y):
    N, pixels, C = x.shape
    G = kernel.shape[2]
    for n in prange(N):
        own = work[get_thread_id()]
        xs, own = own[: pixels * lanes], own[pixels * lanes :]
        ys, taps = own[: y.shape[1] * lanes], own[y.shape[1] * lanes :]
        for g in range(G):
            take_group(x[n], g, C // G, lanes, xs)
            _tap_by_tap(kernel[n, :, g], pitch, taps)
            window_sums(xs, W, taps, pitch, K, rows, columns, lanes, False, ys)
            put_group(ys, lanes, g, C // G, y[n], False)


@njit(cache=True)
def _tap_by_tap(kernel, pitch, taps):
    for k in range(kernel.shape[1]):
        tap = taps[k * pitch : (k + 1) * pitch]
        for p in range(kernel.shape[0]):
            tap[p] = kernel[p, k]


@njit(cache=True)
def _pixel_by_pixel(taps, pitch, kernel):
    for k in range(kernel.shape[1]):
        tap = taps[k * pitch : (k + 1) * pitch]
        for p in range(kernel.shape[0]):
            kernel[p, k] = tap[p]


def involution_backward(
    dy: np.ndarray,
    x: np.ndarray,
    kernel: np.ndarray,
    stride: int = 1,
    dilation: int = 1,
    need_dx: bool = True,
) -> tuple[np.ndarray | None, np.ndarray]:
    """The gradients of an involution, for the image and for the kernels.

    Each tap is a product of two factors, and each factor's gradient is dy times the other.

    dy (N, Ho, Wo, C)  ->  dx like x (None where need_dx is False), dkernel like kernel
    """
    geometry = check_involution("involution", x, kernel, stride, dilation)
    N, H, W, C = x.shape
    Ho, Wo, (G, K) = geometry.Ho, geometry.Wo, kernel.shape[3:5]
    check_like("involution", "dy", dy, (N, Ho, Wo, C), x.dtype)
    pitch, lanes = kernel_pitch(Ho * Wo), whole(C // G)
    rows, back_rows, _ = walks(H, Ho, K, stride, dilation)
    _, back_columns, ranges = walks(W, Wo, K, stride, dilation)
    work = empty((get_num_threads(), (2 * H * W + Ho * Wo) * lanes + K * K * pitch), x.dtype)
    dx = empty(x.shape if need_dx else (N, 0, 0, C), x.dtype)
    dkernel = empty(kernel.shape, x.dtype)
    _backward(
        np.ascontiguousarray(dy).reshape(N, Ho * Wo, C),
        np.ascontiguousarray(x).reshape(N, H * W, C),
        np.ascontiguousarray(kernel).reshape(N, Ho * Wo, G, K * K),
        W, Wo, K, stride, dilation, pitch, lanes, rows, ranges, back_rows, back_columns, work,
        dx.reshape(N, -1, C),
        dkernel.reshape(N, Ho * Wo, G, K * K),
    )  # fmt: skip
    return dx if need_dx else None, dkernel


@njit(parallel=True, cache=True)
def _backward(
    dy, x, kernel, W, Wo, K, stride, dilation, pitch, lanes, rows, ranges,
    back_rows, back_columns, work, dx, dkernel,
):  # fmt: skip
    N, pixels, C = x.shape
    G = kernel.shape[2]
    for n in prange(N):
        own = work[get_thread_id()]
        xs, own = own[: pixels * lanes], own[pixels * lanes :]
        dxs, own = own[: pixels * lanes], own[pixels * lanes :]
        dys, taps = own[: dy.shape[1] * lanes], own[dy.shape[1] * lanes :]
        for g in range(G):
            take_group(x[n], g, C // G, lanes, xs)
            take_group(dy[n], g, C // G, lanes, dys)
            kernel_gradients(dys, xs, W, pitch, K, stride, dilation, rows, Wo, ranges, lanes, taps)
            _pixel_by_pixel(taps, pitch, dkernel[n, :, g])
            if dx.size:
                _tap_by_tap(kernel[n, :, g], pitch, taps)
                window_sums(dys, Wo, taps, pitch, K, back_rows, back_columns, lanes, True, dxs)
                put_group(dxs, lanes, g, C // G, dx[n], False)
