"""A scale and a shift for each channel: what batch normalisation is in evaluation.

    y[..., c] = gamma[c] * x[..., c] + beta[c]

Source: Ioffe and Szegedy 2015, the last line of Algorithm 2.
"""

import numpy as np

from scratchnet.checks import check_like, check_per_channel


def channel_affine_forward(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Scale and shift each channel.

    x             (..., C)   float32 or float64
    gamma, beta   (C,)       same dtype
    returns       like x
    raises        ValueError, TypeError where shapes or dtypes do not fit
    """
    check_per_channel("channel_affine", x, gamma=gamma, beta=beta)
    return gamma * x + beta


def channel_affine_backward(
    dy: np.ndarray, x: np.ndarray, gamma: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy like x  ->  dx = dy * gamma like x, dgamma = sum(dy * x) (C,), dbeta = sum(dy) (C,)."""
    check_per_channel("channel_affine", x, gamma=gamma)
    check_like("channel_affine", "dy", dy, x.shape, x.dtype)
    axes = tuple(range(x.ndim - 1))
    return dy * gamma, (dy * x).sum(axis=axes), dy.sum(axis=axes)
