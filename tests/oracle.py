"""Convolution, involution and pooling in plain loops over single numbers, for the tests.

Independent of the package: it shares no geometry, no padding and no array expression with the
backends. An output looks at one input pixel at a time, by its coordinates; pixels off the image
are skipped. The signatures are those of the backends.
"""

import math
from collections.abc import Iterator

import numpy as np

OPERATORS = ("conv2d", "involution", "maxpool2d", "avgpool2d")


def _axis(size: int, K: int, stride: int, padding: str | int, dilation: int) -> tuple[int, int]:
    """Output size, and the coordinate of the first tap of the first window."""
    span = dilation * (K - 1) + 1
    if padding == "same":
        out = math.ceil(size / stride)
        return out, -(max((out - 1) * stride + span - size, 0) // 2)
    if padding == "ceil":
        return math.ceil(size / stride), 0
    before = 0 if padding == "valid" else padding
    first = -before
    out = 0
    while first + out * stride + span <= size + before:  # as long as the next window fits
        out += 1
    return out, first


def _taps(
    i: int, j: int, H: int, W: int, K: int, stride: int, first: tuple[int, int], dilation: int
) -> Iterator[tuple[int, int, int, int]]:
    """(u, v, r, s) for each tap (u, v) of window (i, j) whose pixel (r, s) is on the image."""
    for u in range(K):
        for v in range(K):
            r = first[0] + i * stride + u * dilation
            s = first[1] + j * stride + v * dilation
            if 0 <= r < H and 0 <= s < W:
                yield u, v, r, s


def _windows(x_shape, K, stride, padding, dilation=1):
    """(n, i, j, taps) for each window, and the output size."""
    N, H, W, _ = x_shape
    Ho, top = _axis(H, K, stride, padding, dilation)
    Wo, left = _axis(W, K, stride, padding, dilation)

    def each():
        for n in range(N):
            for i in range(Ho):
                for j in range(Wo):
                    yield n, i, j, list(_taps(i, j, H, W, K, stride, (top, left), dilation))

    return (N, Ho, Wo), each


def conv2d_forward(x, weight, bias, stride=1, padding="valid", dilation=1):
    K, _, per_group, O = weight.shape
    groups = x.shape[3] // per_group
    outer, windows = _windows(x.shape, K, stride, padding, dilation)
    y = np.zeros((*outer, O))
    for n, i, j, taps in windows():
        for o in range(O):
            group = o // (O // groups)
            total = 0.0 if bias is None else bias[o]
            for u, v, r, s in taps:
                for c in range(per_group):
                    total += x[n, r, s, group * per_group + c] * weight[u, v, c, o]
            y[n, i, j, o] = total
    return y


def conv2d_backward(dy, x, weight, stride=1, padding="valid", dilation=1):
    K, _, per_group, O = weight.shape
    groups = x.shape[3] // per_group
    _, windows = _windows(x.shape, K, stride, padding, dilation)
    dx, dweight, dbias = np.zeros(x.shape), np.zeros(weight.shape), np.zeros(O)
    for n, i, j, taps in windows():
        for o in range(O):
            group = o // (O // groups)
            dbias[o] += dy[n, i, j, o]
            for u, v, r, s in taps:
                for c in range(per_group):
                    channel = group * per_group + c
                    dx[n, r, s, channel] += dy[n, i, j, o] * weight[u, v, c, o]
                    dweight[u, v, c, o] += dy[n, i, j, o] * x[n, r, s, channel]
    return dx, dweight, dbias


def involution_forward(x, kernel, stride=1, dilation=1):
    G, K = kernel.shape[3], kernel.shape[5]
    C = x.shape[3]
    y = np.zeros((*kernel.shape[:3], C))
    for n, i, j, c, g, u, v, r, s in _involution_taps(x.shape, kernel.shape, stride, dilation):
        y[n, i, j, c] += kernel[n, i, j, g, u, v] * x[n, r, s, c]
    assert G * (C // G) == C and K % 2 == 1
    return y


def involution_backward(dy, x, kernel, stride=1, dilation=1):
    dx, dkernel = np.zeros(x.shape), np.zeros(kernel.shape)
    for n, i, j, c, g, u, v, r, s in _involution_taps(x.shape, kernel.shape, stride, dilation):
        dx[n, r, s, c] += dy[n, i, j, c] * kernel[n, i, j, g, u, v]
        dkernel[n, i, j, g, u, v] += dy[n, i, j, c] * x[n, r, s, c]
    return dx, dkernel


def _involution_taps(x_shape, kernel_shape, stride, dilation):
    """Every product of an involution, by its indices; windows are centred on (i, j) * stride."""
    _, H, W, C = x_shape
    N, Ho, Wo, G, K, _ = kernel_shape
    first = (-(K - 1) // 2 * dilation, -(K - 1) // 2 * dilation)
    for n in range(N):
        for i in range(Ho):
            for j in range(Wo):
                for u, v, r, s in _taps(i, j, H, W, K, stride, first, dilation):
                    for c in range(C):
                        yield n, i, j, c, c * G // C, u, v, r, s


def maxpool2d_forward(x, size, stride, padding="valid"):
    outer, windows = _windows(x.shape, size, stride, padding)
    y = np.zeros((*outer, x.shape[3]))
    argmax = np.zeros(y.shape, np.uint8 if size < 16 else np.uint16)
    for n, i, j, taps in windows():
        for c in range(x.shape[3]):
            best = max(x[n, r, s, c] for _, _, r, s in taps)
            first = next((u, v) for u, v, r, s in taps if x[n, r, s, c] == best)
            y[n, i, j, c] = best
            argmax[n, i, j, c] = first[0] * size + first[1]
    return y, argmax


def maxpool2d_backward(dy, argmax, x_shape, size, stride, padding="valid"):
    _, windows = _windows(x_shape, size, stride, padding)
    dx = np.zeros(x_shape)
    for n, i, j, taps in windows():
        for c in range(x_shape[3]):
            for u, v, r, s in taps:
                if u * size + v == argmax[n, i, j, c]:
                    dx[n, r, s, c] += dy[n, i, j, c]
    return dx


def avgpool2d_forward(x, size, stride, padding="valid"):
    outer, windows = _windows(x.shape, size, stride, padding)
    y = np.zeros((*outer, x.shape[3]))
    for n, i, j, taps in windows():
        for c in range(x.shape[3]):
            y[n, i, j, c] = sum(x[n, r, s, c] for _, _, r, s in taps) / len(taps)
    return y


def avgpool2d_backward(dy, x_shape, size, stride, padding="valid"):
    _, windows = _windows(x_shape, size, stride, padding)
    dx = np.zeros(x_shape)
    for n, i, j, taps in windows():
        for c in range(x_shape[3]):
            for _, _, r, s in taps:
                dx[n, r, s, c] += dy[n, i, j, c] / len(taps)
    return dx
