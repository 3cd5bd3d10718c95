"""Convolution: one K x K matrix of weights, the same at every pixel.

    y[n,i,j,o] = bias[o] + sum_{u,v,c} x[n, r(i,u), s(j,v), c] * weight[u,v,c,o]

    r(i,u) = i * stride + u * dilation - top        s(j,v) = j * stride + v * dilation - left

with x = 0 outside the image, and c over the channels of o's group. As everywhere in deep
learning this is a cross-correlation: the kernel is not flipped.
Source: Dumoulin and Visin 2016, "A guide to convolution arithmetic"; LeCun et al. 1998.
"""

import numpy as np

from scratchnet.backends.reference.windows import add_tap, cut_padding, pad, tap
from scratchnet.checks import check_conv2d, check_like
from scratchnet.geometry import Padding


def conv2d_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    stride: int = 1,
    padding: Padding = "valid",
    dilation: int = 1,
) -> np.ndarray:
    """Slide one kernel over the image, as in the module's equation.

    x         (N, H, W, C)       float32 or float64
    weight    (K, K, C / G, O)   same dtype; output channel o belongs to group o // (O / G) and
                                 sees the C / G input channels of that group
    bias      (O,) or None       same dtype
    returns   (N, Ho, Wo, O)
    raises    ValueError, TypeError where shapes or dtypes do not fit
    """
    geometry = check_conv2d("conv2d", x, weight, bias, stride, padding, dilation)
    N, C = x.shape[0], x.shape[3]
    K, _, per_group, O = weight.shape
    G = C // per_group
    padded = pad(x, geometry)  # (N, H + top + bottom, W + left + right, C)
    y = np.zeros((N, geometry.Ho, geometry.Wo, G, O // G), x.dtype)
    for u in range(K):
        for v in range(K):
            window = tap(padded, u, v, geometry, stride, dilation)  # (N, Ho, Wo, C)
            grouped = window.reshape(*window.shape[:3], G, 1, per_group)
            matrix = weight[u, v].reshape(per_group, G, O // G).swapaxes(0, 1)
            y += (grouped @ matrix)[..., 0, :]
    y = y.reshape(N, geometry.Ho, geometry.Wo, O)
    return y if bias is None else y + bias


def conv2d_backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    stride: int = 1,
    padding: Padding = "valid",
    dilation: int = 1,
    need_dx: bool = True,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """The three gradients of a convolution.

    Output (i, j) met pixel (r(i,u), s(j,v)) through tap (u, v). So each tap sends dy back through
    its own matrix, and each matrix collects the pixels that it met:

        dx[n, r(i,u), s(j,v), c] += sum_o dy[n,i,j,o] * weight[u,v,c,o]
        dweight[u,v,c,o]          = sum_{n,i,j} x[n, r(i,u), s(j,v), c] * dy[n,i,j,o]
        dbias[o]                  = sum_{n,i,j} dy[n,i,j,o]

    dy (N, Ho, Wo, O)  ->  dx like x (None where need_dx is False), dweight like weight, dbias (O,)
    """
    geometry = check_conv2d("conv2d", x, weight, None, stride, padding, dilation)
    N, C = x.shape[0], x.shape[3]
    K, _, per_group, O = weight.shape
    check_like("conv2d", "dy", dy, (N, geometry.Ho, geometry.Wo, O), x.dtype)
    G = C // per_group
    padded = pad(x, geometry)
    dpadded = np.zeros_like(padded)
    dweight = np.empty_like(weight)
    grouped_dy = dy.reshape(-1, G, O // G).swapaxes(0, 1)  # (G, N * Ho * Wo, O / G)
    for u in range(K):
        for v in range(K):
            matrix = weight[u, v].reshape(per_group, G, O // G).transpose(1, 2, 0)
            dwindow = (grouped_dy @ matrix).swapaxes(0, 1)  # (N * Ho * Wo, G, C / G)
            add_tap(dpadded, dwindow.reshape(*dy.shape[:3], C), u, v, geometry, stride, dilation)
            window = tap(padded, u, v, geometry, stride, dilation)
            grouped = window.reshape(-1, G, per_group).transpose(1, 2, 0)
            dweight[u, v] = (grouped @ grouped_dy).swapaxes(0, 1).reshape(per_group, O)
    dx = cut_padding(dpadded, x.shape, geometry) if need_dx else None
    return dx, dweight, dy.sum(axis=(0, 1, 2))
