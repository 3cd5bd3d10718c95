"""Inverted dropout: each value is dropped with probability rate, the others scaled up.

    y[e] = x[e] / (1 - rate) where uniform(seed, e) >= rate, else 0

Element e, counted in memory order, draws its own number from a counter: nothing is stored, and
backward makes the same mask again. Sources: Srivastava et al. 2014, section 4 (scaled in training
instead of in evaluation); the numbers are SplitMix64 of Steele, Lea and Flood 2014, figure 16.
"""

import numpy as np

from scratchnet.checks import check_float_array, check_fraction


def dropout_forward(x: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """Drop values of x at random, the same ones for the same seed.

    x         any shape, float32 or float64
    rate      probability of a drop, in [0, 1)
    seed      whole number in [0, 2^64)
    returns   like x
    raises    ValueError, TypeError for another rate or dtype
    """
    check_float_array("dropout", "x", x)
    check_fraction("dropout", "rate", rate)
    keep = uniform(seed, x.size).reshape(x.shape) >= rate
    return x * keep * x.dtype.type(1 / (1 - rate))


def dropout_backward(dy: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """dy of any shape  ->  dx like dy, dropped and scaled by the mask of the same seed."""
    return dropout_forward(dy, rate, seed)


def uniform(seed: int, count: int) -> np.ndarray:
    """Numbers 0 .. count-1 of the stream `seed`: (count,) float64 in [0, 1)."""
    counter = np.arange(1, count + 1, dtype=np.uint64)
    z = np.uint64(seed) + counter * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)) * 2.0**-53
