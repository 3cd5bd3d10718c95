"""Max pooling: the largest value of each window, channel by channel.

    y[n,i,j,c]      = max_{u,v} x[n, i*stride + u - top, j*stride + v - left, c]
    argmax[n,i,j,c] = the first tap u * size + v, in reading order, that reaches it

Padded cells never win, unless all pixels of a window are -inf: then its first cell does, and where
that is padding, no pixel gets the gradient. Source: Ranzato et al. 2007; Goodfellow et al. 2016,
section 9.3.
"""

import numpy as np

from scratchnet.backends.reference.windows import add_tap, cut_padding, pad, tap
from scratchnet.checks import check_argmax, check_image, check_pool2d, check_shape
from scratchnet.geometry import Padding


def maxpool2d_forward(
    x: np.ndarray, size: int, stride: int, padding: Padding = "valid"
) -> tuple[np.ndarray, np.ndarray]:
    """Keep the largest value of each window, and which tap it came from.

    x         (N, H, W, C)     float32 or float64
    returns   y (N, Ho, Wo, C), argmax (N, Ho, Wo, C) uint8 (uint16 where size > 15)
    raises    ValueError, TypeError where the window does not fit, or x is no float image
    """
    check_image("maxpool2d", "x", x)
    geometry = check_pool2d("maxpool2d", "x", x.shape, size, stride, padding)
    padded = pad(x, geometry, -np.inf)
    y = np.full((x.shape[0], geometry.Ho, geometry.Wo, x.shape[3]), -np.inf, x.dtype)
    argmax = np.zeros(y.shape, np.uint8 if size <= 15 else np.uint16)
    for u in range(size):
        for v in range(size):
            window = tap(padded, u, v, geometry, stride, 1)
            larger = (window > y) | np.isnan(window)  # a NaN must not hide behind a number
            argmax[larger] = u * size + v
            y = np.where(larger, window, y)
    return y, argmax


def maxpool2d_backward(
    dy: np.ndarray,
    argmax: np.ndarray,
    x_shape: tuple[int, int, int, int],
    size: int,
    stride: int,
    padding: Padding = "valid",
) -> np.ndarray:
    """Send each gradient to the pixel that won; of tied pixels, to the first in reading order.

    dy (N, Ho, Wo, C), argmax likewise  ->  dx of shape x_shape; windows that overlap add up
    """
    geometry = check_pool2d("maxpool2d", "x_shape", x_shape, size, stride, padding)
    y_shape = (x_shape[0], geometry.Ho, geometry.Wo, x_shape[3])
    check_shape("maxpool2d", "dy", dy, y_shape)
    check_argmax("maxpool2d", argmax, y_shape)
    N, H, W, C = x_shape
    padded_shape = (N, H + geometry.top + geometry.bottom, W + geometry.left + geometry.right, C)
    dpadded = np.zeros(padded_shape, dy.dtype)
    for u in range(size):
        for v in range(size):
            dwindow = np.where(argmax == u * size + v, dy, 0)
            add_tap(dpadded, dwindow, u, v, geometry, stride, 1)
    return cut_padding(dpadded, x_shape, geometry)
