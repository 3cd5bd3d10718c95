"""Involution: a K x K kernel for every pixel, shared by the channels of a group.

    y[n,i,j,c] = sum_{u,v} kernel[n,i,j,g(c),u,v] * x[n, r(i,u), s(j,v), c]

    r(i,u) = i * stride + (u - K // 2) * dilation        g(c) = c // (C / G)
    s(j,v) = j * stride + (v - K // 2) * dilation

with x = 0 outside the image. Where a convolution has one matrix for every
pixel, an involution has one number for each pixel, group and tap. How the kernel is made from the
pixel is the layer's business. Source: Li et al. 2021, "Involution", equations 4 and 5 (their
ceil(kG / C), counted from 1, is our g(c)). With stride the windows are centred on every stride-th
pixel, also where the size is odd.
"""

import numpy as np

from scratchnet.backends.reference.windows import add_tap, cut_padding, pad, tap
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
    N, Ho, Wo, G, K, _ = kernel.shape
    C = x.shape[3]
    padded = pad(x, geometry)
    y = np.zeros((N, Ho, Wo, G, C // G), x.dtype)
    for u in range(K):
        for v in range(K):
            window = tap(padded, u, v, geometry, stride, dilation).reshape(y.shape)
            y += window * kernel[:, :, :, :, None, u, v]
    return y.reshape(N, Ho, Wo, C)


def involution_backward(
    dy: np.ndarray,
    x: np.ndarray,
    kernel: np.ndarray,
    stride: int = 1,
    dilation: int = 1,
    need_dx: bool = True,
) -> tuple[np.ndarray | None, np.ndarray]:
    """The gradients of an involution, for the image and for the kernels.

    Each tap is a product of two factors, and each factor's gradient is dy times the other:

        dx[n, r(i,u), s(j,v), c] += dy[n,i,j,c] * kernel[n,i,j,g(c),u,v]
        dkernel[n,i,j,g,u,v]      = sum_{c in g} dy[n,i,j,c] * x[n, r(i,u), s(j,v), c]

    dy (N, Ho, Wo, C)  ->  dx like x (None where need_dx is False), dkernel like kernel
    """
    geometry = check_involution("involution", x, kernel, stride, dilation)
    N, Ho, Wo, G, K, _ = kernel.shape
    C = x.shape[3]
    check_like("involution", "dy", dy, (N, Ho, Wo, C), x.dtype)
    padded = pad(x, geometry)
    dpadded = np.zeros_like(padded)
    dkernel = np.empty_like(kernel)
    grouped_dy = dy.reshape(N, Ho, Wo, G, C // G)
    for u in range(K):
        for v in range(K):
            window = tap(padded, u, v, geometry, stride, dilation).reshape(grouped_dy.shape)
            dkernel[..., u, v] = (grouped_dy * window).sum(axis=-1)
            dwindow = grouped_dy * kernel[:, :, :, :, None, u, v]
            add_tap(dpadded, dwindow.reshape(dy.shape), u, v, geometry, stride, dilation)
    return (cut_padding(dpadded, x.shape, geometry) if need_dx else None), dkernel
