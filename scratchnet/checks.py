"""What each operator accepts, checked once, before any kernel is entered.

Every function raises ValueError (a wrong size or value) or TypeError (a wrong kind or dtype) that
names the operator, the argument, what came and what is accepted. Arrays are recognised by their
`ndim`, `shape` and `dtype`, so that the same checks serve arrays of a GPU.
"""

import math
import operator
from typing import Any

import numpy as np
from numpy import ndarray

from scratchnet.geometry import (
    Geometry,
    Padding,
    involution_geometry,
    window_geometry,
)

LARGEST_POOL = 255  # so that two bytes number the taps of a pooling's window, and one that is none
NOT_PLAIN = (np.ma.MaskedArray, np.matrix)  # whose operators are not those of arrays
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def check_float_array(op: str, name: str, array: Any, axes: str | None = None) -> None:
    """The array is float32 or float64 and has the named axes, such as "N, H, W, C"."""
    if not (hasattr(array, "ndim") and hasattr(array, "shape") and hasattr(array, "dtype")):
        raise TypeError(f"{op}: {name} must be an array, got {type(array).__name__}")
    if type(array) is not ndarray and isinstance(array, NOT_PLAIN):
        raise TypeError(f"{op}: {name} must be a plain array, got {type(array).__name__}")
    if array.dtype not in _FLOATS:
        raise TypeError(f"{op}: {name} must be float32 or float64, got {array.dtype}")
    if axes is not None and array.ndim != len(axes.split(", ")):
        raise ValueError(f"{op}: {name} must have shape ({axes}), got {tuple(array.shape)}")


def check_shape(op: str, name: str, array: Any, shape: tuple) -> None:
    """The array is float32 or float64 and has exactly this shape."""
    check_float_array(op, name, array)
    if tuple(array.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} must have shape {tuple(shape)}, got {tuple(array.shape)}")


def check_like(op: str, name: str, array: Any, shape: tuple, dtype: np.dtype) -> None:
    """The array has exactly this shape and dtype."""
    # What fits is told at once, as this is asked a hundred times in a training step.
    if type(array) is ndarray:
        alike = array.dtype == dtype and array.shape == shape
    else:
        found = None if isinstance(array, NOT_PLAIN) else getattr(array, "dtype", None)
        alike = found is not None and found == dtype and array.shape == shape
    if alike and dtype in _FLOATS:
        return
    check_shape(op, name, array, shape)
    if array.dtype != dtype:
        raise TypeError(f"{op}: {name} must be {dtype} like the input, got {array.dtype}")


def check_per_channel(op: str, x: Any, **arrays: Any) -> None:
    """x has channels last, and each named array is (C,) of its dtype."""
    check_float_array(op, "x", x)
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(f"{op}: x must have shape (..., C) without empty axes, got {x.shape}")
    for name, array in arrays.items():
        check_like(op, name, array, (x.shape[-1],), x.dtype)


def check_image(op: str, name: str, array: Any) -> None:
    """The array is (N, H, W, C), and no axis is empty."""
    check_float_array(op, name, array, "N, H, W, C")
    if 0 in array.shape:
        raise ValueError(f"{op}: {name} must have no empty axis, got shape {tuple(array.shape)}")


def check_conv2d(
    op: str,
    x: Any,
    weight: Any,
    bias: Any,
    stride: int,
    padding: Padding,
    dilation: int,
) -> Geometry:
    """x (N, H, W, C), weight (K, K, C / G, O), bias (O,) or None fit together; returns where."""
    check_image(op, "x", x)
    check_float_array(op, "weight", weight, "K, K, C / G, O")
    _, H, W, C = x.shape
    K, K_other, per_group, O = weight.shape
    if K != K_other or 0 in weight.shape:
        raise ValueError(
            f"{op}: weight must have shape (K, K, C / G, O) without empty axes, "
            f"got {tuple(weight.shape)}"
        )
    if C % per_group:
        raise ValueError(
            f"{op}: the input has {C} channels, weight takes {per_group} a group: "
            "the first must be a multiple of the second"
        )
    G = C // per_group
    if O % G:
        raise ValueError(f"{op}: {O} output channels are not divisible by {G} groups")
    check_like(op, "weight", weight, weight.shape, x.dtype)
    if bias is not None:
        check_like(op, "bias", bias, (O,), x.dtype)
    return _located(op, window_geometry, H, W, K, stride, padding, dilation)


def check_plain_conv2d(op: str, x: Any, weight: Any, bias: Any, padding: Padding) -> Geometry:
    """The same for the fused operators: no groups, no stride, no dilation."""
    geometry = check_conv2d(op, x, weight, bias, 1, padding, 1)
    if weight.shape[2] != x.shape[3]:
        raise ValueError(
            f"{op}: weight must take all {x.shape[3]} channels of the input, as there are no "
            f"groups, got shape {tuple(weight.shape)}"
        )
    return geometry


def check_involution(op: str, x: Any, kernel: Any, stride: int, dilation: int) -> Geometry:
    """x (N, H, W, C) and kernel (N, Ho, Wo, G, K, K) fit together; returns where windows sit."""
    check_image(op, "x", x)
    check_float_array(op, "kernel", kernel, "N, Ho, Wo, G, K, K")
    N, H, W, C = x.shape
    G, K = kernel.shape[3], kernel.shape[5]
    geometry = _located(op, involution_geometry, H, W, K, stride, dilation)
    if G < 1 or C % G:
        raise ValueError(f"{op}: {C} channels are not divisible by {G} groups")
    check_like(op, "kernel", kernel, (N, geometry.Ho, geometry.Wo, G, K, K), x.dtype)
    return geometry


def check_generated_involution(
    x: Any,
    reduce_weight: Any,
    reduce_bias: Any,
    gamma: Any,
    beta: Any,
    span_weight: Any,
    span_bias: Any,
    K: int,
    stride: int,
    dilation: int,
    mean: Any = None,
    inv_std: Any = None,
) -> Geometry:
    """The parts of a generated involution fit together; returns where its windows sit."""
    op = "generated_involution"
    check_image(op, "x", x)
    _, H, W, C = x.shape
    geometry = _located(op, involution_geometry, H, W, K, stride, dilation)
    check_float_array(op, "reduce_weight", reduce_weight, "1, 1, C, C / r")
    check_float_array(op, "span_weight", span_weight, "1, 1, C / r, G * K * K")
    hidden, taps = span_weight.shape[2:]
    check_like(op, "reduce_weight", reduce_weight, (1, 1, C, hidden), x.dtype)
    check_like(op, "span_weight", span_weight, (1, 1, hidden, taps), x.dtype)
    if taps == 0 or taps % (K * K):
        raise ValueError(f"{op}: span_weight must put out G * {K} * {K} channels, got {taps}")
    if C % (taps // (K * K)):
        raise ValueError(f"{op}: {C} channels are not divisible by {taps // (K * K)} groups")
    if reduce_bias is not None:
        check_like(op, "reduce_bias", reduce_bias, (hidden,), x.dtype)
    check_like(op, "gamma", gamma, (hidden,), x.dtype)
    check_like(op, "beta", beta, (hidden,), x.dtype)
    check_like(op, "span_bias", span_bias, (taps,), x.dtype)
    if (mean is None) != (inv_std is None):
        raise ValueError(f"{op}: mean and inv_std must be given together, or neither")
    if mean is not None:
        check_like(op, "mean", mean, (hidden,), x.dtype)
        check_like(op, "inv_std", inv_std, (hidden,), x.dtype)
    return geometry


def check_attention_kernel(
    q: Any, k: Any, position: Any, K: int, groups: int, dilation: int
) -> Geometry:
    """Queries, keys (N, H, W, C) and positions (K, K, C) or None fit; returns where windows sit."""
    op = "attention_kernel"
    check_image(op, "q", q)
    check_like(op, "k", k, q.shape, q.dtype)
    _, H, W, C = q.shape
    geometry = _located(op, involution_geometry, H, W, K, 1, dilation)
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        raise ValueError(f"{op}: groups must be a whole number (int) of at least 1, got {groups!r}")
    check_groups(op, "the channel count", C, groups)
    if position is not None:
        check_like(op, "position", position, (K, K, C), q.dtype)
    return geometry


def check_image_shape(op: str, name: str, x_shape: tuple) -> None:
    """The shape is that of images, and no axis is empty."""
    if len(x_shape) != 4 or 0 in x_shape:
        raise ValueError(
            f"{op}: {name} must have shape (N, H, W, C) without empty axes, got {tuple(x_shape)}"
        )


def check_pool2d(
    op: str, name: str, x_shape: tuple, size: int, stride: int, padding: Padding
) -> Geometry:
    """The windows fit the input and each holds at least one pixel; returns where they sit."""
    check_image_shape(op, name, x_shape)
    if isinstance(size, int) and size > LARGEST_POOL:
        raise ValueError(f"{op}: size must be at most {LARGEST_POOL}, got {size}")
    geometry = _located(op, window_geometry, x_shape[1], x_shape[2], size, stride, padding)
    if not isinstance(padding, str) and padding >= size:
        raise ValueError(
            f"{op}: padding must be smaller than the window of {size}, or a window holds no "
            f"pixel, got {padding}"
        )
    return geometry


def check_argmax(op: str, argmax: Any, shape: tuple) -> None:
    """The taps that a pooling's forward pass returned: unsigned integers, one an output."""
    if not hasattr(argmax, "dtype") or argmax.dtype.kind != "u":
        found = getattr(argmax, "dtype", type(argmax).__name__)
        raise TypeError(f"{op}: argmax must be the array that forward returned, got {found}")
    if tuple(argmax.shape) != tuple(shape):
        raise ValueError(f"{op}: argmax must have shape {shape}, got {tuple(argmax.shape)}")


def check_dense(op: str, x: Any, weight: Any, bias: Any) -> None:
    """x (..., in), weight (in, out) and bias (out,) or None fit together."""
    check_float_array(op, "x", x)
    check_float_array(op, "weight", weight, "in, out")
    if x.ndim < 2 or x.shape[-1] != weight.shape[0]:
        raise ValueError(f"{op}: x must have shape (..., {weight.shape[0]}), got {tuple(x.shape)}")
    check_like(op, "weight", weight, weight.shape, x.dtype)
    if bias is not None:
        check_like(op, "bias", bias, (weight.shape[1],), x.dtype)


def check_labels(op: str, logits: Any, labels: Any, label_smoothing: float) -> None:
    """logits (N, classes); labels (N,) whole numbers in [0, classes); smoothing in [0, 1).

    The range of labels that are on a GPU is not looked at, since that would wait for it.
    """
    check_float_array(op, "logits", logits, "N, classes")
    N, classes = logits.shape
    if N == 0 or classes == 0:
        raise ValueError(f"{op}: logits must have no empty axis, got shape {tuple(logits.shape)}")
    if not hasattr(labels, "dtype") or labels.dtype.kind not in "iu":
        found = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(f"{op}: labels must be an array of whole numbers, got {found}")
    if tuple(labels.shape) != (N,):
        raise ValueError(
            f"{op}: labels must have shape ({N},) like logits, got {tuple(labels.shape)}"
        )
    low, high = (int(labels.min()), int(labels.max())) if hasattr(labels, "min") else (0, 0)
    if low < 0 or high >= classes:
        raise ValueError(
            f"{op}: labels must lie in 0..{classes - 1}, got {low if low < 0 else high}"
        )
    check_fraction(op, "label_smoothing", label_smoothing)


def check_update(update: str, value: Any, **arrays: Any) -> None:
    """What an optimizer step reads and changes has the shape and dtype of the value."""
    check_float_array(update, "value", value)
    for name, array in arrays.items():
        check_like(update, name, array, value.shape, value.dtype)


def check_step(update: str, step: int) -> None:
    """Steps are counted from 1, where the corrections of Adam's means begin."""
    if not step >= 1:
        raise ValueError(f"{update}: step must be at least 1, got {step!r}")


def check_whole(owner: str, name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least 1, or `least`, as an int."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise ValueError(
            f"{owner}: {name} must be a whole number of at least {least}, got {value!r}"
        )
    return number


def check_number(
    owner: str, name: str, value: Any, low: float, high: float = math.inf, *, above: bool = False
) -> float:
    """A finite number in [low, high], or in (low, high] with above=True."""
    try:
        number = _is_number(value) and math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        number = False
    if not number or value < low or value > high or (above and value == low):
        bound = f"above {low}" if above else f"of at least {low}"
        upper = "" if high == math.inf else f" and at most {high}"
        raise ValueError(f"{owner}: {name} must be a number {bound}{upper}, got {value!r}")
    return float(value)


def check_fraction(owner: str, name: str, value: Any) -> float:
    """A number in [0, 1)."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{owner}: {name} must be a number in [0, 1), got {value!r}")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def check_groups(owner: str, name: str, channels: int, groups: int) -> None:
    """The channels divide into the groups."""
    if channels % groups:
        raise ValueError(f"{owner}: {name} {channels} is not divisible by {groups} groups")


def _located(op: str, place: Any, *arguments: Any) -> Geometry:
    """A geometry, its error prefixed by the operator's name."""
    try:
        return place(*arguments)
    except ValueError as error:
        raise ValueError(f"{op}: {error}") from None
