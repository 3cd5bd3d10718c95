"""Optimizer steps, in place: one pass over a parameter's arrays, where array expressions take ten.

An array below PARALLEL elements is not worth waking a thread; most parameters of the report's
networks are that small.
"""

import numpy as np
from numba import njit, prange

from scratchnet.backends.cpu.loops import CHUNKS, SUMS, flat, piece
from scratchnet.checks import check_step, check_update

PARALLEL = 16384


def sgd_update(
    value: np.ndarray,
    grad: np.ndarray,
    velocity: np.ndarray,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    """One step of gradient descent with momentum; value and velocity change.

        g = grad + weight_decay * value
        velocity = momentum * velocity + g
        value   -= lr * (g + momentum * velocity if nesterov else velocity)

    value, grad, velocity   one shape and dtype
    """
    check_update("sgd_update", value, grad=grad, velocity=velocity)
    update = _sgd if value.size < PARALLEL else _sgd_parallel
    update(
        _in_place("sgd_update", "value", value),
        flat(grad),
        _in_place("sgd_update", "velocity", velocity),
        float(lr),
        float(momentum),
        bool(nesterov),
        float(weight_decay),
    )


@njit(cache=True, fastmath=SUMS)
def _sgd(value, grad, velocity, lr, momentum, nesterov, weight_decay):
    real = value.dtype.type
    lr, momentum, weight_decay = real(lr), real(momentum), real(weight_decay)
    for e in range(value.size):
        g = grad[e] + weight_decay * value[e]
        velocity[e] = momentum * velocity[e] + g
        value[e] -= lr * (g + momentum * velocity[e] if nesterov else velocity[e])


@njit(parallel=True, cache=True)
def _sgd_parallel(value, grad, velocity, lr, momentum, nesterov, weight_decay):
    for chunk in prange(CHUNKS):
        lo, hi = piece(value.size, chunk)
        _sgd(value[lo:hi], grad[lo:hi], velocity[lo:hi], lr, momentum, nesterov, weight_decay)


def adam_update(
    value: np.ndarray,
    grad: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """Step number `step` (from 1) of Adam, or of AdamW if decoupled; value, m and v change.

        g = grad (+ weight_decay * value, if not decoupled)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        value -= lr * (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
        value -= lr * weight_decay * value_before, if decoupled

    value, grad, m, v   one shape and dtype
    """
    check_update("adam_update", value, grad=grad, m=m, v=v)
    check_step("adam_update", step)
    update = _adam if value.size < PARALLEL else _adam_parallel
    update(
        _in_place("adam_update", "value", value),
        flat(grad),
        _in_place("adam_update", "m", m),
        _in_place("adam_update", "v", v),
        lr / (1 - beta1**step),
        float(beta1),
        float(beta2),
        1 / (1 - beta2**step),
        float(eps),
        0.0 if decoupled else float(weight_decay),
        1 - lr * weight_decay if decoupled else 1.0,
    )


@njit(cache=True, fastmath=SUMS)
def _adam(value, grad, m, v, lr, beta1, beta2, correction, eps, l2, shrink):
    """lr is already divided by 1 - beta1^step; correction is 1 / (1 - beta2^step)."""
    real = value.dtype.type
    lr, correction, eps, l2, shrink = real(lr), real(correction), real(eps), real(l2), real(shrink)
    keep1, keep2, new1, new2 = real(beta1), real(beta2), real(1 - beta1), real(1 - beta2)
    for e in range(value.size):
        g = grad[e] + l2 * value[e]
        m[e] = keep1 * m[e] + new1 * g
        v[e] = keep2 * v[e] + new2 * g * g
        value[e] = shrink * value[e] - lr * m[e] / (np.sqrt(v[e] * correction) + eps)


@njit(parallel=True, cache=True)
def _adam_parallel(value, grad, m, v, lr, beta1, beta2, correction, eps, l2, shrink):
    for chunk in prange(CHUNKS):
        lo, hi = piece(value.size, chunk)
        _adam(
            value[lo:hi], grad[lo:hi], m[lo:hi], v[lo:hi],
            lr, beta1, beta2, correction, eps, l2, shrink,
        )  # fmt: skip


def _in_place(update: str, name: str, array: np.ndarray) -> np.ndarray:
    """The array as (size,), sharing its memory."""
    flags = array.flags
    if not (flags.c_contiguous and flags.writeable):
        raise ValueError(
            f"{update}: {name} changes in place and must be C-contiguous and writeable"
        )
    return array.reshape(-1)
