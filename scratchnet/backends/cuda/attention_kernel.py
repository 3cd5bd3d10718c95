"""The kernels of windowed self-attention; the equations stand in `backends/reference/`.

Forward, a thread owns the K * K values of one pixel and head: it writes its scores, and comes back
over them for the softmax, which stays in its own cache lines. Backward goes in four steps:

    dscore      a thread owns one pixel and head, as forward
    dq          a thread owns one element: sum_{u,v} dscore * (key + position)
    dk          the image gradient of an involution of q with kernels dscore; see `involution.py`
    dposition   a matrix product, for each head (K * K, pixels) by (pixels, C / G), in chunks
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np

from scratchnet.backends.cuda.arrays import Array, empty, on_device
from scratchnet.backends.cuda.device import at, cuda, launch_over, numba_type
from scratchnet.backends.cuda.involution import READ, Sizes, image_gradient, sizes_of
from scratchnet.backends.cuda.matrix_product import multiply_long, stored, vector_of
from scratchnet.checks import check_attention_kernel, check_float_array, check_like


def attention_kernel_forward(
    q: Array, k: Array, position: Array | None, K: int, groups: int, dilation: int = 1
) -> Array:
    """q, k (N, H, W, C), position (K, K, C) or None  ->  kernel (N, H, W, G, K, K)."""
    q, k, position = on_device(q, k, position)
    geometry = check_attention_kernel(q, k, position, K, groups, dilation)
    sizes = sizes_of(q, groups, K, 1, dilation, geometry)
    kernel = empty((*q.shape[:3], groups, K, K), q.dtype)
    forward = _forward_kernel(numba_type(q.dtype), sizes, position is not None)
    position = q if position is None else position
    launch_over(kernel.size // K**2, forward, q, k, position, kernel)
    return kernel


def attention_kernel_backward(
    dkernel: Array,
    q: Array,
    k: Array,
    position: Array | None,
    kernel: Array,
    dilation: int = 1,
) -> tuple[Array, Array, Array | None]:
    """dkernel, kernel (N, H, W, G, K, K)  ->  dq, dk like q, dposition like position."""
    dkernel, q, k, position, kernel = on_device(dkernel, q, k, position, kernel)
    check_float_array("attention_kernel", "kernel", kernel, "N, H, W, G, K, K")
    G, K = kernel.shape[3], kernel.shape[5]
    geometry = check_attention_kernel(q, k, position, K, G, dilation)
    check_like("attention_kernel", "kernel", kernel, (*q.shape[:3], G, K, K), q.dtype)
    check_like("attention_kernel", "dkernel", dkernel, kernel.shape, q.dtype)
    sizes = sizes_of(q, G, K, 1, dilation, geometry)
    dtype = numba_type(q.dtype)
    dscore, dq = empty(kernel.shape, q.dtype), empty(q.shape, q.dtype)
    launch_over(kernel.size // K**2, _score_kernel(dtype, sizes), dkernel, kernel, dscore)
    query_kernel = _query_kernel(dtype, sizes, position is not None)
    launch_over(q.size, query_kernel, dscore, k, k if position is None else position, dq)
    dk = image_gradient(q, k.shape, sizes, READ, (dscore,))
    dposition = None
    if position is not None:
        taps, pixels = K * K, q.size // sizes.C
        per_group = sizes.C // G
        scores = stored(1, G * taps, taps, vector_of(taps))  # A[tap, pixel] of a head
        queries = stored(1, sizes.C, per_group, vector_of(per_group))  # B[pixel, c]
        (dposition,) = multiply_long(
            scores, queries, q.dtype, (dscore,), (q,), (taps,), per_group, pixels, G
        )
        dposition = dposition.reshape(K, K, sizes.C)
    return dq, dk, dposition


@lru_cache
def _forward_kernel(dtype: Any, sizes: Sizes, has_position: bool) -> Any:
    H, W, C, G, K, _, dilation, _, _ = sizes
    per_group, before = C // G, sizes.before
    zero, lowest = dtype(0), dtype(-np.inf)
    scale = dtype(1 / math.sqrt(per_group))

    @cuda.jit
    def attention_kernel(q, k, position, kernel, count):
        for e in range(cuda.grid(1), count, cuda.gridsize(1)):
            g, pixel = at(e) % G, at(e) // G
            s, r, n = at(pixel) % W, at(pixel) // W % H, at(pixel) // (W * H)
            largest = lowest
            for tap in range(K * K):
                key_r = r + tap // K * dilation - before
                key_s = s + tap % K * dilation - before
                score = lowest
                if key_r >= 0 and key_r < H and key_s >= 0 and key_s < W:
                    score = zero
                    for c in range(g * per_group, (g + 1) * per_group):
                        key = k[at(((n * H + key_r) * W + key_s) * C + c)]
                        if has_position:
                            key += position[at(tap * C + c)]
                        score += q[at(pixel * C + c)] * key
                    score *= scale
                kernel[at(e * K * K + tap)] = score
                if score > largest or score != score:
                    largest = score
            total = zero
            for tap in range(K * K):
                value = math.exp(kernel[at(e * K * K + tap)] - largest)
                kernel[at(e * K * K + tap)] = value
                total += value
            for tap in range(K * K):
                kernel[at(e * K * K + tap)] /= total

    return attention_kernel


@lru_cache
def _score_kernel(dtype: Any, sizes: Sizes) -> Any:
    taps = sizes.K**2
    zero = dtype(0)
    scale = dtype(1 / math.sqrt(sizes.C // sizes.G))

    @cuda.jit
    def attention_score_gradient(dkernel, kernel, dscore, count):
        for e in range(cuda.grid(1), count, cuda.gridsize(1)):
            mean = zero
            for tap in range(taps):
                mean += dkernel[at(e * taps + tap)] * kernel[at(e * taps + tap)]
            for tap in range(taps):
                k = at(e * taps + tap)
                dscore[k] = kernel[k] * (dkernel[k] - mean) * scale

    return attention_score_gradient


@lru_cache
def _query_kernel(dtype: Any, sizes: Sizes, has_position: bool) -> Any:
    H, W, C, G, K, _, dilation, _, _ = sizes
    per_group, before = C // G, sizes.before
    zero = dtype(0)

    @cuda.jit
    def attention_query_gradient(dscore, k, position, dq, count):
        for e in range(cuda.grid(1), count, cuda.gridsize(1)):
            c, pixel = at(e) % C, at(e) // C
            s, r, n = at(pixel) % W, at(pixel) // W % H, at(pixel) // (W * H)
            total = zero
            for tap in range(K * K):
                key_r = r + tap // K * dilation - before
                key_s = s + tap % K * dilation - before
                key = zero
                if key_r >= 0 and key_r < H and key_s >= 0 and key_s < W:
                    key = k[at(((n * H + key_r) * W + key_s) * C + c)]
                if has_position:
                    key += position[at(tap * C + c)]
                total += dscore[at((pixel * G + c // per_group) * K * K + tap)] * key
            dq[at(e)] = total

    return attention_query_gradient
