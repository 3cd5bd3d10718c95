"""Convolution and ReLU: y = relu(conv2d(x, weight, bias)), both ways without an array in between.

Forward, the thread that owns a sum cuts it off below 0 before it writes it. Backward, the two
products read dy through the ReLU: dy[n,i,j,o] where y[n,i,j,o] > 0, else 0.
"""

from collections.abc import Callable
from functools import lru_cache

from scratchnet.backends.cuda.arrays import Array, on_device
from scratchnet.backends.cuda.conv2d import Windows, convolve, gradients, windows
from scratchnet.backends.cuda.device import ACCESS, at, cuda
from scratchnet.backends.cuda.matrix_product import vector_of
from scratchnet.checks import check_like, check_plain_conv2d
from scratchnet.geometry import Padding


def conv2d_relu_forward(
    x: Array, weight: Array, bias: Array | None, padding: Padding = "valid"
) -> Array:
    """x (N, H, W, C), weight (K, K, C, O), bias (O,) or None  ->  y (N, Ho, Wo, O)."""
    x, weight, bias = on_device(x, weight, bias)
    geometry = check_plain_conv2d("conv2d_relu", x, weight, bias, padding)
    return convolve(x, weight, bias, windows(x, weight, geometry), open_above_zero=True)


def conv2d_relu_backward(
    dy: Array, x: Array, weight: Array, y: Array, padding: Padding = "valid", need_dx: bool = True
) -> tuple[Array | None, Array, Array]:
    """dy, y (N, Ho, Wo, O)  ->  dx like x (None where need_dx is False), dweight, dbias."""
    dy, x, weight, y = on_device(dy, x, weight, y)
    geometry = check_plain_conv2d("conv2d_relu", x, weight, None, padding)
    sizes = windows(x, weight, geometry)
    check_like("conv2d_relu", "dy", dy, (x.shape[0], sizes.Ho, sizes.Wo, sizes.O), x.dtype)
    check_like("conv2d_relu", "y", y, dy.shape, x.dtype)
    return gradients((dy, y), _through_relu(sizes), x, weight, sizes, need_dx)


@lru_cache
def _through_relu(sizes: Windows) -> Callable:
    Ho, Wo, O = sizes.Ho, sizes.Wo, sizes.O
    vector = vector_of(O)
    load, _ = ACCESS[vector]

    @cuda.jit(device=True)
    def gradient(arrays, n, i, j, o, out, first):
        e = at(((n * Ho + i) * Wo + j) * O + o)
        dy, y = load(arrays[0], e), load(arrays[1], e)
        for q in range(vector):
            if y[q] > 0:
                out[first + q] = dy[q]

    return gradient
