"""An involution with the kernels that it generates: the layer of Li et al., in named parts.

    p      = x, or for stride s the mean over each s x s cell of x
    h      = p @ reduce_weight + reduce_bias             C -> C / r channels, a 1x1 convolution
    t      = relu(gamma * (h - mean) * inv_std + beta)   batch normalisation and ReLU
    kernel = t @ span_weight + span_bias                 C / r -> G * K * K, a 1x1 convolution
    y      = involution(x, kernel)

The statistics need all of h before there is a kernel; from there on an image is done in one go, its
kernels made where they are used and never stored. Backward makes them again. One hidden channel
leaves so little to do that it has a module of its own, `narrow_involution`; the others go through
`wide_involution`.
"""

import numpy as np

from scratchnet.backends.cpu.avgpool2d import avgpool2d_backward, avgpool2d_forward
from scratchnet.backends.cpu.narrow_involution import (
    CHANNELS,
    narrow_involution_backward,
    narrow_involution_forward,
    narrow_statistics,
)
from scratchnet.backends.cpu.wide_involution import (
    wide_hidden,
    wide_involution_backward,
    wide_involution_forward,
    wide_statistics,
)
from scratchnet.checks import check_generated_involution, check_like, check_number


def generated_involution_forward(
    x: np.ndarray,
    reduce_weight: np.ndarray,
    reduce_bias: np.ndarray | None,
    gamma: np.ndarray,
    beta: np.ndarray,
    span_weight: np.ndarray,
    span_bias: np.ndarray,
    K: int,
    stride: int,
    dilation: int,
    eps: float,
    mean: np.ndarray | None = None,
    inv_std: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Generate a kernel from every pixel and sum the pixel's window with it.

    x               (N, H, W, C)            float32 or float64
    reduce_weight   (1, 1, C, C / r)        same dtype, as everything below
    reduce_bias     (C / r,) or None
    gamma, beta     (C / r,)
    span_weight     (1, 1, C / r, G * K * K)    output channel (g * K + u) * K + v
    span_bias       (G * K * K,)
    mean, inv_std   (C / r,): the running ones in evaluation; None takes the batch's own
    returns         y (N, ceil(H / stride), ceil(W / stride), C), mean, inv_std
    raises          ValueError, TypeError where shapes or dtypes do not fit
    """
    check_generated_involution(
        x, reduce_weight, reduce_bias, gamma, beta, span_weight, span_bias, K, stride, dilation,
        mean, inv_std,
    )  # fmt: skip
    if mean is None:
        check_number("generated_involution", "eps", eps, 0, above=True)
    x, span_bias = np.ascontiguousarray(x), np.ascontiguousarray(span_bias)
    parts = _matrices(reduce_weight, reduce_bias, span_weight)
    if _is_narrow(x, span_weight, K, stride):
        if mean is None:
            mean, inv_std = narrow_statistics(x, *parts[:2], eps)
        norm = np.array([mean, inv_std, gamma, beta])
        return narrow_involution_forward(x, norm, *parts, span_bias, K, dilation), mean, inv_std
    p = x if stride == 1 else avgpool2d_forward(x, stride, stride, "ceil")
    h = wide_hidden(p, *parts[:2])
    if mean is None:
        mean, inv_std = wide_statistics(h, p.shape[1] * p.shape[2], eps)
    norm = np.array([mean, inv_std, gamma, beta])
    y = wide_involution_forward(x, p, h, norm, parts[2], span_bias, K, stride, dilation)
    return y, mean, inv_std


def generated_involution_backward(
    dy: np.ndarray,
    x: np.ndarray,
    reduce_weight: np.ndarray,
    reduce_bias: np.ndarray | None,
    gamma: np.ndarray,
    beta: np.ndarray,
    span_weight: np.ndarray,
    span_bias: np.ndarray,
    mean: np.ndarray,
    inv_std: np.ndarray,
    K: int,
    stride: int,
    dilation: int,
    need_dx: bool = True,
) -> tuple[np.ndarray | None, ...]:
    """Walk the parts in reverse; the input's gradient comes back on two paths, which add up.

    The pixel was used twice: its window was summed (path 1), and its kernel was made from it
    (path 2). mean and inv_std are those of the batch, as forward returned them.

    dy like y  ->  dx like x (None where need_dx is False), dreduce_weight, dreduce_bias, dgamma,
                   dbeta, dspan_weight, dspan_bias, each like what it is the gradient of
    """
    geometry = check_generated_involution(
        x, reduce_weight, reduce_bias, gamma, beta, span_weight, span_bias, K, stride, dilation,
        mean, inv_std,
    )  # fmt: skip
    y_shape = (x.shape[0], geometry.Ho, geometry.Wo, x.shape[3])
    check_like("generated_involution", "dy", dy, y_shape, x.dtype)
    x, dy = np.ascontiguousarray(x), np.ascontiguousarray(dy)
    parts = _matrices(reduce_weight, reduce_bias, span_weight)
    norm = np.array([mean, inv_std, gamma, beta])
    if _is_narrow(x, span_weight, K, stride):
        dx, *gradients = narrow_involution_backward(
            dy, x, norm, *parts, span_bias, K, dilation, need_dx
        )
    else:
        p = x if stride == 1 else avgpool2d_forward(x, stride, stride, "ceil")
        h = wide_hidden(p, *parts[:2])
        dx, dp, *gradients = wide_involution_backward(
            dy, x, p, h, norm, parts[0], parts[2], span_bias, K, stride, dilation, need_dx
        )
        if need_dx and stride > 1:
            dx += avgpool2d_backward(dp, x.shape, stride, stride, "ceil")
    dreduce_weight, dreduce_bias, dgamma, dbeta, dspan_weight, dspan_bias = gradients
    return (
        dx,
        np.ascontiguousarray(dreduce_weight)[None, None],
        dreduce_bias,
        dgamma,
        dbeta,
        np.ascontiguousarray(dspan_weight)[None, None],
        dspan_bias,
    )


def _matrices(
    reduce_weight: np.ndarray, reduce_bias: np.ndarray | None, span_weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The 1x1 convolutions as matrices, with a bias of zeros where there is none."""
    if reduce_bias is None:
        reduce_bias = np.zeros(reduce_weight.shape[3], reduce_weight.dtype)
    return (
        np.ascontiguousarray(reduce_weight[0, 0]),
        np.ascontiguousarray(reduce_bias),
        np.ascontiguousarray(span_weight[0, 0]),
    )


def _is_narrow(x: np.ndarray, span_weight: np.ndarray, K: int, stride: int) -> bool:
    return span_weight.shape[2:] == (1, K * K) and x.shape[3] in CHANNELS and stride == 1
