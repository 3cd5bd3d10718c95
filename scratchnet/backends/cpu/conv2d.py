"""Convolution: one K x K matrix of weights, the same at every pixel.

    y[n,i,j,o] = bias[o] + sum_{u,v,c} x[n, r(i,u), s(j,v), c] * weight[u,v,c,o]

    r(i,u) = i * stride + u * dilation - top        s(j,v) = j * stride + v * dilation - left

Without groups, a window of one pixel is the product of `pointwise`. For the others forward and
dweight are the direct products of `direct`, and so is dx where the stride is 1: a convolution of dy
with the kernel turned by half a turn. For a larger stride dy times the kernel is what each window
gets, a matrix that is made for BLOCK bytes of windows at a time, so that memory does not grow K * K
fold with the batch.

A kernel for each channel alone is `depthwise`. Other groups are done a few at a time, as many as
fill a tile's columns, as a convolution without groups whose weights between two groups are 0: the
products with zeros cost less than a tile that is not full. Where a number is not finite, its
product with 0 would not be 0, and groups are done one by one.
"""

from collections.abc import Iterator

import numpy as np

from scratchnet.backends.cpu.depthwise import (
    depthwise_backward,
    depthwise_forward,
    is_depthwise,
)
from scratchnet.backends.cpu.direct import convolve, correlate
from scratchnet.backends.cpu.matmul import matmul
from scratchnet.backends.cpu.memory import empty
from scratchnet.backends.cpu.pointwise import (
    is_pointwise,
    pointwise_backward,
    pointwise_forward,
)
from scratchnet.backends.cpu.tiles import COLUMNS
from scratchnet.backends.cpu.windows import add_windows
from scratchnet.backends.cpu.winograd import suits, winograd_convolve, winograd_correlate
from scratchnet.checks import check_conv2d, check_like
from scratchnet.geometry import Geometry, Padding

BLOCK = 4 << 20  # bytes of windows at a time


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
    if is_pointwise(x, weight, geometry):
        return pointwise_forward(x, weight, bias, stride, relu=False)
    if weight.shape[2] == x.shape[3]:
        if stride == dilation == 1:
            return convolve_plain(x, weight, bias, geometry, relu=False)
        return convolve(x, weight, bias, stride, dilation, geometry, relu=False)
    if is_depthwise(x, weight):
        return depthwise_forward(x, weight, bias, stride, dilation, geometry)
    y = empty((x.shape[0], geometry.Ho, geometry.Wo, weight.shape[3]), x.dtype)
    for inputs, outputs, some in _some_groups(weight, x.shape[3], _are_finite(x, weight)):
        own_bias = None if bias is None else bias[outputs]
        y[..., outputs] = conv2d_forward(
            _channels(x, inputs), some, own_bias, stride, padding, dilation
        )
    return y


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

        dx[n, r(i,u), s(j,v), c] += sum_o dy[n,i,j,o] * weight[u,v,c,o]
        dweight[u,v,c,o]          = sum_{n,i,j} x[n, r(i,u), s(j,v), c] * dy[n,i,j,o]
        dbias[o]                  = sum_{n,i,j} dy[n,i,j,o]

    dy (N, Ho, Wo, O)  ->  dx like x (None where need_dx is False), dweight like weight, dbias (O,)
    """
    geometry = check_conv2d("conv2d", x, weight, None, stride, padding, dilation)
    y_shape = (x.shape[0], geometry.Ho, geometry.Wo, weight.shape[3])
    check_like("conv2d", "dy", dy, y_shape, x.dtype)
    if is_pointwise(x, weight, geometry):
        return pointwise_backward(dy, x, weight, stride, need_dx)
    if weight.shape[2] < x.shape[3]:
        if is_depthwise(x, weight):
            return depthwise_backward(dy, x, weight, stride, dilation, geometry, need_dx)
        return _grouped_backward(dy, x, weight, stride, padding, dilation, need_dx)
    if stride == dilation == 1 and suits(x, weight, geometry):
        dweight, dbias = winograd_correlate(x, dy, geometry)
    else:
        dweight, dbias = correlate(x, dy, weight.shape[0], stride, dilation, geometry)
    dx = None
    if need_dx and stride == 1:
        dx = input_gradient(dy, weight, x.shape, dilation, geometry)
    elif need_dx:
        dx = _strided_input_gradient(dy, weight, x.shape, stride, dilation, geometry)
    return dx, dweight, dbias


def _grouped_backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    stride: int,
    padding: Padding,
    dilation: int,
    need_dx: bool,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """What `conv2d_backward` returns, some groups at a time."""
    C, (_, _, per_group, O) = x.shape[3], weight.shape
    dx = empty(x.shape, x.dtype) if need_dx else None
    dweight, dbias = empty(weight.shape, x.dtype), empty((O,), x.dtype)
    for inputs, outputs, some in _some_groups(weight, C, _are_finite(dy, x, weight)):
        some_dx, some_dweight, dbias[outputs] = conv2d_backward(
            _channels(dy, outputs), _channels(x, inputs), some, stride, padding, dilation, need_dx
        )
        if need_dx:
            dx[..., inputs] = some_dx
        own = dweight[..., outputs]
        for rows, columns in _diagonal(some.shape, per_group):
            own[..., columns] = some_dweight[:, :, rows, columns]
    return dx, dweight, dbias


def _some_groups(
    weight: np.ndarray, C: int, several: bool
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Runs of groups: their input channels, output channels, and weights as of a single group."""
    K, _, per_group, O = weight.shape
    G = C // per_group
    together = max(1, COLUMNS[weight.itemsize] * G // O) if several else 1
    for first in range(0, G, together):
        last = min(first + together, G)
        inputs, outputs = (slice(first * n // G, last * n // G) for n in (C, O))
        own = weight[..., outputs]
        some = np.zeros((K, K, (last - first) * per_group, own.shape[3]), weight.dtype)
        for rows, columns in _diagonal(some.shape, per_group):
            some[:, :, rows, columns] = own[..., columns]
        yield inputs, outputs, some


def _diagonal(shape: tuple[int, ...], per_group: int) -> Iterator[tuple[slice, slice]]:
    """Where the groups' own weights lie in a block (K, K, C', O') of some groups."""
    _, _, C, O = shape
    width = O * per_group // C
    for g in range(C // per_group):
        yield slice(g * per_group, (g + 1) * per_group), slice(g * width, (g + 1) * width)


def _are_finite(*arrays: np.ndarray) -> bool:
    """Whether all numbers are finite; False, too, where only their sum is not."""
    with np.errstate(over="ignore", invalid="ignore"):
        return all(np.isfinite(array.sum()) for array in arrays)


def _channels(image: np.ndarray, some: slice) -> np.ndarray:
    """A copy of those channels."""
    part = image[..., some]
    copy = empty(part.shape, image.dtype)
    copy[...] = part
    return copy


def input_gradient(
    dy: np.ndarray, weight: np.ndarray, x_shape: tuple, dilation: int, geometry: Geometry
) -> np.ndarray:
    """dx for stride 1: dx[r] = sum_u dy[r + top - u * dilation] * weight[u], a convolution."""
    turned, (H, W, *padding) = turn(weight, x_shape, dilation, geometry)
    top, bottom, left, right = padding
    # Where the padding was wider than the window reaches, the outer outputs met no pixel.
    dy = dy[:, max(-top, 0) : geometry.Ho + min(bottom, 0)]
    dy = dy[:, :, max(-left, 0) : geometry.Wo + min(right, 0)]
    inverse = Geometry(H, W, *(max(pixels, 0) for pixels in padding))
    if dilation == 1:
        return convolve_plain(dy, turned, None, inverse, relu=False)
    return convolve(dy, turned, None, 1, dilation, inverse, relu=False)


def turn(
    weight: np.ndarray, x_shape: tuple, dilation: int, geometry: Geometry
) -> tuple[np.ndarray, Geometry]:
    """The kernel turned by half a turn, C and O swapped, and where it meets dy to give dx."""
    _, H, W, _ = x_shape
    reach = dilation * (weight.shape[0] - 1)
    top, left = reach - geometry.top, reach - geometry.left
    bottom, right = H + reach - geometry.Ho - top, W + reach - geometry.Wo - left
    turned = np.ascontiguousarray(weight[::-1, ::-1].swapaxes(2, 3))
    return turned, Geometry(H, W, top, bottom, left, right)


def convolve_plain(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, geometry: Geometry, relu: bool
) -> np.ndarray:
    """A convolution of stride, dilation and groups 1, in the form that is faster for its sizes."""
    if suits(x, weight, geometry):
        return winograd_convolve(x, weight, bias, geometry, relu)[0]
    return convolve(x, weight, bias, 1, 1, geometry, relu)


def _strided_input_gradient(
    dy: np.ndarray,
    weight: np.ndarray,
    x_shape: tuple,
    stride: int,
    dilation: int,
    geometry: Geometry,
) -> np.ndarray:
    """dx of x_shape for any stride: what each window gets, added up where windows overlap."""
    K, _, C, O = weight.shape
    dx = empty(x_shape, dy.dtype)
    dy, matrix = np.ascontiguousarray(dy), weight.reshape(-1, O)
    for images in _blocks(dx, weight, geometry):
        dwindows = matmul(dy[images].reshape(-1, O), matrix.T)
        dwindows = dwindows.reshape(*dy[images].shape[:3], K, K, C)
        add_windows(dwindows, stride, dilation, geometry.top, geometry.left, dx[images])
    return dx


def _blocks(x: np.ndarray, weight: np.ndarray, geometry: Geometry) -> list[slice]:
    """Runs of images whose windows take BLOCK bytes or less; a block has at least one image."""
    N, C = x.shape[0], x.shape[3]
    image_bytes = geometry.Ho * geometry.Wo * weight.shape[0] ** 2 * C * x.itemsize
    images = max(1, BLOCK // image_bytes)
    return [slice(first, min(first + images, N)) for first in range(0, N, images)]
