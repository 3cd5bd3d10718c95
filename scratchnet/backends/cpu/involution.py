"""Involution: a K x K kernel for every pixel, shared by the channels of a group.

    y[n,i,j,c] = sum_{u,v} kernel[n,i,j,g(c),u,v] * x[n, r(i,u), s(j,v), c]

The threads share the images; an image goes group by group. A group's pixels and kernels are first
laid out for `window_sums`, plane by plane, where a vector is a run of pixels: a copy of what each
tap would otherwise fetch from far apart.
"""

import numpy as np
from numba import get_num_threads, get_thread_id, njit, prange

from scratchnet.backends.cpu.memory import empty, zeros
from scratchnet.backends.cpu.window_sums import (
    join_phases,
    kernel_gradients,
    mask_kernels,
    pixel_by_pixel,
    put_group,
    split_phases,
    take_group,
    tap_by_tap,
    tap_tables,
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
    planes, taps, _, _, mask = tap_tables(H, W, K, stride, dilation, x.dtype)
    threads, channels = get_num_threads(), C // G
    y = empty((N, Ho, Wo, C), x.dtype)
    _forward(
        split_phases(x, stride),
        np.ascontiguousarray(kernel).reshape(N, Ho * Wo, G, K * K),
        planes, planes.pitch, taps, mask,
        zeros((threads, planes.numbers(K * K)), x.dtype),
        zeros((threads, planes.numbers(channels * stride**2)), x.dtype),
        empty((threads, planes.numbers(channels)), x.dtype),
        y.reshape(N, Ho * Wo, C),
    )  # fmt: skip
    return y


@njit(parallel=True, cache=True)
def _forward(x, kernel, planes, pitch, taps, mask, kernel_work, x_work, y_work, y):
    N, phases, _, C = x.shape
    size, margin = planes
    G = kernel.shape[2]
    channels = C // G
    for n in prange(N):
        thread = get_thread_id()
        own, xs, ys = kernel_work[thread], x_work[thread], y_work[thread]
        for g in range(G):
            for phase in range(phases):
                start = margin + phase * pitch
                take_group(x[n, phase], g * channels, channels, xs, start, phases * pitch)
            tap_by_tap(kernel[n, :, g], margin, pitch, own)
            mask_kernels(own, margin, pitch, mask, size)
            window_sums(own, xs, taps, phases * pitch, size, channels, ys, margin, pitch)
            put_group(ys, margin, pitch, y[n], g * channels, channels)


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
    planes, taps, back_taps, starts, mask = tap_tables(H, W, K, stride, dilation, x.dtype)
    threads, channels = get_num_threads(), C // G
    phases = split_phases(x, stride)
    dphases = empty(phases.shape if need_dx else (N, phases.shape[1], 0, C), x.dtype)
    dkernel = empty(kernel.shape, x.dtype)
    _backward(
        np.ascontiguousarray(dy).reshape(N, Ho * Wo, C),
        phases,
        np.ascontiguousarray(kernel).reshape(N, Ho * Wo, G, K * K),
        planes, planes.pitch, taps, back_taps, starts, mask,
        zeros((threads, planes.numbers(K * K)), x.dtype),
        zeros((threads, 2, planes.numbers(channels * stride**2)), x.dtype),
        zeros((threads, planes.numbers(channels)), x.dtype),
        dphases,
        dkernel.reshape(N, Ho * Wo, G, K * K),
    )  # fmt: skip
    return join_phases(dphases, stride, x.shape) if need_dx else None, dkernel


@njit(parallel=True, cache=True)
def _backward(
    dy, x, kernel, planes, pitch, taps, back_taps, starts, mask, kernel_work, x_work, y_work,
    dx, dkernel,
):  # fmt: skip
    N, phases, _, C = x.shape
    size, margin = planes
    G = kernel.shape[2]
    channels, step = C // G, phases * pitch
    for n in prange(N):
        thread = get_thread_id()
        own, xs, dxs, dys = (
            kernel_work[thread], x_work[thread, 0], x_work[thread, 1], y_work[thread],
        )  # fmt: skip
        for g in range(G):
            first = g * channels
            for phase in range(phases):
                take_group(x[n, phase], first, channels, xs, margin + phase * pitch, step)
            take_group(dy[n], first, channels, dys, margin, pitch)
            kernel_gradients(dys, margin, pitch, xs, taps, step, mask, size, channels, own)
            pixel_by_pixel(own, margin, pitch, dkernel[n, :, g])
            if dx.size:
                tap_by_tap(kernel[n, :, g], margin, pitch, own)
                mask_kernels(own, margin, pitch, mask, size)
                for phase in range(phases):
                    start, some_taps = (
                        margin + phase * pitch,
                        back_taps[starts[phase] : starts[phase + 1]],
                    )
                    window_sums(own, dys, some_taps, pitch, size, channels, dxs, start, step)
                    put_group(dxs, start, step, dx[n, phase], first, channels)
