"""Taps of a window: what convolution, involution and pooling share.

Tap (u, v) of all windows at once is a strided slice of the padded image. A sum over a window is
then a loop over its K x K taps with one array expression inside.
"""

import numpy as np

from scratchnet.geometry import Geometry


def pad(x: np.ndarray, geometry: Geometry, value: float = 0.0) -> np.ndarray:
    """(N, H, W, C) -> (N, H + top + bottom, W + left + right, C), filled with value."""
    margins = ((0, 0), (geometry.top, geometry.bottom), (geometry.left, geometry.right), (0, 0))
    return np.pad(x, margins, constant_values=value)


def cut_padding(padded: np.ndarray, x_shape: tuple, geometry: Geometry) -> np.ndarray:
    """The image inside the padding: the adjoint of `pad`."""
    _, H, W, _ = x_shape
    top, left = geometry.top, geometry.left
    return np.ascontiguousarray(padded[:, top : top + H, left : left + W])


def tap(
    padded: np.ndarray, u: int, v: int, geometry: Geometry, stride: int, dilation: int
) -> np.ndarray:
    """What every window sees at its tap (u, v): a view, (N, Ho, Wo, C)."""
    rows = slice(u * dilation, u * dilation + (geometry.Ho - 1) * stride + 1, stride)
    columns = slice(v * dilation, v * dilation + (geometry.Wo - 1) * stride + 1, stride)
    return padded[:, rows, columns]


def add_tap(
    dpadded: np.ndarray,
    dwindow: np.ndarray,
    u: int,
    v: int,
    geometry: Geometry,
    stride: int,
    dilation: int,
) -> None:
    """Add to each pixel what the windows return to it through tap (u, v): the adjoint of `tap`."""
    tap(dpadded, u, v, geometry, stride, dilation)[...] += dwindow
