"""Where windows sit on an image: output sizes and padding, computed here and nowhere else.

For a window of K taps, `dilation` pixels apart, that moves by `stride`:

    extent = dilation * (K - 1) + 1                      pixels from the first tap to the last
    out    = (H + before + after - extent) // stride + 1

Output i reads input row i * stride + u * dilation - before at tap u. Rows outside the image are
padding. Source: Dumoulin and Visin 2016, "A guide to convolution arithmetic", relation 6;
"same" follows TensorFlow (the odd pixel goes to the bottom right).
"""

from typing import Any, NamedTuple

import numpy as np

Padding = str | int


class Geometry(NamedTuple):
    """Output height and width, and the padding above, below, left and right, in pixels."""

    Ho: int
    Wo: int
    top: int
    bottom: int
    left: int
    right: int


def window_geometry(
    H: int, W: int, K: int, stride: int = 1, padding: Padding = "valid", dilation: int = 1
) -> Geometry:
    """Place K x K windows on an H x W image.

    padding is "valid" (none), "same" (out = ceil(H / stride)), "ceil" (the first window at the
    first pixel, the last may hang over the bottom and right edge; out = ceil(H / stride)), or the
    number of pixels on every side.

    raises ValueError where a size, stride, dilation or padding is not accepted, or where the
    window is larger than the padded image
    """
    for name, number in (("kernel size", K), ("stride", stride), ("dilation", dilation)):
        if not _is_int(number) or number < 1:
            raise ValueError(f"{name} must be a whole number (int) of at least 1, got {number!r}")
    if not (padding in ("valid", "same", "ceil") if isinstance(padding, str) else _is_int(padding)):
        raise ValueError(
            'padding must be "valid", "same", "ceil" or a whole number (int) of pixels, got '
            f"{padding!r}"
        )
    if not isinstance(padding, str) and padding < 0:
        raise ValueError(f"padding must be at least 0 pixels, got {padding}")
    extent = dilation * (K - 1) + 1
    Ho, top, bottom = _place("height", H, extent, stride, padding)
    Wo, left, right = _place("width", W, extent, stride, padding)
    return Geometry(Ho, Wo, top, bottom, left, right)


def involution_geometry(H: int, W: int, K: int, stride: int = 1, dilation: int = 1) -> Geometry:
    """Place the windows of an involution: centred on every stride-th pixel, out = ceil(H / stride).

    The padding is dilation * (K // 2) above and to the left; below and to the right it is what
    the last window needs, which for stride > 1 may be less.

    raises ValueError where K is even: such a window has no centre
    """
    if not _is_int(K) or K < 1 or K % 2 == 0:
        raise ValueError(f"the kernel size of an involution must be an odd int, got {K!r}")
    for name, number in (("stride", stride), ("dilation", dilation)):
        if not _is_int(number) or number < 1:
            raise ValueError(f"{name} must be a whole number (int) of at least 1, got {number!r}")
    before = dilation * (K // 2)
    Ho, Wo = -(-H // stride), -(-W // stride)
    return Geometry(
        Ho,
        Wo,
        before,
        max(0, (Ho - 1) * stride + before + 1 - H),
        before,
        max(0, (Wo - 1) * stride + before + 1 - W),
    )


def _place(axis: str, size: int, extent: int, stride: int, padding: Padding):
    """Output size and padding before and after, along one axis."""
    if padding == "valid":
        before = after = 0
    elif padding in ("same", "ceil"):
        out = -(-size // stride)
        total = max(0, (out - 1) * stride + extent - size)
        before = total // 2 if padding == "same" else 0
        after = total - before
    else:
        before = after = padding
    if size < 1 or size + before + after < extent:
        raise ValueError(
            f"the window spans {extent} pixels but the padded {axis} is {size + before + after}: "
            "use a smaller window or more padding"
        )
    return (size + before + after - extent) // stride + 1, before, after


def plain_int(value: Any) -> Any:
    """A NumPy integer as Python's, anything else as it is: layers take both, operators the latter.

    In NumPy's 8 bits sizes would wrap, and compiled loops know an integer by its type.
    """
    return int(value) if isinstance(value, np.integer) else value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
