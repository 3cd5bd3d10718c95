"""Convolution, ReLU and max pooling as one operator: the block of the report's networks.

    y = maxpool2d(relu(conv2d(x, weight, bias)), size)

One after the other, still; backward spreads dy to the winners in one pass.
"""

import numpy as np
from numba import njit, prange

from scratchnet.backends.cpu.conv2d import conv2d_backward, conv2d_forward
from scratchnet.backends.cpu.maxpool2d import maxpool2d_forward
from scratchnet.backends.cpu.memory import empty
from scratchnet.backends.cpu.relu import relu_forward
from scratchnet.checks import check_conv2d
from scratchnet.geometry import Padding


def conv2d_relu_maxpool2d_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    padding: Padding,
    size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Convolve, cut off below 0, keep the largest of each size x size cell.

    x         (N, H, W, C)          float32 or float64
    weight    (K, K, C, O)          same dtype
    bias      (O,) or None          same dtype
    returns   y (N, Ho, Wo, O), argmax (N, Ho, Wo, O) uint8: the winning tap u * size + v of the
              cell, or size * size where y is 0 and the ReLU lets no gradient through
    raises    ValueError, TypeError where shapes or dtypes do not fit
    """
    z = relu_forward(conv2d_forward(x, weight, bias, 1, padding))
    y, argmax = maxpool2d_forward(z, size, size)
    argmax[~(y > 0)] = size * size
    return y, argmax


def conv2d_relu_maxpool2d_backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    argmax: np.ndarray,
    padding: Padding,
    size: int,
    need_dx: bool = True,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """The winner of each cell takes its gradient to the convolution; a closed ReLU takes none.

    dy, argmax (N, Ho, Wo, O)  ->  dx like x (None where need_dx is False), dweight, dbias
    """
    geometry = check_conv2d("conv2d_relu_maxpool2d", x, weight, None, 1, padding, 1)
    dz = empty((x.shape[0], geometry.Ho, geometry.Wo, weight.shape[3]), x.dtype)
    _spread(np.ascontiguousarray(dy), np.ascontiguousarray(argmax), size, dz)
    return conv2d_backward(dz, x, weight, 1, padding, need_dx=need_dx)


@njit(parallel=True, cache=True)
def _spread(dy, argmax, size, dz):
    """dz = dy at the winning tap of each cell, 0 elsewhere. Each image belongs to one thread."""
    N, Ho, Wo, O = dy.shape
    for n in prange(N):
        dz[n] = 0
        for i in range(Ho):
            for j in range(Wo):
                for u in range(size):
                    for v in range(size):
                        row = dz[n, i * size + u, j * size + v]
                        for o in range(O):
                            row[o] = dy[n, i, j, o] if argmax[n, i, j, o] == u * size + v else 0
