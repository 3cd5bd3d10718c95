"""Convolution: one K x K matrix of weights, the same at every pixel.

    y[n,i,j,o] = bias[o] + sum_{u,v,c} x[n, r(i,u), s(j,v), c] * weight[u,v,c,o]

    r(i,u) = i * stride + u * dilation - top        s(j,v) = j * stride + v * dilation - left

Without groups, a window of one pixel is the product of `pointwise`. For the others forward and
dweight are the direct products of `direct`, and so is dx where the stride is 1: a convolution of dy
with the kernel turned by half a turn. A kernel for each channel alone is `depthwise`. Otherwise
blocks of images become the matrix of their windows, BLOCK bytes at a time, so that memory does not
grow K * K fold with the batch, and each group is a matrix product.
"""

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
from scratchnet.backends.cpu.windows import add_windows, copy_windows
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
    x = np.ascontiguousarray(x)
    y = empty((x.shape[0], geometry.Ho, geometry.Wo, weight.shape[3]), x.dtype)
    matrices = _group_matrices(weight, x.shape[3])
    G = len(matrices)
    for images in _blocks(x, weight, geometry):
        columns = _columns(x[images], weight, geometry, stride, dilation)
        for column, matrix, out in zip(columns, matrices, _by_group(y[images], G), strict=True):
            out[...] = matmul(column, matrix)
    if bias is not None:
        y += bias
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
    K, _, per_group, O = weight.shape
    if per_group == x.shape[3] and (stride == 1 or not need_dx):
        if stride == dilation == 1 and suits(x, weight, geometry):
            dweight, dbias = winograd_correlate(x, dy, geometry)
        else:
            dweight, dbias = correlate(x, dy, K, stride, dilation, geometry)
        dx = input_gradient(dy, weight, x.shape, dilation, geometry) if need_dx else None
        return dx, dweight, dbias
    if is_depthwise(x, weight):
        return depthwise_backward(dy, x, weight, stride, dilation, geometry, need_dx)
    x, dy = np.ascontiguousarray(x), np.ascontiguousarray(dy)
    matrices = _group_matrices(weight, x.shape[3])
    G = len(matrices)
    dx = empty(x.shape, x.dtype) if need_dx else None
    dmatrices = np.zeros_like(matrices)
    for images in _blocks(x, weight, geometry):
        columns = _columns(x[images], weight, geometry, stride, dilation)
        block_dy = _by_group(dy[images], G)
        for g in range(G):
            dmatrices[g] += matmul(columns[g].T, block_dy[g])
        if need_dx:
            dcolumns = empty((*dy[images].shape[:3], G, K, K, per_group), x.dtype)
            rows = dcolumns.reshape(-1, G, K * K * per_group).swapaxes(0, 1)
            for g in range(G):
                rows[g] = matmul(block_dy[g], matrices[g].T)
            add_windows(dcolumns, stride, dilation, geometry.top, geometry.left, dx[images])
    dweight = dmatrices.reshape(G, K, K, per_group, O // G).transpose(1, 2, 3, 0, 4)
    return dx, np.ascontiguousarray(dweight).reshape(weight.shape), dy.sum(axis=(0, 1, 2))


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


def _columns(
    x: np.ndarray, weight: np.ndarray, geometry: Geometry, stride: int, dilation: int
) -> np.ndarray:
    """The windows of x as one matrix a group, (G, N * Ho * Wo, K * K * C / G)."""
    N, H, W, C = x.shape
    K, _, per_group, _ = weight.shape
    if K == stride == 1 and (geometry.Ho, geometry.Wo) == (H, W):
        return _by_group(x, C // per_group)
    columns = empty((N, geometry.Ho, geometry.Wo, C // per_group, K, K, per_group), x.dtype)
    copy_windows(x, stride, dilation, geometry.top, geometry.left, columns)
    return columns.reshape(-1, C // per_group, K * K * per_group).swapaxes(0, 1)


def _by_group(image: np.ndarray, G: int) -> np.ndarray:
    """(N, H, W, channels)  ->  (G, N * H * W, channels / G), the same memory."""
    return image.reshape(-1, G, image.shape[3] // G).swapaxes(0, 1)


def _group_matrices(weight: np.ndarray, C: int) -> np.ndarray:
    """(K, K, C / G, O)  ->  (G, K * K * C / G, O / G)."""
    K, _, per_group, O = weight.shape
    G = C // per_group
    return weight.reshape(K * K * per_group, G, O // G).swapaxes(0, 1)


def _blocks(x: np.ndarray, weight: np.ndarray, geometry: Geometry) -> list[slice]:
    """Runs of images whose windows take BLOCK bytes or less; a block has at least one image."""
    N, C = x.shape[0], x.shape[3]
    image_bytes = geometry.Ho * geometry.Wo * weight.shape[0] ** 2 * C * x.itemsize
    images = max(1, BLOCK // image_bytes)
    return [slice(first, min(first + images, N)) for first in range(0, N, images)]
