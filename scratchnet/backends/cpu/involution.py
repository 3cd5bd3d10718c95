"""Involution: a K x K kernel for every pixel, shared by the channels of a group.

y[n,i,j,c] = sum_{u,v} kernel[n,i,j,g(c),u,v] * x[n, r(i,u), s(j,v), c]
"""

import numpy as np
from numba import njit, prange

from scratchnet.backends.cpu.loops import SUMS
from scratchnet.backends.cpu.memory import empty
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
    y = empty((x.shape[0], geometry.Ho, geometry.Wo, x.shape[3]), x.dtype)
    _forward(np.ascontiguousarray(x), np.ascontiguousarray(kernel), stride, dilation, y)
    return y


@njit(parallel=True, cache=True, fastmath=SUMS)
def _forward(x, kernel, stride, dilation, y):
    _, H, W, C = x.shape
    N, Ho, Wo, G, K, _ = kernel.shape
    for row in prange(N * Ho):
        n, i = row // Ho, row % Ho
        for j in range(Wo):
            y[n, i, j] = 0
            for u in range(K):
                r = i * stride + (u - K // 2) * dilation
                if not 0 <= r < H:
                    continue
                for v in range(K):
                    s = j * stride + (v - K // 2) * dilation
                    if not 0 <= s < W:
                        continue
                    for g in range(G):
                        weight = kernel[n, i, j, g, u, v]
                        lo, hi = g * (C // G), (g + 1) * (C // G)
                        ys, xs = y[n, i, j, lo:hi], x[n, r, s, lo:hi]
                        for c in range(xs.size):
                            ys[c] += weight * xs[c]


def involution_backward(
    dy: np.ndarray,
    x: np.ndarray,
    kernel: np.ndarray,
    stride: int = 1,
    dilation: int = 1,
    need_dx: bool = True,
) -> tuple[np.ndarray | None, np.ndarray]:
    """The gradients of an involution, for the image and for the kernels.

    dy (N, Ho, Wo, C)  ->  dx like x (None where need_dx is False), dkernel like kernel
    """
    geometry = check_involution("involution", x, kernel, stride, dilation)
    check_like("involution", "dy", dy, (x.shape[0], geometry.Ho, geometry.Wo, x.shape[3]), x.dtype)
    dx = empty(x.shape, x.dtype)
    dkernel = empty(kernel.shape, x.dtype)
    _backward(
        np.ascontiguousarray(dy),
        np.ascontiguousarray(x),
        np.ascontiguousarray(kernel),
        stride,
        dilation,
        dx,
        dkernel,
    )
    return dx if need_dx else None, dkernel


@njit(parallel=True, cache=True, fastmath=SUMS)
def _backward(dy, x, kernel, stride, dilation, dx, dkernel):
    _, H, W, C = x.shape
    N, Ho, Wo, G, K, _ = kernel.shape
    for n in prange(N):
        dx[n] = 0
        dkernel[n] = 0
        for i in range(Ho):
            for j in range(Wo):
                for u in range(K):
                    r = i * stride + (u - K // 2) * dilation
                    if not 0 <= r < H:
                        continue
                    for v in range(K):
                        s = j * stride + (v - K // 2) * dilation
                        if not 0 <= s < W:
                            continue
                        for g in range(G):
                            weight = kernel[n, i, j, g, u, v]
                            lo, hi = g * (C // G), (g + 1) * (C // G)
                            dys, xs = dy[n, i, j, lo:hi], x[n, r, s, lo:hi]
                            dxs = dx[n, r, s, lo:hi]
                            dweight = x.dtype.type(0)
                            for c in range(xs.size):
                                dxs[c] += weight * dys[c]
                                dweight += dys[c] * xs[c]
                            dkernel[n, i, j, g, u, v] = dweight
