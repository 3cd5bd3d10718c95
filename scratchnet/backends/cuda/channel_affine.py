"""A scale and a shift for each channel: y[..., c] = gamma[c] * x[..., c] + beta[c].

Forward and dx: a thread owns one element at a time. dgamma and dbeta are sums over every row, made
as batch normalisation makes its own; see `channels.py`.
"""

from scratchnet.backends.cuda.arrays import Array, empty, on_device
from scratchnet.backends.cuda.channels import sums_over_rows
from scratchnet.backends.cuda.device import at, cuda, launch_over
from scratchnet.checks import check_like, check_per_channel


def channel_affine_forward(x: Array, gamma: Array, beta: Array) -> Array:
    """x (..., C), gamma, beta (C,)  ->  like x."""
    x, gamma, beta = on_device(x, gamma, beta)
    check_per_channel("channel_affine", x, gamma=gamma, beta=beta)
    y = empty(x.shape, x.dtype)
    launch_over(x.size, _forward, x, gamma, beta, y, x.shape[-1])
    return y


def channel_affine_backward(dy: Array, x: Array, gamma: Array) -> tuple[Array, Array, Array]:
    """dy (..., C)  ->  dx like x, dgamma (C,), dbeta (C,)."""
    dy, x, gamma = on_device(dy, x, gamma)
    check_per_channel("channel_affine", x, gamma=gamma)
    check_like("channel_affine", "dy", dy, x.shape, x.dtype)
    C = x.shape[-1]
    dx = empty(x.shape, x.dtype)
    launch_over(x.size, _scale, dy, gamma, dx, C)
    dgamma, dbeta = sums_over_rows(_product_and_gradient, (dy, x), C)
    return dx, dgamma, dbeta


@cuda.jit
def _forward(x, gamma, beta, y, C, count):
    for e in range(cuda.grid(1), count, cuda.gridsize(1)):
        c = at(e) % at(C)
        y[at(e)] = gamma[c] * x[at(e)] + beta[c]


@cuda.jit
def _scale(dy, gamma, dx, C, count):
    for e in range(cuda.grid(1), count, cuda.gridsize(1)):
        dx[at(e)] = dy[at(e)] * gamma[at(e) % at(C)]


@cuda.jit(device=True)
def _product_and_gradient(arrays, extra, e, c):
    dy = arrays[0][e]
    return dy * arrays[1][e], dy
