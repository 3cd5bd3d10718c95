"""The kernels of windowed self-attention: queries compared with the keys of their window.

    score[n,i,j,g,u,v] = sum_{c in g} q[n,i,j,c] * (k[n, r(i,u), s(j,v), c] + position[u,v,c])
                         / sqrt(C / G)
    kernel = softmax over the window's cells on the image

The threads share the images; an image goes group by group, laid out plane by plane as in
`window_sums`, where a vector is a run of pixels. The loops are the ones there: comparing is what
makes the gradient of an involution's kernels, and the gradients of queries and keys are window
sums, whose kernels are dscore. Gradients of the positions are kept for each image, and added in
order.
"""

import math

import numpy as np
from numba import get_num_threads, get_thread_id, njit, prange

from scratchnet.backends.cpu.memory import empty, zeros
from scratchnet.backends.cpu.products import multiply
from scratchnet.backends.cpu.vectors import (
    divide,
    exp,
    fma,
    lane_sum,
    larger,
    load,
    splat,
    store,
    where_positive,
)
from scratchnet.backends.cpu.window_sums import (
    LANES,
    kernel_gradients,
    pixel_by_pixel,
    put_group,
    take_group,
    tap_by_tap,
    tap_tables,
    window_sums,
)
from scratchnet.checks import check_attention_kernel, check_float_array, check_like


def attention_kernel_forward(
    q: np.ndarray,
    k: np.ndarray,
    position: np.ndarray | None,
    K: int,
    groups: int,
    dilation: int = 1,
) -> np.ndarray:
    """Compare each pixel's query with the keys of its window, as in the module's equations.

    q, k (N, H, W, C), position (K, K, C) or None  ->  kernel (N, H, W, G, K, K)
    raises ValueError, TypeError where shapes or dtypes do not fit
    """
    check_attention_kernel(q, k, position, K, groups, dilation)
    N, H, W, C = q.shape
    planes, taps, _, _, mask = tap_tables(H, W, K, 1, dilation, q.dtype)
    threads, channels = get_num_threads(), C // groups
    kernel = empty((N, H, W, groups, K, K), q.dtype)
    _forward(
        *_images(q, k), _rows(position, K, q), planes, planes.pitch, taps, mask,
        zeros((threads, 2, planes.numbers(channels)), q.dtype),
        empty((threads, planes.numbers(K * K)), q.dtype),
        kernel.reshape(N, H * W, groups, K * K),
    )  # fmt: skip
    return kernel


@njit(parallel=True, cache=True)
def _forward(q, k, position, planes, pitch, taps, mask, image_work, score_work, kernel):
    N, _, C = q.shape
    size, margin = planes
    G, K2 = kernel.shape[2:]
    channels = C // G
    scale = q.dtype.type(1 / math.sqrt(channels))
    for n in prange(N):
        thread = get_thread_id()
        qs, ks, score = image_work[thread, 0], image_work[thread, 1], score_work[thread]
        for g in range(G):
            take_group(q[n], g * channels, channels, qs, margin, pitch)
            take_group(k[n], g * channels, channels, ks, margin, pitch)
            kernel_gradients(qs, margin, pitch, ks, taps, pitch, mask, size, channels, score)
            multiply(
                position, g * channels, C, 1, qs, margin, pitch,
                score, margin, pitch, K2, channels, size, True,
            )  # fmt: skip
            _softmax(score, margin, pitch, mask, size, scale)
            pixel_by_pixel(score, margin, pitch, kernel[n, :, g])


@njit(cache=True)
def _softmax(score, margin, pitch, mask, size, scale):
    """Turn the planes of scores into those of kernels: 0 where the mask is, a NaN makes NaN."""
    K2 = mask.size // size
    zero, scale_p = splat(score.dtype.type(0), LANES), splat(scale, LANES)
    outside = splat(score.dtype.type(-np.inf), LANES)
    one, minus = splat(score.dtype.type(1), LANES), splat(score.dtype.type(-1), LANES)
    for p in range(0, size, LANES):
        highest, total = outside, zero
        for t in range(K2):
            first = margin + t * pitch + p
            here = fma(load(score, first, LANES), scale_p, zero)
            here = where_positive(load(mask, t * size + p, LANES), here, outside)
            store(score, first, here)
            highest = larger(here, highest)
        for t in range(K2):
            first = margin + t * pitch + p
            cell = exp(fma(highest, minus, load(score, first, LANES)))
            store(score, first, cell)
            total = fma(cell, one, total)
        share = divide(one, total)
        for t in range(K2):
            first = margin + t * pitch + p
            store(score, first, fma(load(score, first, LANES), share, zero))


def attention_kernel_backward(
    dkernel: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    position: np.ndarray | None,
    kernel: np.ndarray,
    dilation: int = 1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The gradients for queries, keys and positions, as the reference derives them.

    dkernel, kernel (N, H, W, G, K, K)  ->  dq, dk like q, dposition like position (None without)
    """
    check_float_array("attention_kernel", "kernel", kernel, "N, H, W, G, K, K")
    G, K = kernel.shape[3], kernel.shape[5]
    check_attention_kernel(q, k, position, K, G, dilation)
    check_like("attention_kernel", "kernel", kernel, (*q.shape[:3], G, K, K), q.dtype)
    check_like("attention_kernel", "dkernel", dkernel, kernel.shape, q.dtype)
    N, H, W, C = q.shape
    planes, taps, back_taps, _, _ = tap_tables(H, W, K, 1, dilation, q.dtype)
    threads, channels, by_pixel = get_num_threads(), C // G, (N, H * W, G, K * K)
    dq, dk = empty(q.shape, q.dtype), empty(q.shape, q.dtype)
    dposition = empty((0 if position is None else N, K * K, C), q.dtype)
    _backward(
        np.ascontiguousarray(dkernel).reshape(by_pixel),
        np.ascontiguousarray(kernel).reshape(by_pixel),
        *_images(q, k), _rows(position, K, q), planes, planes.pitch, taps, back_taps,
        zeros((threads, 2, planes.numbers(channels)), q.dtype),
        empty((threads, planes.numbers(channels)), q.dtype),
        zeros((threads, 2, planes.numbers(K * K)), q.dtype),
        dq.reshape(N, H * W, C), dk.reshape(N, H * W, C), dposition,
    )  # fmt: skip
    if position is None:
        return dq, dk, None
    return dq, dk, dposition.sum(axis=0).reshape(position.shape)


@njit(parallel=True, cache=True)
def _backward(
    dkernel, kernel, q, k, position, planes, pitch, taps, back_taps, image_work, result_work,
    score_work, dq, dk, dposition,
):  # fmt: skip
    N, _, C = q.shape
    size, margin = planes
    G, K2 = kernel.shape[2:]
    channels = C // G
    scale = q.dtype.type(1 / math.sqrt(channels))
    for n in prange(N):
        thread = get_thread_id()
        qs, ks, ds = image_work[thread, 0], image_work[thread, 1], result_work[thread]
        own, dscore = score_work[thread, 0], score_work[thread, 1]
        for g in range(G):
            first = g * channels
            take_group(q[n], first, channels, qs, margin, pitch)
            take_group(k[n], first, channels, ks, margin, pitch)
            tap_by_tap(kernel[n, :, g], margin, pitch, own)
            tap_by_tap(dkernel[n, :, g], margin, pitch, dscore)
            _score_gradients(own, margin, pitch, size, scale, K2, dscore)
            window_sums(dscore, ks, taps, pitch, size, channels, ds, margin, pitch)
            multiply(
                position, first, 1, C, dscore, margin, pitch,
                ds, margin, pitch, channels, K2, size, True,
            )  # fmt: skip
            put_group(ds, margin, pitch, dq[n], first, channels)
            window_sums(dscore, qs, back_taps, pitch, size, channels, ds, margin, pitch)
            put_group(ds, margin, pitch, dk[n], first, channels)
            if dposition.size:
                _position_gradients(
                    dscore, qs, margin, pitch, size, dposition[n, :, first : first + channels]
                )


@njit(cache=True)
def _score_gradients(kernel, margin, pitch, size, scale, K2, dkernel):
    """dkernel becomes dscore = kernel * (dkernel - sum over the window of dkernel * kernel)
    / sqrt(C / G), which is 0 outside the image, as the kernel is.
    """
    zero, scale_p = splat(kernel.dtype.type(0), LANES), splat(scale, LANES)
    minus = splat(kernel.dtype.type(-1), LANES)
    for p in range(margin, margin + size, LANES):
        mean = zero
        for first in range(p, p + K2 * pitch, pitch):
            mean = fma(load(dkernel, first, LANES), load(kernel, first, LANES), mean)
        for first in range(p, p + K2 * pitch, pitch):
            weight = fma(load(kernel, first, LANES), scale_p, zero)
            difference = fma(mean, minus, load(dkernel, first, LANES))
            store(dkernel, first, fma(difference, weight, zero))


@njit(cache=True)
def _position_gradients(dscore, q, margin, pitch, size, dposition):
    """dposition[t, c], the sum over the pixels of dscore[t] * q[c]."""
    for t in range(dposition.shape[0]):
        for c in range(dposition.shape[1]):
            total = splat(q.dtype.type(0), LANES)
            for p in range(margin, margin + size, LANES):
                total = fma(
                    load(dscore, t * pitch + p, LANES), load(q, c * pitch + p, LANES), total
                )
            dposition[t, c] = lane_sum(total)


def _images(q: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, H * W, C), contiguous."""
    N, H, W, C = q.shape
    return (
        np.ascontiguousarray(q).reshape(N, H * W, C),
        np.ascontiguousarray(k).reshape(N, H * W, C),
    )


def _rows(position: np.ndarray | None, K: int, q: np.ndarray) -> np.ndarray:
    """The positions (K * K * C,); without any they are 0."""
    if position is None:
        return np.zeros(K * K * q.shape[3], q.dtype)
    return np.ascontiguousarray(position).reshape(-1)
