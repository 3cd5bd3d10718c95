"""Average pooling: the mean of each window's pixels, channel by channel.

    y[n,i,j,c] = sum_{u,v} x[n, i*stride + u - top, j*stride + v - left, c] / count[i,j]

count[i,j] is the number of the window's taps that lie on the image: padded cells do not count.
Source: Goodfellow et al. 2016, section 9.3.
"""

import numpy as np

from scratchnet.backends.reference.windows import add_tap, cut_padding, pad, tap
from scratchnet.checks import check_image, check_pool2d, check_shape
from scratchnet.geometry import Geometry, Padding


def avgpool2d_forward(
    x: np.ndarray, size: int, stride: int, padding: Padding = "valid"
) -> np.ndarray:
    """Average each window over the pixels it has.

    x (N, H, W, C) float32 or float64  ->  (N, Ho, Wo, C)
    raises ValueError, TypeError where the window does not fit, or x is no float image
    """
    check_image("avgpool2d", "x", x)
    geometry = check_pool2d("avgpool2d", "x", x.shape, size, stride, padding)
    padded = pad(x, geometry)
    y = np.zeros((x.shape[0], geometry.Ho, geometry.Wo, x.shape[3]), x.dtype)
    for u in range(size):
        for v in range(size):
            y += tap(padded, u, v, geometry, stride, 1)
    return y / _count(x.shape, geometry, size, stride, x.dtype)


def avgpool2d_backward(
    dy: np.ndarray,
    x_shape: tuple[int, int, int, int],
    size: int,
    stride: int,
    padding: Padding = "valid",
) -> np.ndarray:
    """Share each gradient evenly among the pixels of its window.

    dy (N, Ho, Wo, C)  ->  dx of shape x_shape
    """
    geometry = check_pool2d("avgpool2d", "x_shape", x_shape, size, stride, padding)
    y_shape = (x_shape[0], geometry.Ho, geometry.Wo, x_shape[3])
    check_shape("avgpool2d", "dy", dy, y_shape)
    share = dy / _count(x_shape, geometry, size, stride, dy.dtype)
    dpadded = pad(np.zeros(x_shape, dy.dtype), geometry)
    for u in range(size):
        for v in range(size):
            add_tap(dpadded, share, u, v, geometry, stride, 1)
    return cut_padding(dpadded, x_shape, geometry)


def _count(
    x_shape: tuple, geometry: Geometry, size: int, stride: int, dtype: np.dtype
) -> np.ndarray:
    """How many pixels each window has: (1, Ho, Wo, 1)."""
    ones = pad(np.ones((1, *x_shape[1:3], 1), dtype), geometry)
    taps = (tap(ones, u, v, geometry, stride, 1) for u in range(size) for v in range(size))
    return sum(taps)
