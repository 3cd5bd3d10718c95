"""The kernels of windowed self-attention: compared, where an involution generates them.

    score[n,i,j,g,u,v] = sum_{c in g} q[n,i,j,c] * (k[n, r(i,u), s(j,v), c] + position[u,v,c])
                         / sqrt(C / G)
    kernel[n,i,j,g,u,v] = exp(score) / sum_{u,v} exp(score)

    r(i,u) = i + (u - K // 2) * dilation        s(j,v) = j + (v - K // 2) * dilation

Cells outside the image take no part: their kernel is 0. With the values v of the same attention,
y = involution(v, kernel): groups are its heads. Sources: Vaswani et al. 2017, equation 1;
Ramachandran et al. 2019, "Stand-Alone Self-Attention", equations 2 and 3, with one embedding per
cell of the window; Li et al. 2021, section 4.2, for attention as an involution.
"""

import math

import numpy as np

from scratchnet.backends.reference.windows import add_tap, cut_padding, pad, tap
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

    q, k       (N, H, W, C)              float32 or float64
    position   (K, K, C) or None         same dtype: relative positions, added to the keys
    K          odd                       the window's side
    groups     divides C                 the heads
    returns    kernel (N, H, W, G, K, K), its K * K values summing to 1
    raises     ValueError, TypeError where shapes or dtypes do not fit
    """
    geometry = check_attention_kernel(q, k, position, K, groups, dilation)
    N, H, W, C = q.shape
    grouped_q = q.reshape(N, H, W, groups, -1)
    keys = pad(k, geometry)
    inside = pad(np.ones((1, H, W, 1)), geometry)
    score = np.empty((N, H, W, groups, K, K), q.dtype)
    for u in range(K):
        for v in range(K):
            key = tap(keys, u, v, geometry, 1, dilation)
            if position is not None:
                key = key + position[u, v]
            score[..., u, v] = (grouped_q * key.reshape(grouped_q.shape)).sum(axis=-1)
            outside = tap(inside, u, v, geometry, 1, dilation) == 0
            score[..., u, v][np.broadcast_to(outside, score.shape[:4])] = -np.inf
    score *= 1 / math.sqrt(C // groups)
    exp = np.exp(score - score.max(axis=(4, 5), keepdims=True))
    return exp / exp.sum(axis=(4, 5), keepdims=True)


def attention_kernel_backward(
    dkernel: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    position: np.ndarray | None,
    kernel: np.ndarray,
    dilation: int = 1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The gradients for queries, keys and positions.

    A softmax takes the kernel's own mean off its gradient; the score is a product of two factors:

        dscore = kernel * (dkernel - sum_{u,v} dkernel * kernel) / sqrt(C / G)
        dq[n,i,j,c]                 = sum_{u,v} dscore * (k[n, r(i,u), s(j,v), c] + position[u,v,c])
        dk[n, r(i,u), s(j,v), c]   += dscore * q[n,i,j,c]
        dposition[u,v,c]            = sum_{n,i,j} dscore * q[n,i,j,c]

    dkernel, kernel (N, H, W, G, K, K)  ->  dq, dk like q, dposition like position (None without)
    """
    check_float_array("attention_kernel", "kernel", kernel, "N, H, W, G, K, K")
    groups, K = kernel.shape[3], kernel.shape[5]
    geometry = check_attention_kernel(q, k, position, K, groups, dilation)
    N, H, W, C = q.shape
    check_like("attention_kernel", "kernel", kernel, (N, H, W, groups, K, K), q.dtype)
    check_like("attention_kernel", "dkernel", dkernel, kernel.shape, q.dtype)
    mean = (dkernel * kernel).sum(axis=(4, 5), keepdims=True)
    dscore = kernel * (dkernel - mean) * (1 / math.sqrt(C // groups))
    grouped_q = q.reshape(N, H, W, groups, -1)
    keys = pad(k, geometry)
    dq = np.zeros_like(grouped_q)
    dkeys = np.zeros_like(keys)
    dposition = None if position is None else np.empty_like(position)
    for u in range(K):
        for v in range(K):
            key = tap(keys, u, v, geometry, 1, dilation)
            if position is not None:
                key = key + position[u, v]
            dtap = dscore[:, :, :, :, None, u, v]
            dq += dtap * key.reshape(grouped_q.shape)
            dkey = (dtap * grouped_q).reshape(q.shape)
            add_tap(dkeys, dkey, u, v, geometry, 1, dilation)
            if dposition is not None:
                dposition[u, v] = dkey.sum(axis=(0, 1, 2))
    return dq.reshape(q.shape), cut_padding(dkeys, k.shape, geometry), dposition
