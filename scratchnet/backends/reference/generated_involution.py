"""An involution with the kernels that it generates: the layer of Li et al., in named parts.

    p      = x, or for stride s the mean over each s x s cell of x
    h      = p @ reduce_weight + reduce_bias             C -> C / r channels, a 1x1 convolution
    t      = relu(gamma * (h - mean) * inv_std + beta)   batch normalisation and ReLU
    kernel = t @ span_weight + span_bias                 C / r -> G * K * K, a 1x1 convolution
    y      = involution(x, kernel)

Source: Li et al. 2021, "Involution", equation 6 and algorithm 1. A fast backend never stores the
kernels of a whole batch; nothing here is kept for backward but x and the two statistics.
"""

import numpy as np

from scratchnet.backends.reference.avgpool2d import avgpool2d_backward, avgpool2d_forward
from scratchnet.backends.reference.batchnorm import batchnorm_backward, batchnorm_forward
from scratchnet.backends.reference.channel_affine import channel_affine_forward
from scratchnet.backends.reference.dense import dense_backward, dense_forward
from scratchnet.backends.reference.involution import involution_backward, involution_forward
from scratchnet.backends.reference.relu import relu_backward, relu_forward
from scratchnet.checks import check_generated_involution


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
    p = x if stride == 1 else avgpool2d_forward(x, stride, stride, "ceil")
    h = dense_forward(p, reduce_weight[0, 0], reduce_bias)  # (N, Ho, Wo, C / r)
    if mean is None:
        z, mean, inv_std = batchnorm_forward(h, gamma, beta, eps)
    else:
        z = channel_affine_forward(h - mean, gamma * inv_std, beta)
    t = relu_forward(z)
    kernel = dense_forward(t, span_weight[0, 0], span_bias)  # (N, Ho, Wo, G * K * K)
    kernel = kernel.reshape(*kernel.shape[:3], -1, K, K)  # (N, Ho, Wo, G, K, K)
    return involution_forward(x, kernel, stride, dilation), mean, inv_std


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
    check_generated_involution(
        x, reduce_weight, reduce_bias, gamma, beta, span_weight, span_bias, K, stride, dilation,
        mean, inv_std,
    )  # fmt: skip
    p = x if stride == 1 else avgpool2d_forward(x, stride, stride, "ceil")
    h = dense_forward(p, reduce_weight[0, 0], reduce_bias)
    z = channel_affine_forward(h - mean, gamma * inv_std, beta)
    t = relu_forward(z)
    kernel = dense_forward(t, span_weight[0, 0], span_bias)
    kernel = kernel.reshape(*kernel.shape[:3], -1, K, K)

    dx_window, dkernel = involution_backward(dy, x, kernel, stride, dilation)
    dkernel = dkernel.reshape(*dkernel.shape[:3], -1)
    dt, dspan_weight, dspan_bias = dense_backward(dkernel, t, span_weight[0, 0])
    dz = relu_backward(dt, t)
    dh, dgamma, dbeta = batchnorm_backward(dz, h, gamma, mean, inv_std)
    dp, dreduce_weight, dreduce_bias = dense_backward(dh, p, reduce_weight[0, 0])
    dx_kernel = dp if stride == 1 else avgpool2d_backward(dp, x.shape, stride, stride, "ceil")
    return (
        dx_window + dx_kernel if need_dx else None,
        dreduce_weight[None, None],
        dreduce_bias,
        dgamma,
        dbeta,
        dspan_weight[None, None],
        dspan_bias,
    )
