"""Batch normalisation: each channel shifted to mean 0 and scaled to variance 1, then mapped on.

    mean[c]    = mean over all axes but the last of x
    inv_std[c] = 1 / sqrt(mean((x - mean)^2) + eps)
    y          = gamma * (x - mean) * inv_std + beta

Source: Ioffe and Szegedy 2015, Algorithm 1. In evaluation mean and variance are the running ones,
and what remains is a `channel_affine`.
"""

import numpy as np

from scratchnet.checks import check_like, check_number, check_per_channel


def batchnorm_forward(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalise each channel over the batch, as in the module's equations.

    x             (..., C)   float32 or float64
    gamma, beta   (C,)       same dtype
    eps           above 0, in units of variance
    returns       y like x, mean (C,), inv_std (C,)
    raises        ValueError, TypeError where shapes or dtypes do not fit
    """
    check_per_channel("batchnorm", x, gamma=gamma, beta=beta)
    check_number("batchnorm", "eps", eps, 0, above=True)
    axes = tuple(range(x.ndim - 1))
    # A float32 sum of 65,536 values near 1e4 puts their mean off by 3.
    mean = x.mean(axis=axes, dtype=np.float64).astype(x.dtype)
    variance = np.square(x - mean).mean(axis=axes, dtype=np.float64)
    inv_std = (1 / np.sqrt(variance + eps)).astype(x.dtype)
    return gamma * (x - mean) * inv_std + beta, mean, inv_std


def batchnorm_backward(
    dy: np.ndarray, x: np.ndarray, gamma: np.ndarray, mean: np.ndarray, inv_std: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of a batch normalisation.

    With xhat = (x - mean) * inv_std, every x reaches the loss three ways: through its own xhat,
    through the mean, and through the variance:

        dgamma = sum(dy * xhat)        dbeta = sum(dy)
        dx     = gamma * inv_std * (dy - dbeta / M - xhat * dgamma / M)

    M is the number of values in a channel. Source: Ioffe and Szegedy 2015, section 3.

    dy like x  ->  dx like x, dgamma (C,), dbeta (C,)
    """
    check_per_channel("batchnorm", x, gamma=gamma, mean=mean, inv_std=inv_std)
    check_like("batchnorm", "dy", dy, x.shape, x.dtype)
    axes = tuple(range(x.ndim - 1))
    M = x.size // x.shape[-1]
    xhat = (x - mean) * inv_std
    dgamma = (dy * xhat).sum(axis=axes)
    dbeta = dy.sum(axis=axes)
    dx = gamma * inv_std * (dy - dbeta / M - xhat * dgamma / M)
    return dx, dgamma, dbeta
