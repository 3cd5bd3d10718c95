"""Batch normalisation: y = gamma * (x - mean) * inv_std + beta, statistics over every row.

    dgamma = sum(dy * xhat)    dbeta = sum(dy)    xhat = (x - mean) * inv_std
    dx     = gamma * inv_std * (dy - dbeta / M - xhat * dgamma / M)

Two launches for the statistics (`channels.py`), forward and backward alike, and one in which a
thread owns one element at a time: x is read twice, dy twice, and nothing else that is large.
"""

from scratchnet.backends.cuda.arrays import Array, empty, on_device
from scratchnet.backends.cuda.channels import moments, sums_over_rows
from scratchnet.backends.cuda.device import at, cuda, launch_over
from scratchnet.checks import check_like, check_number, check_per_channel


def batchnorm_forward(
    x: Array, gamma: Array, beta: Array, eps: float
) -> tuple[Array, Array, Array]:
    """x (..., C), gamma, beta (C,)  ->  y like x, mean (C,), inv_std (C,)."""
    x, gamma, beta = on_device(x, gamma, beta)
    check_per_channel("batchnorm", x, gamma=gamma, beta=beta)
    check_number("batchnorm", "eps", eps, 0, above=True)
    mean, inv_std = moments(x, eps)
    y = empty(x.shape, x.dtype)
    launch_over(x.size, _normalize, x, gamma, beta, mean, inv_std, y, x.shape[-1])
    return y, mean, inv_std


def batchnorm_backward(
    dy: Array, x: Array, gamma: Array, mean: Array, inv_std: Array
) -> tuple[Array, Array, Array]:
    """dy like x  ->  dx like x, dgamma (C,), dbeta (C,)."""
    dy, x, gamma, mean, inv_std = on_device(dy, x, gamma, mean, inv_std)
    check_per_channel("batchnorm", x, gamma=gamma, mean=mean, inv_std=inv_std)
    check_like("batchnorm", "dy", dy, x.shape, x.dtype)
    C = x.shape[-1]
    dgamma, dbeta = sums_over_rows(normalised_and_gradient, (dy, x), C, (mean, inv_std))
    dx = empty(x.shape, x.dtype)
    statistics = gamma, mean, inv_std, dgamma, dbeta
    launch_over(x.size, _gradient, dy, x, statistics, dx, x.dtype.type(x.size // C), C)
    return dx, dgamma, dbeta


@cuda.jit
def _normalize(x, gamma, beta, mean, inv_std, y, C, count):
    for e in range(cuda.grid(1), count, cuda.gridsize(1)):
        c = at(e) % at(C)
        y[at(e)] = gamma[c] * (x[at(e)] - mean[c]) * inv_std[c] + beta[c]


@cuda.jit(device=True)
def normalised_and_gradient(arrays, statistics, e, c):
    """The summands of dgamma and dbeta."""
    dy = arrays[0][e]
    return dy * (arrays[1][e] - statistics[0][c]) * statistics[1][c], dy


@cuda.jit(device=True)
def input_gradient(dy, x, statistics, M):
    """dx from statistics = (gamma, mean, inv_std, dgamma, dbeta), as in the module's equation."""
    gamma, mean, inv_std, dgamma, dbeta = statistics
    xhat = (x - mean) * inv_std
    return gamma * inv_std * (dy - dbeta / M - xhat * dgamma / M)


@cuda.jit
def _gradient(dy, x, statistics, dx, M, C, count):
    gamma, mean, inv_std, dgamma, dbeta = statistics
    for e in range(cuda.grid(1), count, cuda.gridsize(1)):
        k, c = at(e), at(e) % at(C)
        of_channel = gamma[c], mean[c], inv_std[c], dgamma[c], dbeta[c]
        dx[k] = input_gradient(dy[k], x[k], of_channel, M)
