"""The helpers of a backend that computes on NumPy arrays; see HELPERS in `backends/__init__.py`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def to_device(array: np.ndarray) -> np.ndarray:
    """The array where the backend computes: it is there."""
    return array


def to_host(array: np.ndarray) -> np.ndarray:
    """The array as a NumPy array: it is one."""
    return array


def pack(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The arrays where the backend computes, side by side if that helps it."""
    return list(arrays)


def zeros_like(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Arrays of zeros, packed as `pack` does."""
    return [np.zeros_like(array) for array in arrays]


def copy_into(array: np.ndarray, source: np.ndarray) -> None:
    """Overwrite the array with a NumPy array of its shape."""
    if np.shape(source) != array.shape:
        raise ValueError(f"cannot copy shape {np.shape(source)} into {array.shape}")
    array[...] = source


def update_each(
    update: Callable,
    values: Sequence[np.ndarray],
    grads: Sequence[np.ndarray],
    memories: Sequence[Sequence[np.ndarray]],
    settings: tuple,
) -> None:
    """update(value, grad, *memory, *settings) for every parameter.

    memories are lists like values.
    """
    for value, grad, *memory in zip(values, grads, *memories, strict=True):
        update(value, grad, *memory, *settings)


def changing(draw: Callable[[], Any]) -> Any:
    """What draw() returns. Of a step that is recorded, a number to be drawn at each replay."""
    return draw()


def recorded(step: Callable) -> Callable:
    """The step, which takes and returns arrays where the backend computes, for NumPy arrays.

    A backend that saves time so may record what the step starts, and then replay that alone.
    """
    return step


def normalised(images: np.ndarray, factor: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """images * factor + offset: (N, H, W, C) of any dtype, (H * W * C,) both  ->  float32."""
    x = np.multiply(images.reshape(len(images), -1), factor, dtype=np.float32)
    if offset.any():
        x += offset
    return x.reshape(images.shape)


def inv_std_of(variance: np.ndarray, eps: float) -> np.ndarray:
    """1 / sqrt(variance + eps), of the variance's dtype."""
    return (1 / np.sqrt(variance + eps)).astype(variance.dtype)


def fold_norm(
    gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, inv_std: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """scale, shift with gamma * (x - mean) * inv_std + beta = scale * x + shift."""
    scale = gamma * inv_std
    return scale, beta - scale * mean


def update_running(
    running_mean: np.ndarray,
    running_var: np.ndarray,
    mean: np.ndarray,
    inv_std: np.ndarray,
    momentum: float,
    eps: float,
) -> None:
    """running = momentum * running + (1 - momentum) * batch, in place, for mean and variance."""
    variance = np.maximum(1 / np.square(inv_std) - eps, 0)
    for running, batch in ((running_mean, mean), (running_var, variance)):
        running *= momentum
        running += (1 - momentum) * batch


def norm_of(arrays: Sequence[np.ndarray]) -> float:
    """The root of the sum of all squares."""
    squares = sum(float(np.vdot(array, array)) for array in arrays)
    if not math.isfinite(squares):  # float32 ends at 3e38, and so do sums of squares in it
        squares = sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays)
    return math.sqrt(squares)


def scale_all(arrays: Sequence[np.ndarray], factor: float) -> None:
    """Multiply each array by the factor, in place."""
    for array in arrays:
        array *= factor


def count_correct(logits: np.ndarray, labels: np.ndarray) -> int:
    """How many rows of logits (N, classes) are largest at their label."""
    return int((logits.argmax(axis=1) == labels).sum())
