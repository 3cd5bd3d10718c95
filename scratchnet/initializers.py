"""Starting values of weights, drawn from one `numpy.random.Generator`.

    He:     normal, variance 2 / fan_in             keeps the variance of signals through ReLUs
    Glorot: uniform on +-sqrt(6 / (fan_in + fan_out))    a compromise between signals and gradients

fan_in and fan_out count how many values a unit sums, going forward and going back. Sources: He et
al. 2015, equation 10; Glorot and Bengio 2010, equation 16.
"""

import math
from collections.abc import Callable

import numpy as np

Initializer = Callable[[tuple[int, ...], np.random.Generator], np.ndarray]


def generator(rng: np.random.Generator | None) -> np.random.Generator:
    """The generator given, or an unseeded one. raises TypeError for anything else."""
    if rng is None:
        return np.random.default_rng()
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            "rng must be a numpy.random.Generator, such as numpy.random.default_rng(0), or None, "
            f"got {rng!r}"
        )
    return rng


def he_normal(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Weights before a ReLU. shape (..., in, out) as in `fans`  ->  float32 of that shape."""
    fan_in, _ = fans(shape)
    return rng.normal(0, math.sqrt(2 / fan_in), shape).astype(np.float32)


def glorot_uniform(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Weights of a layer that is roughly linear. shape as in `fans`  ->  float32 of that shape."""
    limit = math.sqrt(6 / sum(fans(shape)))
    return rng.uniform(-limit, limit, shape).astype(np.float32)


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """fan_in and fan_out of a weight (in, out) or (K, K, in, out)."""
    taps = math.prod(shape[:-2])
    return taps * shape[-2], taps * shape[-1]
